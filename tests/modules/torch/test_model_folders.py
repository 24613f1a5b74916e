"""Model folders: what is written loads elsewhere, and what can't be loaded is explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    PROMPTS,
    build,
    call,
    lay_out,
    make_model,
    make_tokenizer,
    plain_model,
    plain_tokenizer,
    random_rows,
    rows_of,
)

import chatlearn
from chatlearn import ChatLearnError, ConfigError, Engine, Environment, ModuleError, Trainer
from chatlearn.data.prompts import fetch
from chatlearn.modules.torch import PolicyInference, PolicyReference, SFTTrainer, TorchModule, ValueTrainer

# -- export ----------------------------------------------------------------------------------------------


def test_an_exported_policy_is_a_model_folder_of_its_own(folder: str, tmp_path: Path) -> None:
    trainer = build(SFTTrainer, model_path=folder, learning_rate=0.01)
    trainer.train_step([lay_out(random_rows(4), "both")], {"iteration": 0})
    trainer.export(str(tmp_path / "policy"))
    tokenizer, model = plain_tokenizer(str(tmp_path / "policy")), plain_model(str(tmp_path / "policy"))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name

    policy = build(PolicyInference, model_path=str(tmp_path / "policy"), max_new_tokens=8)
    output = call(policy, "eval_step", fetch(policy.build_dataset(PROMPTS), range(len(PROMPTS))))
    for prompt, (_, response) in zip(PROMPTS, rows_of(output), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert response == generated.tolist()


def test_tied_weights_stay_tied(llama: str, tmp_path: Path) -> None:
    trainer = build(SFTTrainer, model_path=llama, learning_rate=0.01)
    trainer.train_step([lay_out(random_rows(4), "both")], {"iteration": 0})
    trainer.export(str(tmp_path))
    model = plain_model(str(tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_of_a_model_with_extra_state_the_tensors_are_exported(tmp_path: Path) -> None:
    """Tied ones once; a file of tensors can't hold the rest."""
    from safetensors.torch import load_file

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
            self.out.weight = self.into.weight

        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"calls": 3}

    class Own(TorchModule):
        def setup(self) -> None:
            self.model = Net()

    module = build(Own)
    module.export(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    assert len(weights) == 1
    assert all(torch.equal(value, module.model.into.weight) for value in weights.values())


def test_a_model_of_another_kind_is_exported_as_its_weights(llama: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer = build(ValueTrainer, model_path=llama, learning_rate=0.01)
    trainer.export(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == trainer.model.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())


def test_without_a_model_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ModuleError, match=r"setup\(\) made no `self.model`"):
        TorchModule("bare").export(str(tmp_path))


# -- dtype -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_have_the_dtype_of_the_args(llama: str, dtype: str) -> None:
    reference = build(PolicyReference, model_path=llama, dtype=dtype)
    assert {value.dtype for value in reference.model.parameters()} == {getattr(torch, dtype)}
    output = call(reference, "forward_step", lay_out(random_rows(3), "both"))
    assert output["ref_logprobs"].dtype == torch.float32


def test_dropout_is_off(folders: dict[str, str]) -> None:
    trainer = build(SFTTrainer, model_path=folders["gpt2-untied"], learning_rate=0.01)
    assert trainer.model.config.resid_pdrop > 0, "the case should have dropout"
    assert not any(part.training for part in trainer.model.modules())


# -- what can't be loaded --------------------------------------------------------------------------------


def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **args: Any) -> None:
    """Holds the args of a reference against an engine without starting anything."""
    monkeypatch.chdir(tmp_path)
    chatlearn.init({"models": {"reference": {"args": args}}})
    reference = PolicyReference("reference")
    Engine(Environment(lambda batch: reference.forward_step(batch))).set_dataset(["a"]).check()


@pytest.mark.parametrize("path", ["./no/such", "/no/such/folder", "models/no/such", "~/no-such-folder"])
def test_a_missing_folder_is_found_before_the_start(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)models\.reference\.args\.model_path.*there is no folder.*give an existing"
    ):
        check(tmp_path, monkeypatch, model_path=path)


