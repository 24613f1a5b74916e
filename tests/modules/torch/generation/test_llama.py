"""The short forward pass of one token against the model's own, and when it is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from plain_sampling import PAD, assert_same, left_padded, make_model, plain_sample, random_prompts, rows_of

from chatlearn.modules.noise import uniforms
from chatlearn.modules.torch.generation import decoder, sample
from chatlearn.modules.torch.generation.llama import LlamaStep, is_plain_llama

SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "one head for all": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=1)),
    "a head for each": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=4)),
    "biases": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "scaled rotations": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "other activation": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, num_key_value_heads=2, hidden_act="gelu")),
    "wide heads": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=24)),
    "tied": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)),
}


def make(name: str) -> Any:
    torch.manual_seed(2)
    model = MODELS[name]().eval()
    with torch.no_grad():  # biases and norms that do something
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


class Counted(LlamaStep):
    """Counts its calls."""

    calls = 0

    def __call__(self, *inputs: Any) -> Any:
        type(self).calls += 1
        return super().__call__(*inputs)


@pytest.mark.parametrize("name", MODELS)
def test_the_short_pass_is_the_models_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "LlamaStep", Counted)
    monkeypatch.setattr(Counted, "calls", 0)
    model, prompts = make(name), random_prompts(6, group=2)
    noise = uniforms(0, range(12), 20)
    got = sample(model, *left_padded(prompts), max_new_tokens=20, eos_token_ids=(2,), pad_token_id=PAD, noise=noise)
    expected = [
        plain_sample(model, prompt, noise[row], max_new_tokens=20, ends=(2,)) for row, prompt in enumerate(prompts)
    ]
    assert_same(rows_of(got), expected)
    assert Counted.calls == 19


def test_it_is_near_the_models_own_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy log-probabilities differ by no more than bfloat16 rounds them."""
    model = make("scaled rotations").bfloat16()
    prompts = left_padded(random_prompts(8, group=1))
    options: dict[str, Any] = {"max_new_tokens": 2, "eos_token_ids": (), "pad_token_id": PAD}
    short = sample(model, *prompts, **options)
    monkeypatch.setattr(decoder, "is_plain_llama", lambda model: False)
    own = sample(model, *prompts, **options)
    same = short.tokens == own.tokens
    assert same.float().mean() > 0.8
    torch.testing.assert_close(short.logprobs[same], own.logprobs[same], atol=0.05, rtol=0.05)


def test_only_plain_models_take_it() -> None:
    for family in ("llama", "qwen2", "qwen3"):
        assert is_plain_llama(make_model(family))
    for family in ("gpt2", "llama-eager", "mistral-sliding"):
        assert not is_plain_llama(make_model(family))


def hooked(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def before(model: Any) -> None:
    model.register_forward_pre_hook(lambda *_: None)


def replaced(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj = torch.nn.Sequential(model.model.layers[0].self_attn.q_proj)


def patched(model: Any) -> None:
    model.model.layers[0].forward = model.model.layers[0].forward


def dropping(model: Any) -> None:
    model.train()


@pytest.mark.parametrize("change", [hooked, before, replaced, patched, dropping])
def test_a_model_that_is_not_as_transformers_made_it_runs_its_own_forward(change: Any) -> None:
    model = make_model("llama")
    change(model)
    assert not is_plain_llama(model)


def test_adapters_take_part() -> None:
    """A policy with LoRA adapters samples what the plain loop over that model samples."""
    from peft import LoraConfig, get_peft_model

    model = make_model("llama")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj"]))
    adapted.eval()
    prompts, noise = random_prompts(4, group=2), uniforms(0, range(8), 12)
    assert not is_plain_llama(adapted)
    for network in (adapted, model):
        got = sample(network, *left_padded(prompts), max_new_tokens=12, eos_token_ids=(2,), pad_token_id=0, noise=noise)
        expected = [plain_sample(adapted, prompt, noise[row], ends=(2,)) for row, prompt in enumerate(prompts)]
        assert_same(rows_of(got), expected)
