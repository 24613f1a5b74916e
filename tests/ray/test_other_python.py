"""``models.<name>.python``: workers in a Python environment of their own."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from programs_on_ray import HERE, facts_of

from chatlearn import BaseModule
from chatlearn.errors import WorkerError
from chatlearn.modules.base import describe
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.runtime.ray.cluster import RayCluster

OTHER = "5.22.0"
"""A version of transformers that the tests' own environment does not have."""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with another transformers, and all else as here; pip fetches that one package."""
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    here = sysconfig.get_path("purelib")
    (site / "all_else.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", f"transformers=={OTHER}"], check=True)
    return python


@pytest.mark.slow
def test_a_module_runs_in_its_own_environment_and_the_others_in_the_drivers(other: Path, tmp_path: Path) -> None:
    assert importlib.metadata.version("transformers") != OTHER
    judge, policy = facts_of(
        HERE / "versions.py", "runtime_env.backend=ray", f"models.judge.python={other}", "models.policy.num_replica=1",
        folder=tmp_path,
    )  # fmt: skip
    assert judge == [str(other.parents[1]), OTHER]
    assert policy == [sys.prefix, importlib.metadata.version("transformers")]


def versions(**changes: str | None) -> str:
    """A program that says what an environment has, in place of its Python."""
    found = {"Python": "{}.{}".format(*sys.version_info[:2]), "ray": ray.__version__}
    found |= {"chatlearn": importlib.metadata.version("chatlearn"), **changes}
    return f"echo '{json.dumps({name: version for name, version in found.items() if version})}'"


WRONG = {
    "another Python": (versions(Python="3.8"), "has Python 3.8 where the driver has"),
    "another Ray": (versions(ray="2.9.0"), "has ray 2.9.0 where the driver has"),
    "another chatlearn": (versions(chatlearn="9.9"), "has chatlearn 9.9 where the driver has"),
    "no Ray": (versions(ray=None), "has no ray"),
    "neither": (versions(ray=None, chatlearn=None), "has no chatlearn, and no ray"),
    "no Python": ("echo 'what is -c?' >&2", "it is no Python that runs.\nwhat is -c?"),
    "nothing": (None, "there is no such program on the machine that the module is placed on"),
}


@pytest.mark.parametrize(("script", "words"), WRONG.values(), ids=WRONG)
def test_an_environment_that_a_worker_cant_run_in_is_named_at_once(
    one_ray: Callable[[], RayCluster], script: str | None, words: str, tmp_path: Path
) -> None:
    """Ray itself waits for a minute and more for a worker that does not come up."""
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        python.chmod(0o755)
    settings = ReplicaSettings(0, {}, SimpleNamespace(python=str(python)), None)
    cluster = one_ray()
    cluster.start()
    with pytest.raises(WorkerError) as caught:
        cluster.spawn(describe(BaseModule("judge")), 0, settings)
    cluster.shutdown()
    assert str(caught.value).startswith(f"models.judge.python is {python}")
    assert words in str(caught.value)
