"""Adapters on the ready-made modules: what is trained, by which gradients, and what the base model still says.

Sync is in ``test_lora_sync.py``, checkpoints and exports are in ``test_lora_files.py``.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from lora_cases import LORA, adapter_parameters, disturb, experience, train
from tiny_models import build, call, lay_out, make_model, plain_logprobs, plain_model, random_rows, response_values

from chatlearn.errors import ConfigError
from chatlearn.modules.torch import PolicyInference, PolicyReference, PolicyTrainer, SFTTrainer, ValueTrainer
from chatlearn.modules.torch.huggingface import ModelArgs, ValueModel, load_causal_lm
from chatlearn.modules.torch.lora import LoraArgs, MergedWeights, adapted_layers
from chatlearn.modules.torch.scoring import Window, policy_logprobs

RATE = 0.5


class HandLora(torch.nn.Module):
    """y = W x + b + (alpha / r) B A x, written out (Hu et al. 2021, section 4.1)."""

    def __init__(self, linear: torch.nn.Linear, a: torch.Tensor, b: torch.Tensor, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a, self.b = torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())
        self.scale = alpha / len(a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scale * (x @ self.a.T) @ self.b.T


@pytest.mark.parametrize("kind", ["llama-tied", "qwen2-tied"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_gradients_are_those_of_a_hand_written_adapter(folders: dict[str, str], kind: str, targets: Any) -> None:
    folder, rows = folders[kind], random_rows(6)
    lora = {"r": 3, "alpha": 5, "target_modules": targets}
    trainer = build(SFTTrainer, model_path=folder, learning_rate=RATE, max_grad_norm=1e9, lora=lora)
    disturb(trainer.model)
    plain = plain_model(folder).requires_grad_(False)
    hand: dict[str, HandLora] = {}
    for name, layer in adapted_layers(trainer.model):
        parent, _, last = name.rpartition(".")
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        hand[name] = HandLora(plain.get_submodule(name), a.detach(), b.detach(), 5)
        setattr(plain.get_submodule(parent), last, hand[name])
    assert len(hand) == (14 if targets == "all-linear" else 4)

    before = adapter_parameters(trainer.model)
    trainer.optimizer = torch.optim.SGD(list(trainer.model.parameters()), lr=RATE)
    trainer.train_step([lay_out(rows, "both")], {"iteration": 0})
    after = adapter_parameters(trainer.model)
    (-torch.cat([plain_logprobs(plain, prompt, response) for prompt, response in rows]).mean()).backward()
    scale = max(float(layer.a.grad.abs().max()) for layer in hand.values())
    assert scale > 1e-2, "the case should have a gradient"
    for name, layer in hand.items():
        for side, grad in (("A", layer.a.grad), ("B", layer.b.grad)):
            key = f"{name}.lora_{side}.default.weight"
            torch.testing.assert_close((before[key] - after[key]) / RATE, grad, atol=1e-5 * scale, rtol=1e-5)
    assert before.keys() == {f"{name}.lora_{side}.default.weight" for name in hand for side in "AB"}


@pytest.mark.parametrize("cls", [PolicyTrainer, SFTTrainer, ValueTrainer])
@pytest.mark.parametrize("way", [{"gradient_checkpointing": True}, {"packing": True}])
def test_gradients_are_the_same_in_other_ways_of_computing_them(llama: str, cls: type, way: dict[str, Any]) -> None:
    """Nothing below the first adapter needs a gradient, and still the layers above have to get theirs."""
    found: list[dict[str, torch.Tensor]] = []
    for more in ({}, way):
        trainer = build(cls, model_path=llama, learning_rate=RATE, max_grad_norm=1e9, lora=LORA, **more)
        disturb(trainer.model)
        trainer.optimizer = torch.optim.SGD(list(trainer.model.parameters()), lr=RATE)
        before = adapter_parameters(trainer.model)
        train(trainer)
        found.append({n: (before[n] - value) / RATE for n, value in adapter_parameters(trainer.model).items()})
    norm = torch.stack([value.norm() for value in found[0].values()]).norm()
    assert all(value.abs().max() > 0 for value in found[0].values())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5 * float(norm), rtol=1e-4)


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer])
def test_dropout_is_the_same_in_layers_that_are_computed_again(llama: str, cls: type) -> None:
    lora = {**LORA, "dropout": 0.4}
    found: list[dict[str, torch.Tensor]] = []
    for seed, again in ((1, False), (1, True), (2, False)):
        args = {"model_path": llama, "learning_rate": RATE, "max_grad_norm": 1e9}
        trainer = build(cls, **args, lora=lora, gradient_checkpointing=again)
        disturb(trainer.model)
        trainer.optimizer = torch.optim.SGD(list(trainer.model.parameters()), lr=RATE)
        before = adapter_parameters(trainer.model)
        torch.manual_seed(seed)
        trainer.train_step([experience()] * 2, {"iteration": 0})  # the second draws after a backward pass
        found.append({n: (before[n] - value) / RATE for n, value in adapter_parameters(trainer.model).items()})
    norms = [torch.stack([(other[n] - found[0][n]).norm() for n in other]).norm() for other in found]
    norm = torch.stack([value.norm() for value in found[0].values()]).norm()
    assert norms[1] <= 1e-5 * norm
    assert norms[2] > 0.1 * norm  # other entries dropped show


def test_only_adapters_and_layers_to_save_are_trained(folder: str) -> None:
    """Norms are layers of every kind of model, under different names."""
    norm = "ln_f" if "gpt2" in folder else "norm"
    trainer = build(PolicyTrainer, model_path=folder, learning_rate=0.1, lora={**LORA, "modules_to_save": [norm]})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    train(trainer, steps=2)  # at first B is zero, and so are the gradients of A
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in changed if "lora_" not in name} == {
        name for name in before if f".{norm}.modules_to_save" in name
    }
    assert {name.split(".lora_")[1] for name in changed if "lora_" in name} == {"A.default.weight", "B.default.weight"}
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [len(changed)]


def test_a_value_model_trains_its_backbones_adapters_and_its_whole_head(llama: str) -> None:
    trainer = build(ValueTrainer, model_path=llama, learning_rate=0.1, lora=LORA)
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"head.weight", "head.bias"}
    assert sum("lora_" in name for name in trained) == 28
    before = adapter_parameters(trainer.model)
    train(trainer, steps=3)  # at first head and B are zero, and so are the gradients of B and A
    assert all(not torch.equal(value, before[name]) for name, value in adapter_parameters(trainer.model).items())


def test_equal_settings_give_equal_adapters_that_change_nothing_yet(llama: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = load_causal_lm(ModelArgs(model_path=llama, lora=LoraArgs(**LORA)), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    policy = build(PolicyInference, model_path=llama, max_new_tokens=2, lora=LORA)
    other = load_causal_lm(ModelArgs(model_path=llama, lora=LoraArgs(**LORA, seed=1)), torch.device("cpu"))
    first, second, third = (adapter_parameters(model) for model in (one, policy.model, other))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.equal(value, third[name]) == ("lora_B" in name) for name, value in first.items())
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(one(input_ids=tokens).logits, plain_model(llama)(input_ids=tokens).logits)


def test_dropout_acts_where_gradients_are_computed_only(llama: str) -> None:
    args = ModelArgs(model_path=llama, lora=LoraArgs(**LORA, dropout=0.5))
    model = load_causal_lm(args, torch.device("cpu"))
    disturb(model)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        scored = [model(input_ids=tokens).logits for _ in range(2)]
    trained = [model.train(mode)(input_ids=tokens).logits for mode in (False, False, True)]
    assert torch.equal(*scored)
    assert len({float(logits.sum().detach()) for logits in (scored[0], *trained)}) == 4


def test_merged_weights_are_the_base_plus_the_scaled_product(folders: dict[str, str]) -> None:
    for kind, layer in (("qwen2-tied", "model.layers.1.mlp.up_proj"), ("gpt2-untied", "transformer.h.0.mlp.c_fc")):
        args = ModelArgs(model_path=folders[kind], lora=LoraArgs(r=2, alpha=3))
        model = load_causal_lm(args, torch.device("cpu"))
        disturb(model)
        module = dict(adapted_layers(model))[layer]
        product = 1.5 * module.lora_B["default"].weight @ module.lora_A["default"].weight
        base = plain_model(folders[kind]).state_dict()
        merged = MergedWeights(model)
        expected = base[f"{layer}.weight"] + (product.T if "gpt2" in kind else product)  # GPT-2 keeps x W
        torch.testing.assert_close(merged[f"{layer}.weight"], expected)
        assert merged.keys() == base.keys()
        assert not torch.equal(merged[f"{layer}.weight"], base[f"{layer}.weight"])
        assert torch.equal(module.base_layer.weight, base[f"{layer}.weight"])
        assert merged.fixed == {
            name for name in base if name.removesuffix(".weight") not in dict(adapted_layers(model))
        }


# -- the policy as its own reference ---------------------------------------------------------------------------------


def test_reference_step_says_what_the_base_model_says_to_the_bit(folder: str) -> None:
    policy = build(PolicyInference, model_path=folder, max_new_tokens=2, temperature=0.7, lora=LORA)
    reference = build(PolicyReference, model_path=folder, temperature=0.7)
    adapted = build(PolicyReference, model_path=folder, temperature=0.7, lora=LORA)
    disturb(policy.model)
    adapted.model.load_state_dict(policy.model.state_dict())
    for padding in ("both", "left", "wide"):
        batch = lay_out(random_rows(7), padding)
        expected = call(reference, "forward_step", batch)["ref_logprobs"]
        found = call(policy, "reference_step", batch)
        assert torch.equal(found["ref_logprobs"], expected)
        assert found.keys() == {*batch, "ref_logprobs"}
        with_adapter = call(adapted, "forward_step", batch)["ref_logprobs"]
        assert float((with_adapter - expected).abs().max()) > 0.1  # the adapter does change them
    for (prompt, response), values in zip(random_rows(7), response_values({**batch, "v": expected}, "v"), strict=True):
        plain = plain_logprobs(plain_model(folder), prompt, response, 0.7)
        torch.testing.assert_close(values, plain.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [{"target_modules": ["c_attn", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_reference_step_is_the_base_model_where_the_output_layer_is_changed_too(
    folders: dict[str, str], layers: dict[str, Any]
) -> None:
    folder, rows = folders["gpt2-untied"], random_rows(6)
    policy = build(PolicyInference, model_path=folder, max_new_tokens=2, lora={**LORA, **layers})
    reference = build(PolicyReference, model_path=folder)
    disturb(policy.model)
    batch = lay_out(rows, "both")
    expected = call(reference, "forward_step", batch)["ref_logprobs"]
    for _ in range(2):  # what is found out about the base is not taken for the adapted model, or the other way round
        assert torch.equal(call(policy, "reference_step", batch)["ref_logprobs"], expected)
        window = Window.of(batch, torch.device("cpu"))
        with torch.no_grad():
            scored = policy_logprobs(policy.model, window, 1.0)[window.mask.bool()]
            plain = torch.cat([plain_logprobs(policy.model, prompt, response) for prompt, response in rows])
        torch.testing.assert_close(scored, plain.float(), atol=1e-5, rtol=1e-5)
        assert float((scored - window.cut(expected)[window.mask.bool()]).abs().max()) > 0.1


def test_the_adapter_is_switched_on_again_after_reference_step(llama: str) -> None:
    policy = build(PolicyInference, model_path=llama, max_new_tokens=2, lora={**LORA, "modules_to_save": ["norm"]})
    disturb(policy.model)
    tokens, before = torch.tensor([[5, 6, 7]]), [p.requires_grad for p in policy.model.parameters()]
    expected = policy.model(input_ids=tokens).logits
    call(policy, "reference_step", lay_out(random_rows(3), "both"))
    assert torch.equal(policy.model(input_ids=tokens).logits, expected)
    with pytest.raises(KeyError):
        call(policy, "reference_step", {"tokens": tokens})
    assert torch.equal(policy.model(input_ids=tokens).logits, expected)
    assert [p.requires_grad for p in policy.model.parameters()] == before


def test_reference_step_without_an_adapter_is_refused(llama: str) -> None:
    policy = build(PolicyInference, model_path=llama, max_new_tokens=2)
    with pytest.raises(ConfigError, match=r"(?s)module\.reference_step .* has none\. Set\s+models\.module\.args\.lora"):
        call(policy, "reference_step", lay_out(random_rows(3), "both"))


def test_a_model_in_bfloat16_has_adapters_in_float32(llama: str) -> None:
    """So that small updates are not rounded away."""
    trainer = build(PolicyTrainer, model_path=llama, dtype="bfloat16", learning_rate=0.1, lora=LORA)
    assert {value.dtype for value in adapter_parameters(trainer.model).values()} == {torch.float32}
    assert trainer.model.model.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("layers", [{"target_modules": ["c_attn", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_value_model_has_no_output_layer_that_could_be_trained(
    folders: dict[str, str], layers: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"lora on model_path .*: the output layer of GPT2LMHeadModel .*Leave it out"):
        build(ValueTrainer, model_path=folders["gpt2-untied"], learning_rate=0.1, lora={**LORA, **layers})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"modules_to_save": [""]}, "has an empty name"),
        ({"alpha": float("inf")}, "finite number"),
        ({"seed": 2**64}, "less than 18446744073709551616"),
    ],
)
def test_values_that_no_adapter_can_have_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LoraArgs(**{**LORA, **given})


def test_models_without_adapters_do_not_import_peft(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    build(PolicyTrainer, model_path=llama, learning_rate=0.1)
    ValueModel(make_model("gpt2-untied", 30))
    with pytest.raises(ValueError, match=r"LoRA needs the package peft, which is not installed"):
        build(PolicyTrainer, model_path=llama, learning_rate=0.1, lora=LORA)
