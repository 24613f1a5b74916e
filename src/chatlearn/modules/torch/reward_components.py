"""The parts of a reward: what the configuration says of each, and where its scores come from.

Shape legend: ``B`` samples. A score of NaN stands for a sample that can't be scored.
"""

from __future__ import annotations

import bdb
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from chatlearn.config.values import problem
from chatlearn.errors import ChatLearnError, ConfigError, DataError
from chatlearn.guards import is_mapping
from chatlearn.modules.torch.reward_model import LearnedReward, LearnedRewardArgs
from chatlearn.rewards.base import RewardFunction, find_failing, fits_float32, function_name, score, shown
from chatlearn.rewards.build import build_reward
from chatlearn.types import Batch, SampleIds

_SOURCES = ("function", "reasoning_gym", "model", "column")
_MAX_SECONDS_OF_SEARCH = 10.0


class RewardComponentArgs(BaseModel):
    """One part of a reward: a name, one source of scores, and what becomes of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field(pattern=r"^[\w.-]+$", description="of the component, in metrics and samples")
    function: str | None = Field(
        None, description="source: import path pkg.mod:name of a function or class, or a short name such as `math`"
    )
    kwargs: dict[str, Any] = Field({}, description="keyword arguments of the function or the class")
    reasoning_gym: str | None = Field(None, description="source: the scorer of this data set of reasoning-gym")
    config: dict[str, Any] = Field({}, description="fields of that data set's config")
    binary: bool = Field(False, description="with reasoning_gym: 1 for a score of at least 0.999, else 0")
    model: LearnedRewardArgs | None = Field(None, description="source: a learned reward model")
    column: str | None = Field(
        None, description="source: scores that stand in the batch already; dotted for those in a dict"
    )
    weight: float = Field(1.0, allow_inf_nan=False, description="in the sum; with 0 it is logged and no more")
    clip: tuple[float, float] | None = Field(None, description="lowest and highest value that counts")
    unfinished: float | None = Field(
        None,
        allow_inf_nan=False,
        description="score of a response that was cut off, before scaling and clipping; null: like the others",
    )

    @field_validator("clip")
    @classmethod
    def _in_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise problem("the first number has to be below the second", "write clip: [lowest, highest]")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> RewardComponentArgs:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise problem(
                f"the component {self.name!r} has {' and '.join(given) or 'no source of scores'}",
                f"give it one of {', '.join(_SOURCES)}",
            )
        for owner, keys in (("function", ("kwargs",)), ("reasoning_gym", ("config", "binary"))):
            if odd := [key for key in keys if getattr(self, key) and given != [owner]]:
                raise problem(
                    f"`{odd[0]}` belongs to {owner}, but the component {self.name!r} has {given[0]}", f"remove {odd[0]}"
                )
        return self


class _Source(Protocol):
    """Where scores come from."""

    def scores(self, data: Batch, ids: SampleIds) -> Tensor:
        """Raw scores ``[B]`` float32."""
        ...


class Component:
    """A part of a reward, ready to score.

    Args:
        args: what the configuration says of it.
        device: of a learned model.
        place: where it stands in the configuration, for errors.

    Raises:
        ConfigError: its function, data set or model can't be made.
    """

    def __init__(self, args: RewardComponentArgs, device: torch.device, place: str) -> None:
        self.args, self.name, self.weight = args, args.name, args.weight
        self.learned: LearnedReward | None = None
        self._title = f"reward component {args.name!r} ({place})"
        try:
            self._source = self._made_source(args, device)
        except ChatLearnError as error:
            raise ConfigError(f"{self._title}: {error}").with_traceback(error.__traceback__) from error.__cause__

    def _made_source(self, args: RewardComponentArgs, device: torch.device) -> _Source:
        if args.model is not None:
            self.learned = LearnedReward(args.model, device)
            return _LearnedSource(self.learned)
        if args.column is not None:
            return _ColumnSource(args.column)
        if args.reasoning_gym is not None:
            config = {"dataset": args.reasoning_gym, "binary": args.binary, **args.config}
            return FunctionSource(build_reward("reasoning_gym", config))
        assert args.function is not None
        return FunctionSource(build_reward(args.function, args.kwargs))

    def scores(self, data: Batch, ids: SampleIds) -> Tensor:
        """Raw scores of a batch.

        Returns:
            ``[B]`` float32, NaN where a sample can't be scored.

        Raises:
            DataError: the source raises, or gives something else than a number for each sample; the component, and
                where one is to blame the sample, are named.
        """
        try:
            raw = self._source.scores(data, ids)
        except ChatLearnError as error:
            raise DataError(f"{self._title}: {error}").with_traceback(error.__traceback__) from error.__cause__
        if self.args.unfinished is not None:
            raw = torch.where(data["finished"] | raw.isnan(), raw, self.args.unfinished)
        return raw

    def values(self, raw: Tensor, group_ids: Sequence[int], *, is_eval: bool) -> Tensor:
        """What the weighted sum is made of: scaled (a learned reward, not in an evaluation) and clipped; ``[B]``."""
        if self.learned is not None and not is_eval:
            raw = self.learned.scaled(raw, group_ids)
        return raw if self.args.clip is None else raw.clamp(*self.args.clip)


class FunctionSource:
    """Scores by a reward function."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function

    def scores(self, data: Batch, ids: SampleIds) -> Tensor:
        """Raw scores ``[B]`` float32; ``None`` becomes NaN.

        Raises:
            DataError: the function raises (its exception is the cause), or what it returns is malformed.
        """
        prompts, completions, columns = _parts(data)
        names = sample_names(ids, len(completions))
        try:
            values = score(self._function, prompts, completions, columns, names)
        except (ChatLearnError, bdb.BdbQuit):
            raise
        except Exception as error:
            text = self._blame(error, prompts, completions, columns, names)
            raise DataError(text).with_traceback(error.__traceback__) from error
        return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)

    def _blame(
        self,
        error: Exception,
        prompts: list[str],
        completions: list[str],
        columns: Mapping[str, Any],
        names: Sequence[str],
    ) -> str:
        """Words for what a function has raised, with the first sample that makes it raise."""
        who = f"reward function {function_name(self._function)}"
        found = find_failing(self._function, prompts, completions, columns, max_seconds=_MAX_SECONDS_OF_SEARCH)
        if found is None:
            what = f"{who} raises {type(error).__name__}: {error}"
            return f"{what} (for these {len(names)} samples together; no single one was found that makes it raise)."
        row, error = found
        return (
            f"{who} raises {type(error).__name__}: {error}, first for {names[row]}, whose completion is "
            f"{_shortened(completions[row])}. Let it return None for a sample that it can't score."
        )


