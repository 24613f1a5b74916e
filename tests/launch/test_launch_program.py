"""The program behind ``--``: what it may be, and that its words arrive as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatlearn.cli import main
from chatlearn.config.load import parse_command_line
from chatlearn.errors import ConfigError
from chatlearn.launch.program import check_program, in_ray_job, in_shell, with_cluster

SHOW = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "The program is missing. It stands behind --, as in: chatlearn launch slurm --nodes 2 -- chatlearn run ppo",
        ),
        (["train.py"], "train.py is no command. Put `chatlearn run` or `python` before it."),
        (["chatlearn", "run", "ppo", "runtime_env.address=x"], "runtime_env.address is set by `chatlearn launch`"),
        (["chatlearn", "run", "ppo", "--set=runtime_env.backend=local"], "runtime_env.backend is set by"),
    ],
)
def test_programs_that_are_none(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", "--nodes", "2", "--", *words]) == 1
    assert message in capsys.readouterr().err


def test_words_before_the_program_are_options_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["launch", "slurm", "--nodes", "2", "chatlearn", "run", "ppo"])
    assert "unrecognized arguments: chatlearn run ppo" in capsys.readouterr().err
    assert main(["launch", "dockerfile", "--", "chatlearn"]) == 1
    assert "takes no program" in capsys.readouterr().err


@pytest.mark.parametrize(
    "program", [["run", "ppo"], ["run", "ppo", "--resume"], ["run", "x.py", "-c", "a.yaml", "b=1"]]
)
def test_the_program_reads_where_the_cluster_is(program: list[str]) -> None:
    """A bare word behind ``--resume`` would be its path."""
    paths, overrides = parse_command_line(with_cluster(program, "host:6379")[2:])
    assert "runtime_env.backend=ray" in overrides
    assert "runtime_env.address=host:6379" in overrides
    assert not any("resume" in word and "runtime_env" in word for word in overrides)
    assert [str(path) for path in paths or []] == (["a.yaml"] if "-c" in program else [])


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_a_shell_splits_the_line_into_the_words_again(words: list[str]) -> None:
    done = subprocess.run(["bash", "-c", f"{in_shell([*SHOW, *words])}"], text=True, capture_output=True, check=True)
    assert json.loads(done.stdout) == words


def _through_ray_job(entrypoint: str, folder: Path) -> list[str]:
    """What becomes of an entrypoint: the operator puts it into a script, `ray job submit` joins the words as
    ``subprocess.list2cmdline`` does, and a shell on the head runs the line.
    """
    submit = folder / "submit.py"
    submit.write_text("import subprocess, sys\nsubprocess.run(subprocess.list2cmdline(sys.argv[1:]), shell=True)\n")
    done = subprocess.run(["bash", "-ce", f"{sys.executable} {submit} {entrypoint} ;"], text=True, capture_output=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "word",
    [
        "runtime.seed=1",
        "a b",
        "it's",
        "",
        "models.policy.args.path=$HOME",
        "runtime.sinks=[jsonl]",
        "runtime.sinks=[jsonl, tensorboard]",
        'x={"a": 1}',
        "a;b|c&d",
        "*",
        "back\\slash",
        'say "no"!',
        'a"*"',
        "$HOME;`date`",
        "~/data",
        "é",
    ],
)
def test_words_survive_a_ray_job(word: str, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    words = [sys.executable, str(tmp_path / "show.py"), "first", word, "last"]
    assert _through_ray_job(in_ray_job(words), tmp_path) == ["first", word, "last"]


@pytest.mark.parametrize("word", ["$HOME is mine", "a `b`", "two\nwords", 'a\\"b'])
def test_words_that_would_not_survive_a_ray_job_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="does not survive the way through `ray job submit`"):
        in_ray_job(["chatlearn", word])


@settings(max_examples=40)
@given(st.text("ab \"'$`\\*[]{}!#~;|&<>()?=,:\t", max_size=6))
def test_a_word_survives_a_ray_job_or_is_refused(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    folder = tmp_path_factory.mktemp("job")
    (folder / "show.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    try:
        entrypoint = in_ray_job([sys.executable, str(folder / "show.py"), word])
    except ConfigError:
        return
    assert _through_ray_job(entrypoint, folder) == [word]


def test_the_words_are_not_changed() -> None:
    words = ["chatlearn", "run", "ppo"]
    assert check_program(words, "chatlearn launch slurm") == words
    assert with_cluster(words, "auto")[:3] == words
