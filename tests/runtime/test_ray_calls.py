"""What a cluster of processes does beyond the contract of test_cluster.py: calls that wait for others, values that
can't leave a process, large ones that lie in shared memory.

How workers die: ``tests/chaos``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime_cases import Copying, Counter, Failing, Returning, apply, run, settings, spawn

from chatlearn import BaseModule, StepError
from chatlearn.errors import DataError, ModuleError, WorkerError
from chatlearn.modules.base import describe
from chatlearn.runtime.base import Cluster, Handle
from chatlearn.runtime.calls import Rows, StepCall
from chatlearn.runtime.clients import ClientRef
from chatlearn.runtime.local import LocalCluster
from chatlearn.runtime.ray.failures import RemoteError
from chatlearn.types import SampleIds

LARGE = 100_000
"""Elements of a tensor that does not travel inline."""


def until(module: BaseModule, gate: str) -> str:
    """Waits for a file."""
    while not os.path.exists(gate):
        time.sleep(0.01)
    return "waited"


def append(module: Counter, *values: Any) -> list[Any]:
    module.log_of_calls.extend(values)
    return list(module.log_of_calls)


def clear(module: Counter) -> None:
    module.log_of_calls.clear()


def fail(module: BaseModule) -> None:
    raise LookupError("no such prompt")


@pytest.fixture(scope="module")
def on_ray(one_ray: Callable[[], Cluster]) -> Iterator[Cluster]:
    made = one_ray()
    made.start()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def counters(on_ray: Cluster) -> tuple[Handle, ...]:
    return tuple(spawn(on_ray, Counter("counter"), replica, replaceable=True) for replica in range(2))


@pytest.fixture
def pair(on_ray: Cluster, counters: tuple[Handle, ...]) -> tuple[Handle, ...]:
    """Two replicas that have written nothing down."""
    for handle in counters:
        apply(on_ray, handle, clear)
    return counters


@pytest.fixture(scope="module")
def returning(on_ray: Cluster) -> Handle:
    """A replica whose step does what a function in its data says."""
    return spawn(on_ray, Returning("policy", do), replica=1)


def do(data: dict[str, Any]) -> Any:
    return data["do"][0](data)


# --------------------------------------------------------------------------------------------------- who waits for whom


def test_control_calls_overtake_calls_that_run_and_calls_that_wait(
    on_ray: Cluster, pair: tuple[Handle, ...], tmp_path: Path
) -> None:
    first, second = pair
    running = on_ray.call(first, "apply", until, str(tmp_path / "gate"))
    waiting = on_ray.call(second, "apply", append, running)
    behind = on_ray.call(second, "apply", append, "behind")
    assert on_ray.control(first, "ping") == "counter[0]"
    assert on_ray.control(second, "ping") == "counter[1]"
    assert on_ray.wait([running, waiting, behind], num=0) == ([], [running, waiting, behind])
    (tmp_path / "gate").touch()
    assert on_ray.get(waiting) == ["waited"]
    assert on_ray.get(behind) == ["waited", "behind"]


def test_calls_of_different_replicas_overlap(on_ray: Cluster, pair: tuple[Handle, ...], tmp_path: Path) -> None:
    """The one that is submitted first ends only once the other has run."""
    first, second = pair
    waits = on_ray.call(first, "apply", until, str(tmp_path / "gate"))
    opens = on_ray.call(second, "apply", open_gate, str(tmp_path / "gate"))
    assert on_ray.overlaps
    assert (on_ray.get(waits), on_ray.get(opens)) == ("waited", "open")


def open_gate(module: BaseModule, gate: str) -> str:
    Path(gate).touch()
    return "open"


def test_a_call_whose_input_failed_fails_with_it_and_the_next_ones_run(
    on_ray: Cluster, pair: tuple[Handle, ...]
) -> None:
    first, second = pair
    failed = on_ray.call(first, "apply", fail)
    depends = on_ray.call(second, "apply", append, failed)
    assert on_ray.get(on_ray.call(second, "apply", append, "next")) == ["next"]
    for future in (failed, depends, failed):
        with pytest.raises(LookupError, match="no such prompt"):
            on_ray.get(future)


def test_stacks_show_who_is_in_what_and_who_is_idle(on_ray: Cluster, pair: tuple[Handle, ...], tmp_path: Path) -> None:
    running = on_ray.call(pair[0], "apply", until, str(tmp_path / "gate"))
    end = time.monotonic() + 30
    while "in until" not in (found := on_ray.stacks())["counter[0]"] and time.monotonic() < end:
        time.sleep(0.05)
    (tmp_path / "gate").touch()
    assert "in until" in found["counter[0]"]
    assert "test_ray_calls.py" in found["counter[0]"]
    assert "in until" not in found["counter[1]"]
    on_ray.get(running)


def test_replicas_are_processes_of_one_machine(on_ray: Cluster, pair: tuple[Handle, ...]) -> None:
    first, second = (on_ray.location(handle) for handle in pair)
    assert first.node == second.node
    assert len({first.process, second.process}) == 2
    pids = [apply(on_ray, handle, lambda module: os.getpid()) for handle in pair]
    assert len({*pids, os.getpid()}) == 3


def test_shutdown_ends_processes_that_are_in_a_call(one_ray: Callable[[], Cluster], tmp_path: Path) -> None:
    cluster = one_ray()
    cluster.start()
    handle = spawn(cluster, Counter("counter"))
    pid = apply(cluster, handle, lambda module: os.getpid())
    cluster.call(handle, "apply", until, str(tmp_path / "never"))
    cluster.shutdown()
    end = time.monotonic() + 30
    while is_there(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_there(pid)


def is_there(pid: int) -> bool:
    """A process that has ended and that nobody has asked after is not."""
    with suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


# --------------------------------------------------------------------------------------------------------------- errors


class LockedError(Exception):
    """Can't be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class TwoArgumentsError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, kind: str, number: int) -> None:
        super().__init__(f"{kind} {number}")


