"""Every form of a flow, run by an engine, gives the numbers of a plain evaluation of the same Python function.

The same flow is built twice: over modules, for the engine, and over objects of plain Python whose methods hold the same
arithmetic, which are just called. Nothing that chatlearn traces or runs takes part in the second. Batches have
different sizes on the way: 4 or 3 samples where experience is made, 6 per global batch, 3 per micro-batch, with smaller
ones at the end of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from flow.flow_forms import FORMS, TRAINER_FORMS, Form, PlainToy, Toy, toy_modules

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, Trainer

PROMPTS = [{"x": float(3 * i * i - 20), "extra": float(7 - i)} for i in range(7)]
EPISODES, PER_EPISODE = 2, 10
GENERATION_BATCH, GLOBAL_BATCH, MICRO_BATCH = 4, 6, 3

THREADS_AND_REPLICAS = [(1, 1), (1, 3), (3, 1), (3, 3)]

Samples = dict[int, dict[str, float]]
"""Sample id -> its values."""


def every_form(forms: list[Form]) -> Any:
    return pytest.mark.parametrize("form", forms, ids=lambda form: form.name)


on_any_layout = pytest.mark.parametrize(("threads", "replicas"), THREADS_AND_REPLICAS)


def init(folder: Path, threads: int, replicas: int, trained: tuple[str, ...] = (), **env: Any) -> None:
    """One configuration for all forms; trained modules have one replica."""
    names = ("policy", "reference", "reward", "value")
    models: dict[str, Any] = {name: {"num_replica": 1 if name in trained else replicas} for name in names}
    models["reward"]["generation_batch_size"] = 3
    runtime = {
        "num_episode": EPISODES,
        "sample_per_episode": PER_EPISODE,
        "generation_batch_size": GENERATION_BATCH,
        "train_global_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size": MICRO_BATCH,
        "data_shuffle": False,
        "stream_data_loader_type": "dynamic" if threads > 1 else "fixed",
    }
    runtime_env = {"local_threads": threads, **env}
    models |= {"recorder": {}, "source": {}}
    chatlearn.init({**toys.settings(folder, **runtime), "models": models, "runtime_env": runtime_env})


# -- the plain evaluation ----------------------------------------


def plain_batch(start: int, stop: int) -> dict[str, torch.Tensor]:
    """The samples ``start`` to ``stop`` of the run: the prompts in order, over and over."""
    chosen = [PROMPTS[i % len(PROMPTS)] for i in range(start, stop)]
    return {key: torch.tensor([prompt[key] for prompt in chosen], dtype=torch.float64) for key in PROMPTS[0]}


def results(returned: Any) -> list[Any]:
    """What a flow returned as a list of values, labels of a dict left off; a dict of tensors is itself a value."""
    if isinstance(returned, dict) and not isinstance(next(iter(returned.values())), torch.Tensor):
        return list(returned.values())
    return list(returned) if isinstance(returned, (list, tuple)) else [returned]


def plainly(form: Form, start: int, stop: int) -> Samples:
    """What the flow gives for these samples when it is just called, as one batch."""
    yielded: dict[str, torch.Tensor] = {}
    for value in results(form.make(toy_modules(PlainToy))(plain_batch(start, stop))):
        yielded |= value
    return samples_of(range(start, stop), yielded)


def samples_of(ids: Any, batch: dict[str, torch.Tensor]) -> Samples:
    return {i: {key: float(batch[key][row]) for key in batch} for row, i in enumerate(ids)}


# -- environments ----------------------------------------


class Recorder(BaseModule):
    """Writes down each micro-batch that it is given: (sample ids, batch)."""

    thread_safe = True

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        for ids, batch in zip(train_info["sample_ids"], data, strict=True):
            toys.EVENTS.append(("trained", ids, {key: value.clone() for key, value in batch.items()}))


def yielded_by_environment(flow: Any) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
    recorder = Recorder("recorder")
    engine = Engine(Environment(flow), Trainer(lambda batch: recorder.train_step(batch))).set_dataset(PROMPTS)
    engine.learn()
    engine.stop()
    return [event[1:] for event in toys.events("trained")]


def assert_is_plain(form: Form, micro_batches: list[tuple[list[int], dict[str, torch.Tensor]]]) -> None:
    """All samples of the run in order, in micro-batches of the right sizes, with the same keys in the same order."""
    sizes = [3, 3, 3, 1] * EPISODES  # of 10 samples an episode: 6 in 3 and 3, 4 in 3 and 1
    assert [len(ids) for ids, _ in micro_batches] == sizes
    assert [i for ids, _ in micro_batches for i in ids] == list(range(EPISODES * PER_EPISODE))
    found = {i: values for ids, batch in micro_batches for i, values in samples_of(ids, batch).items()}
    expected = plainly(form, 0, EPISODES * PER_EPISODE)
    assert found == expected
    assert list(micro_batches[0][1]) == list(expected[0])


@on_any_layout
@every_form(FORMS)
def test_an_environment_yields_what_a_plain_call_gives(form: Form, threads: int, replicas: int, tmp_path: Path) -> None:
    init(tmp_path, threads, replicas)
    assert_is_plain(form, yielded_by_environment(form.make(toy_modules(Toy))))


@every_form(FORMS)
def test_an_environment_yields_the_same_through_bytes(form: Form, tmp_path: Path) -> None:
    init(tmp_path, 3, 3, isolate=True)
    assert_is_plain(form, yielded_by_environment(form.make(toy_modules(Toy))))


# -- evaluators ----------------------------------------


@pytest.mark.parametrize(("threads", "replicas"), [(1, 1), (3, 3)])
@every_form(FORMS)
def test_an_evaluator_gives_what_a_plain_call_gives(form: Form, threads: int, replicas: int, tmp_path: Path) -> None:
    init(tmp_path, threads, replicas)
    engine = EvalEngine(form.make(toy_modules(Toy))).set_dataset(PROMPTS)
    found: Samples = {}
    for batch in engine.evaluate().results:
        rows = len(next(iter(batch.values())))
        found |= samples_of(range(len(found), len(found) + rows), batch)
    engine.stop()
    assert found == plainly(form, 0, len(PROMPTS))


# -- trainers ----------------------------------------


@pytest.mark.parametrize(("threads", "replicas"), [(1, 1), (3, 3)])
@every_form(FORMS)
def test_a_trainer_gets_what_a_plain_call_gives_on_each_micro_batch(
    form: Form, threads: int, replicas: int, tmp_path: Path
) -> None:
    """The form stands before a ``train_step``; the data set feeds the trainer."""
    init(tmp_path, threads, replicas)
    recorder, flow = Recorder("recorder"), form.make(toy_modules(Toy))
    trainer = Trainer(lambda batch: recorder.train_step(*results(flow(batch))))
    engine = Engine(None, trainer).set_dataset(PROMPTS)
    engine.learn()
    engine.stop()
    assert_is_plain(form, [event[1:] for event in toys.events("trained")])


def record(name: str, micro_batches: list[dict[str, torch.Tensor]]) -> None:
    """What a module's ``train_step`` was given, in order, as one batch; sizes of micro-batches beside it."""
    batch = {key: torch.cat([micro[key] for micro in micro_batches]) for key in micro_batches[0]}
    sizes = [len(next(iter(micro.values()))) for micro in micro_batches]
    toys.EVENTS.append((name, {key: value.tolist() for key, value in batch.items()}, sizes))


