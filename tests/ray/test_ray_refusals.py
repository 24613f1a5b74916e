"""What bad input gets: each within 30 s, before any module is set up, with what is wrong and how to put it right."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import ray
from programs_on_ray import HERE, facts_of, run_program

LIMIT_SECONDS = 30


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return facts_of(HERE / "refusals.py", folder=tmp_path_factory.mktemp("refusals"))


REFUSED = {
    "nobody": ("WorkerError", "No Ray answers at", "Connection refused", "runtime_env.address"),
    "unknown": ("WorkerError", "No Ray answers at no-such-host.invalid:6379", "runtime_env.address"),
    "web": ("WorkerError", "What listens at", "is no Ray", "runtime_env.address"),
    "silent": ("WorkerError", "No Ray answers at", "timed out", "runtime_env.address"),
    "ray_version": ("WorkerError", "Ray: 1.2.3", f"Ray {ray.__version__}", "the same versions everywhere"),
    "python_version": (
        "WorkerError",
        "Python: 1.2.3",
        "{}.{}.{}".format(*sys.version_info[:3]),
        "the same versions everywhere",
    ),
    "too_large": ("ConfigError", "models.echo.num_cpu", "asks 3 cores a replica", "nodes have 2"),
    "held": ("WorkerError", "has no room for echo[0]: they need 2 cores", "others hold", "engine.stop()"),
}


@pytest.mark.parametrize(("case", "words"), REFUSED.items(), ids=REFUSED)
def test_a_cluster_that_cant_be_used_is_refused_in_time(case: str, words: tuple[str, ...], found: Any) -> None:
    kind, text, seconds = found[case]
    assert kind == words[0]
    assert [word for word in words[1:] if word not in text] == [], text
    assert seconds < LIMIT_SECONDS


def test_after_all_refusals_a_cluster_that_has_room_is_used(found: Any) -> None:
    assert found["free"][0] == "none"


# -- before anything starts ----------------------------------------------------------------------

PROGRAM = """
import sys
import threading

import chatlearn
from chatlearn import BaseModule, Engine, Environment


class Policy(BaseModule):
    def __init__(self, name, settings=None):
        super().__init__(name)

    def forward_step(self, data):
        return data


chatlearn.init()
policy = Policy("policy", {"locks": [threading.Lock()]} if "with-lock" in sys.argv else None)
Engine(Environment(lambda batch: policy.forward_step(batch))).set_dataset(["a"]).learn()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def environment_without(package: str, folder: Path) -> Path:
    """The Python of an environment that has all that this one has, but for a package."""
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != package and not path.name.startswith(f"{package}-"):
            (site / path.name).symlink_to(path)
    return folder / "bin/python"


@pytest.mark.parametrize("command", ["check", "run"])
def test_without_the_extra_the_backend_names_it(command: str, program: Path) -> None:
    python = environment_without("ray", program.parent / "bare")
    words = [str(python), "-m", "chatlearn", command, "train.py", "runtime_env.backend=ray"]
    done = subprocess.run(words, cwd=program.parent, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "command line  runtime_env.backend: is `ray`, but the package ray is not installed" in said
    assert "pip install 'chatlearn[ray]'" in said
    assert not (program.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["with-lock"], "models.policy: argument `settings['locks'][0]` (_thread.lock) of Policy(…) can't be sent"),
        (["models.policy.python=/no/such/python"], "models.policy.python: is '/no/such/python', and there is no such"),
        (["runtime_env.address=ray://head:10001"], "runtime_env.address: expected HOST:PORT"),
        (["models.policy.num_gpu=2", "models.policy.num_replica=1"], "models.policy.num_gpu: policy has 2 GPUs"),
    ],
)
def test_what_can_be_known_before_is_said_before_anything_starts(words: list[str], says: str, program: Path) -> None:
    done = run_program(program, "runtime_env.backend=ray", *words, folder=program.parent)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (program.parent / "runs").exists()