def raise_locked(data: Any) -> None:
    raise LockedError("the door is shut")


def raise_two_arguments(data: Any) -> None:
    raise TwoArgumentsError("door", 3)


@pytest.mark.parametrize(
    ("do", "text", "kind"),
    [
        (raise_locked, "LockedError: the door is shut", RemoteError),
        (raise_two_arguments, "door 3", TwoArgumentsError),  # made anew without its constructor
    ],
)
def test_an_exception_that_pickle_does_not_bring_back(
    on_ray: Cluster, returning: Handle, do: Any, text: str, kind: type[Exception]
) -> None:
    with pytest.raises(StepError, match=rf"{text}\n  raised in policy\[1\]\.forward_step") as caught:
        run(on_ray, returning, {"do": [do]})
    assert type(caught.value.__cause__) is kind
    assert text in str(caught.value.__cause__)
    assert f"in {do.__name__}" in str(caught.value.__cause__.__cause__)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_step_that_would_end_its_process_is_an_error(on_ray: Cluster, returning: Handle, kind: Any) -> None:
    def end(data: Any) -> None:
        raise kind(3)

    with pytest.raises(StepError, match=rf"policy\[1\].*{kind.__name__}\(3\)") as caught:
        run(on_ray, returning, {"do": [end]})
    assert "in end" in str(caught.value.__cause__.__cause__)
    assert on_ray.control(returning, "ping") == "policy[1]"


class Picky(BaseModule):
    """Can be constructed in one process alone."""

    def __init__(self, name: str, pid: int) -> None:
        super().__init__(name)
        if os.getpid() != pid:
            raise LookupError(f"{name} lives in {pid} only")


def test_what_fails_in_a_constructor_comes_out_of_the_first_call(on_ray: Cluster) -> None:
    handle = on_ray.spawn(describe(Picky("picky", os.getpid())), 0, settings())
    with pytest.raises(LookupError, match="picky lives in") as caught:
        on_ray.location(handle)
    assert "in __init__" in str(caught.value.__cause__)
    on_ray.kill(handle)


