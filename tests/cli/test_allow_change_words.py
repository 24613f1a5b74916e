"""``--allow-change`` on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import chatlearn
from chatlearn.cli import main
from chatlearn.config import load_config, parse_command_line
from chatlearn.errors import ConfigError


@pytest.mark.parametrize(
    "words",
    [
        "--allow-change runtime.seed --allow-change models.learner.args.lr",
        "--allow-change=runtime.seed --resume --allow-change=models.learner.args.lr",
        "--resume runs/a --allow-change runtime.seed -c {file} --allow-change models.learner.args.lr",
    ],
)
def test_keys_are_put_together(tmp_path: Path, words: str) -> None:
    (tmp_path / "a.yaml").write_text("runtime: {seed: 3}\n")
    config = load_config(*parse_command_line(words.format(file=tmp_path / "a.yaml").split()))
    assert config.runtime.allow_change == ["runtime.seed", "models.learner.args.lr"]
    assert load_config().runtime.allow_change == []


def test_a_program_reads_them_by_init(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--allow-change", "runtime.seed", "mine"])
    assert chatlearn.init().runtime.allow_change == ["runtime.seed"]


@pytest.mark.parametrize("words", ["--allow-change", "--allow-change=", "--allow-change --resume"])
def test_a_key_that_is_missing_is_said(words: str) -> None:
    with pytest.raises(ConfigError, match=r"`--allow-change` comes without a key"):
        parse_command_line(words.split())


def test_commands_take_it_beside_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("runtime: {seed: 3}\n")
    assert main(["check", "-c", str(tmp_path / "a.yaml"), "--allow-change", "runtime.seed", "runtime.seed=4"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "allow_change" in line]
    assert len(shown) == 1
    assert "runtime.seed" in shown[0]
    assert "command line" in shown[0]
    assert main(["check", "-c", str(tmp_path / "a.yaml"), "--allow-changes", "runtime.seed"]) == 1
    assert "--allow-change KEY" in capsys.readouterr().err
