"""What runs with adapters leave behind: checkpoints of what is trained, exports that other programs load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_cases import LORA, disturb, engine_of, train, write_settings
from safetensors.torch import load_file, save_file
from tiny_models import build, call, lay_out, plain_logprobs, plain_model, plain_tokenizer, random_rows

import chatlearn
from chatlearn import CheckpointError, ConfigError
from chatlearn.checkpoint.module_state import load_module, save_module
from chatlearn.modules.torch import PolicyReference, PolicyTrainer, ValueInference, ValueTrainer
from chatlearn.modules.torch.lora import LoraArgs, adapted_layers
from chatlearn.modules.torch.scoring import Window, policy_logprobs

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
BOTH = {"policy": {"lora": LORA}, "trainer": {"lora": LORA}}


def edit(folder: Path, **changes: Any) -> None:
    """Changes keys of an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def of_peft(model: Any, folder: Path, save_embeddings: Any = "auto", **config: Any) -> Any:
    """A model with an adapter that peft wrote to a folder."""
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **config))
    disturb(peft_model)
    peft_model.save_pretrained(folder, save_embedding_layers=save_embeddings)
    return peft_model.eval()


def run(folder: str, output: Path, models: dict[str, Any], **runtime: Any) -> Path:
    """A run with a reference step, and its folder."""
    chatlearn.init(write_settings(folder, output, models, **runtime))
    engine, *_ = engine_of(references="lora" in models["policy"])
    engine.learn()
    return output / "lora"


@pytest.mark.parametrize("policy", [{"lora": LORA}, {}], ids=["adapters", "merged"])
def test_a_resumed_run_ends_as_an_undisturbed_one(llama: str, tmp_path: Path, policy: dict[str, Any]) -> None:
    models = {"policy": policy, "trainer": {"lora": {**LORA, "export": "adapter", "dropout": 0.2}}}
    common = {"save_episode_interval": 1, "export": "trainer,policy"}
    whole = run(llama, tmp_path / "whole", models, num_episode=4, **common)
    broken = run(llama, tmp_path / "parts", models, num_episode=2, **common)
    checkpoint = str(broken / "checkpoints" / "episode-000002")
    parts = run(llama, tmp_path / "parts", models, num_episode=4, resume=checkpoint, **common)
    for name in ("trainer/adapter_model.safetensors", "policy/model.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    for name in ("trainer.state.json", "trainer.state.rank0.safetensors"):
        checkpoint = Path("checkpoints/episode-000004") / name
        assert (whole / checkpoint).read_bytes() == (parts / checkpoint).read_bytes()
    values = [[json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()] for r in (whole, parts)]
    losses = [[row["trainer/loss"] for row in rows] for rows in values]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


def test_a_checkpoint_holds_adapters_and_optimizer_but_not_the_base(llama: str, tmp_path: Path) -> None:
    folder = run(llama, tmp_path, BOTH, num_episode=1, save_episode_interval=1) / "checkpoints" / "episode-000001"
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["manifest.json", "run.json", "trainer.state.json", "trainer.state.rank0.safetensors"]
    tensors = load_file(folder / "trainer.state.rank0.safetensors")
    trainer = build(PolicyTrainer, model_path=llama, learning_rate=0.1, lora=LORA)
    num_trained = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    num_layers = sum(1 for _ in adapted_layers(trainer.model))
    # the matrices, AdamW's two moments of each, and a step counter for each
    assert sum(value.numel() for value in tensors.values()) == 3 * num_trained + 2 * num_layers
    named = [name for name in tensors if name.startswith("model.")]
    assert len(named) == 2 * num_layers
    assert all("lora_" in name for name in named)


@pytest.mark.parametrize("change", ["one", "flip", "roll", "signs", "layers"])
def test_a_checkpoint_on_another_base_is_refused(llama: str, tmp_path: Path, change: str) -> None:
    """The same numbers in another order are another base too."""
    folder = shutil.copytree(llama, tmp_path / "model")
    args = {"model_path": str(folder), "learning_rate": 0.1, "lora": LORA}
    saved = build(PolicyTrainer, **args)
    train(saved, steps=2)
    assert save_module(saved, str(tmp_path), 1, trained=True, synced=False)
    resumed = build(PolicyTrainer, **args)
    load_module(resumed, str(tmp_path), 1)
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in saved.model.state_dict().items())
    plain = plain_model(str(folder))
    first, second = (layer.mlp.up_proj for layer in plain.model.layers)
    weight = second.weight.detach()
    if change == "one":
        weight[3, 4] += 1e-3
    elif change == "layers":
        first.weight, second.weight = second.weight, first.weight
    else:
        changed = {"flip": weight.flip(0), "roll": weight.roll(8, 0), "signs": -weight}
        weight.copy_(changed[change].clone())
    plain.save_pretrained(folder)
    with pytest.raises(
        CheckpointError, match=r"module: .* under the adapters are others .*models\.module\.args\.model"
    ):
        load_module(build(PolicyTrainer, **args), str(tmp_path), 1)


