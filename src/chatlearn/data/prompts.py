"""From a user's prompts to batches: the data set that a module builds, its samples, their collation."""

from __future__ import annotations

import bdb
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from chatlearn.data.collate import Samples
from chatlearn.data.lengths import length_of
from chatlearn.errors import ChatLearnError, DataError
from chatlearn.guards import is_mapping
from chatlearn.types import Batch


class PromptDataset:
    """What a module without ``build_dataset`` gets: ``{"prompt": x}`` per prompt; a dict is the sample itself."""

    def __init__(self, prompts: Sequence[Any]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt = self._prompts[index]
        return dict(prompt) if is_mapping(prompt) else {"prompt": prompt}

    def collate_fn(self, samples: Samples) -> Batch:
        """Columns as they are: lists with one entry per sample."""
        return samples.columns()


def open_dataset(module: Any, prompts: Sequence[Any], is_eval: bool) -> Any:
    """The data set of ``prompts``, built by the module's ``build_dataset`` if it has one. Without that, prompts that
    have a ``collate_fn`` are the data set themselves.

    Raises:
        DataError: what ``build_dataset`` returned is no data set with a length, or it is empty.
    """
    build = getattr(module, "build_dataset", None)
    if build is None:
        return prompts if callable(getattr(prompts, "collate_fn", None)) else PromptDataset(prompts)
    where = f"{module.name}.build_dataset"
    takes_purpose = "is_eval" in inspect.signature(build).parameters
    dataset = build(prompts, is_eval=is_eval) if takes_purpose else build(prompts)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{where} returns {type(dataset).__name__}, which has no __getitem__ and __len__. Return a "
            f"torch.utils.data.Dataset (or any sequence of samples)."
        )
    if num_samples(dataset, f"the data set that {where} returns") == 0:
        raise DataError(f"{where} returns an empty data set for {len(prompts)} prompts. Keep at least one.")
    return dataset


def fetch(dataset: Any, indices: Sequence[int]) -> Batch:
    """Samples at ``indices``, collated by the data set's ``collate_fn`` (absent or ``None``: torch's default, but
    strings, lists, tuples and ``None`` stay entries of a list).

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
    where = [f" of data set {number}" if len(datasets) > 1 else "" for number in range(len(datasets))]
    names = [f"sample number {index}{where[number]}" for number, index in picks]
    samples = Samples([_read(datasets, *pick) for pick in picks], names)
    own = getattr(datasets[picks[0][0]], "collate_fn", None)
    collate = own or _default_collate
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
    if not is_mapping(batch):
        giver = "__getitem__" if own is None else "collate_fn"
        raise DataError(
            f"collating gives {type(batch).__name__}, but a batch is a dict. Let {giver} return a dict such as "
            f'{{"query": …}}.'
        )
    return _as_dict(batch)


def _as_dict(batch: Mapping[Any, Any]) -> Batch:
    """The same with plain dicts for other mappings, such as a tokenizer's ``BatchEncoding``."""
    return {key: _as_dict(value) if is_mapping(value) else value for key, value in batch.items()}


def lengths_of(datasets: Sequence[Any], picks: Sequence[tuple[int, int]]) -> list[int]:
    """The length of each sample (see :func:`chatlearn.data.lengths.length_of`); each is read once.

    Raises:
        DataError: a sample can't be read, or has no length.
    """
    known = {pick: length_of(_read(datasets, *pick)) for pick in dict.fromkeys(picks)}
    return [known[pick] for pick in picks]


def read_sample(dataset: Any, index: int, name: str) -> Any:
    """``dataset[index]``.

    Args:
        dataset: anything with ``__getitem__``.
        index: of the sample.
        name: words for the sample, for the error.

    Raises:
        DataError: it raises; the exception is the cause.
    """
    try:
        return dataset[index]
    except bdb.BdbQuit:
        raise
    except Exception as error:
        raise DataError(f"{name} can't be read: {_cause(error)}").with_traceback(error.__traceback__) from error


def num_samples(dataset: Any, name: str) -> int:
    """``len(dataset)``.

    Raises:
        DataError: its ``__len__`` raises, or returns something else than a whole number from 0 on.
    """
    try:
        return len(dataset)
    except bdb.BdbQuit:
        raise
    except Exception as error:
        text = f"{name} has no length: {_cause(error)}. Let __len__ return a whole number from 0 on."
        raise DataError(text).with_traceback(error.__traceback__) from error


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, ChatLearnError) else f"{type(error).__name__}: {error}"


def _read(datasets: Sequence[Any], number: int, index: int) -> Any:
    which = "the data set" if len(datasets) == 1 else f"data set {number}"
    return read_sample(datasets[number], index, f"sample {index} of {which}")


def _default_collate(samples: Samples) -> Any:
    """Columns by PyTorch's rules, but what it would take apart or refuse stays as it is (see :func:`_column`)."""
    if any(is_mapping(sample) for sample in samples):
        return {key: _column(key, values, samples.names) for key, values in samples.items()}
    return _torchs_own(list(samples))


def _column(path: str, values: list[Any], names: Sequence[str]) -> Any:
    """A column: tensors, arrays and numbers are stacked, dicts become a dict of columns. Where an entry is a text, a
    list, a tuple or ``None``, it is the list of all entries.
    """
    if any(value is None or isinstance(value, (str, bytes, list, tuple)) for value in values):
        return values
    # torch goes by the first entry alone
    for kind, noun in ((Mapping, "a dict"), ((torch.Tensor, np.ndarray), "a tensor or an array")):
        fitting = [isinstance(value, kind) for value in values]
        if any(fitting) and not all(fitting):
            raise DataError(
                f"{path!r} is {noun} in {names[fitting.index(True)]}, but not in {names[fitting.index(False)]}. Give "
                f"every record the same kind of value, or the data set a `collate_fn`."
            )
    if is_mapping(values[0]):
        nested = Samples(values, [f"{path!r} of {name}" for name in names])
        return {key: _column(f"{path}.{key}", column, names) for key, column in nested.items()}
    return _torchs_own(values)


def _torchs_own(values: list[Any]) -> Any:
    from torch.utils.data import default_collate  # pyright: ignore[reportUnknownVariableType]  # takes a bare list

    return default_collate(values)
