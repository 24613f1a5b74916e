"""``chatlearn check --cluster``: what would sit where, for a configuration, a program and a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys

from chatlearn.cli import main

PROGRAM = """\
import chatlearn
import toys

chatlearn.init()
engine = toys.make_engine()
engine.learn()
print("after")
"""

CONFIG = """\
models:
  policy: {num_gpu: 3, num_replica: 3}
  reward: {num_cpu: 2}
  learner: {num_gpu: 1, trainable: true}
runtime:
  colocation: ["policy,learner"]
"""

TABLE = """\
Placement on 2 nodes: 3 of 4 GPUs and 5 cores taken

node    GPUs  share  cores  replicas
node-0  0     1/2        1  policy[0], learner[0]
node-0  1     1          1  policy[1]
node-1  0     1          1  policy[2]
node-1  -     -          2  reward[0]
node-1  1     -          -  free
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a program and its configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "my.yaml").write_text(CONFIG)
    toys.EVENTS.clear()
    return tmp_path


def test_a_configuration_alone_is_placed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", "my.yaml", "--cluster", "2x2"]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{TABLE}")


def test_a_programs_modules_are_placed_after_its_flows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "program.py", "-c", "my.yaml", "--cluster=2x2", "models.unused.num_gpu=1"]) == 0
    output = capsys.readouterr().out
    assert output.index("env_flow(batch)") < output.index("after\n\nPlacement on")
    assert output.endswith(TABLE)
    assert toys.EVENTS == []
    assert not (folder / "runs").exists()


def test_a_program_that_goes_on_with_results_is_placed_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "program.py").write_text(PROGRAM.replace("print(", "engine.evaluate()\nprint("))
    with pytest.raises(SystemExit) as caught:
        main(["check", "program.py", "-c", "my.yaml", "--cluster", "2x2"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert output.endswith(f"The check ends here: the program goes on with results.\n\n{TABLE}")
    assert output.count("Placement on") == 1


def test_each_engine_of_a_recipe_is_placed_on_the_whole_cluster(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["models.warm_start.num_gpu=1", "models.policy.num_gpu=1", "models.reward.num_cpu=1"]
    assert main(["check", "ppo", "--cluster", "1x1x6", *words]) == 0
    output = capsys.readouterr().out
    first, second = output.split("Placement on ")[1:]
    assert output.index("eval_flow(batch)") < output.index("Placement on ")
    assert first.splitlines() == [
        "1 node: 1 of 1 GPU and 1 of 6 cores taken",
        "",
        "node    GPUs  share  cores  replicas",
        "node-0  0     1          1  warm_start[0]",
        "node-0  -     -          5  free",
        "",
    ]
    assert second.splitlines()[0] == "1 node: 1 of 1 GPU and 6 of 6 cores taken"
    assert "node-0  0     1          1  policy[0]" in second
    assert "warm_start" not in second


@pytest.mark.parametrize("what", [[], ["program.py"]])
def test_what_finds_no_place_is_listed_and_no_table_is_printed(
    what: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *what, "-c", "my.yaml", "--cluster", "1x2x1"]) == 1
    output, error = capsys.readouterr()
    assert "Placement on" not in output
    assert "num_replica" in output
    assert error.splitlines() == [
        "ConfigError: 3 problems in the configuration:",
        " 1. my.yaml:2  models.policy.num_gpu: in all 3 GPUs are asked for, the cluster has 2: 1 short: policy[1], "
        "policy[2] find no place",
        "     Fix: take 1 GPU more, lower num_gpu, or let models share GPUs (colocation).",
        " 2. my.yaml:2  models.policy.cpu_per_process: in all 5 cores are asked for, the cluster has 1: 4 short: "
        "policy[1], policy[2], reward[0] find no place",
        "     Fix: take 4 cores more, or lower num_cpu or num_replica.",
        " 3. my.yaml:3  models.reward.num_cpu: reward asks 2 cores a replica, nodes have 1",
        "     Fix: set num_cpu: 1 or less, or take larger nodes.",
    ]


def test_problems_of_all_engines_are_listed_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["models.warm_start.num_gpu=2", "models.policy.num_gpu=2"]
    assert main(["check", "ppo", "--cluster", "1x8", *words]) == 1
    error = capsys.readouterr().err
    assert "2 problems" in error
    for name in ("warm_start", "policy"):
        assert f"command line  models.{name}.num_gpu: {name} has 2 GPUs for 1 replica, which would be 2 proc" in error


def test_nothing_is_placed_without_a_cluster(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["program.py", "-c", "my.yaml"], ["-c", "my.yaml", "models.policy.num_gpu=7"], ["ppo"]):
        assert main(["check", *words]) == 0
        assert "Placement" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["2y8", "0x1", "2x0x0", "8"])
def test_a_mistyped_cluster_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "ppo", "--cluster", text])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "usage: chatlearn check" in error
    assert f"argument --cluster: expected NODESxGPUS or NODESxGPUSxCORES, such as 2x8 or 2x0x16, got '{text}'" in error


def test_the_cluster_comes_with_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "ppo", "--cluster"])
    assert caught.value.code == 2
    assert "argument --cluster: expected one argument" in capsys.readouterr().err
