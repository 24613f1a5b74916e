"""Offloading from a CUDA device: its memory is free while the tensors wait in pinned memory of the host."""

from __future__ import annotations

import gc

import pytest
import torch
from offload_cases import ALL, OPTIMIZERS, assert_same_bits, build_module, paused, tensors, train

from chatlearn import ModuleError, TorchModule
from chatlearn.modules.torch.host_memory import BufferMemory
from chatlearn.modules.torch.offload import Memory

pytestmark = pytest.mark.gpu

MEGABYTE = 1 << 20


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_on_a_gpu_with_pauses_gives_the_bits_of_training_without(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    twin, module = build_module(optimizer, "cuda"), build_module(optimizer, "cuda")
    train(twin, 4)
    train(module, 4, paused(module))
    assert_same_bits(tensors(module), tensors(twin))


def test_device_memory_is_free_while_a_module_waits() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    baseline = torch.cuda.memory_reserved()
    module = TorchModule("trainer")
    module.model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16))).cuda()
    module.optimizer = torch.optim.Adam(module.model.parameters())
    module.model(torch.ones(1, 1024, device="cuda")).sum().backward()
    module.optimizer.step()
    before, weight = {name: tensor.cpu() for name, tensor in tensors(module).items()}, module.model[0].weight
    assert torch.cuda.memory_reserved() - baseline > 250 * MEGABYTE
    module.offload(ALL)
    assert torch.cuda.memory_reserved() - baseline < 64 * MEGABYTE  # workspaces of the matrix kernels
    assert weight.is_cuda
    module.onload(ALL)
    assert module.model[0].weight is weight
    assert_same_bits({name: tensor.cpu() for name, tensor in tensors(module).items()}, before)


def test_what_an_optimizer_keeps_on_the_host_stays_there() -> None:
    module = build_module("adam", "cuda")
    train(module, 2)
    step = module.optimizer.state[module.model.hidden.weight]["step"]
    module.offload(ALL)
    assert float(step) == 2.0
    module.onload(ALL)
    assert not step.is_cuda


def test_aliases_and_strides_on_a_gpu_come_back() -> None:
    module = build_module("adam", "cuda")
    stride = module.model.turned.stride()
    paused(module)()
    assert module.model.turned.stride() == stride
    with torch.no_grad():
        module.model.hidden.weight.fill_(3.0)
    assert module.model.first_row.tolist() == [3.0] * 6
    assert module.model.head.weight is module.model.embed.weight


def test_contents_wait_in_pinned_memory() -> None:
    memory, model = Memory("trainer", bucket_bytes=100), torch.nn.Linear(7, 7).cuda()
    memory.offload(["weights"], [model])
    host = memory._shelves["weights"]._host
    assert isinstance(host, BufferMemory)
    assert [buffer.is_pinned() for buffer in host._buffers] == [True, True]
    with pytest.raises(ModuleError, match="its model is called while its weights are in host memory"):
        model(torch.ones(7, device="cuda"))
    memory.onload(["weights"])
    assert model(torch.ones(7, device="cuda")).isfinite().all()


def test_work_on_another_stream_is_done_before_its_tensors_move() -> None:
    model, memory = torch.nn.Linear(2048, 2048, bias=False).cuda(), Memory("trainer")
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        for _ in range(200):
            model.weight.add_(1).sub_(1)
        model.weight.fill_(2.0)
    memory.offload(["weights"], [model])
    memory.onload(["weights"])
    assert (model.weight == 2.0).all()