@pytest.mark.parametrize("where", ["setup", "before_episode"])
def test_hooks_that_raise(on_ray: Cluster, where: str) -> None:
    handle = on_ray.spawn(describe(Failing("policy", where)), 0, settings())
    future = on_ray.call(handle, *(["setup"] if where == "setup" else ["hook", where, 1]))
    with pytest.raises(StepError, match=rf"(?s)ValueError: bad reward.*policy\[0\]\.{where}, rank 0") as caught:
        on_ray.get(future)
    assert type(caught.value.__cause__) is ValueError
    on_ray.kill(handle)


# --------------------------------------------------------------------------------------------------- what can't be sent


def keep_a_lock(data: Any) -> Any:
    return {"notes": [{"lock": threading.Lock()}]}


def test_a_result_that_cant_be_sent_names_module_step_and_key(on_ray: Cluster, returning: Handle) -> None:
    with pytest.raises(StepError) as caught:
        run(on_ray, returning, {"do": [keep_a_lock]}, place="episode 2, batch 5")
    for words in ("policy[1].forward_step (episode 2, batch 5)", "['notes'][0]['lock']", "_thread.lock"):
        assert words in str(caught.value)


def test_the_result_of_a_function_beside_a_module_may_be_what_cant_be_sent(on_ray: Cluster, returning: Handle) -> None:
    with pytest.raises(StepError, match=r"policy\[1\]\.apply.*_thread\.lock"):
        apply(on_ray, returning, lambda module: threading.Lock())


def test_data_that_cant_be_sent_names_the_call_and_the_key(on_ray: Cluster, returning: Handle) -> None:
    with pytest.raises(DataError) as caught:
        run(on_ray, returning, {"do": [do], "locks": [threading.Lock()]}, place="engine.call")
    for words in ("policy[1].forward_step, engine.call", "['locks'][0]", "_thread.lock"):
        assert words in str(caught.value)
    assert on_ray.control(returning, "ping") == "policy[1]"


def test_an_argument_of_a_module_that_cant_be_sent_is_named(on_ray: Cluster) -> None:
    def make(data: Any, lock: Any = threading.Lock()) -> Any:  # noqa: B008  # that is the point
        return data

    with pytest.raises(ModuleError, match=r"models\.policy: argument `make.*_thread\.lock.*setup\(\)"):
        on_ray.spawn(describe(Returning("policy", make)), 0, settings())


# --------------------------------------------------------------------------------------------------------- large values


def large() -> dict[str, Any]:
    return {"x": torch.arange(2.0 * LARGE).reshape(2, LARGE), "array": np.zeros((2, LARGE))}


def change_tensor(data: Any) -> Any:
    data["x"][0] = 9.0


def change_array(data: Any) -> Any:
    data["array"][0] = 9.0


def change_all(data: Any) -> Any:
    change_tensor(data)
    change_array(data)
    return {"x": data["x"], "array": data["array"]}


@pytest.mark.parametrize(
    ("change", "words"), [(change_tensor, "changes its input 'x' in place"), (change_array, "read-only")]
)
def test_large_inputs_are_not_changed_in_place(on_ray: Cluster, returning: Handle, change: Any, words: str) -> None:
    held = on_ray.put({**large(), "do": [change, change]})
    with pytest.raises(StepError, match=words):
        run_on(on_ray, returning, held)


def test_a_module_that_mutates_its_inputs_changes_nobody_elses(on_ray: Cluster) -> None:
    handle = spawn(on_ray, Copying("copying", change_all))
    held = on_ray.put(large())
    changed = run_on(on_ray, handle, held)
    assert changed["x"][:, 0].tolist() == [9, LARGE]
    assert changed["array"][:, 0].tolist() == [9, 0]
    again = on_ray.get(held)
    assert torch.equal(again["x"], large()["x"])
    assert np.array_equal(again["array"], large()["array"])
    on_ray.kill(handle)


def test_what_the_driver_gets_is_its_own_to_change(on_ray: Cluster, returning: Handle) -> None:
    held = on_ray.put({**large(), "do": [dict, dict]})
    first = run_on(on_ray, returning, held)
    first["x"].add_(1)
    first["array"] += 1
    assert torch.equal(first["x"], large()["x"] + 1)
    assert torch.equal(on_ray.get(held)["x"], large()["x"])