def test_a_folder_without_a_model_is_found_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)model_path.*holds no config\.json.*save_pretrained"):
        check(tmp_path, monkeypatch, model_path="./empty")


def test_args_are_checked_before_the_start(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, monkeypatch, model_path=llama, temperature_=0.5, dtype="float8")
    assert "temperature_" in str(caught.value)
    assert "`temperature`" in str(caught.value), "the nearest known key"
    assert "dtype" in str(caught.value)
    with pytest.raises(ConfigError, match="model_path"):
        check(tmp_path, monkeypatch)


def broken(llama: str, folder: Path, what: str) -> str:
    """A copy of a model folder with something wrong."""
    shutil.copytree(llama, folder)
    if what == "no weights":
        (folder / "model.safetensors").unlink()
    if what == "cut weights":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    if what == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
    if what == "unknown architecture":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    return str(folder)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no weights", "the model can't be loaded"),
        ("cut weights", "the model can't be loaded"),
        ("unknown architecture", "the model can't be loaded"),
        ("no tokenizer", "the tokenizer can't be loaded"),
    ],
)
def test_a_damaged_folder_is_explained(llama: str, tmp_path: Path, what: str, words: str) -> None:
    path = broken(llama, tmp_path / "model", what)
    with pytest.raises(ConfigError, match=words) as caught:
        build(PolicyInference, model_path=path, max_new_tokens=4)
    assert path in str(caught.value)
    assert "Give a folder that save_pretrained wrote" in str(caught.value)


def test_weights_that_do_not_belong_to_the_model_are_refused(llama: str, tmp_path: Path) -> None:
    """A model with parameters that no file holds would be partly random, and nobody would know."""
    path = broken(llama, tmp_path / "model", "")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(ConfigError, match=r"layers\.2"):
        build(PolicyReference, model_path=path)


@pytest.mark.parametrize("module_class", [PolicyInference, SFTTrainer])
def test_a_tokenizer_without_an_end_token_is_explained(tmp_path: Path, module_class: type) -> None:
    tokenizer = make_tokenizer(eos=None)
    make_model("llama-tied", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    args = {"max_new_tokens": 4} if module_class is PolicyInference else {"learning_rate": 0.1}
    with pytest.raises(ConfigError, match=r"no end-of-sequence token.*Set `eos_token`"):
        build(module_class, model_path=str(tmp_path), **args)


# -- in an engine ----------------------------------------------------------------------------------------


def test_sft_builds_its_own_data_set_and_learns(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chatlearn.init(
        {
            "models": {"sft": {"trainable": True, "args": {"model_path": llama, "learning_rate": 0.01}}},
            "runtime": {
                "num_episode": 6,
                "sample_per_episode": 12,
                "train_micro_batch_size": 2,
                "train_global_batch_size": 4,
                "export": ["sft"],
            },
        }
    )
    sft = SFTTrainer("sft")
    pairs = [{"prompt": letter, "response": letter.upper().lower() * 2} for letter in "abcdef"]
    engine = Engine(None, Trainer(lambda batch: sft.train_step(batch))).set_dataset(pairs)
    engine.learn()
    rows = [json.loads(line) for line in (engine.run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["sft/loss"] < 0.5 * rows[0]["sft/loss"]
    policy = build(PolicyInference, model_path=str(engine.run.path / "policy"), max_new_tokens=4)
    assert policy.tokenizer.padding_side == "left"


def test_errors_of_setup_come_out_of_the_engine(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = broken(llama, tmp_path / "model", "no weights")
    chatlearn.init({"models": {"reference": {"args": {"model_path": path}}}})
    reference = PolicyReference("reference")
    engine = Engine(Environment(lambda batch: reference.forward_step(batch))).set_dataset(["a"])
    with pytest.raises(ChatLearnError, match="can't be loaded"):
        engine.learn()
