"""Which modules hold their memory: those of the present phase, and those that were not told to give it up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from chatlearn.config.schema import Config
from chatlearn.modules.base import BaseModule

Move = Callable[[str, str, tuple[str, ...]], Callable[[], object] | None]
"""``move(module, "onload" or "offload", tags)`` begins the hook on every replica; what it returns waits for the end of
all of them. ``None``: they have ended.
"""


class Residency:
    """Modules that give up memory while they wait (``models.<name>.free_memory`` and its parts), phase by phase.

    Before a phase, those that wait are offloaded, at the same time where the cluster can; when all have ended, those
    that work are loaded. So no two models of a group are on their devices together, unless a phase needs both.

    Args:
        config: the run's.
        modules: by name; those without ``offload`` keep their memory.
        move: runs a hook.
    """

    def __init__(self, config: Config, modules: Mapping[str, BaseModule], move: Move) -> None:
        self._tags = {name: tags for name in modules if (tags := offload_tags(config, name, modules))}
        self._tags = {name: tags for name, tags in self._tags.items() if can_offload(modules[name])}
        self._loaded = set(self._tags)
        self._move = move

    def occupy(self, names: Collection[str]) -> None:
        """Has these modules loaded, and all others that may be offloaded."""
        working = set(self._tags).intersection(names)
        self._move_all("offload", self._loaded - working)
        self._move_all("onload", working - self._loaded)
        self._loaded = working

    def ensure(self, names: Collection[str]) -> None:
        """Has these modules loaded; where they are, nothing moves."""
        if not self._loaded.issuperset(set(self._tags).intersection(names)):
            self.occupy(names)

    def given_up(self, name: str) -> tuple[str, ...]:
        """Tags of what a module has given up at present: a new replica of it has to do so too."""
        return () if name in self._loaded else self._tags.get(name, ())

    def _move_all(self, hook: str, names: Iterable[str]) -> None:
        for wait in [self._move(name, hook, self._tags[name]) for name in sorted(names)]:
            if wait is not None:
                wait()


def offload_tags(config: Config, name: str, names: Collection[str]) -> tuple[str, ...]:
    """What a module gives up while it waits, as tags of ``offload``.

    ``free_memory`` counts where the module shares its devices with another. In one process all modules do; on a cluster
    those that ``runtime.colocation`` names together.

    Args:
        config: the run's.
        name: of the module.
        names: of all modules of the run.
    """
    model = config.model(name)
    groups = config.runtime.colocation
    shares = config.runtime_env.backend == "local" or any(
        name in group and any(other in names for other in group if other != name) for group in groups
    )
    return model.offload_tags if shares else model.model_copy(update={"free_memory": False}).offload_tags


def can_offload(module: BaseModule) -> bool:
    """Whether its class has both hooks, ``offload(tags)`` and ``onload(tags)``."""
    return all(callable(getattr(type(module), hook, None)) for hook in ("offload", "onload"))
