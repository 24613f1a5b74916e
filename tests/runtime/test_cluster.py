"""The contract of a cluster, over every implementation. What a step gets and may return: test_step_*.py.

Not covered: ``max_concurrency`` and results that stream per sample, which no cluster has yet.
"""

from __future__ import annotations

import bdb
import threading
import traceback
from typing import ClassVar

import pytest
import torch
from runtime_cases import Counter, Echo, Failing, Rolling, Trainee, apply, run, run_both, settings, spawn

from chatlearn import BaseModule
from chatlearn.config.load import load_config
from chatlearn.errors import ChatLearnError, StepError, WorkerError
from chatlearn.modules.base import describe
from chatlearn.runtime.base import CLUSTERS, Handle, create_cluster
from chatlearn.runtime.calls import Rows
from chatlearn.runtime.local import LocalCluster


def state_of(module):
    return list(module.log_of_calls)


def append(module, *values):
    module.log_of_calls.extend(values)
    return values


def test_the_backend_of_the_configuration_is_found_by_name():
    assert set(CLUSTERS) >= {"local", "ray"}
    assert isinstance(create_cluster(load_config({"runtime_env": {"isolate": True}})), LocalCluster)


def test_a_handle_is_a_replica(cluster):
    handle = cluster.spawn(describe(Echo("policy")), 2, settings())
    assert handle == Handle("policy", 2)
    assert str(handle) == "policy[2]"


@pytest.mark.every_cluster
def test_spawn_constructs_and_does_not_set_up(cluster):
    handle = cluster.spawn(describe(Counter("counter")), 0, settings())
    assert apply(cluster, handle, state_of) == []
    cluster.get(cluster.call(handle, "setup"))
    assert apply(cluster, handle, state_of) == ["setup"]


def test_a_step_runs_where_the_replica_is(cluster):
    handle = spawn(cluster, Echo("echo"))
    assert run(cluster, handle, {"x": [1, 2]}) == {"x": [1, 2]}


@pytest.mark.every_cluster
def test_replicas_share_nothing_with_each_other_and_the_driver(cluster):
    log = ["given"]
    module = Counter("counter", log)
    first, second = (spawn(cluster, module, replica) for replica in range(2))
    run(cluster, first, {"x": [1]}, run_parameters={"iteration": 7})
    assert apply(cluster, first, state_of) == ["given", "setup", 7]
    assert apply(cluster, second, state_of) == ["given", "setup"]
    assert log == ["given"]
    assert module.log_of_calls is log


@pytest.mark.every_cluster
def test_calls_of_a_handle_run_in_the_order_of_submission(cluster):
    handle = spawn(cluster, Counter("counter"))
    futures = [cluster.call(handle, "apply", append, i) for i in range(20)]
    assert [cluster.get(future) for future in reversed(futures)] == [(i,) for i in range(19, -1, -1)]
    assert apply(cluster, handle, state_of) == ["setup", *range(20)]


def test_a_future_gives_its_value_any_number_of_times(cluster):
    handle = spawn(cluster, Counter("counter"))
    future = cluster.call(handle, "apply", append, 1)
    assert cluster.get(future) == future.result() == cluster.get(future) == (1,)
    assert apply(cluster, handle, state_of) == ["setup", 1]


@pytest.mark.every_cluster
def test_futures_alone_in_tuples_and_in_dicts_are_resolved_where_the_call_runs(cluster):
    handle = spawn(cluster, Counter("counter"))
    a, b = cluster.put("a"), cluster.call(handle, "apply", append, "b")
    apply(cluster, handle, append, a, (a, (b,)), {"key": (b,)}, [1, 2])
    assert apply(cluster, handle, state_of) == ["setup", "b", "a", ("a", (("b",),)), {"key": (("b",),)}, [1, 2]]


@pytest.mark.every_cluster
def test_futures_inside_of_rows_are_resolved(cluster):
    handle = spawn(cluster, Echo("echo"))
    first, second = cluster.put({"x": [1, 2, 3], "z": [0, 0, 0]}), cluster.put({"x": [4, 5, 6]})
    pieces = (Rows((first, second), range(1, 3)), Rows((first,), [2, 0]))
    assert run(cluster, handle, pieces, sample_ids=range(4)) == {"x": [5, 6, 3, 1], "z": [0, 0, 0, 0]}


@pytest.mark.every_cluster
def test_outputs_go_on_as_futures_from_replica_to_replica(cluster):
    counter, echo = spawn(cluster, Counter("counter")), spawn(cluster, Echo("echo"))
    output = cluster.call(counter, "apply", append, {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0])})
    parts = [cluster.put(part) for part in cluster.get(output)]
    merged = run(cluster, echo, tuple(Rows((part,)) for part in parts), sample_ids=range(3))
    assert merged["x"].tolist() == [1, 2, 3]


