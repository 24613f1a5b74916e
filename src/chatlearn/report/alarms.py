"""What somebody should look at in a run: signs of trouble that its metrics show.

Levels are rules of thumb. For the mismatch between sampler and trainer: bf16 rollout engines show a mean k3 of about
1e-3 in healthy runs (the test suites of NeMo RL ask for less than 1e-3 to 2e-3 of dense models, 1e-2 at most), runs
that collapse go from there to 1 (Qi et al. 2025, "Defeating the Training-Inference Mismatch via FP16", fig. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chatlearn.report.charts import number
from chatlearn.report.run import Points, RunData

MISMATCH_KL_LEVELS = (1e-3, 1e-2)
"""Warning, alarm: mean k3 estimate per token of the KL between sampler and trainer."""

MISMATCH_MAX_LEVEL = math.log(10)
"""Warning: a token whose probabilities differ by a factor of ten; rounding does not do that to a likely token."""

ENTROPY_SHARE = 0.1
"""Warning: what is left of the entropy that a run began with."""

CLIP_FRAC_LEVEL = 0.3
"""Warning: share of tokens at the clip bound."""

SIGNAL_LEVEL = 0.1
"""Warning: share of groups whose rewards differ; none at all is an alarm."""

UNFINISHED_LEVEL = 0.3
"""Warning: share of responses that were cut off."""

SOLVED_ACCURACY = 0.95
"""From here on little entropy and few groups with signal are what success looks like."""

RECENT = 5
"""Episodes whose mean is "now"."""

_FEWEST = 3
"""Episodes that a judgement about "now" needs."""


@dataclass(frozen=True)
class Alarm:
    """One thing to look at.

    Attributes:
        level: ``alarm`` where the numbers of the run can't be trusted or nothing is learned, else ``warning``.
        text: what was seen where, and what to do.
    """

    level: Literal["alarm", "warning"]
    text: str


def find_alarms(run: RunData) -> list[Alarm]:
    """All alarms of a run, then its warnings."""
    found = [alarm for rule in _RULES for alarm in rule(run)]
    return sorted(found, key=lambda alarm: alarm.level)  # "alarm" before "warning"


def alarm_lines(run: Path) -> list[str]:
    """The alarms and warnings about a run, each as one line of text.

    Args:
        run: the run's folder.

    Raises:
        CheckpointError: ``run`` is not the folder of a run.
    """
    return [f"{alarm.level}: {' '.join(alarm.text.split())}" for alarm in find_alarms(RunData(run))]


def _not_finite(run: RunData) -> Iterator[Alarm]:
    for name in ("loss", "grad_norm", "mismatch_kl", "mismatch_max"):
        for label, points in run.ending_in(name).items():
            bad = [episode for episode, value in points if not math.isfinite(value)]
            if bad:
                where = f"in {len(bad)} of {len(points)} episodes, first in episode {bad[0]:.0f}"
                yield Alarm("alarm", f"{label} is NaN or infinite {where}. What comes after it is not to be trusted.")


def _mismatch(run: RunData) -> Iterator[Alarm]:
    warning, alarm = MISMATCH_KL_LEVELS
    for label, points in run.ending_in("mismatch_kl").items():
        if above := _above(points, warning):
            peak = max(value for _, value in above)
            yield Alarm(
                "alarm" if peak > alarm else "warning",
                f"{label} reached {_peak(above, points)}: sampler and trainer disagree about the probabilities of "
                f"the same tokens (warning above {number(warning)}, alarm above {number(alarm)}). Usual causes are "
                "temperature and other sampling arguments, precision, or weights that are not in step; importance "
                "weights correct for what is left.",
            )
    for label, points in run.ending_in("mismatch_max").items():
        if above := _above(points, MISMATCH_MAX_LEVEL):
            yield Alarm(
                "warning",
                f"{label} reached {_peak(above, points)}: for some token sampler and trainer differ by more than a "
                f"factor of 10 (a difference of {number(MISMATCH_MAX_LEVEL)} in log-probability). If mismatch_kl is "
                "small, it is a rare token; else look for a wrong mask, an offset by one token or old weights.",
            )


def _entropy(run: RunData) -> Iterator[Alarm]:
    for label, points in run.ending_in("entropy").items():
        values = _finite(points)
        if len(values) < 2 * RECENT or _is_solved(run):
            continue
        first, now = _mean(values[:RECENT]), _mean(values[-RECENT:])
        if now < ENTROPY_SHARE * first:
            yield Alarm(
                "warning",
                f"{label} fell from {number(first)} to {number(now)} (warning below {ENTROPY_SHARE:.0%} of the start): "
                "responses to a prompt are nearly the same, so there is little left to learn from. A higher "
                "clip_high, an entropy bonus, a KL to the reference or a smaller learning rate keep entropy up.",
            )
            return  # the sampler's and the trainer's entropy say the same


def _signal(run: RunData) -> Iterator[Alarm]:
    for label, points in run.ending_in("signal").items():
        now = _recent(points)
        if now is None or now >= SIGNAL_LEVEL or _is_solved(run):
            continue
        advice = "Prompts are too hard or too easy for the policy: take others, or more samples per prompt."
        if now == 0:
            yield Alarm("alarm", f"{label} is 0: no group's rewards differ any more, so nothing is learned. {advice}")
        else:
            seen = f"{label} is {number(now)} (warning below {number(SIGNAL_LEVEL)})"
            yield Alarm("warning", f"{seen}: most groups have equal rewards, and teach nothing. {advice}")


def _clipping(run: RunData) -> Iterator[Alarm]:
    for label, points in run.ending_in("clip_frac").items():
        now = _recent(points)
        if now is not None and now > CLIP_FRAC_LEVEL:
            yield Alarm(
                "warning",
                f"{label} is {number(now)} (warning above {number(CLIP_FRAC_LEVEL)}): the policy moves so far within "
                "an episode that much of the gradient is cut off. Take a smaller learning rate or fewer updates.",
            )


def _unfinished(run: RunData) -> Iterator[Alarm]:
    shares = {label: _recent(points) for label, points in run.ending_in("finished").items()}
    if not shares:
        logged = [number for episode in run.logged[-RECENT:] for number in episode.finished]
        shares = {"finished (of logged samples)": _mean(logged) if len(logged) >= _FEWEST else None}
    for label, share in shares.items():
        if share is not None and 1 - share > UNFINISHED_LEVEL:
            yield Alarm(
                "warning",
                f"{label} is {number(share)}: {1 - share:.0%} of the responses are cut off (warning above "
                f"{UNFINISHED_LEVEL:.0%}). Allow longer responses, or reward short ones.",
            )


_RULES: Sequence[Callable[[RunData], Iterator[Alarm]]] = (
    _not_finite,
    _mismatch,
    _signal,
    _entropy,
    _clipping,
    _unfinished,
)


def _above(points: Points, level: float) -> Points:
    return [(episode, value) for episode, value in points if value > level]


def _peak(above: Points, points: Points) -> str:
    """The highest value, how often such values came, and the last value."""
    episode, highest = max(above, key=lambda point: point[1])
    counts = f"above the level in {len(above)} of {len(points)} episodes, last {number(points[-1][1])}"
    return f"{number(highest)} in episode {episode:.0f} ({counts})"


def _is_solved(run: RunData) -> bool:
    """Whether some accuracy says that the task is done."""
    return any((_recent(points) or 0) >= SOLVED_ACCURACY for points in run.ending_in("accuracy").values())


def _recent(points: Points) -> float | None:
    """The mean of the last episodes; nothing where there are too few."""
    values = _finite(points)[-RECENT:]
    return _mean(values) if len(values) >= _FEWEST else None


def _finite(points: Points) -> list[float]:
    return [value for _, value in points if math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
