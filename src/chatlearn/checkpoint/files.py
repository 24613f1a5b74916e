"""State as files: JSON for structure and numbers, safetensors for tensors. Nothing is pickled, nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike is bare

from chatlearn.errors import CheckpointError
from chatlearn.guards import is_dict, is_instance, is_list, is_sequence


def save_state(state: Any, stem: Path) -> None:
    """Writes nested dicts, lists and tuples of tensors, arrays and plain values as ``<stem>.json`` and
    ``<stem>.safetensors``.

    Raises:
        CheckpointError: a value that neither can hold; its path inside of the state is named.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _to_tree(state, "", tensors)
    if tensors:
        path = stem.with_name(stem.name + ".safetensors")
        save_file(tensors, path)
        sync_to_disk(path)
    write_json(stem.with_name(stem.name + ".json"), tree)


def load_state(stem: Path) -> Any:
    """The state that :func:`save_state` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    tree = read_json(stem.with_name(stem.name + ".json"))
    path = stem.with_name(stem.name + ".safetensors")
    try:
        tensors = load_file(path) if path.exists() else {}
        # copies, since in the file they lie at any multiple of their size, and the bits of a matrix product depend on
        # how its operands are aligned
        return _from_tree(tree, {name: tensor.clone() for name, tensor in tensors.items()})
    except Exception as error:
        raise CheckpointError(
            f"{path} can't be read: {error}. Resume from an earlier checkpoint of the run."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON and forces it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    sync_to_disk(path)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}. Resume from an earlier checkpoint of the run."
        ) from error


def sync_to_disk(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_tree(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if is_instance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {"$array": _to_tree(torch.as_tensor(value.copy(), device="cpu"), path, tensors)["$tensor"]}
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{path}"  # the number tells keys apart that read the same, such as 1 and "1"
        # a copy of its own: safetensors refuses tensors that share memory, as tied weights do
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if is_instance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if is_sequence(value):
        parts = [_to_tree(part, f"{path}/{i}", tensors) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {"$tuple": parts}
    if is_dict(value):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _to_tree(part, f"{path}/{key}", tensors) for key, part in value.items()}
        return {
            "$items": [
                [_to_tree(key, path, tensors), _to_tree(part, f"{path}/{key}", tensors)] for key, part in value.items()
            ]
        }
    raise CheckpointError(
        f"{path.strip('/') or 'the state'} is {type(value).__name__}, which a checkpoint can't hold. Let "
        f"state_dict() return tensors, arrays, numbers, strings, and lists, tuples and dicts of these."
    )


def _from_tree(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if is_list(tree):
        return [_from_tree(part, tensors) for part in tree]
    if not is_dict(tree):
        return tree
    if tree.keys() == {"$tensor"}:
        return tensors[tree["$tensor"]]
    if tree.keys() == {"$array"}:
        return tensors[tree["$array"]].numpy()
    if tree.keys() == {"$tuple"}:
        return tuple(_from_tree(part, tensors) for part in tree["$tuple"])
    if tree.keys() == {"$items"}:
        return {_from_tree(key, tensors): _from_tree(part, tensors) for key, part in tree["$items"]}
    return {key: _from_tree(part, tensors) for key, part in tree.items()}
