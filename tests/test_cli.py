"""The command line, called as the console script calls it; what depends on a process of its own runs in one.

Not covered: a recipe's run to its end, which takes minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import toys

from chatlearn.cli import main

TESTS = Path(toys.__file__).parent

PROGRAM = """\
import sys
import chatlearn
import toys

chatlearn.init()
engine = toys.make_engine()
print("arguments:", sys.argv[1:])
engine.learn()
print("after")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a program and its configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "toy.yaml").write_text(json.dumps(toys.settings(tmp_path / "runs", num_episode=1)))
    toys.EVENTS.clear()
    return tmp_path


def _process(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, text=True, capture_output=True)


def test_running_a_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv), list(sys.path)
    assert main(["run", "program.py", "-c", "toy.yaml", "runtime.num_episode=2", "mine", "--mine=3"]) == 0
    output = capsys.readouterr().out
    assert "arguments: ['-c', 'toy.yaml', 'runtime.num_episode=2', 'mine', '--mine=3']" in output
    assert output.rstrip().endswith("after")
    assert [row["episode"] for row in toys.rows_of(folder / "runs" / "toy")] == [1, 2]
    assert (list(sys.argv), list(sys.path)) == before


def test_a_program_finds_what_lies_beside_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "beside_it.py").write_text("WORD = 'found'\n")
    (folder / "sub" / "main.py").write_text("import beside_it\nprint(beside_it.WORD, __name__)\n")
    assert main(["run", "sub/main.py"]) == 0
    assert capsys.readouterr().out == "found __main__\n"


def test_resuming_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "program.py", "-c", "toy.yaml"]) == 0
    capsys.readouterr()
    assert main(["run", "program.py", "-c", "toy.yaml", "--resume"]) == 0
    assert f"{folder / 'runs' / 'toy'} is finished" in capsys.readouterr().out
    assert main(["run", "program.py", "-c", "toy.yaml", "--resume", "absent"]) == 1
    assert "absent is neither a run folder nor a checkpoint" in capsys.readouterr().err


def test_checking_a_program_prints_its_flows_and_starts_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "program.py", "-c", "toy.yaml"]) == 0
    output = capsys.readouterr().out
    for words in (
        "env_flow(batch)",
        "policy.forward_step  <- batch",
        "learner.train_step",
        "policy.eval_step",
        "after",
    ):
        assert words in output
    assert toys.EVENTS == []
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("engine.evaluate()", ""),
        ("", "print(engine.call(toys.module_of(engine, 'policy').weights, {'prompt': [0]})['weights'])"),
        ("", "print(engine.run.path / 'policy')"),
    ],
)
def test_a_check_ends_where_the_program_needs_results(
    before: str, after: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PROGRAM.replace("engine.learn()", f"{before}\nengine.learn()\n{after}")
    (folder / "program.py").write_text(text)
    monkeypatch.setattr(toys.Policy, "setup", lambda self: toys.EVENTS.append(("started",)))
    with pytest.raises(SystemExit) as caught:
        main(["check", "program.py", "-c", "toy.yaml"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert output.count("env_flow(batch)") == 1
    assert "The check ends here" in output
    assert toys.EVENTS == []
    assert not (folder / "runs").exists()


def test_a_check_finds_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "program.py", "-c", "toy.yaml", "runtime.num_episod=3", "models.policy.num_replicas=2"]) == 1
    error = capsys.readouterr().err
    assert "2 problems" in error
    assert "`num_episode`" in error
    assert "`num_replica`" in error
    assert not (folder / "runs").exists()


def test_checking_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ppo"]) == 0
    output = capsys.readouterr().out
    for words in ("policy.forward_step", "reference.forward_step", "ppo_policy.train_step", "ppo_value.train_step"):
        assert words in output


def test_a_check_shows_every_value_and_its_source_before_the_flows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "more.yaml").write_text("runtime:\n  log_interval: 5\n")
    words = ["check", "program.py", "-c", "toy.yaml", "-c", "more.yaml", "--set", "runtime.seed=3"]
    assert main(words) == 0
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert ["seed", "3", "command", "line"] in lines
    assert ["log_interval", "5", "more.yaml:2"] in lines
    assert ["num_training_epoch", "1", "default"] in lines
    assert output.index("num_training_epoch") < output.index("env_flow(batch)")


@pytest.mark.parametrize("command", ["check", "flow"])
def test_a_users_exception_in_a_check_comes_through(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "program.py").write_text("print('before')\nraise KeyError('mine')\n")
    with pytest.raises(KeyError, match="mine"):
        main([command, "program.py"])
    assert ("before" in capsys.readouterr().out) == (command == "check")


