"""From a user's prompts to batches: the data set that a module builds, its samples, their collation."""

from __future__ import annotations

import bdb
import inspect
from collections.abc import Sequence
from typing import Any

from chatlearn.data.collate import Samples
from chatlearn.data.lengths import length_of
from chatlearn.errors import ChatLearnError, DataError
from chatlearn.guards import is_dict
from chatlearn.types import Batch


class PromptDataset:
    """What a module without ``build_dataset`` gets: ``{"prompt": x}`` per prompt; a dict is the sample itself."""

    def __init__(self, prompts: Sequence[Any]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt = self._prompts[index]
        return prompt if is_dict(prompt) else {"prompt": prompt}

    def collate_fn(self, samples: Samples) -> Batch:
        """Columns as they are: lists with one entry per sample."""
        return samples.columns()


def open_dataset(module: Any, prompts: Sequence[Any], is_eval: bool) -> Any:
    """The data set of ``prompts``, built by the module's ``build_dataset`` if it has one.

    Raises:
        DataError: what ``build_dataset`` returned is no data set with a length, or it is empty.
    """
    build = getattr(module, "build_dataset", None)
    if build is None:
        return PromptDataset(prompts)
    where = f"{module.name}.build_dataset"
    takes_purpose = "is_eval" in inspect.signature(build).parameters
    dataset = build(prompts, is_eval=is_eval) if takes_purpose else build(prompts)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{where} returns {type(dataset).__name__}, which has no __getitem__ and __len__. Return a "
            f"torch.utils.data.Dataset (or any sequence of samples)."
        )
    if len(dataset) == 0:
        raise DataError(f"{where} returns an empty data set for {len(prompts)} prompts. Keep at least one.")
    return dataset


def fetch(dataset: Any, indices: Sequence[int]) -> Batch:
    """Samples at ``indices``, collated by the data set's ``collate_fn`` (absent or ``None``: torch's default, strings
    stay lists).

    Raises:
        DataError: a sample can't be read (its index is named), or the collation fails or gives no dict.
    """
    return fetch_from([dataset], [(0, index) for index in indices])


def fetch_from(datasets: Sequence[Any], picks: Sequence[tuple[int, int]]) -> Batch:
    """Samples of several data sets in one batch.

    Args:
        datasets: all data sets of a flow.
        picks: (number of the data set, index in it) of each sample, as a sampler gives them.

    Returns:
        The samples in the order of ``picks``, collated by the ``collate_fn`` of the first sample's data set.

    Raises:
        DataError: as of :func:`fetch`; the number of the data set is named too where there are several.
    """
    samples = Samples(_read(datasets, *pick) for pick in picks)
    collate = getattr(datasets[picks[0][0]], "collate_fn", None) or _default_collate
    try:
        batch = collate(samples)
    except bdb.BdbQuit:
        raise
    except ChatLearnError as error:
        raise DataError(f"collating fails: {error}").with_traceback(error.__traceback__) from error
    except Exception as error:
        raise DataError(
            f"collating fails: {type(error).__name__}: {error}. Give the data set a `collate_fn` that "
            f"turns a list of samples into a dict of tensors and lists (chatlearn.data.collate.pad stacks "
            f"unequal lengths)."
        ).with_traceback(error.__traceback__) from error
    if not is_dict(batch):
        raise DataError(
            f"collating gives {type(batch).__name__}, but a batch is a dict. Let __getitem__ return a dict such as "
            f'{{"query": …}}.'
        )
    return batch


def lengths_of(datasets: Sequence[Any], picks: Sequence[tuple[int, int]]) -> list[int]:
    """The length of each sample (see :func:`chatlearn.data.lengths.length_of`); each is read once.

    Raises:
        DataError: a sample can't be read, or has no length.
    """
    known = {pick: length_of(_read(datasets, *pick)) for pick in dict.fromkeys(picks)}
    return [known[pick] for pick in picks]


def _read(datasets: Sequence[Any], number: int, index: int) -> Any:
    try:
        return datasets[number][index]
    except bdb.BdbQuit:
        raise
    except Exception as error:
        which = "the data set" if len(datasets) == 1 else f"data set {number}"
        cause = str(error) if isinstance(error, ChatLearnError) else f"{type(error).__name__}: {error}"
        text = f"sample {index} of {which} can't be read: {cause}"
        raise DataError(text).with_traceback(error.__traceback__) from error


def _default_collate(samples: Samples) -> Any:
    from torch.utils.data import default_collate  # pyright: ignore[reportUnknownVariableType]  # takes a bare list

    return default_collate(list(samples))
