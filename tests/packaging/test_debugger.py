"""Debuggers on a terminal: they stop in the user's own frame, and the display steps aside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from terminals import Terminal

PROGRAM = """\
import torch

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer


class Records:
    def __init__(self, prompts):
        self.prompts = prompts

    def __len__(self):
        return len(self.prompts)

    def __getitem__(self, index):
        prompt = self.prompts[index]
        raise_here("record", prompt == 3)
        return {"prompt": prompt}


class Policy(BaseModule):
    thread_safe = True

    def build_dataset(self, prompts):
        return Records(prompts)

    def forward_step(self, data, iteration=0):
        doubled = 2 * data["prompt"]
        if PLACE == "forward" and iteration == 5:
            breakpoint()
        raise_here("step", iteration == 5)
        return {"x": doubled}


class Learner(BaseModule):
    def train_step(self, data, train_info):
        total = sum(int(batch["x"].sum()) for batch in data)
        if PLACE == "train" and train_info["iteration"] == 1:
            breakpoint()
        self.log("total", total)


def raise_here(place, when):
    known_here = 17
    if PLACE == place and when:
        raise ValueError("the judge is out")


chatlearn.init()
PLACE = chatlearn.get_config().model("policy").args.get("place", "")
policy, learner = Policy("policy"), Learner("learner")


def env_flow(batch):
    return policy.forward_step(batch)


def trainer_flow(batch):
    learner.train_step(batch)


engine = Engine(Environment(env_flow), Trainer(trainer_flow)).set_dataset(range(8))
engine.learn()
engine.stop()
print("the end")
"""
SETTINGS = [
    "runtime.num_episode=3",
    "runtime.sample_per_episode=8",
    "runtime.generation_batch_size=2",
    "runtime.train_global_batch_size=8",
    "runtime.train_micro_batch_size=8",
    "runtime.data_shuffle=false",
]
INLINE, THREADS = "runtime_env.local_threads=1", "runtime_env.local_threads=3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the program."""
    (tmp_path / "train.py").write_text(PROGRAM, encoding="utf-8")
    return tmp_path


def program(place: str, threads: str) -> list[str]:
    return ["train.py", *SETTINGS, f"models.policy.args.place={place}", "models.learner.args.x=0", threads]


def line_of(text: str) -> int:
    """Number of the program's only line with this text."""
    (number,) = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if text in line]
    return number


def last_frame(where: str) -> str:
    """The frame where a debugger stands, by its answer to ``where``."""
    return [line for line in where.splitlines() if line.startswith("> ")][-1]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [INLINE, THREADS])
def test_a_breakpoint_in_a_step_stops_in_its_frame_and_the_run_goes_on(folder: Path, threads: str) -> None:
    """The prompts come in order, two a batch, four batches an episode: iteration 5 is the second batch of the second
    episode and holds 2 and 3.
    """
    with Terminal(folder, *program("forward", threads)) as terminal:
        shown = terminal.answer()
        assert re.search(r"train\.py\(\d+\)forward_step\(\)", last_frame(shown))
        assert "1/3" in shown  # the display of the first episode stays above
        assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("\x1b[?25l")  # the cursor is visible again
        assert "tensor([4, 6])" in terminal.answer("p doubled")
        assert "tensor([2, 3])" in terminal.answer("p data['prompt']")
        assert "forward_step()" in last_frame(terminal.answer("where"))
        rest, code = terminal.finish("c")
    assert code == 0
    assert "episode 2/3" in rest
    assert "episode 3/3" in rest
    assert rest.rstrip().endswith("the end")


@pytest.mark.slow
def test_a_breakpoint_on_the_drivers_thread_beside_steps_on_threads(folder: Path) -> None:
    """The learner isn't thread-safe. 2 · (0 + 1 + … + 7) = 56."""
    with Terminal(folder, *program("train", THREADS)) as terminal:
        assert "train_step()" in last_frame(terminal.answer())
        assert "56" in terminal.answer("p total").splitlines()
        rest, code = terminal.finish("c")
    assert code == 0
    assert rest.rstrip().endswith("the end")


@pytest.mark.slow
def test_quitting_the_debugger_ends_the_run(folder: Path) -> None:
    with Terminal(folder, *program("forward", THREADS)) as terminal:
        terminal.answer()
        rest, code = terminal.finish("q")
    assert code == 1
    assert "BdbQuit" in rest
    assert "Go on with: runtime.resume=" in rest


@pytest.mark.slow
@pytest.mark.parametrize(("place", "threads"), [("step", INLINE), ("step", THREADS), ("record", INLINE)])
def test_after_an_exception_pdb_stands_in_the_users_frame(folder: Path, place: str, threads: str) -> None:
    with Terminal(folder, "-m", "pdb", "-c", "continue", *program(place, threads)) as terminal:
        shown = terminal.answer()
        assert "ValueError: the judge is out" in shown
        assert "post mortem" in shown
        assert f"train.py({line_of('raise ValueError')})raise_here()" in last_frame(shown)
        assert "17" in terminal.answer("p known_here").splitlines()
        terminal.answer("up")
        if place == "step":
            assert "tensor([4, 6])" in terminal.answer("p doubled")
        else:
            assert "3" in terminal.answer("p prompt").splitlines()


@pytest.mark.slow
def test_a_breakpoint_set_in_pdb_stops_in_a_step(folder: Path) -> None:
    line = line_of("self.log")
    with Terminal(folder, "-m", "pdb", *program("", INLINE)) as terminal:
        terminal.answer()
        assert f"train.py:{line}" in terminal.answer(f"b {line}")
        assert f"train.py({line})train_step()" in last_frame(terminal.answer("c"))
        assert "56" in terminal.answer("p total").splitlines()
        assert "episode 1/3" in terminal.answer("c")  # plain lines under a debugger
