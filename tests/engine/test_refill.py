"""Dynamic sampling: episodes in which steps drop samples are refilled by further rounds of prompts.

What is expected comes from :func:`plain_rounds`, a loop over single samples that knows no batches. That layouts and
resumed runs give the same bits is tested in ``test_refill_layouts.py``.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from engine_cases import rows, settings
from hypothesis import given
from hypothesis import strategies as st

import chatlearn
from chatlearn import BaseModule, ConfigError, DataError, Engine, Environment, Evaluator, Trainer
from chatlearn.config.schema import Config
from chatlearn.engine.refill import Refill
from chatlearn.flow.trace import trace
from chatlearn.modules.torch.optimization import num_train_steps
from chatlearn.types import SampleIds

RULES = {
    # what is dropped: groups without signal, all but a few groups, everything, samples out of groups, nothing
    "two of five groups": lambda sample, group: group % 5 in (1, 2),
    "every seventh group": lambda sample, group: group % 7 == 6,
    "a long stretch": lambda sample, group: not 3 <= group <= 11,
    "samples out of groups": lambda sample, group: sample % 3 != 1,
    "all but the first": lambda sample, group: group < 4,
    "nothing": lambda sample, group: True,
}


class Policy(BaseModule):
    """Records the samples that it is given."""

    def forward_step(self, data):
        toys.EVENTS.append(("drawn", *self.batch.sample_ids))
        return {"x": torch.tensor(self.batch.sample_ids)}

    eval_step = forward_step


class Judge(BaseModule):
    """Keeps samples by a rule of :data:`RULES`, which is named in the configuration."""

    @chatlearn.step(filters=True)
    def keep(self, data):
        rule = RULES.get(self.model_args["rule"], lambda sample, group: False)
        ids = zip(self.batch.sample_ids, self.batch.group_ids, strict=True)
        left = [row for row, (sample, group) in enumerate(ids) if rule(sample, group)]
        return {"kept": data["x"][left], "source_rows": left}

    @chatlearn.step(expands=3)
    def turns(self, data):
        return {"turn": torch.arange(3).repeat(len(data["x"]))}

    @chatlearn.step(filters=True)
    def keep_turns(self, data):
        left = [row for row, (x, turn) in enumerate(zip(data["x"], data["turn"], strict=True)) if turn < x % 3]
        return {"turn": data["turn"][left], "source_rows": left}


class Learner(BaseModule):
    """Records the samples of each global batch; the values have to belong to the ids."""

    def train_step(self, data, train_info):
        ids = [i for part in train_info["sample_ids"] for i in part]
        assert [int(x) for part in data for x in part["kept"]] == ids
        assert [int(x) for part in data for x in part["x"]] == ids
        toys.EVENTS.append(("trained", train_info["episode"], *ids))


def engine_of(folder: Path, rule: str, models: dict[str, Any] | None = None, **runtime: Any) -> Engine:
    sections = {"policy": {}, "judge": {"args": {"rule": rule}}, "learner": {}, **(models or {})}
    chatlearn.init({**settings(folder, **runtime), "models": sections})
    policy, judge, learner = Policy("policy"), Judge("judge"), Learner("learner")

    def env_flow(batch):
        out = policy.forward_step(batch)
        return out, judge.keep(out)

    engine = Engine(Environment(env_flow), Trainer(lambda batch: learner.train_step(batch)))
    return engine.set_dataset(list(range(1000)))


def plain_rounds(rule: str, *, episodes: int, target: int, most: int, size: int, group: int) -> list[dict[str, Any]]:
    """What each episode trains on, and what it logs."""
    position, found = 0, []
    for _ in range(episodes):
        begin, further = position, 0
        left: list[int] = []
        while True:
            for sample in range(position, position + (size if further else target)):
                if RULES[rule](sample, sample // group):
                    left.append(sample)
                position += 1
            if len(left) >= target or further == most:
                break
            further += 1
        trained: list[int] = []
        for _, members in groupby(left, key=lambda sample: sample // group):
            whole = list(members)
            if len(trained) + len(whole) > target:
                break
            trained += whole
        metrics = {
            "refill/rounds": further,
            "refill/dropped_samples": position - begin - len(left),
            "refill/surplus_samples": len(left) - len(trained),
            "num_samples": len(trained),
        }
        found.append({"trained": trained, "metrics": metrics})
    return found


SIZES = {
    # target, further rounds at most, size of these, group, generation batches of the policy and of the judge
    "rounds as large as the episode": (8, 5, None, 1, 4, 4),
    "small rounds": (12, 20, 2, 2, 4, 2),
    "large rounds, uneven batches": (6, 9, 21, 3, 9, 6),
    "one round is a group": (16, 40, 4, 4, 8, 4),
    "few rounds": (16, 2, 16, 4, 16, 4),
    "batches larger than rounds": (6, 3, 3, 1, 32, 5),
}


@pytest.mark.parametrize("loader", ["fixed", "dynamic"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_episodes_are_those_of_a_plain_loop_over_samples(tmp_path, rule, sizes, loader):
    target, most, size, group, policy_batch, judge_batch = SIZES[sizes]
    models = {
        "policy": {"generation_batch_size": policy_batch},
        "judge": {"args": {"rule": rule}, "generation_batch_size": judge_batch},
    }
    engine_of(
        tmp_path,
        rule,
        models,
        sample_per_episode=target,
        max_refill_rounds=most,
        refill_round_size=size,
        num_inference_per_prompt=group,
        train_global_batch_size=2 * group,
        train_micro_batch_size=1,
        stream_data_loader_type=loader,
    ).learn()
    expected = plain_rounds(rule, episodes=3, target=target, most=most, size=size or target, group=group)
    for number, (episode, row) in enumerate(zip(expected, rows(tmp_path), strict=True)):
        trained = [event[2:] for event in toys.EVENTS if event[:2] == ("trained", number)]
        assert [i for batch in trained for i in batch] == episode["trained"]
        assert all(len(batch) <= 2 * group for batch in trained)
        assert {key: row[key] for key in episode["metrics"]} == episode["metrics"]
    assert any(episode["metrics"]["refill/rounds"] for episode in expected) == (rule != "nothing")
    drawn = [i for event in toys.events("drawn") for i in event[1:]]
    assert drawn == list(range(len(drawn))), "no prompt is left out, and none comes twice"


def test_a_full_episode_has_as_many_train_steps_as_schedules_count_on(tmp_path):
    engine = engine_of(
        tmp_path,
        "two of five groups",
        sample_per_episode=16,
        num_inference_per_prompt=4,
        max_refill_rounds=9,
        generation_batch_size=8,
        train_global_batch_size=8,
        num_training_epoch=2,
    )
    engine.learn()
    assert rows(tmp_path)[-1]["global_batches"] == num_train_steps(engine.run.config.runtime) == 3 * 2 * 2


def test_without_further_rounds_an_episode_goes_on_with_fewer_samples(tmp_path):
    engine_of(tmp_path, "two of five groups", num_inference_per_prompt=2, sample_per_episode=20).learn()
    assert [row["num_samples"] for row in rows(tmp_path)] == [8, 8, 8]
    assert not any(key.startswith("refill/") for row in rows(tmp_path) for key in row)


def test_too_few_samples_after_the_last_round_are_noted_once_and_counted(tmp_path, capsys):
    engine_of(tmp_path, "every seventh group", sample_per_episode=8, refill_round_size=4, max_refill_rounds=2).learn()
    # 48 samples in three episodes of 8 + 4 + 4; 6, 13, 20, 27, 34, 41 are kept
    assert [row["num_samples"] for row in rows(tmp_path)] == [2, 2, 2]
    assert [row["refill/dropped_samples"] for row in rows(tmp_path)] == [14, 14, 14]
    assert [row["refill/rounds"] for row in rows(tmp_path)] == [2, 2, 2]
    notes = [line for line in capsys.readouterr().out.splitlines() if "max_refill_rounds" in line]
    assert len(notes) == 1
    assert "episode 1 has 2 samples instead of 8 after 2 further rounds" in notes[0]
    assert "judge.keep" in notes[0]
    assert "dropped 14 rows" in notes[0]


@pytest.mark.parametrize("loader", ["fixed", "dynamic"])
def test_a_later_episode_without_samples_is_passed_by_and_noted(tmp_path, capsys, loader):
    """A policy that masters its task gives groups without signal only; that must not end a long run in an error."""
    sizes = {"sample_per_episode": 4, "max_refill_rounds": 1, "refill_round_size": 2, "stream_data_loader_type": loader}
    engine_of(tmp_path, "all but the first", **sizes).learn()
    assert [row["num_samples"] for row in rows(tmp_path)] == [4, 0, 0]
    assert [row["refill/dropped_samples"] for row in rows(tmp_path)] == [0, 6, 6]
    notes = [line for line in capsys.readouterr().out.splitlines() if "has no samples" in line]
    assert len(notes) == 1
    assert "episode 2 has no samples after 2 rounds" in notes[0]
    assert "judge.keep" in notes[0]


def test_rounds_that_leave_nothing_at_all_are_an_error_that_names_the_step(tmp_path):
    engine = engine_of(tmp_path, "everything", max_refill_rounds=2, refill_round_size=6, num_inference_per_prompt=2)
    with pytest.raises(DataError) as caught:
        engine.learn()
    text = str(caught.value)
    for words in (
        "episode 1: the steps of env_flow",
        "have dropped all 16 samples of 3 rounds",
        "judge.keep (",
        "test_refill.py:",
        "dropped 16 rows",
        "no group had a signal",
        "runtime.num_inference_per_prompt",
        "runtime.max_refill_rounds, now 2",
    ):
        assert words in text
    assert not toys.events("trained")


def test_without_further_rounds_an_episode_may_be_empty(tmp_path):
    engine_of(tmp_path, "everything").learn()
    assert [row["num_samples"] for row in rows(tmp_path)] == [0, 0, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_that_were_made_of_one_sample_count_as_one(tmp_path, threads):
    """Sample x has x % 3 of its 3 turns left: none, one or two. Those with any count, whatever their number is."""
    chatlearn.init(
        {
            **settings(tmp_path, sample_per_episode=8, max_refill_rounds=4, refill_round_size=2, num_episode=2),
            "models": {"policy": {}, "judge": {"args": {}, "generation_batch_size": 6}, "learner": {}},
            "runtime_env": {"local_threads": threads},
        }
    )
    policy, judge, learner = Policy("policy"), Judge("judge"), Noting("learner")

    def env_flow(batch):
        out = policy.forward_step(batch)
        turns = judge.turns(out)
        return out, judge.keep_turns(out, turns)

    engine = Engine(Environment(env_flow), Trainer(lambda batch: learner.train_step(batch)))
    engine.set_dataset(list(range(100))).learn()
    trained, position, expected = [event[1:] for event in toys.events("row")], 0, []
    for _ in range(2):
        left = [x for x in range(position, position + 8) if x % 3]
        position += 8
        while len(left) < 8:
            left += [x for x in (position, position + 1) if x % 3]
            position += 2
        expected += [(x, turn) for x in left[:8] for turn in range(x % 3)]
    assert trained == expected
    assert [row["num_samples"] for row in rows(tmp_path)] == [12, 12]
    assert [row["refill/rounds"] for row in rows(tmp_path)] == [2, 2]


class Noting(BaseModule):
    def train_step(self, data, train_info):
        for part in data:
            toys.EVENTS.extend(("row", int(x), int(turn)) for x, turn in zip(part["x"], part["turn"], strict=True))


def test_each_round_is_sorted_by_length_for_itself(tmp_path):
    chatlearn.init(settings(tmp_path, data_rerank=True, data_shuffle=False, max_refill_rounds=3, num_episode=1))
    seen = []

    class Short(BaseModule):
        @chatlearn.step(filters=True)
        def keep(self, data):
            seen.append([len(prompt) for prompt in data["prompt"]])
            left = [row for row, prompt in enumerate(data["prompt"]) if len(prompt) < 4]
            return {"prompt": [data["prompt"][row] for row in left], "source_rows": left}

    short = Short("short")
    prompts = ["a" * length for length in (2, 7, 5, 9, 1, 8, 6, 3, 4, 3, 2, 9)]
    engine = Engine(Environment(lambda batch: short.keep(batch)))
    experience: list[Any] = []
    engine.add_callback("after_experience", lambda info: experience.extend(info.experience.experience))
    engine.set_dataset(prompts).learn()
    assert seen == [[9, 7], [5, 2], [8, 6], [3, 1], [9, 4], [3, 2]]
    # 2 | 3, 1 | 3, and one that is too many
    assert [i for part in experience for i in part.ids.sample_ids] == [0, 7, 4, 9]
    assert rows(tmp_path)[0]["refill/surplus_samples"] == 1


def test_an_evaluation_is_never_refilled_and_moves_no_position(tmp_path):
    records = []
    for interval in (0, 1):
        toys.EVENTS.clear()
        folder = tmp_path / str(interval)
        runtime = {"max_refill_rounds": 3, "num_inference_per_prompt": 2, "eval_episode_interval": interval}
        engine = engine_of(folder, "two of five groups", **runtime)
        policy, judge = (engine.environment.graph.modules[name] for name in ("policy", "judge"))

        def eval_flow(batch, policy=policy, judge=judge):
            return judge.keep(policy.eval_step(batch))

        engine.set_evaluator(Evaluator(eval_flow).set_dataset(list(range(10))))
        evaluation = engine.learn()
        if interval:
            kept = [int(x) for batch in evaluation.results for x in batch.get("kept", [])]
            assert kept == [1, 2, 6, 7]  # in an evaluation every sample is a group
            assert not any("refill" in key for key in evaluation.metrics)
        records.append((toys.events("trained"), [row["refill/rounds"] for row in rows(folder)]))
    assert records[0] == records[1]
    assert records[0][0]


def test_replayed_episodes_hold_what_was_kept(tmp_path):
    runtime = {"max_refill_rounds": 9, "max_replay_episode": 2, "num_episode": 2, "sample_per_episode": 6}
    engine_of(tmp_path, "two of five groups", **runtime).learn()
    first, second = (
        part["trained"] for part in plain_rounds("two of five groups", episodes=2, target=6, most=9, size=6, group=1)
    )
    trained = [[i for event in toys.EVENTS if event[:2] == ("trained", n) for i in event[2:]] for n in (0, 1)]
    assert trained == [first, first + second]


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ({"max_refill_rounds": 3}, "no step of env_flow filters, so nothing is ever refilled"),
        ({"refill_round_size": 4}, "runtime.max_refill_rounds is 0, so there are no further rounds"),
    ],
)
def test_settings_that_change_nothing_are_noted_before_the_start(tmp_path, runtime, words):
    chatlearn.init(settings(tmp_path, **runtime))
    policy = Policy("policy")

    def env_flow(batch):
        return policy.forward_step(batch)

    text = Engine(Environment(env_flow)).set_dataset([1, 2]).check()
    assert sum(words in line for line in text.splitlines()) == 1


def test_further_rounds_beside_a_step_that_filters_are_not_noted(tmp_path):
    assert "refill" not in engine_of(tmp_path, "nothing", max_refill_rounds=3, refill_round_size=4).check()


def test_sizes_of_rounds_are_checked_with_everything_else(tmp_path):
    with pytest.raises(ConfigError) as caught:
        chatlearn.init(settings(tmp_path, max_refill_rounds=-1, refill_round_size=0, num_episode=0))
    text = str(caught.value)
    for key in ("runtime.max_refill_rounds", "runtime.refill_round_size", "runtime.num_episode"):
        assert key in text
    engine = engine_of(tmp_path, "nothing", max_refill_rounds=1, refill_round_size=6, num_inference_per_prompt=4)
    with pytest.raises(ConfigError) as caught:
        engine.learn()
    text = str(caught.value)
    assert "runtime.refill_round_size" in text
    assert "is 6, but runtime.num_inference_per_prompt is 4" in text
    assert "set it to 8, or another multiple of 4" in text
    assert "runtime.generation_batch_size" in text


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=30),
    cuts=st.sets(st.integers(0, 30), max_size=6),
    target=st.integers(4, 40),
)
def test_what_is_kept_does_not_depend_on_the_batches_that_groups_come_in(sizes, cuts, target):
    """``sizes`` are those of the groups that are left; batches end after the groups whose numbers are in ``cuts``."""
    runtime = Config.model_validate({"runtime": {"sample_per_episode": target, "max_refill_rounds": 1}}).runtime
    refill = Refill(runtime, trace(lambda batch: Judge("judge").keep(batch)), 0)
    ends = [0, *sorted(cut for cut in cuts if 0 < cut < len(sizes)), len(sizes)]
    kept = []
    for begin, end in pairwise(ends):
        groups = tuple(group for group in range(begin, end) for _ in range(sizes[group]))
        kept += groups[: refill.keep(SampleIds(tuple(range(100 * begin, 100 * begin + len(groups))), groups))]
    total, whole = 0, []
    for group, size in enumerate(sizes):
        total += size
        whole += [group] * size if total <= target else []
    assert kept == whole


def test_training_on_arrival_begins_before_the_further_rounds(tmp_path):
    runtime = {"sample_per_episode": 8, "max_refill_rounds": 9, "train_global_batch_size": 2, "num_episode": 1}
    engine_of(tmp_path, "two of five groups", stream_data_loader_type="dynamic", **runtime).learn()
    # batches of 2; 1, 2, 6, 7 are kept of the first round, 11 and 12 of the second, 16 and 17 (and 21, 22) of the third
    names = [event[0] if event[0] == "drawn" else event[2:] for event in toys.EVENTS]
    first = ["drawn", "drawn", (1, 2), "drawn", "drawn", (6, 7)]
    assert names == [*first, "drawn", "drawn", "drawn", (11, 12), "drawn", "drawn", (16, 17), "drawn", "drawn", "drawn"]
    assert rows(tmp_path)[0]["refill/surplus_samples"] == 2
