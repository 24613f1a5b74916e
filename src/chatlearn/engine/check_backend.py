"""Whatever keeps modules from running on the cluster that is chosen, as far as it can be known before it starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping

from chatlearn.config.check import Problem, source_of
from chatlearn.config.schema import Config
from chatlearn.errors import ModuleError
from chatlearn.modules.base import BaseModule, describe
from chatlearn.runtime.arguments import unsendable
from chatlearn.runtime.bundles import bundles_of

_PACKAGES = {"ray": "ray"}
"""``runtime_env.backend`` -> the package that it needs, which chatlearn's extra of that name installs."""


def check_backend(config: Config, names: Iterable[str]) -> list[Problem]:
    """Problems of a configuration whose modules live in processes of their own."""
    if config.runtime_env.backend == "local":
        return []
    names = list(names)
    _, _, sizes = bundles_of(config, names)
    return [*_missing_package(config), *sizes, *_missing_pythons(config, names)]


def check_sendable(config: Config, modules: Mapping[str, BaseModule]) -> None:
    """The workers can be told what to construct.

    Raises:
        ModuleError: they can't; all such modules are named.
    """
    if config.runtime_env.backend != "local":
        reasons = [reason for module in modules.values() if (reason := unsendable(describe(module))) is not None]
        if reasons:
            raise ModuleError("\n".join(reasons))


def _missing_package(config: Config) -> Iterator[Problem]:
    backend = config.runtime_env.backend
    package = _PACKAGES.get(backend)
    if package is not None and importlib.util.find_spec(package) is None:
        yield Problem(
            source_of(config, ("runtime_env", "backend")),
            "runtime_env.backend",
            f"is `{backend}`, but the package {package} is not installed",
            f"pip install 'chatlearn[{backend}]'; or set it to local, which runs the same program in one process",
        )


def _missing_pythons(config: Config, names: Iterable[str]) -> Iterator[Problem]:
    """Other machines have files of their own, so they are asked when their workers start."""
    if config.runtime_env.address or os.environ.get("RAY_ADDRESS"):
        return
    for name in names:
        model = config.models.get(name)
        if model is not None and model.python is not None and shutil.which(model.python) is None:
            yield Problem(
                source_of(config, ("models", name, "python")),
                f"models.{name}.python",
                f"is {model.python!r}, and there is no such program on this machine",
                "give the path of another environment's Python, such as /opt/judge/bin/python",
            )
