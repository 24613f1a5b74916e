"""Calls that overlap: the schedule of an episode with threads, and that no number depends on it."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer

SLEEP = 0.05


class Clock:
    """Start and end of every call, taken inside of the steps."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float, int]] = []

    def __deepcopy__(self, memo: object) -> Clock:
        return self  # constructor arguments are copied per replica; the record is one

    def record(self, name: str, start: float) -> None:
        self.calls.append((name, start, time.perf_counter(), threading.get_ident()))

    def of(self, name: str) -> list[tuple[str, float, float, int]]:
        return [call for call in self.calls if call[0] == name]


class Sleeper(BaseModule):
    thread_safe = True

    def __init__(self, name, clock, seconds=SLEEP):
        self.clock, self.seconds = clock, seconds

    def forward_step(self, data):
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.clock.record(self.name, start)
        return {**data, self.name: self.uniforms(self.batch.sample_ids, 1)}

    def train_step(self, data, train_info):
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.clock.record(self.name, start)


class UnsafeSleeper(Sleeper):
    thread_safe = False


def run(tmp_path, flow, train, *, threads, loader, samples=32, models=None, episodes=1):
    chatlearn.init(
        {
            "runtime_env": {"local_threads": threads},
            "models": models or {},
            "runtime": {
                "num_episode": episodes,
                "sample_per_episode": samples,
                "generation_batch_size": 4,
                "train_micro_batch_size": 4,
                "train_global_batch_size": 8,
                "stream_data_loader_type": loader,
                "output_dir": str(tmp_path),
            },
        }
    )
    engine = Engine(Environment(flow), Trainer(train)).set_dataset(list(range(100)))
    engine.learn()
    engine.stop()
    return engine


def pipeline(clock, cls=Sleeper):
    first, second, trainer = cls("first", clock), cls("second", clock), cls("trainer", clock)

    def flow(batch):
        return second.forward_step(first.forward_step(batch))

    def train(batch):
        trainer.train_step(batch)

    return flow, train


def span(calls):
    return max(end for _, _, end, _ in calls) - min(start for _, start, _, _ in calls)


@pytest.mark.parametrize(
    ("threads", "loader", "units"),
    [
        (1, "fixed", 8 + 8 + 4),  # everything in turn
        (4, "fixed", 8 + 1 + 4),  # two stages overlap; then four training batches
        (4, "dynamic", 8 + 1 + 1),  # training goes along; only the last batch comes after
    ],
)
def test_the_wall_time_is_that_of_the_schedule_on_paper(tmp_path, threads, loader, units):
    """8 batches through two stages of one unit each, then 4 global batches of one unit. Timed with a wide margin: the
    benchmark measures within 10 %.
    """
    clock = Clock()
    run(tmp_path, *pipeline(clock), threads=threads, loader=loader)
    assert units * SLEEP <= span(clock.calls) < (units + 2.5) * SLEEP


def test_training_begins_before_the_last_rollout_ends(tmp_path):
    clock = Clock()
    run(tmp_path, *pipeline(clock), threads=4, loader="dynamic")
    first_training = min(start for _, start, _, _ in clock.of("trainer"))
    assert first_training < max(end for _, _, end, _ in clock.of("second"))


def test_fixed_waits_for_the_last_rollout(tmp_path):
    clock = Clock()
    run(tmp_path, *pipeline(clock), threads=4, loader="fixed")
    first_training = min(start for _, start, _, _ in clock.of("trainer"))
    assert first_training >= max(end for _, _, end, _ in clock.of("second"))


def test_modules_that_are_not_thread_safe_stay_on_the_drivers_thread(tmp_path):
    clock = Clock()
    run(tmp_path, *pipeline(clock, UnsafeSleeper), threads=4, loader="dynamic")
    assert {ident for *_, ident in clock.calls} == {threading.get_ident()}