class _LearnedSource:
    """Scores by a reward model."""

    def __init__(self, learned: LearnedReward) -> None:
        self._learned = learned

    def scores(self, data: Batch, ids: SampleIds) -> Tensor:
        return self._learned.scores(*_parts(data), ids.group_ids)


class _ColumnSource:
    """Scores that an earlier step has written, or that came with the data."""

    def __init__(self, column: str) -> None:
        self._column = column

    def scores(self, data: Batch, ids: SampleIds) -> Tensor:
        values: Any = self._found(data)
        values = values.tolist() if hasattr(values, "tolist") else values
        if self._column == "rewards" and "scored" in data:  # of another reward module, where 0 may mean unscorable
            flags = data["scored"].tolist()
            values = [value if scored else None for value, scored in zip(values, flags, strict=True)]
        numbers: list[float] = []
        for value, name in zip(values, sample_names(ids, len(values)), strict=True):
            number = math.nan if value is None else value
            if not isinstance(number, int | float) or not (number != number or fits_float32(number)):
                raise DataError(
                    f"column {self._column!r}: {name} has {shown(value)}, expected a finite number that float32 can "
                    "hold, or None if the sample can't be scored."
                )
            numbers.append(float(number))
        return torch.tensor(numbers, dtype=torch.float32)

    def _found(self, data: Batch) -> Any:
        found: Any = data
        for part in [self._column] if self._column in data else self._column.split("."):
            found = found.get(part) if is_mapping(found) else None
        if found is None:
            raise DataError(
                f"the batch has no column {self._column!r} (it has {', '.join(map(repr, sorted(data)))}). Let an "
                "earlier step of the flow write it, or add it to every sample of the data set."
            )
        return found


class LearnedState:
    """The state of all learned components, as one attribute that checkpoints keep."""

    def __init__(self, learned: Mapping[str, LearnedReward]) -> None:
        self._learned = dict(learned)

    def end_episode(self) -> None:
        """The scores of this episode count from the next one on."""
        for reward in self._learned.values():
            reward.end_episode()

    def state_dict(self) -> dict[str, Any]:
        """The state of each component by its name."""
        return {name: reward.state_dict() for name, reward in self._learned.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            ConfigError: the components have other names.
        """
        if state.keys() != self._learned.keys():
            raise ConfigError(
                f"the checkpoint holds the learned rewards {', '.join(state) or 'none'}, the configuration "
                f"{', '.join(self._learned)}. Give the components the names of the run that was saved."
            )
        for name, reward in self._learned.items():
            reward.load_state_dict(state[name])


def sample_names(ids: SampleIds, count: int) -> list[str]:
    """Words for the samples of a batch; without ids where nobody gave any."""
    if len(ids) != count:
        return [f"sample {row}" for row in range(count)]
    return [f"sample {row} of the batch (id {number})" for row, number in enumerate(ids.sample_ids)]


def _parts(data: Batch) -> tuple[list[str], list[str], dict[str, Any]]:
    """Prompts, completions, and the other columns."""
    columns = {key: value for key, value in data.items() if key not in ("prompt", "response")}
    return data["prompt"], data["response"], columns


def _shortened(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
