"""Bad adapters: settings and folders that are refused before anything starts, and what does not fit the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import toys
from bad_input_areas.cause import Causes
from bad_input_areas.program import engine_of

import chatlearn
from chatlearn import ConfigError, Engine, Environment

BEFORE, AT_SETUP = Causes(), Causes()
FITTING = {"r": 4, "alpha": 8}


def policy(lora: dict[str, Any] | None, model_path: str = "org/model") -> None:
    """A program that samples from a policy with these adapters."""
    from chatlearn.modules.torch import PolicyInference

    args = {"model_path": model_path, "max_new_tokens": 2, "lora": lora}
    chatlearn.init({**toys.settings("runs"), "models": {"policy": {"args": args}}})
    engine_of(PolicyInference("policy")).learn()


def adapter(weights: bool = True, **config: Any) -> str:
    """A folder that holds an adapter, as far as its files tell."""
    folder = Path("adapter")
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    if weights:
        (folder / "adapter_model.safetensors").touch()
    return "adapter"


def model(width: int = 8, name: str = "model") -> str:
    """A folder with a tiny language model, whose embeddings are tied; there is no tokenizer, which comes later."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(name)
    return name


# -- Before anything starts --------------------------------------------------------------------------------------------


@BEFORE.cause(
    ConfigError,
    says="LoRA needs the package peft, which is not installed",
    at="models.policy.args.lora",
    fix="pip install 'chatlearn[lora]'",
)
def peft_is_not_there() -> None:
    """Adapters are asked for, but peft is not installed."""
    with mock.patch.dict(sys.modules, {"peft": None}):
        policy(FITTING)


@BEFORE.cause(
    ConfigError, says="expected an integer >= 1 or null, got 0", at="models.policy.args.lora.r", fix="correct the value"
)
def no_rank() -> None:
    """The rank of an adapter is 0."""
    policy({"r": 0, "alpha": 8})


@BEFORE.cause(
    ConfigError,
    says="unknown key; did you mean `target_modules`?",
    at="models.policy.args.lora.target_module",
    fix="write `target_modules`",
)
def unknown_key_of_lora() -> None:
    """A key of an adapter is mistyped."""
    policy({**FITTING, "target_module": ["q_proj"]})


@BEFORE.cause(
    ConfigError,
    says="lacks alpha",
    at="models.policy.args.lora",
    fix="set r (such as 16) and alpha (such as 32), or path",
)
def no_scale() -> None:
    """The scale of an adapter is left out."""
    policy({"r": 4})


@BEFORE.cause(
    ConfigError,
    says="r, alpha stand beside path, but come from the adapter's own adapter_config.json",
    at="models.policy.args.lora",
    fix="leave them out, or leave out path",
)
def rank_beside_a_folder() -> None:
    """A rank is given beside the folder of an adapter, which has one of its own."""
    policy({**FITTING, "path": adapter(r=4, lora_alpha=8, target_modules=["q_proj"])})


@BEFORE.cause(
    ConfigError,
    says="q_proj can't both get adapters and be trained whole",
    at="models.policy.args.lora",
    fix="name each in one of target_modules and modules_to_save",
)
def adapted_and_saved() -> None:
    """A layer is to get an adapter and to be trained whole."""
    policy({**FITTING, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["q_proj"]})


@BEFORE.cause(
    ConfigError,
    says="has an empty name",
    at="models.policy.args.lora.modules_to_save",
    fix="name layers, such as lm_head, or write []",
)
def nameless_layer() -> None:
    """The name of a layer that is to be trained whole is empty."""
    policy({**FITTING, "modules_to_save": [""]})


@BEFORE.cause(
    ConfigError, says="is empty", at="models.policy.args.lora.path", fix="give a folder that holds an adapter"
)
def empty_path() -> None:
    """The path of an adapter's folder is empty."""
    policy({"path": ""})


@BEFORE.cause(
    ConfigError,
    says="there is no folder sft-adapter",
    at="models.policy.args.lora.path",
    fix="give a folder that holds an adapter",
)
def no_adapter_folder() -> None:
    """The folder of an adapter isn't there."""
    policy({"path": "sft-adapter"})


@BEFORE.cause(
    ConfigError,
    says="adapter holds no adapter_config.json",
    at="models.policy.args.lora.path",
    fix="give a folder that an adapter was saved to",
)
def no_adapter_in_the_folder() -> None:
    """The folder of an adapter holds something else."""
    Path("adapter").mkdir()
    policy({"path": "adapter"})


@BEFORE.cause(
    ConfigError,
    says="adapter holds no adapter_model.safetensors",
    at="models.policy.args.lora.path",
    fix="save the adapter as safetensors",
)
def adapter_as_pickle() -> None:
    """An adapter was not saved as safetensors."""
    policy({"path": adapter(weights=False)})


