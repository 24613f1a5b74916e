"""Refilled episodes have the same bits whatever carries them out, and after a run was killed in the middle of one.

Which samples an episode is made of is tested in ``test_refill.py``. Here the trained weights decide what is dropped, so
that one wrong bit or sample anywhere changes all that comes after.
"""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from engine_cases import rows, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer

EPISODES, TARGET, SIZE, GROUP = 4, 16, 8, 4


class Policy(BaseModule):
    """Acts by its weights and by noise of the sample, of the group's prompt, and of the call."""

    thread_safe = True

    def setup(self):
        self.model = torch.nn.Linear(2, 1)

    def forward_step(self, data):
        if toys.INTERRUPT.get("policy") in self.batch.sample_ids:
            raise KeyboardInterrupt
        prompts = torch.tensor(data["prompt"], dtype=torch.float32)
        noise = self.uniforms(self.batch.sample_ids, 1)[:, 0] - 0.5 + 0.01 * torch.rand(1, generator=self.generator)
        with torch.no_grad():
            action = self.model(torch.stack([torch.sin(prompts), noise], 1))[:, 0] + noise
        return {"prompt": data["prompt"], "noise": noise, "action": action}


class Judge(BaseModule):
    """Drops groups whose actions all have one sign, and one sample in ten of the others."""

    thread_safe = True

    @chatlearn.step(filters=True)
    def keep(self, data):
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(self.batch.group_ids):
            groups.setdefault(group, []).append(row)
        signed = [members for members in groups.values() if len({bool(data["action"][row] > 0) for row in members}) > 1]
        kept = [row for members in signed for row in members if self.batch.sample_ids[row] % 10]
        self.log("kept", len(kept), "sum")
        return {"reward": data["action"][kept].sign(), "source_rows": kept}


class Learner(BaseModule):
    """Its weights depend on each bit of what it gets, and on the order."""

    thread_safe = True

    def setup(self):
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)

    def train_step(self, data, train_info):
        self.optimizer.zero_grad()
        for part, ids in zip(data, train_info["sample_ids"], strict=True):
            prompts = torch.tensor(part["prompt"], dtype=torch.float32)
            output = self.model(torch.stack([torch.sin(prompts), part["noise"]], 1))[:, 0]
            (output - 0.3 * part["reward"]).square().sum().backward()
            toys.EVENTS.append(("ids", train_info["episode"], *ids))
        self.optimizer.step()
        toys.EVENTS.append(("weights", *(value.item() for p in self.model.parameters() for value in p.reshape(-1))))


def engine_of(
    folder: Path, *, replicas: int = 1, threads: int = 1, isolate: bool = False, loader: str = "fixed", **runtime: Any
) -> Engine:
    sizes = {
        "num_episode": EPISODES,
        "sample_per_episode": TARGET,
        "max_refill_rounds": 6,
        "refill_round_size": SIZE,
        "num_inference_per_prompt": GROUP,
        "generation_batch_size": 4,
        "train_global_batch_size": 8,
        "num_training_epoch": 2,
        "stream_data_loader_type": loader,
        "log_samples": "all",
        "seed": 3,
    }
    models = {
        "policy": {"num_replica": replicas},
        "judge": {"num_replica": replicas, "generation_batch_size": 8},
        "learner": {},
    }
    chatlearn.init(
        {
            **settings(folder, **{**sizes, **runtime}),
            "models": models,
            "runtime_env": {"local_threads": threads, "isolate": isolate},
        }
    )
    policy, judge, learner = Policy("policy"), Judge("judge"), Learner("learner")

    def env_flow(batch):
        out = policy.forward_step(batch)
        return out, judge.keep(out)

    engine = Engine(Environment(env_flow), Trainer(lambda batch: learner.train_step(batch)))
    return engine.set_parameter_sync(learner, policy).set_dataset(list(range(50)))