def test_checking_a_configuration_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text("models: {p: {num_gpu: 4}}\nruntime:\n  seed: 1\n")
    assert main(["check", "-c", "a.yaml", "runtime.num_episode=7"]) == 0
    output = capsys.readouterr().out
    lines = [line.split() for line in output.splitlines()]
    assert ["seed", "1", "a.yaml:3"] in lines
    assert ["num_episode", "7", "command", "line"] in lines
    assert "a.yaml:1  models.p.num_gpu: no effect in one process" in output.splitlines()[-1]
    assert main(["check", "runtime.num_episod=7"]) == 1
    assert "`num_episode`" in capsys.readouterr().err
    assert main(["check", "-c=a.yaml"]) == 0
    assert "num_gpu: no effect" in capsys.readouterr().out
    assert main(["check", "-c", "a.yaml", "runtime.num_episod=7", "foo"]) == 1
    error = capsys.readouterr().err
    assert "Nothing reads 'foo'." in error
    assert "runtime.num_episod: unknown key; did you mean `num_episode`?" in error
    assert main(["check", "-c", "a.yaml", "program.py"]) == 1
    assert "Nothing reads 'program.py'" in capsys.readouterr().err


FLOW = [
    "env_flow(batch)",
    "policy.forward_step",
    "learner.train_step",
]


def test_flow_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow", "program.py", "-c", "toy.yaml", "--format", "text"]) == 0
    output = capsys.readouterr().out
    for words in FLOW:
        assert words in output
    assert "after" not in output
    assert "arguments" not in output
    assert toys.EVENTS == []
    assert not (folder / "runs").exists()


def test_flow_of_a_program_that_goes_on_with_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "program.py").write_text(PROGRAM.replace("engine.learn()", "engine.evaluate()\nengine.learn()"))
    assert main(["flow", "program.py", "-c", "toy.yaml"]) == 0
    output = capsys.readouterr().out
    assert output.count("env_flow(batch)") == 1
    assert "The check ends here" not in output


def test_flow_as_mermaid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow", "program.py", "-c", "toy.yaml", "--format=mermaid"]) == 0
    output = capsys.readouterr().out
    assert "flowchart" in output
    assert "learner.train_step" in output


def test_flow_as_svg(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow", "program.py", "-c", "toy.yaml", "--format", "svg", "-o", "flow.svg"]) == 0
    assert capsys.readouterr().out == ""
    picture = ElementTree.parse(folder / "flow.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(picture.itertext())
    for words in ("policy.forward_step", "learner.train_step"):
        assert words in text


def test_flow_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow", "ppo"]) == 0
    output = capsys.readouterr().out
    for words in ("warm_start.train_step", "policy.forward_step", "ppo_value.train_step", "policy.eval_step"):
        assert words in output


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["flow", "program.py", "-o", "toy.yaml/flow.txt"], ["toy.yaml/flow.txt can't be written", "after -o"]),
        (["flow", "zzz"], ["no recipe 'zzz'"]),
        (["flow", "empty.py"], ["nothing to check"]),
        (["schema", "-o", "toy.yaml/schema.json"], ["toy.yaml/schema.json can't be written"]),
        (["report", "absent"], ["absent"]),
    ],
)
def test_what_else_can_go_wrong(
    words: list[str], wanted: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.py").write_text("print(1)\n")
    assert main(words) == 1
    error = capsys.readouterr().err
    for part in wanted:
        assert part in error


def test_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"includes", "runtime_env", "models", "runtime", "rlhf"} <= set(printed["properties"])
    assert main(["schema", "-o", "schema.json"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((folder / "schema.json").read_text()) == printed
    assert main(["schema", "-o", "new/folder/schema.json"]) == 0
    assert json.loads((folder / "new" / "folder" / "schema.json").read_text()) == printed


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    for words in ("chatlearn", "torch", sys.version.split()[0]):
        assert words in output


def test_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "program.py", "-c", "toy.yaml"]) == 0
    capsys.readouterr()
    assert main(["report", "runs/toy", "-o", "page.html"]) == 0
    assert Path(capsys.readouterr().out.strip()).resolve() == folder / "page.html"
    assert "<html" in (folder / "page.html").read_text()


