"""Functions of the user that an engine calls at the points of an episode."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatlearn.engine.evaluator import Evaluation
from chatlearn.errors import EngineError
from chatlearn.guards import is_instance
from chatlearn.observe.metrics import as_number, is_own_key
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
        metrics: of the episode, from ``after_episode`` on; what a callback adds before ``after_log`` is logged. Its
            values are numbers of Python, numpy or torch.
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
        """Calls the functions of a point, each with its own seeding; their exceptions pass unchanged.

        Raises:
            EngineError: one has left something in ``info.metrics`` that is no metric.
        """
        for number, function in enumerate(self._functions.get(point, ())):
            seed_everything(derive_seed(seed, "callback", point, number, info.episode))
            before = dict(info.metrics)
            function(info)
            _take_metrics(info, before, f"{_place_of(function)}, called at {point!r}")


def _take_metrics(info: EpisodeInfo, before: Mapping[Any, Any], place: str) -> None:
    """Makes what a callback has added to the metrics plain numbers."""
    for key, value in list(info.metrics.items()):
        if key in before and value is before[key]:
            continue
        if not is_instance(key, str) or not key or is_own_key(key):
            raise EngineError(
                f"{place}: info.metrics[{key!r}] can't be a metric: a name is text, and none of the keys that the run "
                "itself writes (episode, num_samples, time/…_seconds, …). Choose a name such as 'mine/score'."
            )
        number = as_number(value)
        if number is None:
            raise EngineError(
                f"{place}: info.metrics[{key!r}] is {_shown(value)}, but a metric is one real number that a float "
                "can hold (of Python, numpy or torch). Reduce it to one, or keep it elsewhere."
            )
        info.metrics[key] = number


def _place_of(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{code.co_filename}:{code.co_firstlineno}: the callback {name}" if code else f"the callback {name}"


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} {list(shape)}"
    return f"{type(value).__name__} {value!r:.40}" if isinstance(value, str) else type(value).__name__
