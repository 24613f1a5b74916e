"""Python environments of workers: whether one has what a worker needs, before Ray waits for it for minutes."""

from __future__ import annotations

import functools
import json
import subprocess

from chatlearn.errors import WorkerError
from chatlearn.runtime.ray.host import versions
from chatlearn.runtime.ray.losses import on_node

_PROBE_SECONDS = 15
_PROBE = """
import importlib.metadata, json, platform
found = {"Python": ".".join(platform.python_version_tuple()[:2])}
for name in ("ray", "chatlearn"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
"""Imports nothing large, and runs in any Python 3."""


@functools.cache
def check_python(key: str, python: str, node: str) -> None:
    """Looks at an environment that workers are to run in, once on each node.

    Args:
        key: ``models.<name>.python``.
        python: its value.
        node: Ray's id of the node.

    Raises:
        WorkerError: there is no such program, or it lacks a package, or has another version than the driver.
    """
    found: str | dict[str, str] = on_node(node, _probed, python)
    if isinstance(found, str):
        raise WorkerError(f"{key} is {python}: {found}")
    ours = versions()
    wrong = [
        f"{name} {found[name]} where the driver has {version}" if name in found else f"no {name}"
        for name, version in ours.items()
        if found.get(name) != version
    ]
    if wrong:
        raise WorkerError(
            f"{key} is {python}, and that environment has {', and '.join(wrong)}. A worker shares Python, Ray and "
            f"chatlearn with the driver, and may have other versions of all else: with Python {ours['Python']}, "
            f"install 'chatlearn[ray]=={ours['chatlearn']}' 'ray=={ours['ray']}' there."
        )


def _probed(python: str) -> str | dict[str, str]:
    """Versions by name, or what is wrong."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except FileNotFoundError:
        return "there is no such program on the machine that the module is placed on."
    except subprocess.TimeoutExpired:
        return f"it does not answer within {_PROBE_SECONDS} s."
    except OSError as error:
        return f"it does not run on the machine that the module is placed on ({error})."
    try:
        return json.loads(done.stdout)
    except ValueError:
        return f"it is no Python that runs.\n{done.stderr.strip()[-2000:]}"
