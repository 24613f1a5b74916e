"""``chatlearn export`` of classes that are the user's own: what can be made again from a checkpoint, and what needs the
program.
"""

from __future__ import annotations

import json
from pathlib import Path

import export_cases
import pytest
import torch
import toys
from safetensors.torch import load_file

from chatlearn.cli import main

PROGRAM = """\
import chatlearn
from chatlearn import Engine, Trainer
from export_cases import Mute, Wide, Widths


class Own(Widths):
    pass


chatlearn.init()
modules = [{modules}]


def flow(batch):
    for module in modules:
        module.train_step(batch)


engine = Engine(None, Trainer(flow)).set_dataset(list(range(8)))
engine.learn()
print("the program goes on")
"""


class Trained:
    """A program that has run for one episode.

    Args:
        folder: to write to.
        modules: of its trainer, as Python.
    """

    def __init__(self, folder: Path, modules: str, **runtime: object) -> None:
        self.program, self.run = folder / "train.py", folder / "runs" / "toy"
        self.program.write_text(PROGRAM.format(modules=modules))
        sizes = {"sample_per_episode": 8, "train_micro_batch_size": 8, "num_episode": 1, "save_episode_interval": 1}
        (folder / "toy.yaml").write_text(json.dumps(toys.settings(folder / "runs", **{**sizes, **runtime})))
        with toys.quick_runs():
            assert main(["run", str(self.program), "-c", str(folder / "toy.yaml")]) == 0
        self.checkpoint = self.run / "checkpoints" / "episode-000001"
        self.out = folder / "out"

    def export(self, *words: str) -> int:
        """The exit code of the command."""
        return main(["export", str(self.run), "--to", "hf", "-o", str(self.out), *words])

    def assert_whole(self, name: str) -> None:
        """What was written are the weights of the checkpoint."""
        saved = load_file(self.checkpoint / f"{name}.state.rank0.safetensors")
        written = load_file(self.out / "model.safetensors")
        assert sorted(written) == ["bias", "weight"]
        assert all(torch.equal(value, saved[f"model.{key}"]) for key, value in written.items())


def test_a_class_of_a_script_needs_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = Trained(tmp_path, "Own('learner', 5)")
    assert trained.export() == 1
    said = capsys.readouterr().err
    assert "learner: its class Own is defined in a program, so it can't be imported" in said
    assert "--program train.py" in said
    assert "runtime.export" in said
    assert not trained.out.exists()
    rows = (trained.run / "metrics.jsonl").read_bytes()
    assert trained.export("--program", str(trained.program)) == 0
    said = capsys.readouterr().out
    assert "the program goes on" not in said
    assert "note: this model has no save_pretrained" in said
    trained.assert_whole("learner")
    assert (trained.run / "metrics.jsonl").read_bytes() == rows
    assert sorted(path.name for path in trained.run.parent.iterdir()) == ["toy"]


def test_constructor_arguments_need_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = Trained(tmp_path, "Wide('learner', width=5)")
    assert trained.export() == 1
    assert "export_cases:Wide is constructed with width beside its name" in capsys.readouterr().err
    assert trained.export("--program", str(trained.program)) == 0
    trained.assert_whole("learner")


def test_arguments_that_are_left_at_their_defaults_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = Trained(tmp_path, "Widths('learner')")
    assert trained.export() == 0
    assert "note: made with the constructor's own width; if the program gave others" in capsys.readouterr().out
    trained.assert_whole("learner")


def test_a_state_that_does_not_fit_what_the_defaults_make_is_refused(tmp_path: Path) -> None:
    trained = Trained(tmp_path, "Widths('learner', 5)")
    with pytest.raises(Exception, match=r"learner: the state in .* does not fit what setup\(\) made"):
        trained.export()
    assert not trained.out.exists()


def test_of_several_modules_one_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = Trained(tmp_path, "Widths('a'), Widths('b'), Mute('c')")
    assert trained.export() == 1
    assert "several modules that could be written: a, b. Say which with --module" in capsys.readouterr().err
    assert trained.export("--module", "c") == 1
    assert "c: export_cases:Mute has no method export(path)" in capsys.readouterr().err
    assert trained.export("--module", "b") == 0
    trained.assert_whole("b")


def test_without_a_word_it_is_what_the_run_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = Trained(tmp_path, "Widths('a'), Widths('b')", export=["b", "a"])
    assert trained.export() == 0
    assert f"b (export_cases:Widths) of {trained.checkpoint}" in capsys.readouterr().out
    trained.assert_whole("b")


def test_modules_without_export_leave_nothing_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = Trained(tmp_path, "Mute('c')")
    assert trained.export() == 1
    assert "no module in it has a method export(path)" in capsys.readouterr().err


def test_another_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = Trained(tmp_path, "Widths('learner')")
    other = tmp_path / "other.py"
    other.write_text(PROGRAM.format(modules="Widths('someone')"))
    assert trained.export("--program", str(other)) == 1
    said = capsys.readouterr().err
    assert f"{other} does not fit the configuration in {trained.checkpoint / 'run.json'}" in said
    assert "the module `someone` has no entry under models" in said
    foreign = "class Own(chatlearn.TorchModule):\n    def train_step(self, data):"
    other.write_text(
        PROGRAM.format(modules="Own('learner')").replace("class Own(Widths):\n    ", f"{foreign}\n        ")
    )
    assert trained.export("--program", str(other)) == 1
    said = capsys.readouterr().err
    assert "learner has the class __main__:Own in the program, and had export_cases:Widths in the run" in said
    other.write_text("print('nothing')")
    assert trained.export("--program", str(other)) == 1
    assert "came to its end without engine.learn()" in capsys.readouterr().err
    assert not trained.out.exists()


def test_a_class_whose_module_is_gone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained(tmp_path, "Widths('learner')")
    monkeypatch.delattr(export_cases, "Widths")
    assert trained.export() == 1
    assert "learner: its class export_cases:Widths can't be imported here" in capsys.readouterr().err
