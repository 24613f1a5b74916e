"""State as files: JSON for structure and numbers, safetensors for tensors. Nothing is pickled, nothing is unpickled.

``<stem>.json`` holds the state with names in the place of tensors, and a table of the tensors: dtype, global shape, and
the blocks that they are made of, each in the file of one rank (``<stem>.rank0.safetensors``) at an offset. So a state
of several ranks can be read by another number of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from chatlearn.checkpoint.disk import Written, read_json, sync_all, unreadable, write_file, write_json
from chatlearn.errors import CheckpointError
from chatlearn.guards import is_dict, is_instance, is_list, is_sequence

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls a dtype. Complex tensors are written as real ones with one dimension more."""


@dataclass
class Snapshot:
    """A state at one time, ready to be written.

    Attributes:
        tree: JSON, with names in the place of tensors.
        tensors: by name; on the CPU, contiguous.
    """

    tree: Any
    tensors: dict[str, torch.Tensor]


@dataclass
class Buffers:
    """Memory of the last snapshot, which the next one uses again: fresh memory costs more than the copy.

    Attributes:
        tensors: by name.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


def take_snapshot(state: Any, names: Mapping[str, str] | None = None, copies: Buffers | None = None) -> Snapshot:
    """Nested dicts, lists and tuples of tensors, arrays and plain values, as they are now.

    Args:
        state: of anything.
        names: other beginnings for names of tensors: path of a part of the state, such as ``optimizer.state.0`` -> such
            as ``optimizer.state.head.weight``.
        copies: where copies of all tensors go, so that the state may change at once; ``None`` leaves them where they
            are, to be written before it changes.

    Raises:
        CheckpointError: a value that no file can hold; its path inside of the state is named.
    """
    taker = _Taker(dict(names or {}), copies)
    tree = taker.tree(state, "", "")
    if copies is not None:
        copies.tensors = dict(taker.tensors)
    return Snapshot(tree, taker.tensors)


def write_snapshot(snapshot: Snapshot, stem: Path, rank: int = 0) -> dict[str, Written]:
    """Writes ``<stem>.json`` and, where there are tensors, ``<stem>.rank<rank>.safetensors``; forcing them to the disk
    is left to the caller.

    Returns:
        The files by their names.

    Raises:
        CheckpointError: one can't be written.
    """
    written: dict[str, Written] = {}
    path = stem.with_name(f"{stem.name}.rank{rank}.safetensors")
    if snapshot.tensors:
        written[path.name] = write_file(path, _safetensors(snapshot.tensors), sync=False)
    table = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "blocks": [{"file": path.name, "offset": [0] * tensor.dim(), "shape": list(tensor.shape)}],
        }
        for name, tensor in snapshot.tensors.items()
    }
    structure, content = stem.with_name(stem.name + ".json"), {"tree": snapshot.tree, "tensors": table}
    written[structure.name] = write_json(structure, content, indent=None, sync=False)
    return written


def save_state(state: Any, stem: Path) -> dict[str, Written]:
    """Writes a state that does not change meanwhile; see :func:`take_snapshot` and :func:`write_snapshot`."""
    written = write_snapshot(take_snapshot(state), stem)
    sync_all(*(stem.with_name(name) for name in written))
    return written


def load_state(stem: Path) -> Any:
    """The state that was written, put together from the files of all ranks.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = stem.with_name(stem.name + ".json")
    content = read_json(path)
    try:
        tensors = _tensors(stem.parent, content["tensors"])
        return _from_tree(content["tree"], tensors)
    except CheckpointError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error


