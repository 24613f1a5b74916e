"""``chatlearn export``: folders from checkpoints that other tools load, with the bits of the run.

Not covered: models of several ranks, and a GPU.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import Trained, answers_of
from safetensors.torch import load_file

from chatlearn.cli import main
from chatlearn.modules.torch.scoring import Window, policy_logprobs


def _export(source: Path, out: Path, *words: str) -> int:
    return main(["export", str(source), "--to", "hf", "-o", str(out), *words])


def _scores(model: Any, run: Trained) -> torch.Tensor:
    """Log-probabilities of what the run's policy answered, under a model that was loaded by somebody else."""
    window = Window.of(run.answers, torch.device("cpu"))
    with torch.inference_mode():
        return window.spread(policy_logprobs(model.eval(), window, 1.0), run.answers["tokens"].shape[1])


def _assert_same_answers(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert given["response"] == wanted["response"]
    assert torch.equal(given["tokens"], wanted["tokens"])
    assert torch.equal(given["logprobs"], wanted["logprobs"])


def test_an_exported_checkpoint_answers_and_scores_as_the_run_does_to_the_bit(
    plain_run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "sub" / "model"
    assert _export(plain_run.path, out) == 0
    said = capsys.readouterr().out
    assert f"trainer (chatlearn.modules.torch.policy_trainer:PolicyTrainer) of {plain_run.checkpoint}" in said
    assert torch.equal(_scores(AutoModelForCausalLM.from_pretrained(out), plain_run), plain_run.scores)
    assert plain_run.scores.abs().sum() > 0
    _assert_same_answers(answers_of(tmp_path / "runs", model_path=str(out)), plain_run.answers)
    untrained = answers_of(tmp_path / "runs", model_path=plain_run.model)
    assert not torch.equal(untrained["logprobs"], plain_run.answers["logprobs"])
    assert (
        AutoTokenizer.from_pretrained(out)("abc")["input_ids"]
        == AutoTokenizer.from_pretrained(plain_run.model)("abc")["input_ids"]
    )


def test_it_is_what_the_run_itself_exports_at_its_end(plain_run: Trained, tmp_path: Path) -> None:
    assert _export(plain_run.checkpoint, tmp_path / "out") == 0
    ours, theirs = (
        {path.name: path.read_bytes() for path in f.iterdir()} for f in (tmp_path / "out", plain_run.path / "policy")
    )
    assert sorted(ours) == sorted(theirs)
    assert ours["model.safetensors"] == theirs["model.safetensors"]


def test_an_earlier_checkpoint_gives_the_weights_of_that_time(plain_run: Trained, tmp_path: Path) -> None:
    early = plain_run.path / "checkpoints" / "episode-000001"
    assert _export(early, tmp_path / "early") == 0
    weights = load_file(tmp_path / "early" / "model.safetensors")
    saved = load_file(early / "trainer.state.rank0.safetensors")
    last = load_file(plain_run.path / "policy" / "model.safetensors")
    assert all(torch.equal(value, saved[f"model.{name}"]) for name, value in weights.items())
    assert any(not torch.equal(value, last[name]) for name, value in weights.items())


def test_large_models_come_in_several_files(plain_run: Trained, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    assert _export(plain_run.path, out, "--max-shard-size", "100kB") == 0
    files = sorted(out.glob("model-*-of-*.safetensors"))
    assert len(files) > 3
    assert json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["total_size"] > 400_000
    assert not (out / "model.safetensors").exists()
    assert torch.equal(_scores(AutoModelForCausalLM.from_pretrained(out), plain_run), plain_run.scores)


def test_an_adapter_on_its_base_scores_in_peft_as_in_the_run_to_the_bit(
    lora_run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "adapter"
    assert _export(lora_run.path, out, "--adapter", "--module", "trainer") == 0
    assert "the adapter alone" in capsys.readouterr().out
    assert (out / "adapter_config.json").is_file()
    assert not (out / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(lora_run.model)
    plain = _scores(base, lora_run)
    adapted = PeftModel.from_pretrained(base, str(out))
    assert torch.equal(_scores(adapted.get_base_model(), lora_run), lora_run.scores)
    assert not torch.equal(plain, lora_run.scores)
    given = answers_of(tmp_path / "runs", model_path=lora_run.model, lora={"path": str(out)})
    _assert_same_answers(given, lora_run.answers)


def test_merged_adapters_answer_as_the_policy_that_they_were_merged_into_to_the_bit(
    merged_run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert _export(merged_run.path, out, "--merged") == 0
    assert "adapters merged into the model" in capsys.readouterr().out
    assert not (out / "adapter_config.json").exists()
    _assert_same_answers(answers_of(tmp_path / "runs", model_path=str(out)), merged_run.answers)


def test_without_a_word_the_form_is_that_of_the_settings(
    merged_run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(merged_run.path, tmp_path / "out") == 0
    assert "the adapter alone" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


# -- what is refused --


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--module", "policy"], "holds no state of a module 'policy': its weights come by parameter sync"),
        (["--module", "polcy"], "Modules in it: trainer (chatlearn.modules.torch.policy_trainer:PolicyTrainer)"),
        (["--adapter"], "trainer has no adapter: models.trainer.args.lora is not set"),
        (["--adapter", "--merged"], "give one of them"),
        (["--set", "models.trainer.args.model_path=/nowhere/at/all"], "there is no folder /nowhere/at/all"),
        (["--set", "models.trainer.args.learnin_rate=1"], "learnin_rate"),
    ],
)
def test_what_can_not_be_written_is_said_and_nothing_is_written(
    plain_run: Trained, tmp_path: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(plain_run.path, tmp_path / "out", *words) == 1
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused_and_a_good_one_named(
    plain_run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(plain_run.path, tmp_path / "run")
    file = run / "checkpoints" / "episode-000002" / "trainer.state.rank0.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    assert _export(run, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{file} is damaged" in said
    assert f"Export the newest one without damage: {run / 'checkpoints' / 'episode-000001'}" in said
    assert not (tmp_path / "out").exists()
    assert _export(run / "checkpoints" / "episode-000001", tmp_path / "out") == 0


def test_nothing_is_written_over(plain_run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    assert _export(plain_run.path, out) == 1
    assert f"{out} is there already and holds something" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert _export(plain_run.path, out) == 0
    assert (out / "config.json").is_file()


def test_a_base_model_that_is_gone_is_named_and_may_be_given_anew(
    lora_run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    base = Path(lora_run.model)
    base.rename(moved)
    try:
        assert _export(lora_run.path, tmp_path / "out") == 1
        said = capsys.readouterr().err
        assert "models.trainer.args.model_path" in said
        assert f"there is no folder {base}" in said
        assert str(lora_run.checkpoint / "run.json") in said
        assert not (tmp_path / "out").exists()
        assert _export(lora_run.path, tmp_path / "out", "--set", f"models.trainer.args.model_path={moved}") == 0
    finally:
        moved.rename(base)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("runtime: {}\n")
    assert _export(tmp_path, tmp_path / "out") == 1
    assert "holds no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "x", "5 apples", "-1GB"])
def test_sizes_that_are_none_are_refused(plain_run: Trained, tmp_path: Path, size: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        _export(plain_run.path, tmp_path / "out", f"--max-shard-size={size}")