@pytest.mark.every_cluster
def test_call_pair_gives_a_future_for_each_value(cluster):
    handle = spawn(cluster, Counter("counter"))
    first, second = cluster.call_pair(handle, "apply", append, "a", "b")
    assert (cluster.get(second), cluster.get(first)) == ("b", "a")


@pytest.mark.every_cluster
def test_a_control_call_answers(cluster):
    assert cluster.control(spawn(cluster, Echo("echo"), replica=3), "ping") == "echo[3]"


@pytest.mark.every_cluster
def test_put_and_get(cluster):
    value = {"x": torch.arange(3), "name": "a"}
    got = cluster.get(cluster.put(value))
    assert got["x"].tolist() == [0, 1, 2]
    assert got["name"] == "a"


@pytest.mark.every_cluster
def test_wait_returns_done_and_not_done(cluster):
    handle = spawn(cluster, Counter("counter"))
    futures = [cluster.call(handle, "apply", append, i) for i in range(4)]
    done, rest = cluster.wait(futures, num=2)
    assert len(done) >= 2
    assert [future for future in futures if future in done or future in rest] == futures
    assert len(done) + len(rest) == 4
    assert cluster.wait(futures, num=4) == (futures, [])


@pytest.mark.every_cluster
def test_wait_for_none_only_looks(cluster):
    assert cluster.wait([], num=0) == ([], [])
    future = cluster.call(spawn(cluster, Counter("counter")), "apply", append, 1)
    cluster.get(future)
    assert cluster.wait([future], num=0) == ([future], [])


def test_stacks_show_what_is_being_executed(cluster):
    spawn(cluster, Echo("echo"))
    stacks = cluster.stacks()
    assert any("test_stacks_show_what_is_being_executed" in text for text in stacks.values())
    assert all(isinstance(name, str) and 'File "' in text for name, text in stacks.items())


@pytest.mark.every_cluster
def test_a_killed_replica_is_gone_and_the_others_go_on(cluster):
    first, second = (spawn(cluster, Echo("echo"), replica) for replica in range(2))
    cluster.kill(first)
    cluster.kill(first)
    with pytest.raises(WorkerError, match=r"echo\[0\] is not running") as caught:
        cluster.get(cluster.call(first, "ping"))
    assert isinstance(caught.value, ChatLearnError)
    with pytest.raises(WorkerError, match=r"echo\[0\]"):
        cluster.control(first, "ping")
    assert cluster.control(second, "ping") == "echo[1]"


@pytest.mark.every_cluster
def test_a_killed_replica_may_be_spawned_anew(cluster):
    handle = spawn(cluster, Counter("counter"))
    apply(cluster, handle, append, "old")
    cluster.kill(handle)
    assert apply(cluster, spawn(cluster, Counter("counter")), state_of) == ["setup"]


@pytest.mark.every_cluster
def test_after_shutdown_nothing_runs(cluster):
    handle = spawn(cluster, Echo("echo"))
    cluster.shutdown()
    with pytest.raises(WorkerError):
        cluster.get(cluster.call(handle, "ping"))


# --------------------------------------------------------------------------------------------------------- failures

CALL = {"place": "episode 3, batch 17", "index": 17}


@pytest.mark.every_cluster
def test_a_step_that_raises(cluster):
    handle = spawn(cluster, Failing("reward"), replica=1)
    with pytest.raises(StepError) as caught:
        run(cluster, handle, {"x": [1, 2]}, sample_ids=(40, 41), **CALL)
    text, cause = str(caught.value), caught.value.__cause__
    for words in ("ValueError: bad reward", "reward[1].forward_step", "rank 0", "episode 3, batch 17", "ids [40, 41]"):
        assert words in text
    assert type(cause) is ValueError
    printed = "".join(traceback.format_exception(caught.value))
    assert (
        printed.index("in forward_step") < printed.index("in _maybe") < printed.index("reward[1].forward_step, rank 0")
    )


def test_a_long_list_of_sample_ids_is_cut(cluster):
    with pytest.raises(StepError, match=r"sample ids \[0, 1, 2, 3, 4, 5, 6, 7, …\]"):
        run(cluster, spawn(cluster, Failing("reward")), {"x": [0] * 9})


def test_an_error_of_ours_that_a_step_raises_is_the_users_too(cluster):
    with pytest.raises(StepError, match=r"(?s)DataError: no key 'tokens'.*reward\[0\]\.forward_step") as caught:
        run(cluster, spawn(cluster, Failing("reward", how="data")), {"x": [1]})
    assert type(caught.value.__cause__).__name__ == "DataError"


