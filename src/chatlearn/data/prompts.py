"""From a user's prompts to batches: the data set that a module builds, its samples, their collation."""

from __future__ import annotations

import bdb
import inspect
from collections.abc import Sequence
from typing import Any

from chatlearn.data.collate import Samples
from chatlearn.errors import DataError
from chatlearn.types import Batch


class PromptDataset:
    """What a module without ``build_dataset`` gets: ``{"prompt": x}`` per prompt; a dict is the sample itself."""

    def __init__(self, prompts: Sequence[Any]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt = self._prompts[index]
        return prompt if isinstance(prompt, dict) else {"prompt": prompt}

    def collate_fn(self, samples: Samples) -> Batch:
        """Columns as they are: lists with one entry per sample."""
        return dict(samples.items())


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
        raise DataError(f"{where} returns an empty data set for {len(prompts)} prompts.")
    return dataset


def fetch(dataset: Any, indices: Sequence[int]) -> Batch:
    """Samples at ``indices``, collated by the data set's ``collate_fn`` (absent or ``None``: torch's default, strings
    stay lists).

    Raises:
        DataError: a sample can't be read (its index is named), or the collation fails or gives no dict.
    """
    samples = Samples()
    for index in indices:
        try:
            samples.append(dataset[index])
        except bdb.BdbQuit:
            raise
        except Exception as error:
            raise DataError(f"sample {index} of the data set can't be read: {type(error).__name__}: {error}") from error
    collate = getattr(dataset, "collate_fn", None) or _default_collate
    try:
        batch = collate(samples)
    except bdb.BdbQuit:
        raise
    except Exception as error:
        raise DataError(
            f"collating fails: {type(error).__name__}: {error}. Give the data set a `collate_fn` that "
            f"turns a list of samples into a dict of tensors and lists (chatlearn.data.collate.pad stacks "
            f"unequal lengths)."
        ) from error
    if not isinstance(batch, dict):
        raise DataError(
            f"collating gives {type(batch).__name__}, but a batch is a dict. Let __getitem__ return a dict such as "
            f'{{"query": …}}.'
        )
    return batch


def _default_collate(samples: Samples) -> Any:
    from torch.utils.data import default_collate

    return default_collate(list(samples))