def plain_training(form: Form) -> list[tuple[str, dict[str, list[float]]]]:
    """What each ``train_step`` would be given if the flow were just called with one global batch after another."""
    calls: list[tuple[str, dict[str, list[float]]]] = []

    def note(name: str, batch: dict[str, torch.Tensor]) -> None:
        calls.append((name, {key: value.tolist() for key, value in batch.items()}))

    flow = form.make(toy_modules(PlainToy, note))
    for start, stop in [(0, 6), (6, 10), (10, 16), (16, 20)]:
        flow(plain_batch(start, stop))
    return calls


@on_any_layout
@pytest.mark.parametrize("feed", ["data set", "environment"])
@every_form(TRAINER_FORMS)
def test_a_trainer_flow_trains_as_plain_calls_would(
    form: Form, feed: str, threads: int, replicas: int, tmp_path: Path
) -> None:
    init(tmp_path, threads, replicas, trained=("policy", "value"))
    source = Toy("source", 0)  # its eval_step takes 0 off: the batch stays as it was
    environment = Environment(lambda batch: (source.eval_step(batch), batch)) if feed == "environment" else None
    engine = Engine(environment, Trainer(form.make(toy_modules(Toy, record)))).set_dataset(PROMPTS)
    engine.learn()
    engine.stop()
    expected = plain_training(form)
    # of two modules either may train first, where nothing in the flow orders them; each one's calls are in order
    for name in ("policy", "value"):
        found = toys.events(name)
        assert [event[1] for event in found] == [batch for called, batch in expected if called == name]
        per_batch = len(found) // (2 * EPISODES)
        assert [event[2] for event in found] == [sizes for sizes in [[3, 3], [3, 1]] * 2 for _ in range(per_batch)]


# -- the tables ----------------------------------------


def test_every_form_has_a_name_of_its_own_and_calls_what_it_says() -> None:
    """The table would show nothing if forms were the same function, or called nothing."""
    for forms in (FORMS, TRAINER_FORMS):
        assert len({form.name for form in forms}) == len(forms) >= 15
        for form in forms:
            assert [node.module.name for node in chatlearn.flow.trace(form.make(toy_modules()))] == form.steps.split()


def test_a_number_by_hand() -> None:
    """One value of the plain evaluation, worked out on paper, so that it is what it says."""
    (nested,) = (form for form in FORMS if form.name == "nested calls")
    # sample 1: x = 3 - 20 = -17, extra = 6
    # policy: x -34, policy = 1 * 6 + 2 * -17 = -28; reference: x -102, reference = -28 + 2 * -34 = -96
    # merged with the batch, which wins: extra 6, reference -96, x -17; reward: x -85, 1 * 6 + 2 * -96 + 3 * -17 = -237
    assert plainly(nested, 1, 2) == {1: {"x": -85.0, "reward": -237.0}}
