"""The part of a checkpoint that a module fills: its state, and files of its own. Everything here runs beside it."""

from __future__ import annotations

import bdb
import hashlib
import inspect
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from chatlearn.checkpoint.files import load_state, save_state
from chatlearn.errors import ChatLearnError, CheckpointError, StepError
from chatlearn.guards import is_dict, is_instance, is_sequence, kind_of


def drifting_modules(syncs: Iterable[tuple[Any, Any]]) -> set[str]:
    """Names of the synced modules whose weights need not be those of the last sync when an episode ends, because their
    source or they themselves may change in between.

    Args:
        syncs: source and destination of each pair, as the driver has them.
    """
    return {
        destination.name
        for source, destination in syncs
        if _changes_after_sync(kind_of(source)) or _changes_after_sync(kind_of(destination))
    }


def remember_setup(module: Any, synced: bool) -> None:
    """After ``setup``: a state that never changes afterwards need not be saved."""
    module.__dict__["_setup_fingerprint"] = _fingerprints(module, _state(module, synced))


def save_module(module: Any, folder: str, iteration: int, trained: bool, synced: bool) -> bool:
    """Writes the state of a module, and calls its own ``save_checkpoint``.

    Args:
        module: of any kind.
        folder: of the checkpoint.
        iteration: complete episodes.
        trained: keep the whole state, changed or not.
        synced: its ``model`` comes by parameter sync and need not be kept.

    Returns:
        Whether anything was written.

    Raises:
        CheckpointError: the state holds what no checkpoint can.
        StepError: the module's own code raised.
    """
    state = _state(module, synced)
    if not trained and _is_as_after_setup(module, state):
        state = {}
    if state:
        try:
            save_state(state, _stem(module, folder))
        except CheckpointError as error:
            raise CheckpointError(f"{module.name}: {error}") from error.__cause__
    wrote = _own_files(module, "save_checkpoint", folder, iteration)
    return bool(state) or wrote


def load_module(module: Any, folder: str, iteration: int) -> None:
    """Takes back what :func:`save_module` wrote.

    Raises:
        CheckpointError: the state does not fit what ``setup()`` made.
        StepError: the module's own ``load_checkpoint`` raised.
    """
    stem = _stem(module, folder)
    if stem.with_name(stem.name + ".json").exists():
        state = load_state(stem)
        try:
            module.load_state_dict(state)
        except bdb.BdbQuit:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{module.name}: the state in {folder} does not fit what setup() made: {str(error).rstrip('.')}. "
                f"Resume with the model and optimizer of the run that was saved, or start a new run."
            ) from error
    _own_files(module, "load_checkpoint", folder, iteration)


def export_module(module: Any, path: str) -> None:
    """Calls the module's ``export(path)``.

    Raises:
        StepError: it raised.
    """
    with _named(module, "export"):
        module.export(path)


def _stem(module: Any, folder: str) -> Path:
    """Names of modules have no dot, so these files meet no other."""
    return Path(folder) / f"{module.name}.state"


def _state(module: Any, synced: bool) -> dict[str, Any]:
    with _named(module, "state_dict"):
        state = module.state_dict()
    if not is_dict(state):
        raise CheckpointError(
            f"{module.name}.state_dict() returns {type(state).__name__}. Return a dict from names to tensors, arrays, "
            f"numbers, strings, and lists, tuples and dicts of these."
        )
    return {name: value for name, value in state.items() if not (synced and name == "model")}


def _changes_after_sync(kind: type) -> bool:
    """Whether modules of a class may change their weights between a sync and the end of the episode."""
    return bool(getattr(kind, "stateful", False)) or callable(getattr(kind, "after_episode", None))


def _is_as_after_setup(module: Any, state: dict[str, Any]) -> bool:
    remembered: dict[str, Any] | None = module.__dict__.get("_setup_fingerprint")
    if remembered is None:
        return False
    left = {name: value for name, value in remembered.items() if name in state or name != "model"}
    return _fingerprints(module, state) == left


def _fingerprints(module: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Fingerprint of each part of a state. Contents are read where the class says that its state changes on the way,
    since writes through ``.data`` and ``.numpy()`` leave no other trace; elsewhere a check that costs nothing does.
    """
    reads = _changes_after_sync(kind_of(module)) or callable(getattr(kind_of(module), "before_episode", None))
    return {name: _fingerprint(value, reads) for name, value in state.items()}


def _fingerprint(value: Any, reads: bool) -> Any:
    """Changes where a tensor was written to or replaced (``reads``: where its contents differ), or another value
    differs.
    """
    if isinstance(value, torch.Tensor):
        if reads and value.layout == torch.strided:
            bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return hashlib.blake2b(bits.data).digest(), value.dtype, tuple(value.shape)
        # the weak reference keeps the storage's identity, though not its memory, from being given to a later tensor
        storage = StorageWeakRef(value.untyped_storage())
        return storage, value.storage_offset(), 0 if value.is_inference() else value._version, tuple(value.shape)
    if is_instance(value, np.ndarray):
        return hashlib.blake2b(value.tobytes()).digest(), value.shape
    if is_dict(value):
        return {key: _fingerprint(part, reads) for key, part in value.items()}
    if is_sequence(value):
        return [_fingerprint(part, reads) for part in value]
    return repr(value)


def _own_files(module: Any, method: str, folder: str, iteration: int) -> bool:
    function = getattr(module, method, None)
    if function is None:
        return False
    own = Path(folder) / f"{module.name}.files"
    own.mkdir(exist_ok=True)
    module._context.checkpoint_path = own
    try:
        with _named(module, method):
            function(*[iteration] if inspect.signature(function).parameters else [])
    finally:
        module._context.checkpoint_path = None
    return True


@contextmanager
def _named(module: Any, method: str) -> Generator[None]:
    """An exception of the module's own code comes out as a StepError that says whose it is; errors of ours pass."""
    try:
        yield
    except (ChatLearnError, bdb.BdbQuit):
        raise
    except Exception as error:
        raise StepError(
            f"{type(error).__name__}: {error}\n  raised in {module.name}.{method}. The traceback of the module's own "
            f"code stands above."
        ).with_traceback(error.__traceback__) from error
