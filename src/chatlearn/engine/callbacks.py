"""Functions of the user that an engine calls at the points of an episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatlearn.engine.evaluator import Evaluation
from chatlearn.errors import EngineError
from chatlearn.runtime.seeding import derive_seed, seed_everything

if TYPE_CHECKING:
    from chatlearn.data.stream import StreamDataset
    from chatlearn.engine.engine import Engine

POINTS = (
    "before_episode",
    "after_experience",
    "after_train",
    "after_sync",
    "after_episode",
    "after_evaluate",
    "after_log",
    "after_save",
)
"""Where callbacks run, in the order of an episode; ``after_evaluate`` and ``after_save`` only where there was one."""


@dataclass
class EpisodeInfo:
    """What a callback is told; one object per episode.

    Attributes:
        engine: the engine; ``engine.stop()`` ends the run after this episode, ``engine.save_checkpoint()`` saves at
            its end.
        episode: number of the episode, from 0.
        experience: its experience, from ``after_experience`` on (with the loader ``dynamic`` still arriving then).
        metrics: of the episode, from ``after_episode`` on; what a callback adds before ``after_log`` is logged.
        evaluation: of the episode, from ``after_evaluate`` on.
    """

    engine: Engine
    episode: int
    experience: StreamDataset | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    evaluation: Evaluation | None = None


Callback = Callable[[EpisodeInfo], Any]


class Callbacks:
    """Functions by point."""

    def __init__(self) -> None:
        self._functions: dict[str, list[Callback]] = {}

    def add(self, point: str, function: Callback) -> None:
        """Has ``function(info)`` called at a point, after those added before.

        Raises:
            EngineError: there is no such point, or the function can't be called.
        """
        if point not in POINTS:
            raise EngineError(f"There is no point {point!r} in an episode. Callbacks run at: {', '.join(POINTS)}.")
        if not callable(function):
            raise EngineError(f"add_callback({point!r}, …): a callback is a function of one EpisodeInfo.")
        self._functions.setdefault(point, []).append(function)

    def run(self, point: str, info: EpisodeInfo, seed: int) -> None:
        """Calls the functions of a point, each with its own seeding; their exceptions pass unchanged."""
        for number, function in enumerate(self._functions.get(point, ())):
            seed_everything(derive_seed(seed, "callback", point, number, info.episode))
            function(info)
