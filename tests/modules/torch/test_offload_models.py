"""Ready-made modules around models of transformers, as their folders come into memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_cases import LORA, disturb, experience, train
from offload_cases import ALL, assert_same_bits, copies, tensors
from tiny_models import build, call

from chatlearn.modules.torch import PolicyReference, PolicyTrainer, ValueTrainer
from chatlearn.modules.torch.lora import base_fingerprint


def is_released(module: Any) -> bool:
    return {tensor.untyped_storage().nbytes() for tensor in tensors(module).values()} == {0}


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer])
@pytest.mark.parametrize("lora", [None, LORA])
def test_trainers_of_models_learn_the_same_with_pauses(cls: Any, lora: Any, folder: str) -> None:
    if lora and "gpt2" in folder:
        lora = {**lora, "target_modules": ["c_attn"]}
    trainers = [build(cls, model_path=folder, learning_rate=0.01, lora=lora) for _ in range(2)]
    for trainer in trainers:
        disturb(trainer.model)
    start, names = copies(trainers[0]), [name for name, _ in trainers[0].model.named_parameters()]
    for _ in range(3):
        for trainer in trainers:
            train(trainer)
        trainers[0].offload(ALL)
        assert is_released(trainers[0])
        trainers[0].onload(ALL)
    assert_same_bits(tensors(trainers[0]), tensors(trainers[1]))
    assert [name for name, _ in trainers[0].model.named_parameters()] == names
    assert any(not torch.equal(start[name], value) for name, value in trainers[0].model.named_parameters())


def test_adapters_merge_and_their_base_is_known_after_a_pause(llama: str) -> None:
    trainers = [build(PolicyTrainer, model_path=llama, learning_rate=0.01, lora=LORA) for _ in range(2)]
    for trainer in trainers:
        disturb(trainer.model)
    trainers[0].offload(ALL)
    trainers[0].onload(ALL)
    assert base_fingerprint(trainers[0].model) == base_fingerprint(trainers[1].model)
    merged = [dict(trainer.sync_view(merged=True).tensors) for trainer in trainers]
    assert_same_bits(*merged)


def test_inference_is_the_same_after_a_pause(folder: str) -> None:
    module = build(PolicyReference, model_path=folder)
    before = call(module, "forward_step", experience())["ref_logprobs"]
    module.offload(ALL)
    assert {parameter.untyped_storage().nbytes() for parameter in module.model.parameters()} == {0}
    module.onload(ALL)
    assert torch.equal(call(module, "forward_step", experience())["ref_logprobs"], before)