class _Taker:
    """Takes a state apart."""

    def __init__(self, names: dict[str, str], copies: Buffers | None) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names, self._copies = names, copies
        self._known: dict[tuple[Any, ...], str] = {}

    def tree(self, value: Any, path: str, name: str) -> Any:
        """JSON for a part of the state.

        Args:
            value: the part.
            path: where it stands, for messages.
            name: what the names of its tensors begin with.
        """
        if is_instance(value, np.ndarray) and value.dtype.kind in "biufc":
            return {"$array": self._named(torch.as_tensor(value.copy(), device="cpu"), name)}
        if isinstance(value, torch.Tensor):
            return {"$tensor": self._tensor(value, path, name)}
        if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
            return value
        if is_instance(value, (np.integer, np.floating, np.bool_)):
            return value.item()
        if is_sequence(value):
            parts = [self._part(part, path, name, i) for i, part in enumerate(value)]
            return parts if isinstance(value, list) else {"$tuple": parts}
        if is_dict(value):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: self._part(part, path, name, key) for key, part in value.items()}
            return {
                "$items": [
                    [self.tree(key, path, name), self._part(part, path, name, key)] for key, part in value.items()
                ]
            }
        raise self._refusal(path, type(value).__name__)

    def _part(self, value: Any, path: str, name: str, key: Any) -> Any:
        inner = f"{name}.{key}" if name else str(key)
        return self.tree(value, f"{path}/{key}", self._names.get(inner, inner))

    def _tensor(self, tensor: torch.Tensor, path: str, name: str) -> str:
        """Takes a tensor, one that is there already once; returns its name."""
        tensor = tensor.detach()
        if tensor.layout != torch.strided or not (tensor.is_complex() or tensor.dtype in _CODES):
            raise self._refusal(path, f"a tensor of {tensor.dtype} with layout {tensor.layout}")
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if not tensor.numel() or same not in self._known:
            self._known[same] = self._named(tensor, name)
        return self._known[same]

    def _named(self, tensor: torch.Tensor, name: str) -> str:
        free = name
        number = 1
        while free in self.tensors or not free:
            number += 1
            free = f"{name}~{number}"
        self.tensors[free] = self._on_host(tensor, free)
        return free

    def _on_host(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        tensor = tensor.resolve_conj().resolve_neg()
        if self._copies is None:
            return tensor.cpu().contiguous()
        buffer = self._copies.tensors.get(name)
        if buffer is None or buffer.dtype != tensor.dtype or buffer.shape != tensor.shape:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return buffer.copy_(tensor)

    @staticmethod
    def _refusal(path: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{path.strip('/') or 'the state'} is {what}, which a checkpoint can't hold. Let state_dict() return "
            f"tensors, arrays, numbers, strings, and lists, tuples and dicts of these."
        )


def _safetensors(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: the length of the header, the header, and the tensors one after another."""
    real = {name: torch.view_as_real(tensor) if tensor.is_complex() else tensor for name, tensor in tensors.items()}
    order = sorted(real, key=lambda name: -real[name].element_size())  # so that all are aligned to their own size
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + real[name].numel() * real[name].element_size()
        shape = list(real[name].shape)
        header[name] = {"dtype": _CODES[real[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        if real[name].numel():
            yield real[name].reshape(-1).view(torch.uint8).numpy().data


def _tensors(folder: Path, table: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of a table, in memory that torch has allocated: in files they lie at any multiple of their size, and
    the bits of a matrix product depend on how its operands are aligned.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in dict.fromkeys(block["file"] for entry in table.values() for block in entry["blocks"]):
        try:
            with _opened(folder / Path(file).name) as reader:
                for name, entry in table.items():
                    for block in entry["blocks"]:
                        if block["file"] == file:
                            _place(tensors, name, entry, block, reader.get_tensor(name))
        except Exception as error:
            raise unreadable(folder / file, error) from error
    for name, entry in table.items():
        covered = sum(int(np.prod(block["shape"], dtype=np.int64)) for block in entry["blocks"])
        if covered != int(np.prod(entry["shape"], dtype=np.int64)):
            raise CheckpointError(f"{folder}: the blocks of {name} don't make up its shape {entry['shape']}.")
    return tensors


def _opened(path: Path) -> Any:
    return safe_open(path, framework="pt")


def _place(
    tensors: dict[str, torch.Tensor],
    name: str,
    entry: Mapping[str, Any],
    block: Mapping[str, Any],
    part: torch.Tensor,
) -> None:
    """Copies a block to its place in the whole tensor."""
    dtype: torch.dtype = getattr(torch, entry["dtype"])
    part = torch.view_as_complex(part) if dtype.is_complex else part
    if part.dtype != dtype or list(part.shape) != block["shape"]:
        raise ValueError(f"{name} is {part.dtype} {list(part.shape)} instead of {dtype} {block['shape']}")
    if name not in tensors:
        tensors[name] = torch.empty(entry["shape"], dtype=dtype)
    where = tuple(slice(at, at + size) for at, size in zip(block["offset"], block["shape"], strict=True))
    tensors[name][where] = part


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
