"""Which modules hold their memory: those of the present phase, and those that were not told to give it up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from chatlearn.config.schema import Config
from chatlearn.modules.base import BaseModule

Move = Callable[[str, str, tuple[str, ...]], None]
"""``move(module, "onload" or "offload", tags)`` on every replica."""


class Residency:
    """Modules that give up memory while they wait (``models.<name>.free_memory`` and its parts), phase by phase.

    Before a phase, those that wait are offloaded first; then those that work are loaded.

    Args:
        config: the run's.
        modules: by name; those without ``offload`` keep their memory.
        move: runs a hook.
    """

    def __init__(self, config: Config, modules: Mapping[str, BaseModule], move: Move) -> None:
        self._tags = {name: tags for name in modules if (tags := config.model(name).offload_tags)}
        self._tags = {name: tags for name, tags in self._tags.items() if can_offload(modules[name])}
        self._loaded = set(self._tags)
        self._move = move

    def occupy(self, names: Collection[str]) -> None:
        """Has these modules loaded, and all others that may be offloaded."""
        for name in sorted(self._loaded.difference(names)):
            self._move(name, "offload", self._tags[name])
        for name in sorted(set(self._tags).intersection(names) - self._loaded):
            self._move(name, "onload", self._tags[name])
        self._loaded = set(self._tags).intersection(names)


def can_offload(module: BaseModule) -> bool:
    """Whether its class has both hooks, ``offload(tags)`` and ``onload(tags)``."""
    return all(callable(getattr(type(module), hook, None)) for hook in ("offload", "onload"))
