"""A run that is resumed has the state of modules that nobody trains, bit for bit that of the undisturbed run."""

from __future__ import annotations

import pytest
import torch
from engine_cases import Learner, Source, rows, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer


class Watched(Source):
    """Logs its model's weight and its target's as each episode sees them; both begin at 0."""

    def setup(self):
        self.model, self.target = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
        for part in (self.model, self.target):
            torch.nn.init.zeros_(part.weight)

    def forward_step(self, data):
        self.log("model", self.model.weight.item())
        self.log("target", self.target.weight.item())
        return super().forward_step(data)


class Nudged(Watched):
    """Changes the model that it got by sync."""

    def after_episode(self):
        with torch.no_grad():
            self.model.weight += 10


class Averaged(Watched):
    """Changes its target in the usual way of averages of weights, which leaves no trace in the version."""

    def after_episode(self):
        self.target.weight.data.add_(10)


class ByNumpy(Watched):
    """Changes its target through a view of numpy's, before an episode."""

    def before_episode(self):
        self.target.weight.detach().numpy()[:] += 10


class Counting(Watched):
    """Changes its target in a step."""

    stateful = True

    def forward_step(self, data):
        output = super().forward_step(data)
        self.target.weight.data.add_(10)
        return output


class Decaying(Learner):
    """Changes the trained weights after they were synced."""

    def after_episode(self):
        self.model.weight.data.add_(0.5)


CASES = {
    # the learner's weight is 1, 2, … after each episode; the follower gets it by sync and adds 10 after that
    "synced model": (Nudged, Learner, 1, "model", [0, 11, 12, 13, 14]),
    # syncs after episodes 2 and 4 only: 0, +10, sync 2 and +10, +10, sync 4 and +10
    "synced model, every second episode": (Nudged, Learner, 2, "model", [0, 10, 12, 22, 14]),
    # the learner: 1 (synced), 1.5, 2.5 (synced), 3, 4 (synced), 4.5, 5.5 (synced)
    "source of the sync": (Watched, Decaying, 1, "model", [0, 1, 2.5, 4, 5.5]),
    "average": (Averaged, Learner, 1, "target", [0, 10, 20, 30, 40]),
    "average without a sync": (Averaged, Learner, None, "target", [0, 10, 20, 30, 40]),
    "through numpy": (ByNumpy, Learner, 1, "target", [10, 20, 30, 40, 50]),
    # two batches an episode: the mean of what they see is 5 more than at the episode's begin
    "stateful": (Counting, Learner, 1, "target", [5, 25, 45, 65, 85]),
}


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_state_that_modules_change_themselves_survives_a_resume(tmp_path, case, stop):
    kind, source, frequency, name, expected = CASES[case]

    def run(folder, **runtime):
        chatlearn.init(settings(folder, num_episode=5, save_episode_interval=1, **runtime))
        follower, learner = kind("follower"), source("learner")
        environment = Environment(lambda batch: follower.forward_step(batch))
        engine = Engine(environment, Trainer(lambda batch: learner.train_step(batch))).set_dataset(list(range(10)))
        return engine if frequency is None else engine.set_parameter_sync(learner, follower, frequency=frequency)

    run(tmp_path / "whole").learn()
    broken = run(tmp_path / "broken")

    def interrupt(info):
        if info.episode == stop:
            raise KeyboardInterrupt

    broken.add_callback("after_train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        broken.learn()
    run(tmp_path / "broken", resume="auto").learn()
    for folder in ("whole", "broken"):
        assert [row[f"follower/{name}"] for row in rows(tmp_path / folder)] == expected
    whole, broken = ([_numbers(row) for row in rows(tmp_path / folder)] for folder in ("whole", "broken"))
    assert whole == broken


def _numbers(row):
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def test_a_model_that_only_the_sync_changes_is_not_written(tmp_path):
    class Following(Source):
        def setup(self):
            self.model = torch.nn.Linear(1, 1, bias=False)

    chatlearn.init(settings(tmp_path, num_episode=2, save_episode_interval=1))
    kinds = {"following": Following, "nudged": Nudged}
    modules = {name: kind(name) for name, kind in kinds.items()}
    learner = Learner("learner")

    def flow(batch):
        return modules["following"].forward_step(batch), modules["nudged"].forward_step(batch)

    engine = Engine(Environment(flow), Trainer(lambda batch: learner.train_step(batch))).set_dataset(list(range(10)))
    for module in modules.values():
        engine.set_parameter_sync(learner, module)
    engine.learn()
    files = (tmp_path / "run" / "checkpoints" / "episode-000002").glob("*.state.json")
    assert {path.name.split(".")[0] for path in files} == {"learner", "nudged"}


class Vectors(BaseModule):
    """Four numbers per prompt."""

    def build_dataset(self, prompts):
        return [{"x": torch.tensor([p, p % 3, p % 5, 1.0]) / 7, "a": torch.tensor(float(p))} for p in prompts]

    def forward_step(self, data):
        return data


class Regression(BaseModule):
    """A matrix product per micro-batch; logs a sum over its weights."""

    def setup(self):
        self.model = torch.nn.Linear(4, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def train_step(self, data, train_info):
        for micro in data:
            self.model(micro["x"]).tanh().pow(2).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.log("weights", self.model.weight.detach().double().sum(), "max")
        for micro in data:
            self.log("misaligned", micro["x"].untyped_storage().data_ptr() % 64, "max")


def test_replayed_experience_of_a_resumed_run_gives_the_same_bits(tmp_path):
    """Tensors that come from a file lie as those that were computed, since products of matrices depend on it."""

    def run(folder, **runtime):
        sizes = {"sample_per_episode": 9, "generation_batch_size": 3}
        sizes |= {"train_micro_batch_size": 3, "train_global_batch_size": 3}
        runtime = {**sizes, "num_episode": 6, "save_episode_interval": 1, "max_replay_episode": 3, **runtime}
        chatlearn.init(settings(folder, **runtime))
        vectors, regression = Vectors("vectors"), Regression("regression")
        environment = Environment(lambda batch: vectors.forward_step(batch))
        trainer = Trainer(lambda batch: regression.train_step(batch))
        return Engine(environment, trainer).set_dataset(list(range(40)))

    run(tmp_path / "whole").learn()
    broken = run(tmp_path / "broken")

    def interrupt(info):
        if info.episode == 3:
            raise KeyboardInterrupt

    broken.add_callback("before_episode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        broken.learn()
    run(tmp_path / "broken", resume="auto").learn()
    whole, broken = ([_numbers(row) for row in rows(tmp_path / folder)] for folder in ("whole", "broken"))
    assert whole == broken
    assert {row["regression/misaligned"] for row in broken} == {0.0}