def test_a_module_in_both_flows_makes_training_wait_with_a_note(tmp_path, capsys):
    clock = Clock()
    shared, second = Sleeper("shared", clock, 0.01), Sleeper("second", clock, 0.01)

    def flow(batch):
        return second.forward_step(shared.forward_step(batch))

    def train(batch):
        shared.train_step(batch)

    run(tmp_path, flow, train, threads=3, loader="dynamic")
    assert "shared is in the environment's and in the trainer's flow" in capsys.readouterr().out
    forward, training = clock.of("shared")[:8], clock.of("shared")[8:]
    assert max(end for _, _, end, _ in forward) <= min(start for _, start, _, _ in training)


def test_replicas_share_the_batches(tmp_path):
    clock = Clock()
    models = {"first": {"num_replica": 3}, "second": {"num_replica": 3}, "trainer": {}}
    run(tmp_path, *pipeline(clock), threads=6, loader="dynamic", models=models, samples=48)
    # 12 batches: 4 rounds of three, the second stage one round behind; training takes 6 units, the first after 2
    assert span(clock.calls) < (2 + 6 + 2.5) * SLEEP


class Learner(BaseModule):
    """A trainer whose weights depend on every bit and on the order of what it gets."""

    thread_safe = True

    def setup(self):
        self.model = torch.nn.Linear(1, 1)
        self.trained = []

    def train_step(self, data, train_info):
        with torch.no_grad():
            for micro, ids in zip(data, train_info["sample_ids"], strict=True):
                self.trained += ids
                self.model.weight.mul_(0.9).add_((micro["first"] * micro["second"]).sum())
                self.model.bias.add_(torch.randn(1, generator=self.generator))

    def state_dict(self):
        return {"model": self.model.state_dict(), "trained": self.trained}


def _state(module):
    return module.model.weight.item(), module.model.bias.item(), list(module.trained)


@pytest.mark.parametrize("isolate", [False, True])
def test_threads_replicas_and_loader_change_no_bit(tmp_path, isolate):
    results = []
    for threads in (1, 3):
        for replicas in (1, 3):
            for loader in ("fixed", "dynamic"):
                clock = Clock()
                first, second = Sleeper("first", clock, 0.0), Sleeper("second", clock, 0.0)
                learner = Learner("learner")

                def flow(batch, first=first, second=second):
                    return second.forward_step(first.forward_step(batch))

                def train(batch, learner=learner):
                    learner.train_step(batch)

                chatlearn.init(
                    {
                        "runtime_env": {"local_threads": threads, "isolate": isolate},
                        "models": {
                            "first": {"num_replica": replicas},
                            "second": {"num_replica": replicas, "generation_batch_size": 3},
                            "learner": {},
                        },
                        "runtime": {
                            "num_episode": 3,
                            "sample_per_episode": 35,
                            "num_training_epoch": 2,
                            "generation_batch_size": 4,
                            "train_micro_batch_size": 4,
                            "train_global_batch_size": 8,
                            "stream_data_loader_type": loader,
                            "output_dir": str(tmp_path),
                        },
                    }
                )
                engine = Engine(Environment(flow), Trainer(train)).set_dataset(list(range(100)))
                engine.learn()
                results.append(engine._deployed.apply_first("learner", _state))
                engine.stop()
    assert len(results[0][2]) == 3 * 35 * 2
    assert all(result == results[0] for result in results)


class Failing(BaseModule):
    thread_safe = True

    def forward_step(self, data):
        raise ValueError("the judge is out")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_on_a_thread_comes_out_as_everywhere(tmp_path, threads):
    clock = Clock()
    failing, trainer = Failing("failing"), Sleeper("trainer", clock, 0.0)

    def flow(batch):
        return failing.forward_step(batch)

    def train(batch):
        trainer.train_step(batch)

    with pytest.raises(chatlearn.StepError, match=r"(?s)the judge is out.*failing\[0\]\.forward_step.*episode 1"):
        run(tmp_path, flow, train, threads=threads, loader="dynamic")
    assert not [t for t in threading.enumerate() if t.name.startswith("chatlearn")]