def record(folder: Path) -> dict[str, Any]:
    """What a run leaves behind that does not depend on the time that it took."""
    samples = {path.name: path.read_text() for path in sorted((folder / "run" / "samples").iterdir())}
    metrics = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows(folder)]
    return {"events": list(toys.EVENTS), "metrics": metrics, "samples": samples}


@pytest.mark.parametrize("isolate", [False, True])
def test_replicas_threads_and_loader_change_no_bit(tmp_path, isolate):
    records = []
    for replicas, threads, loader in itertools.product((1, 2, 3), (1, 3), ("fixed", "dynamic")):
        toys.EVENTS.clear()
        folder = tmp_path / f"{replicas}-{threads}-{loader}"
        engine = engine_of(folder, replicas=replicas, threads=threads, isolate=isolate, loader=loader)
        engine.learn()
        engine.stop()
        records.append(record(folder))
    metrics = records[0]["metrics"]
    assert len({row["refill/rounds"] for row in metrics}) > 1, "the number of rounds depends on the weights"
    assert sum(row["refill/surplus_samples"] for row in metrics) > 0
    assert all(TARGET - GROUP < row["num_samples"] <= TARGET for row in metrics)
    assert all(other == records[0] for other in records)


def further_rounds(folder: Path) -> list[range]:
    """The positions of each further round of a run, by what its metrics say."""
    position, found = 0, []
    for row in rows(folder):
        position += TARGET
        for _ in range(int(row["refill/rounds"])):
            found.append(range(position, position + SIZE))
            position += SIZE
    return found


@pytest.mark.parametrize("loader", ["fixed", "dynamic"])
def test_a_run_that_was_killed_inside_any_further_round_ends_like_one_that_was_not(tmp_path, loader):
    engine_of(tmp_path / "whole", save_episode_interval=1).learn()
    whole, weights = record(tmp_path / "whole"), toys.events("weights")
    found = further_rounds(tmp_path / "whole")
    assert len({row["refill/rounds"] for row in rows(tmp_path / "whole")[1:]}) > 1, "rounds depend on what was learned"
    for number, positions in enumerate(found):
        folder = tmp_path / str(number)
        toys.INTERRUPT["policy"] = positions[-1]
        with pytest.raises(KeyboardInterrupt):
            engine_of(folder, loader=loader, save_episode_interval=1).learn()
        toys.INTERRUPT.clear()
        toys.EVENTS.clear()
        layout = {"replicas": 1 + number % 3, "threads": 1 + number % 2, "loader": loader}
        engine = engine_of(folder, **layout, save_episode_interval=1, resume="auto")
        engine.learn()
        engine.stop()
        resumed = record(folder)
        assert resumed["metrics"] == whole["metrics"]
        assert resumed["samples"] == whole["samples"]
        begin = len(weights) - len(toys.events("weights"))
        assert toys.events("weights") == weights[begin:]
        assert toys.events("weights")


def test_other_rounds_are_no_way_to_go_on(tmp_path):
    engine = engine_of(tmp_path, save_episode_interval=1)
    engine.add_callback("after_save", lambda info: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        engine.learn()
    for changed in ({"max_refill_rounds": 5}, {"refill_round_size": 12}):
        with pytest.raises(chatlearn.CheckpointError, match=next(iter(changed))):
            engine_of(tmp_path, save_episode_interval=1, resume="auto", **changed).learn()


def test_errors_of_steps_name_the_round(tmp_path):
    class Failing(Policy):
        def forward_step(self, data):
            if max(self.batch.sample_ids) >= TARGET + SIZE:
                raise ValueError("the sampler is out")
            return super().forward_step(data)

    engine_of(tmp_path)
    policy, judge = Failing("policy"), Judge("judge")

    def env_flow(batch):
        out = policy.forward_step(batch)
        return out, judge.keep(out)

    with pytest.raises(chatlearn.StepError, match=r"episode 1, further round 2, batch 6"):
        Engine(Environment(env_flow)).set_dataset(list(range(50))).learn()
