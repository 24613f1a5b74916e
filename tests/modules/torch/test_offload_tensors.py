"""Offloaded tensors give up their memory and come back as they were: bits, strides, aliases, the objects themselves."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from offload_cases import ALL, OPTIMIZERS, Network, assert_same_bits, build_module, copies, paused, tensors, train

from chatlearn import ModuleError
from chatlearn.modules.torch import offload
from chatlearn.modules.torch.host_memory import BufferMemory, FileMemory
from chatlearn.modules.torch.offload import Memory


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_with_pauses_gives_the_bits_of_training_without(optimizer: str) -> None:
    twin, module = build_module(optimizer), build_module(optimizer)
    train(twin, 4)
    train(module, 4, paused(module))
    assert_same_bits(tensors(module), tensors(twin))
    assert not torch.equal(module.model.hidden.weight, build_module().model.hidden.weight)


def test_offloaded_tensors_have_no_memory_and_stay_the_same_objects() -> None:
    module = build_module()
    train(module, 2)
    before, objects = copies(module), tensors(module)
    properties = {n: (t.shape, t.stride(), t.storage_offset(), t._version) for n, t in objects.items()}
    module.offload(ALL)
    assert {t.untyped_storage().nbytes() for t in objects.values()} == {0}
    assert all(new is objects[name] for name, new in tensors(module).items())
    module.onload(ALL)
    assert all(new is objects[name] for name, new in tensors(module).items())
    assert {n: (t.shape, t.stride(), t.storage_offset(), t._version) for n, t in objects.items()} == properties
    assert_same_bits(objects, before)


def test_what_shares_memory_shares_it_again() -> None:
    module = build_module()
    model, outside = module.model, module.model.hidden.weight.detach().view(-1)[7:9]
    storage = model.hidden.weight.untyped_storage()
    module.offload(["weights"])
    assert storage.nbytes() == outside.untyped_storage().nbytes() == 0
    module.onload(["weights"])
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        model.hidden.weight.fill_(3.0)
    assert model.first_row.tolist() == [3.0] * 6
    assert outside.tolist() == [3.0] * 2


def test_each_tag_moves_its_own_tensors() -> None:
    module = build_module()
    train(module, 1)
    moment = module.optimizer.state[module.model.hidden.weight]["exp_avg"]
    weight, gradient = module.model.hidden.weight, module.model.hidden.weight.grad

    def here() -> list[bool]:
        return [tensor.numel() == 36 for tensor in (weight, gradient, moment)]

    module.offload(["optimizer"])
    assert here() == [True, True, False]
    module.offload(["weights"])
    assert here() == [False, True, False]
    module.onload(["optimizer"])
    assert here() == [False, True, True]
    module.offload(["gradients"])
    module.onload(["weights", "kv_cache"])
    assert here() == [True, False, True]
    module.onload(ALL)
    assert here() == [True, True, True]


def test_moving_twice_is_moving_once() -> None:
    module = build_module()
    train(module, 1)
    before = copies(module)
    module.onload(ALL)
    module.offload(ALL)
    module.offload(ALL)
    module.onload(ALL)
    module.onload(ALL)
    assert_same_bits(tensors(module), before)


def test_gradients_that_are_none_stay_so() -> None:
    module = build_module()
    module.offload(ALL)
    module.onload(ALL)
    assert all(parameter.grad is None for parameter in module.model.parameters())


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: m.model(torch.tensor([1, 2])), "its model is called while its weights are in host memory"),
        (lambda m: m.model.hidden(torch.ones(6)), "its model is called while its weights are in host memory"),
        (lambda m: m.state_dict(), "its model's state is read while its weights are in host memory"),
        (lambda m: m.sync_view(), "its model's state is read while its weights are in host memory"),
        (lambda m: m.export("unused"), "its model's state is read while its weights are in host memory"),
        (lambda m: m.load_state_dict(STATE), "its model's state is loaded while its weights are in host memory"),
        (lambda m: m.optimizer.step(), "its optimizer makes a step while its weights are in host memory"),
    ],
)
def test_using_what_is_offloaded_says_what_to_do(
    use: Any, message: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = build_module()
    module.offload(ALL)
    with pytest.raises(ModuleError, match=rf"^trainer: {message}\. Call onload\(\['weights'\]\)"):
        use(module)
    module.onload(ALL)
    use(module)
    assert not module.model._forward_pre_hooks


STATE: dict[str, Any] = {"model": Network().state_dict()}


@pytest.mark.parametrize(
    ("tag", "use", "message"),
    [
        ("optimizer", lambda m: m.optimizer.step(), "makes a step while its optimizer's state is in host memory"),
        ("optimizer", lambda m: m.state_dict(), "optimizer's state is read while its optimizer's state"),
        ("optimizer", lambda m: m.optimizer.load_state_dict({}), "optimizer's state is loaded while"),
        ("gradients", lambda m: m.optimizer.step(), "makes a step while its gradients are in host memory"),
        ("gradients", lambda m: m.model(torch.tensor([1, 2])), "called with gradients enabled while its gradients are"),
    ],
)
def test_each_tag_refuses_what_needs_it(tag: str, use: Any, message: str) -> None:
    module = build_module()
    train(module, 1)
    module.offload([tag])
    with pytest.raises(ModuleError, match=message):
        use(module)
    with torch.no_grad():
        assert module.model(torch.tensor([1, 2])).shape == (2, 9)


@pytest.mark.parametrize(
    ("change", "now"),
    [
        (lambda p: setattr(p, "data", torch.ones(6, 6)), r"\[6, 6\] torch.float32 on cpu"),
        (lambda p: setattr(p, "data", p.data.half()), r"\[0\] torch.float16 on cpu"),
    ],
)
def test_weights_that_were_replaced_while_they_were_away_are_an_error(change: Any, now: str) -> None:
    module = build_module()
    module.offload(["weights"])
    change(module.model.hidden.weight)
    message = rf"^trainer: its weights can't be taken back: a tensor \[6, 6\] torch.float32 on cpu was made {now} "
    with pytest.raises(ModuleError, match=message):
        module.onload(["weights"])


def test_memory_that_numpy_has_seen_is_released_too() -> None:
    module = build_module()
    module.model.hidden.weight.detach().numpy()  # torch resizes such a storage no more
    module.model.register_buffer("mapped", torch.from_numpy(np.arange(5)))
    before = copies(module)
    module.offload(ALL)
    assert {tensor.untyped_storage().nbytes() for tensor in tensors(module).values()} == {0}
    module.onload(ALL)
    assert_same_bits(tensors(module), before)
    assert module.model.first_row.data_ptr() == module.model.hidden.weight.data_ptr()


def test_memory_that_an_array_still_shows_stays_and_is_told() -> None:
    module = build_module()
    array = module.model.embed.weight.detach().numpy()
    before = copies(module)
    with pytest.warns(UserWarning, match=r"^trainer: 0\.0 MB of its weights stay in memory .* an array of numpy"):
        module.offload(["weights"])
    assert module.model.hidden.weight.numel() == 0
    array += 1
    module.onload(["weights"])
    assert torch.equal(module.model.embed.weight, before["embed.weight"] + 1)
    assert torch.equal(module.model.hidden.weight, before["hidden.weight"])


def test_tensors_move_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []
    put = FileMemory.put

    def noting(self: FileMemory, contents: Any) -> None:
        sizes.append([len(content) for content in contents])
        put(self, contents)

    monkeypatch.setattr(FileMemory, "put", noting)
    model = torch.nn.Sequential(*(torch.nn.Linear(1, n, bias=False) for n in (10, 15, 40, 5, 6)))
    memory = Memory("trainer", bucket_bytes=100)
    memory.offload(["weights"], [model])
    assert sizes == [[40, 60], [160], [20, 24]]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_without_room_everything_is_as_before(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put, calls = FileMemory.put, iter([True] * allowed)

    def failing(self: FileMemory, contents: Any) -> None:
        if not next(calls, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, contents)

    module = build_module()
    before, memory = copies(module), Memory("trainer", bucket_bytes=1)
    monkeypatch.setattr(FileMemory, "put", failing)
    with pytest.raises(ModuleError, match=r"^trainer: its weights can't be moved .*No space left.* Let TMPDIR name"):
        memory.offload(["weights"], [module.model])
    assert memory.away == []
    assert_same_bits(tensors(module), before)
    train(module, 1)


@pytest.mark.parametrize("kind", [FileMemory, lambda: BufferMemory(pin=False)])
def test_host_memory_gives_back_the_buckets_in_reverse_order(kind: Any) -> None:
    host = kind()
    buckets = [[torch.randint(256, (n,), dtype=torch.uint8) for n in sizes] for sizes in ([3, 0, 70_001], [1], [9, 9])]
    for bucket in buckets:
        host.put(bucket)
    for bucket in reversed(buckets):
        empty = [torch.zeros_like(content) for content in bucket]
        host.take(empty)
        assert all(map(torch.equal, empty, bucket))


def test_buffers_in_host_memory_serve_as_a_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "FileMemory", lambda: BufferMemory(pin=False))
    twin, module = build_module(), build_module()
    train(twin, 3)
    train(module, 3, paused(module))
    assert_same_bits(tensors(module), tensors(twin))


def test_a_model_of_two_hundred_megabytes_leaves_the_process() -> None:
    """Also that there are never two copies of it. What the kernel keeps of the file is not the process's memory."""
    program = """
        import os, resource, subprocess, sys
        from pathlib import Path
        import torch
        from chatlearn import TorchModule
        from chatlearn.config.schema import RuntimeConfig
        from chatlearn.modules.base import ModuleContext

        def resident():
            statm = Path("/proc/self/statm")
            if statm.exists():
                return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
            return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())])) >> 10

        module = TorchModule("trainer")
        context = ModuleContext(runtime_args=RuntimeConfig(bucket_size_mb_in_memory_manager=16))
        module.__dict__["_context"] = context
        module.model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(50)))
        module.offload(["weights"])  # what the first round loads and makes stays
        module.onload(["weights"])
        loaded = resident()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        module.offload(["weights"])
        offloaded = resident()
        module.onload(["weights"])
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        print(loaded, offloaded, resident(), grown >> (20 if sys.platform == "darwin" else 10))
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    ).stdout
    loaded, offloaded, again, grown = map(int, output.split())
    assert loaded - offloaded >= 190
    assert abs(again - loaded) <= 20
    assert grown <= 20
