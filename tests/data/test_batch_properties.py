"""Whatever a batch holds, a mistake in it gets an error of ours and nothing else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from bad_input_areas.program import Echo, module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chatlearn
from chatlearn import ChatLearnError, Engine, Environment, Trainer
from chatlearn.config import active
from chatlearn.data.collate import merge, split

FAST = settings(deadline=None, suppress_health_check=list(HealthCheck))

DTYPES = [
    *(torch.float32, torch.bfloat16, torch.float64, torch.complex64),
    *(torch.int64, torch.int8, torch.uint8, torch.bool),
]
ARRAY_DTYPES = ["f4", "f8", "i8", "u1", "b1", "c8", "U3", "S3", "O", "M8[s]"]
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple) | st.tuples(st.just(4), st.integers(0, 3))
"""Often with the 4 rows of a generation batch."""


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(tuple(reversed(range(tensor.ndim))))


def inferred(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return tensor.clone()


def tracked(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.requires_grad_(tensor.is_floating_point())


DENSE = st.builds(torch.zeros, SHAPES, dtype=st.sampled_from(DTYPES)).flatmap(
    lambda tensor: st.sampled_from([transposed, inferred, tracked, torch.Tensor.clone]).map(lambda form: form(tensor))
)
ARRAYS = st.builds(np.zeros, SHAPES, dtype=st.sampled_from(ARRAY_DTYPES))
WITHOUT_ROWS = (
    DENSE.map(torch.Tensor.to_sparse)
    | st.sampled_from([torch.tensor(1.0), np.zeros(()), range(4), object(), {1, 2}, len, 2**70, b"a"])
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
)
ENTRIES = st.none() | DENSE | ARRAYS | WITHOUT_ROWS
KEYS = st.text("ab.", max_size=2)
COLUMNS = st.recursive(
    ENTRIES | st.lists(ENTRIES, max_size=5),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
BATCHES = st.dictionaries(KEYS, COLUMNS, max_size=4)
"""Values of the kinds that a batch may hold, of any lengths, dimensions and dtypes."""

ANYTHING = st.recursive(
    ENTRIES,
    lambda inner: (
        st.lists(inner, min_size=4, max_size=4)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS | st.sampled_from([0, None, "source_rows", "prompt"]), inner, max_size=3)
    ),
    max_leaves=8,
)
"""What a step may return by mistake."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@settings(FAST, max_examples=150)
@given(batch=BATCHES, size=st.integers(1, 5))
def test_a_batch_is_cut_and_put_together_or_refused(batch: dict[Any, Any], size: int) -> None:
    with contextlib.suppress(ChatLearnError):
        merge(split(batch, size))


@settings(FAST, max_examples=150)
@given(batches=st.lists(BATCHES, max_size=3))
def test_batches_are_put_together_or_refused(batches: list[dict[Any, Any]]) -> None:
    with contextlib.suppress(ChatLearnError):
        merge(batches)


@settings(FAST, max_examples=150)
@given(values=st.lists(COLUMNS, min_size=2, max_size=3))
def test_values_of_one_key_are_put_together_or_refused(values: list[Any]) -> None:
    with contextlib.suppress(ChatLearnError):
        merge([{"x": value} for value in values])


@settings(FAST, max_examples=100)
@given(batches=st.lists(st.dictionaries(KEYS, ANYTHING, max_size=4), min_size=1, max_size=3))
def test_a_step_that_is_called_with_real_data_gets_all_of_it(batches: list[dict[Any, Any]]) -> None:
    wanted = {key: value for batch in batches for key, value in batch.items()}
    found = Echo("policy").forward_step(*batches)
    assert found.keys() == wanted.keys()
    assert all(found[key] is wanted[key] for key in wanted)


@settings(FAST, max_examples=80)
@given(first=ANYTHING, second=ANYTHING, isolate=st.booleans(), trained=st.booleans())
def test_a_run_takes_or_refuses_what_a_step_returns(
    first: Any, second: Any, isolate: bool, trained: bool, folder: Path
) -> None:
    """Two batches of 4 samples; the module returns the same or different things for them."""
    policy = module("policy", forward_step=lambda self, data, iteration: second if iteration else first)
    _run(policy, isolate, trained, folder)


@settings(FAST, max_examples=60)
@given(samples=st.lists(ANYTHING, min_size=1, max_size=3), collated=st.booleans())
def test_a_run_takes_or_refuses_the_records_of_a_data_set(samples: list[Any], collated: bool, folder: Path) -> None:
    """With a collation of the module's own, or torch's."""

    class Samples(list[Any]):
        collate_fn: Callable[[Any], Any] | None = (lambda self, samples: samples.columns()) if collated else None

    _run(module("policy", build_dataset=lambda self, prompts: Samples(samples)), False, True, folder)


def _run(policy: Echo, isolate: bool, trained: bool, folder: Path) -> None:
    learner = Echo("learner")
    trainer = Trainer(lambda batch: learner.train_step(batch)) if trained else None
    runtime = {"sample_per_episode": 8, "generation_batch_size": 4, "num_episode": 1, "trace": False, "sinks": []}
    with pytest.MonkeyPatch.context() as patch, toys.quick_runs(), contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(active, "_active", type(active._active)())
        chatlearn.init({**toys.settings(folder, **runtime), "runtime_env": {"isolate": isolate}})
        engine = Engine(Environment(lambda batch: policy.forward_step(batch)), trainer).set_dataset(["a", "b"])
        with contextlib.suppress(ChatLearnError):
            engine.learn()