def run_on(on_ray: Cluster, handle: Handle, held: Any) -> Any:
    """A step on two rows that the cluster holds."""
    call = StepCall("forward_step", "experience", 0, 0, {}, {"iteration": 0}, SampleIds((0, 1), (0, 1)))
    output, _ = on_ray.call_pair(handle, "run", call, {"data": ((Rows((held,)),),)})
    return on_ray.get(output)


def test_a_value_that_nobody_waits_for_stays_with_its_worker(on_ray: Cluster, pair: tuple[Handle, ...]) -> None:
    """The driver passes the reference on; what arrives is what was made."""
    made = on_ray.call(pair[0], "apply", lambda module: torch.arange(LARGE))
    total = on_ray.call(pair[1], "apply", lambda module, values: int(values.sum()), made)
    assert on_ray.get(total) == LARGE * (LARGE - 1) // 2


def test_a_worker_has_the_drivers_folder_and_modules(on_ray: Cluster, pair: tuple[Handle, ...]) -> None:
    folder, paths = apply(on_ray, pair[0], lambda module: (os.getcwd(), list(sys.path)))
    assert folder == os.getcwd()
    assert str(Path(__file__).parent) in paths


def test_sets_of_texts_have_one_order_on_all_replicas(on_ray: Cluster, pair: tuple[Handle, ...]) -> None:
    first, second = (apply(on_ray, handle, hash_of, "reward") for handle in pair)
    assert first == second


def hash_of(module: BaseModule, text: str) -> int:
    return hash(text)


class Caller(BaseModule):
    """Asks a module that raises, and says what it caught."""

    def forward_step(self, data: dict[str, Any], judge: Any) -> dict[str, Any]:
        try:
            return judge.forward_step({"do": data["do"]})
        except StepError as error:
            return {"caught": [type(error.__cause__).__name__] * len(data["do"])}


def test_a_step_catches_what_a_module_raises_that_it_asks(on_ray: Cluster, returning: Handle) -> None:
    judge = spawn(on_ray, Returning("judge", do))
    caller = spawn(on_ray, Caller("caller"))
    reference = ClientRef(judge.module, {"forward_step": ("data",)}, 1)
    caught = run(on_ray, caller, {"do": [raise_two_arguments]}, constants={"judge": reference})
    assert caught == {"caught": ["TwoArgumentsError"]}


def test_a_call_to_nobody_is_refused(on_ray: Cluster) -> None:
    with pytest.raises(WorkerError, match=r"nobody\[3\] is not running"):
        on_ray.get(on_ray.call(Handle("nobody", 3), "ping"))


def odd_forms(data: Any) -> Any:
    with torch.inference_mode():
        inference = torch.ones(2, LARGE)
    return {
        "graph": torch.ones(2, LARGE, requires_grad=True) * 2,
        "transposed": torch.arange(2 * LARGE).reshape(LARGE, 2).T,
        "inference": inference,
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "half": torch.arange(2).to(torch.bfloat16),
        "array": np.arange(2 * LARGE).reshape(LARGE, 2).T,
        "nested": {"entries": [torch.ones(1, 2).expand(3, 2), {"text": ("a", 1)}]},
    }


def forms(value: Any) -> Any:
    """Whatever a later step could tell apart, as plain values."""
    if isinstance(value, torch.Tensor):
        numbers = value.float() if value.dtype == torch.bfloat16 else value
        return [str(value.dtype), value.stride(), value.requires_grad, value.is_inference(), numbers.tolist()]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.strides, value.tolist()]
    if isinstance(value, dict):
        return {key: forms(part) for key, part in value.items()}
    return [forms(part) for part in value] if isinstance(value, list) else value


def test_results_have_the_form_that_they_have_in_one_process(on_ray: Cluster, returning: Handle) -> None:
    local = LocalCluster()
    handle = spawn(local, Returning("policy", do), replica=1)
    data = {"do": [odd_forms, odd_forms]}
    assert forms(run(on_ray, returning, data)) == forms(run(local, handle, data))