def test_a_checkpoint_of_adapters_with_another_factor_is_refused(llama: str, tmp_path: Path) -> None:
    """As after a change of the folder in lora.path, of which the configuration says nothing."""
    saved = build(PolicyTrainer, model_path=llama, learning_rate=0.1, lora={**LORA, "export": "adapter"})
    saved.export(str(tmp_path / "adapter"))
    args = {"model_path": llama, "learning_rate": 0.1, "lora": {"path": str(tmp_path / "adapter")}}
    assert save_module(build(PolicyTrainer, **args), str(tmp_path), 1, trained=True, synced=False)
    load_module(build(PolicyTrainer, **args), str(tmp_path), 1)
    edit(tmp_path / "adapter", alpha_pattern={"up_proj": 80})
    with pytest.raises(
        CheckpointError,
        match=r"module: .* multiplied by 20 and were by 2 .*layers\.0\.mlp\.up_proj\); put",
    ):
        load_module(build(PolicyTrainer, **args), str(tmp_path), 1)


# -- exports, as others load them --------------------------------------------------------------------------------------


def scores(model: Any) -> torch.Tensor:
    """Log-probabilities of a few responses, under a model that other programs have loaded."""
    with torch.no_grad():
        return torch.cat([plain_logprobs(model, prompt, response) for prompt, response in random_rows(6)]).float()


def own_scores(module: Any) -> torch.Tensor:
    """The same by the module's own model."""
    window = Window.of(lay_out(random_rows(6), "both"), torch.device("cpu"))
    with torch.no_grad():
        return policy_logprobs(module.model, window, 1.0)[window.mask.bool()]