def test_a_train_step_that_raises(cluster):
    with pytest.raises(StepError, match=r"ppo\[0\]\.train_step, rank 0, global batch 5, sample ids \[0, 1, 2\]"):
        run(
            cluster,
            spawn(cluster, Failing("ppo", "train_step")),
            {"x": [1, 2, 3]},
            step="train_step",
            micro_batch_size=2,
            place="global batch 5",
        )


@pytest.mark.parametrize("where", ["setup", "before_episode", "build_dataset"])
def test_methods_of_the_life_cycle_that_raise(cluster, where):
    with pytest.raises(StepError, match=rf"(?s)ValueError: bad reward.*policy\[0\]\.{where}, rank 0") as caught:
        life(cluster, "value", where)
    assert type(caught.value.__cause__) is ValueError


def life(cluster, how, where):
    """Everything that a replica does, until the place where it raises."""
    handle = spawn(cluster, Failing("policy", where, how))
    cluster.get(cluster.call(handle, "hook", "before_episode", 1))
    assert cluster.get(cluster.call(handle, "build_dataset", "train-0", ["a", "b"], False)) == 2
    cluster.get(cluster.call(handle, "fetch", [("train-0", 0), ("train-0", 1)], 0))
    run(cluster, handle, {"x": [1]})
    run(cluster, handle, {"x": [1]}, step="train_step", micro_batch_size=1)
    raise AssertionError(f"nothing raised in {where}")


PLACES = ["setup", "before_episode", "build_dataset", "read", "collate", "forward_step", "train_step"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(("how", "kind"), [("quit", bdb.BdbQuit), ("interrupt", KeyboardInterrupt)])
def test_leaving_the_debugger_and_ctrl_c_pass_through(cluster, where, how, kind):
    with pytest.raises(kind):
        life(cluster, how, where)


@pytest.mark.every_cluster
def test_a_failure_leaves_the_replica_usable(cluster):
    handle = spawn(cluster, Failing("reward"))
    with pytest.raises(StepError):
        run(cluster, handle, {"x": [1]})
    assert run(cluster, handle, {"x": [1]}, constants={"calm": True}) == {"ok": [True]}


# ------------------------------------------------------------------------------------- one result on every cluster


def scenario(cluster):
    """A bit of everything, as plain values."""
    rolling, counter = spawn(cluster, Rolling("rolling"), seed=5), spawn(cluster, Counter("counter", [1]), seed=5)
    trainee = spawn(cluster, Trainee("trainee"), seed=5)
    drawn = run(cluster, rolling, {"x": [1, 2, 3]}, sample_ids=(7, 8, 9), index=4)
    batch = {"x": [1, 2, 3], "t": torch.arange(6).reshape(3, 2).T.T}
    _, metrics = run_both(cluster, trainee, batch, step="train_step", micro_batch_size=2)
    return [
        {key: value if isinstance(value, list) else value.tolist() for key, value in drawn.items()},
        run(cluster, counter, batch),
        cluster.get(cluster.call(rolling, "hook", "before_episode", 2)),
        metrics,
        apply(cluster, trainee, lambda module: module.seen),
    ]


@pytest.mark.every_cluster
def test_every_cluster_gives_what_the_embedded_one_gives(cluster):
    assert scenario(cluster) == scenario(LocalCluster())


def mark(module, tensor):
    tensor.data[0] = 99
    return tensor


@pytest.mark.parametrize("isolate", [False, True])
def test_local_passes_by_reference_and_isolated_through_bytes(isolate):
    cluster = LocalCluster(isolate=isolate)
    handle = spawn(cluster, Echo("echo"))
    tensor = torch.zeros(2)
    result = apply(cluster, handle, mark, tensor)
    assert result[0] == 99
    assert (result is tensor, tensor[0].item()) == ((False, 0) if isolate else (True, 99))


def test_isolation_leaves_local_classes_as_they_are():
    class Local(BaseModule):
        made: ClassVar = []

        def __init__(self, name):
            super().__init__(name)
            self.made.append(self)

        def forward_step(self, data):
            return {"who": [type(self)]}

    module, function, made = Local("local"), Local.forward_step, Local.made
    cluster = LocalCluster(isolate=True)
    handle = spawn(cluster, module)
    assert run(cluster, handle, {"x": [0]}) == {"who": [Local]}
    assert Local.forward_step is function
    assert Local.made is made
    assert len(made) == 2


def test_local_runs_inline_in_the_calling_thread():
    cluster = LocalCluster()
    handle = spawn(cluster, Echo("echo"))
    assert apply(cluster, handle, lambda module: threading.get_ident()) == threading.get_ident()
    stack = apply(cluster, handle, lambda module: [frame.name for frame in traceback.extract_stack()])
    assert "test_local_runs_inline_in_the_calling_thread" in stack