def test_help_comes_at_once() -> None:
    """In CPU time, which other jobs on the machine change little; heavy packages would take seconds."""
    code = (
        "import sys, time, chatlearn.cli\n"
        "try:\n    chatlearn.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(time.process_time() < 0.3, sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = _process(Path.cwd(), "-c", code)
    assert done.stderr.strip().endswith("True []")


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["pp0"], ["no recipe 'pp0'; did you mean 'ppo'?", ".py"]),
        (["zzz"], ["no recipe 'zzz'. Recipes: ppo"]),
        (["absent.py"], ["no program", "absent.py"]),
        (["ppo", "runtime.num_episodes=3"], ["runtime.num_episodes", "`num_episode`", "command line"]),
        (["ppo", "runtim.seed=3"], ["runtim", "`runtime`"]),
        (["ppo", "num_episode=3", "--resum"], ["Nothing reads 'num_episode=3', '--resum'", "runtime.num_episode=3"]),
        (["ppo", "-c", "absent.yaml"], ["absent.yaml", "no such file"]),
        (["ppo", "-c"], ["comes without a file"]),
    ],
)
def test_mistyped_words(
    command: str, words: list[str], wanted: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *words]) == 1
    error = capsys.readouterr().err
    for part in wanted:
        assert part in error
    assert "Traceback" not in error
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        *([], ["train"], ["run"], ["check"], ["flow"], ["report"], ["run", "-c", "toy.yaml", "program.py"]),
        *(["run", "runtime.seed=1"], ["schema", "more"], ["doctor", "--more"], ["report", "runs/toy", "more"]),
        ["flow", "ppo", "--format", "png"],
    ],
)
def test_unusable_arguments_end_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: chatlearn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "taught"),
    [
        (["--help"], ["chatlearn run ppo", "--resume", "chatlearn check", "runtime.num_episode=20", "-c my.yaml"]),
        (["run", "--help"], ["RECIPE|SCRIPT.py", "ppo", "a.b=value", "--resume [PATH]", "-c, --config FILE"]),
        (["check", "--help"], ["without starting", "a.b=value", "--set FILE", "[RECIPE|SCRIPT.py]"]),
        (["flow", "--help"], ["Mermaid", "SVG", "{text,mermaid,svg}", "-o FILE", "RECIPE|SCRIPT.py"]),
        (["schema", "--help"], ["JSON Schema", "-o FILE"]),
        (["doctor", "--help"], ["extra"]),
        (["report", "--help"], ["RUN_FOLDER", "HTML", "-o FILE"]),
    ],
)
def test_help_teaches(words: list[str], taught: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for part in taught:
        assert part in output


def test_an_error_of_ours_in_a_process(folder: Path) -> None:
    """Exit code 1 and the text, without a traceback: nothing in the user's code went wrong."""
    done = _process(folder, "-m", "chatlearn", "run", "program.py", "-c", "toy.yaml", "runtime.seeed=1")
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigError: ")
    assert "`seed`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_users_exception_comes_out_with_its_own_traceback_first(folder: Path) -> None:
    text = """
class Failing(toys.Policy):
    def forward_step(self, data, iteration=0):
        return self.helper(data)

    def helper(self, data):
        raise ValueError("the user's words")

"""
    program = PROGRAM.replace("chatlearn.init()", f"{text}\nchatlearn.init()").replace("engine()", "engine(Failing)")
    (folder / "program.py").write_text(program)
    done = _process(folder, "-m", "chatlearn", "run", "program.py", "-c", "toy.yaml")
    assert done.returncode == 1
    error = done.stderr
    assert error.startswith("Traceback")
    first, second = error.index("ValueError: the user's words\n"), error.index("StepError: ")
    assert "in helper" in error[:first]
    assert "was the direct cause" in error[first:second]
    for part in ("policy[0].forward_step", "rank 0", "episode 1", "batch 0", "sample ids [0, 1, 2, 3, 4, 5, 6, 7]"):
        assert part in error[second:]


def test_an_exception_of_the_program_itself_is_not_dressed_up(folder: Path) -> None:
    (folder / "program.py").write_text("raise KeyError('mine')\n")
    with pytest.raises(KeyError, match="mine"):
        main(["run", "program.py"])


def test_a_programs_exit_code_is_kept(folder: Path) -> None:
    (folder / "program.py").write_text("raise SystemExit(7)\n")
    with pytest.raises(SystemExit) as caught:
        main(["run", "program.py"])
    assert caught.value.code == 7


def test_checking_a_program_without_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "empty.py"
    program.write_text("import chatlearn\nchatlearn.init()\n")
    assert main(["check", str(program)]) == 1
    assert "empty.py came to its end without engine.learn(), so there was nothing to check" in capsys.readouterr().err
