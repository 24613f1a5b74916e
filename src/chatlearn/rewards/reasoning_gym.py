"""Rewards by reasoning-gym: the library's own scorer, for any of its data sets."""

from __future__ import annotations

import bdb
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from chatlearn.errors import DataError
from chatlearn.rewards.columns import ended
from chatlearn.rewards.confined import EVALUATING, ConfinedScorer, NoScoreError

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# reasoning-gym leaves some types open.


EXACT = 0.999
"""A score from here on is an exact answer."""


class ReasoningGymReward:
    """Reward = ``score_answer(completion, entry)`` of a reasoning-gym data set.

    Needs the column ``entry``: the data set's own item, which every sample carries along. It is pickled and
    copied as its constructor arguments.

    Some of the library's scorers raise for an answer that has not the form they expect (text where they want numbers).
    Such an answer gets 0. What they raise for the item's own answer too is no answer's fault, and is raised.

    Some evaluate the answer as Python (:data:`chatlearn.rewards.confined.EVALUATING`). These run in a process of their
    own that can do nothing else, and an answer that tries, or needs more time or memory than it may, gets 0. Its item's
    own answer must not: that is a :class:`DataError`.

    Args:
        dataset: name of the data set in reasoning-gym, such as ``"spell_backward"``.
        binary: 1 for an exact answer (a score of at least 0.999), else 0. Partial scores of some data sets can be
            earned without solving anything.
        **config: fields of that data set's config.

    Raises:
        DataError: reasoning-gym isn't installed, or has no such data set or config field.
    """

    def __init__(self, dataset: str, *, binary: bool = False, **config: Any) -> None:
        self.dataset = dataset
        self.binary = binary
        self.config = config
        self._scorer = _create(dataset, config)

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        entry: Sequence[dict[str, Any]],
        finished: Sequence[bool] | None = None,
    ) -> list[float | None]:
        """Scores completions.

        Args:
            prompts: B prompts; the entries hold all that the scorer needs, so they aren't read.
            completions: B answers.
            entry: the B items of the data set that the prompts came from.
            finished: B flags; an answer that was cut off at the length limit gets 0. Without it all count as
                finished.

        Returns:
            B scores, 0 to 1.
        """
        flags = ended(finished, len(completions))
        return [
            self._score(completion, item) if end else 0.0
            for completion, item, end in zip(completions, entry, flags, strict=True)
        ]

    def _score(self, completion: str, item: dict[str, Any]) -> float:
        try:
            score = self._scorer.score_answer(completion, item)
        except Exception as error:
            if isinstance(error, MemoryError | bdb.BdbQuit):
                raise
            self._check_item(item)
            return 0.0
        return float(score >= EXACT) if self.binary else float(score)

    def _check_item(self, item: dict[str, Any]) -> None:
        """Raises what the scorer raises for the right answer: then the item is to blame, or the library."""
        answer = item.get("answer")
        try:
            self._scorer.score_answer(answer if isinstance(answer, str) else "", item)
        except NoScoreError as error:
            raise DataError(
                f"{error} That is the item's own answer, so no answer can be scored: leave the item out of the data, "
                "or look at how it was made."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "binary": self.binary, "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dataset, self.binary, self.config = state["dataset"], state["binary"], state["config"]
        self._scorer = _create(self.dataset, self.config)

    def __repr__(self) -> str:
        binary = ["binary=True"] if self.binary else []
        arguments = [repr(self.dataset), *binary, *(f"{key}={value!r}" for key, value in self.config.items())]
        return f"{type(self).__name__}({', '.join(arguments)})"


def _create(dataset: str, config: dict[str, Any]) -> Any:
    # Imported here because it is optional and costs more than a second.
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DataError(
            f"the reward of data set {dataset!r} needs reasoning-gym, which can't be imported ({error}). "
            "Install it: pip install 'chatlearn[demo]'"
        ) from error
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "reasoning_gym.factory.DATASETS lists them."
        raise DataError(f"reasoning-gym has no data set {dataset!r}. {hint}")
    try:
        made = reasoning_gym.create_dataset(dataset, **config)
    except (TypeError, AssertionError) as error:
        fields = ", ".join(DATASETS[dataset][1].__dataclass_fields__)
        raise DataError(
            f"reasoning-gym refuses the config {config} of data set {dataset!r}: {error}. Its fields: {fields}."
        ) from error
    return _confined(dataset, made)


def _confined(name: str, dataset: Any) -> Any:
    """The data set, or what scores its answers in a process apart; a composite one is looked through."""
    if name in EVALUATING:
        return ConfinedScorer(name, dataclasses.asdict(dataset.config))
    if name == "composite":
        dataset.datasets = {part: _confined(part, each) for part, each in dataset.datasets.items()}
    return dataset