@BEFORE.cause(
    ConfigError,
    says="adapter_config.json is of kind 'PREFIX_TUNING'",
    at="models.policy.args.lora.path",
    fix="give an adapter of kind 'LORA'",
)
def other_kind_of_adapter() -> None:
    """An adapter is of another kind than LoRA."""
    policy({"path": adapter(peft_type="PREFIX_TUNING")})


@BEFORE.cause(
    ConfigError,
    says="adapter_config.json has use_dora: True",
    at="models.policy.args.lora.path",
    fix="give an adapter of plain LoRA",
)
def other_form_of_lora() -> None:
    """An adapter is of a form of LoRA that computes something else."""
    policy({"path": adapter(use_dora=True)})


@BEFORE.cause(
    ConfigError,
    says="adapter_config.json has lora_gamma: 3.0",
    at="models.policy.args.lora.path",
    fix="give an adapter of plain LoRA",
)
def unknown_key_of_an_adapter() -> None:
    """The configuration of an adapter has a key that is not of plain LoRA."""
    policy({"path": adapter(r=4, lora_alpha=8, target_modules=["q_proj"], lora_gamma=3.0)})


@BEFORE.cause(
    ConfigError,
    says=('adapter_config.json: r is "eight", expected an integer >= 1; ', "target_modules is null, expected names"),
    at="models.policy.args.lora.path",
    fix="save the adapter again",
)
def wrong_values_in_an_adapter() -> None:
    """The configuration of an adapter has values of other types."""
    policy({"path": adapter(r="eight", lora_alpha=8)})


# -- At setup, against the model ---------------------------------------------------------------------------------------


@AT_SETUP.cause(
    ConfigError,
    says="LlamaForCausalLM has no layer c_attn, qproj",
    at="lora on model_path 'model'",
    fix="Name some of embed_tokens, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head",
)
def no_such_layer() -> None:
    """Adapters are for layers that the model doesn't have."""
    policy({**FITTING, "target_modules": ["c_attn", "qproj", "v_proj"]}, model())


@AT_SETUP.cause(
    ConfigError,
    says="peft can't adapt these layers (model.layers.0.self_attn is a LlamaAttention)",
    at="lora on model_path 'model'",
    fix="Name linear or embedding layers",
)
def layer_of_layers() -> None:
    """Adapters are for a layer that is made of others."""
    policy({**FITTING, "target_modules": ["self_attn"]}, model())


@AT_SETUP.cause(
    ConfigError,
    says="lm_head can't be changed alone, since the input's and the output's embedding of this model are one weight",
    at="lora on model_path 'model'",
    fix="Leave it out, or give a model whose embeddings are not tied",
)
def tied_layer() -> None:
    """A layer that is to be trained shares its weight with another one."""
    policy({**FITTING, "modules_to_save": ["lm_head"]}, model())


@AT_SETUP.cause(
    ConfigError,
    says="LlamaForCausalLM has no layer up_proj outside of modules_to_save",
    at="lora on model_path 'model'",
    fix="Name some of embed_tokens, q_proj",
)
def nested_layers() -> None:
    """A part of a layer that is to be trained whole is to get an adapter."""
    policy({**FITTING, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["mlp"]}, model())


@AT_SETUP.cause(
    ConfigError,
    says=("the adapter does not fit the model of 'model'", "is [4, 16] in the file and [4, 8] on the model"),
    at="lora.path 'adapter'",
    fix="Give the model that the adapter was trained on",
)
def other_base() -> None:
    """An adapter was trained on another model."""
    from chatlearn.modules.torch.huggingface import ModelArgs, load_causal_lm
    from chatlearn.modules.torch.lora import LoraArgs, export_adapter

    Path("adapter").mkdir()
    wide = ModelArgs(model_path=model(16, "wide"), lora=LoraArgs(r=4, alpha=8, target_modules=["q_proj"]))
    export_adapter(load_causal_lm(wide, torch.device("cpu")), Path("adapter"))
    policy({"path": "adapter"}, model())


@BEFORE.cause(
    ConfigError,
    says="has no `lora`, but a flow calls reference_step",
    at="dict  models.policy.args",
    fix="set lora, or call the step of a PolicyReference",
)
def reference_step_without_an_adapter() -> None:
    """A policy without an adapter is to be its own reference."""
    from chatlearn.modules.torch import PolicyInference

    settings = {"policy": {"args": {"model_path": "some-model", "max_new_tokens": 2}}}
    chatlearn.init({**toys.settings("runs"), "models": settings})
    policy = PolicyInference("policy")
    Engine(Environment(lambda batch: policy.reference_step(batch))).set_dataset(["a prompt"]).learn()


@AT_SETUP.cause(
    ConfigError, says="adapter_model.safetensors can't be read", at="adapter/", fix="Save the adapter again"
)
def broken_adapter() -> None:
    """The weights of an adapter are damaged."""
    policy({"path": adapter(r=4, lora_alpha=8, target_modules=["q_proj"])}, model())
