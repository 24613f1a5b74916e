"""A worker's data sets and hooks, and what it does with its module. Its steps: test_step_*.py."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
import torch
from runtime_cases import Counter, Echo, Failing, apply, run, settings, spawn

from chatlearn import BaseModule
from chatlearn.errors import DataError, ModuleError
from chatlearn.modules.base import describe
from chatlearn.runtime.seeding import preserved_globals
from chatlearn.runtime.worker import Worker, check_replicable


def test_a_data_set_is_built_once_and_read_by_index(cluster):
    handle = spawn(cluster, Echo("echo"))
    assert cluster.get(cluster.call(handle, "build_dataset", "train-0", ["a", "b", "c"], False)) == 3
    picks = [("train-0", i) for i in (2, 0, 2)]
    assert cluster.get(cluster.call(handle, "fetch", picks, 0)) == {"prompt": ["c", "a", "c"]}


def test_an_unreadable_sample_names_replica_and_index(cluster):
    handle = spawn(cluster, Failing("policy", "read"))
    cluster.get(cluster.call(handle, "build_dataset", "train-0", ["a", "b"], False))
    with pytest.raises(
        DataError, match=r"policy\[0\].*sample 1 of the data set can't be read: ValueError: bad"
    ) as caught:
        cluster.get(cluster.call(handle, "fetch", [("train-0", i) for i in (1, 0)], 0))
    assert type(caught.value.__cause__) is ValueError


def test_a_collation_with_missing_rows_is_refused(cluster):
    class Short(BaseModule):
        def build_dataset(self, prompts):
            return _Short(prompts)

    handle = spawn(cluster, Short("short"))
    cluster.get(cluster.call(handle, "build_dataset", "train-0", [1, 2, 3], False))
    with pytest.raises(DataError, match=r"short\[0\]: samples \[2, 1\].*'x' has 1 rows where 2 are expected"):
        cluster.get(cluster.call(handle, "fetch", [("train-0", i) for i in (2, 1)], 0))


class _Short(list):
    def collate_fn(self, samples):
        return {"x": samples[:1]}


def test_hooks_run_where_the_class_has_them(cluster):
    counter, echo = spawn(cluster, Counter("counter")), spawn(cluster, Echo("echo"))
    assert cluster.get(cluster.call(counter, "hook", "before_episode", 1)) == 2
    assert cluster.get(cluster.call(echo, "hook", "before_episode", 1)) is None


def test_several_replicas_of_a_stateful_module_are_refused():
    class Memory(BaseModule):
        stateful = True

    check_replicable(Memory("memory"), 1)
    check_replicable(Echo("echo"), 3)
    with pytest.raises(ModuleError, match=r"memory: Memory is stateful.*num_replica` is 2"):
        check_replicable(Memory("memory"), 2)


def test_a_module_works_on_its_worker_as_if_no_engine_owned_it(cluster):
    class Setting(BaseModule):
        def setup(self):
            self.model = torch.nn.Linear(1, 1)

    handle = spawn(cluster, Setting("setting"))
    assert apply(cluster, handle, lambda module: sorted(module.stateful_attributes())) == ["model"]


class Nested(pydantic.BaseModel):
    optimizer: dict[str, Any]


class Popping(BaseModule):
    """Takes what is its own out of its settings, wherever it finds them."""

    def setup(self):
        args = self.model_args.optimizer
        self.rates = [args.pop("lr"), self.module_args["args"]["optimizer"].pop("lr")]
        self.rates.append(self.runtime_args["rates"].pop())

    def forward_step(self, data):
        return {"left": [[self.model_args.optimizer, self.module_args, self.runtime_args]]}


@pytest.mark.parametrize("form", [dict, Nested], ids=["dict", "Args"])
def test_what_a_replica_does_to_its_settings_reaches_nobody_else(cluster, form):
    section = {"args": {"optimizer": {"lr": 0.5, "eps": 1.0}}}
    given = {
        "model_args": form(**section["args"]),
        "module_args": section,
        "runtime_args": {"rates": [0.25]},
    }
    for replica in range(2):
        handle = spawn(cluster, Popping("popping"), replica, **given)
        assert apply(cluster, handle, lambda module: module.rates) == [0.5, 0.5, 0.25]
        left = [{"eps": 1.0}, {"args": {"optimizer": {"eps": 1.0}}}, {"rates": []}]
        assert run(cluster, handle, {"x": [0]})["left"] == [left]
    assert given == {
        "model_args": form(optimizer={"lr": 0.5, "eps": 1.0}),
        "module_args": {"args": {"optimizer": {"lr": 0.5, "eps": 1.0}}},
        "runtime_args": {"rates": [0.25]},
    }


def test_a_worker_names_itself():
    with preserved_globals():
        worker = Worker(describe(Echo("echo")), 4, settings())
    assert str(worker) == worker.ping() == "echo[4]"
