"""What a step does to its inputs' gradients, to values that it has put, and to buffers that it returns again."""

from __future__ import annotations

import pytest
import torch
from engine_cases import Learner, Source, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, StepError, Trainer

SEEN = []

LAYOUTS = [
    {"stream_data_loader_type": loader, "isolate": isolate} for loader in ("fixed", "dynamic") for isolate in (0, 1)
]


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


def start(folder, source, learner, isolate=False, **runtime):
    config = settings(folder, data_shuffle=False, train_global_batch_size=2, **runtime)
    chatlearn.init({**config, "runtime_env": {"isolate": bool(isolate)}})
    one, other = source("source"), learner("learner")
    environment = Environment(lambda batch: one.forward_step(batch))
    return Engine(environment, Trainer(lambda batch: other.train_step(batch))).set_dataset(list(range(1, 11)))


# ---------------------------------------------------------------------------------------------------------- gradients


class Entries(Source):
    """The prompts as a tensor, as a tensor per sample, and nested."""

    def forward_step(self, data):
        x = super().forward_step(data)["x"]
        return {"x": x, "list": list(x.clone()), "nested": {"x": x.clone()}}


class Differentiating(BaseModule):
    """Derives the sum of squares of its input."""

    def train_step(self, data, train_info):
        for micro in data:
            tensors = [micro["x"], micro["list"][0], micro["nested"]["x"]]
            SEEN.append([(x.requires_grad, x.grad is None) for x in tensors])
            for x in tensors:
                x.requires_grad_()
                (x**2).sum().backward()
            SEEN.append([x.grad.equal(2 * x.detach()) for x in tensors])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_inputs_stay_with_the_call(tmp_path, layout):
    start(tmp_path, Entries, Differentiating, num_episode=1, num_training_epoch=2, **layout).learn()
    assert SEEN == [[(False, True)] * 3, [True] * 3] * 4


# ----------------------------------------------------------------------------------------------------- values of put


class Asking(Source):
    def forward_step(self, data):
        shared = self.get("count")
        SEEN.append([float(shared["tensor"]), float(shared["array"][0]), len(shared["list"])])
        return super().forward_step(data)


class Accumulating(Learner):
    """Changes in place what it has put."""

    def setup(self):
        super().setup()
        self.count = {"tensor": torch.zeros(()), "array": torch.zeros(1).numpy(), "list": []}
        self.put("count", self.count)

    def train_step(self, data, train_info):
        self.count["tensor"] += 1
        self.count["array"][0] += 1
        self.count["list"].append("x")
        self.put("count", self.count)
        super().train_step(data, train_info)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_value_that_was_put_does_not_follow_later_changes(tmp_path, layout):
    """Two batches are made and two are trained on in each episode, so the count is 0, 2 and 4 in an episode."""
    start(tmp_path, Asking, Accumulating, num_episode=3, **layout).learn()
    assert [[count] * 3 for count in (0, 0, 2, 2, 4, 4)] == SEEN


# ------------------------------------------------------------------------------------------------- returned buffers


class Refilling(Source):
    """Returns one buffer again and again."""

    def setup(self):
        self.buffer = torch.zeros(2)

    def forward_step(self, data):
        self.buffer.copy_(super().forward_step(data)["x"])
        return {"nested": {"x": self.buffer}, "x": super().forward_step(data)["x"]}

    eval_step = forward_step


class Reading(BaseModule):
    def train_step(self, data, train_info):
        SEEN.append(data[0]["nested"]["x"].tolist())


MESSAGE = r"source\[0\]\.\w+_step \(.*\) returns 'nested\.x' in memory that an earlier call returned"


def test_a_buffer_that_is_filled_anew_while_its_values_are_still_to_be_read_is_an_error(tmp_path):
    with pytest.raises(StepError, match=MESSAGE):
        start(tmp_path, Refilling, Reading).learn()


def test_a_buffer_that_travels_as_bytes_may_be_filled_anew(tmp_path):
    start(tmp_path, Refilling, Reading, isolate=True, num_episode=1).learn()
    assert SEEN == [[1.0, 2.0], [3.0, 4.0]]


def test_a_buffer_that_is_filled_anew_is_an_error_in_an_evaluation_too(tmp_path):
    chatlearn.init(settings(tmp_path))
    source = Refilling("source")
    engine = EvalEngine(lambda batch: source.eval_step(batch)).set_dataset(list(range(4)))
    with pytest.raises(StepError, match=MESSAGE):
        engine.evaluate()


class Alternating(Refilling):
    """Returns two buffers in turn."""

    def setup(self):
        self.buffers = [torch.zeros(2), torch.zeros(2)]

    def forward_step(self, data):
        self.buffers.reverse()
        self.buffer = self.buffers[0]
        return super().forward_step(data)


def test_buffers_in_turn_are_found_too(tmp_path):
    with pytest.raises(StepError, match=MESSAGE):
        start(tmp_path, Alternating, Reading, sample_per_episode=6).learn()


class Table(Refilling):
    """Returns the same numbers each time."""

    def forward_step(self, data):
        return {"nested": {"x": self.buffer}}


class Ring(Refilling):
    """Writes into another part of one tensor each time; parts are 64 bytes apart."""

    def setup(self):
        self.buffer, self.next = torch.zeros(8, 16), 0

    def forward_step(self, data):
        part = self.buffer[self.next, :2]
        part.copy_(Source.forward_step(self, data)["x"])
        self.next += 1
        return {"nested": {"x": part}}


class Once(Refilling):
    """Fills its buffer after the values were read: there is one batch in an episode."""


@pytest.mark.parametrize(
    ("kind", "sizes", "expected"),
    [
        (Table, {}, [[0.0, 0.0]] * 4),
        (Ring, {}, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]),
        (Once, {"sample_per_episode": 2}, [[1.0, 2.0], [3.0, 4.0]]),
    ],
)
def test_memory_that_is_returned_again_unchanged_or_after_it_was_read_is_fine(tmp_path, kind, sizes, expected):
    start(tmp_path, kind, Reading, num_episode=2, **sizes).learn()
    assert expected == SEEN


# --------------------------------------------------------------------------------------------- constructor's arguments


class Holding(Source):
    def __init__(self, name, first=None, *, second=None):
        super().__init__(name)


@pytest.mark.parametrize(
    ("arguments", "keywords", "words"),
    [
        (((i for i in ()),), {}, r"argument 2 \(generator\) can't be copied"),
        ((), {"first": 1, "second": (i for i in ())}, r"second \(generator\) can't be copied"),
    ],
)
def test_an_argument_that_cannot_be_copied_for_a_replica_is_named(tmp_path, arguments, keywords, words):
    chatlearn.init(settings(tmp_path))
    holding = Holding("holding", *arguments, **keywords)
    engine = Engine(Environment(lambda batch: holding.forward_step(batch))).set_dataset([1, 2, 3, 4])
    with pytest.raises(chatlearn.ModuleError, match=rf"holding: each replica constructs Holding\(…\).*{words}"):
        engine.learn()