def test_a_merged_export_is_a_plain_model_that_says_the_same(folder: str, tmp_path: Path) -> None:
    trainer = build(PolicyTrainer, model_path=folder, learning_rate=0.1, lora=LORA)
    disturb(trainer.model)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.export(str(tmp_path / "out"))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any("adapter" in name or name.endswith((".bin", ".pt", ".pkl")) for name in names)
    plain = plain_model(str(tmp_path / "out"))
    assert plain.state_dict().keys() == plain_model(folder).state_dict().keys()
    torch.testing.assert_close(scores(plain), own_scores(trainer), atol=1e-5, rtol=0)
    assert float((scores(plain) - scores(plain_model(folder))).abs().max()) > 0.1
    assert plain_tokenizer(str(tmp_path / "out"))("abc").input_ids == plain_tokenizer(folder)("abc").input_ids


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama-tied", LORA),
        ("qwen2-tied", {"r": 2, "alpha": 5, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["norm"]}),
        ("gpt2-untied", {**LORA, "target_modules": ["c_attn", "wte"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_an_adapter_export_is_loaded_by_peft_and_by_path(
    folders: dict[str, str], kind: str, lora: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    folder, out = folders[kind], str(tmp_path / "out")
    trainer = build(PolicyTrainer, model_path=folder, learning_rate=0.1, lora={**lora, "export": "adapter"})
    disturb(trainer.model)
    trainer.export(out)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "config.json"}
    by_peft = PeftModel.from_pretrained(plain_model(folder), out).eval()
    torch.testing.assert_close(scores(by_peft), own_scores(trainer), atol=1e-5, rtol=0)
    again = build(PolicyTrainer, model_path=folder, learning_rate=0.1, lora={"path": out, "export": "adapter"})
    state = again.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trainer.model.state_dict().items())
    again.export(str(tmp_path / "again"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_an_adapter_of_peft_is_gone_on_from(llama: str, tmp_path: Path) -> None:
    """Written by peft alone: its own names for the layers, ranks of their own for some, another scale."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
        modules_to_save=["norm"],  # which peft takes for every layer that ends in it
    )
    peft_model = get_peft_model(plain_model(llama), config)
    disturb(peft_model)
    peft_model.save_pretrained(tmp_path)
    module = build(PolicyReference, model_path=llama, lora={"path": str(tmp_path)})
    torch.testing.assert_close(own_scores(module), scores(peft_model.eval()), atol=1e-5, rtol=0)
    ranks = {name: layer.r["default"] for name, layer in adapted_layers(module.model)}
    assert set(ranks.values()) == {2, 4}


@pytest.mark.parametrize("targets", [["lm_head"], ["wte", "c_attn"]])
def test_an_adapter_of_peft_on_the_embeddings_is_gone_on_from(
    folders: dict[str, str], tmp_path: Path, targets: list[str]
) -> None:
    """peft writes the base's own embeddings beside such adapters."""
    folder = folders["gpt2-untied"]
    peft_model = of_peft(plain_model(folder), tmp_path, save_embeddings=True, target_modules=targets)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    written = [name for name in tensors if ".base_layer." in name]
    assert written
    module = build(PolicyReference, model_path=folder, lora={"path": str(tmp_path)})
    torch.testing.assert_close(own_scores(module), scores(peft_model), atol=1e-5, rtol=0)
    tensors[written[0]][0, 0] += 1
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"(?s)does not fit .*{targets[0]}\.weight is another one in the file.*Give"):
        build(PolicyReference, model_path=folder, lora={"path": str(tmp_path)})


def test_an_adapter_of_peft_on_tied_embeddings_is_refused(llama: str, tmp_path: Path) -> None:
    of_peft(plain_model(llama), tmp_path, target_modules=["lm_head", "q_proj"])
    with pytest.raises(ConfigError, match=r"lora\.path .*: lm_head can't be changed alone, .*tie_word_embeddings"):
        build(PolicyReference, model_path=llama, lora={"path": str(tmp_path)})


def test_an_adapter_that_leaves_layers_out_is_exported_again(llama: str, tmp_path: Path) -> None:
    from peft import PeftModel

    config = {"target_modules": "all-linear", "exclude_modules": ["q_proj", "down_proj"]}
    peft_model = of_peft(plain_model(llama), tmp_path / "in", **config)
    edit(tmp_path / "in", bias=None)  # as other programs write "none"
    lora = {"path": str(tmp_path / "in"), "export": "adapter"}
    build(PolicyTrainer, model_path=llama, learning_rate=0.1, lora=lora).export(str(tmp_path / "out"))
    again = PeftModel.from_pretrained(plain_model(llama), tmp_path / "out").eval()
    torch.testing.assert_close(scores(again), scores(peft_model), atol=1e-6, rtol=0)
    content = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert content["exclude_modules"] == ["down_proj", "q_proj"]


def test_an_adapter_for_another_kind_of_model_gives_a_warning(
    llama: str, folders: dict[str, str], tmp_path: Path
) -> None:
    of_peft(plain_model(llama), tmp_path, target_modules=["v_proj"])
    with pytest.warns(
        UserWarning, match=r"lora\.path .* trained on a model of type llama .* this one is of type qwen2"
    ):
        build(PolicyReference, model_path=folders["qwen2-tied"], lora={"path": str(tmp_path)})


def test_a_layer_to_save_that_the_file_lacks_is_refused(llama: str, tmp_path: Path) -> None:
    of_peft(plain_model(llama), tmp_path, target_modules=["q_proj"])
    edit(tmp_path, modules_to_save=["norm"])
    with pytest.raises(
        ConfigError, match=r"adapter_config\.json names norm in modules_to_save, but .*Save the adapter"
    ):
        build(PolicyReference, model_path=llama, lora={"path": str(tmp_path)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_foo_lora": True}, "has use_foo_lora: True"),
        ({"lora_gamma": 3.0}, r"has lora_gamma: 3\.0"),
        ({"bias": "all"}, "has bias: 'all'"),
        ({"r": "eight"}, 'r is "eight", expected an integer >= 1'),
        ({"r": 0}, "r is 0, expected an integer >= 1"),
        ({"r": True}, "r is true, expected an integer >= 1"),
        ({"lora_alpha": None, "r": 4.5}, r"r is 4\.5, expected .*; lora_alpha is null, expected a number > 0"),
        ({"lora_alpha": "x"}, 'lora_alpha is "x", expected a number > 0'),
        ({"lora_alpha": float("inf")}, "lora_alpha is Infinity, expected a number > 0"),
        ({"target_modules": None}, "target_modules is null, expected names of layers, or a regular expression"),
        ({"target_modules": [1, 2]}, r"target_modules is \[1, 2\], expected names"),
        ({"target_modules": []}, r"target_modules is \[\], expected names"),
        ({"target_modules": "("}, r'target_modules is "\(", expected names'),
        ({"rank_pattern": [1]}, r"rank_pattern is \[1\], expected layers with integers"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern is .*, expected layers with numbers > 0"),
        ({"modules_to_save": "norm"}, 'modules_to_save is "norm", expected names of layers'),
    ],
)
def test_keys_of_other_adapters_and_wrong_values_are_refused_before_anything_is_loaded(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN))
    harmless = {"peft_version": "0.21.2", "use_foo_lora": False, "auto_mapping": {"a": 1}, "bias": None}
    edit(tmp_path, **harmless)
    assert LoraArgs(path=str(tmp_path)).path == str(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"adapter_config\.json.* {words}"):
        LoraArgs(path=str(tmp_path))


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_value_models_export_is_gone_on_from(llama: str, tmp_path: Path, form: str) -> None:
    args = {"model_path": llama, "learning_rate": 0.1}
    trainer = build(ValueTrainer, **args, lora={**LORA, "export": form, "modules_to_save": ["norm"]})
    disturb(trainer.model)
    trainer.export(str(tmp_path))
    batch = lay_out(random_rows(6), "both")
    judge = build(ValueInference, model_path=llama, lora=None if form == "merged" else {"path": str(tmp_path)})
    if form == "merged":
        judge.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    reference = build(ValueInference, model_path=llama, lora={**LORA, "modules_to_save": ["norm"]})
    reference.model.load_state_dict(trainer.model.state_dict())
    expected = call(reference, "forward_step", batch)["values"]
    torch.testing.assert_close(call(judge, "forward_step", batch)["values"], expected, atol=1e-5, rtol=0)
    assert float(expected.abs().max()) > 0.1
