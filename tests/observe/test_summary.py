from __future__ import annotations

import math

from chatlearn.observe.summary import phase_seconds, summary_table

ROW = {
    "episode": 3,
    "policy/kl": 0.0123456,
    "eval/reward/accuracy": 0.75,
    "learner/loss": None,
    "non_finite": {"learner/loss": "inf"},
    "num_samples": 64,
    "time/experience_seconds": 1.5,
    "time/train_seconds": 0.5,
    "time/episode_seconds": 2.0,
    "time/samples_per_second": 32.0,
}


def test_a_row_as_text() -> None:
    assert summary_table(ROW).splitlines() == [
        "episode 3",
        "  learner/loss          inf",
        "  policy/kl             0.01235",
        "  eval/reward/accuracy  0.75",
        "  num_samples           64",
        "  experience time     1.500 s   75%",
        "  train time          0.500 s   25%",
        "  episode time        2.000 s",
        "  samples per second  32.0",
    ]


def test_rows_with_little_in_them() -> None:
    assert summary_table({}) == "episode"
    assert summary_table({"a/b": math.nan}).splitlines() == ["episode", "  a/b  nan"]
    assert summary_table({"time/episode_seconds": 0.0}) == "episode"


def test_phases() -> None:
    assert phase_seconds(ROW) == {"experience": 1.5, "train": 0.5}
