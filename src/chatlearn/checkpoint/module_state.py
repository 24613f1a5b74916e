"""The part of a checkpoint that a module fills: its state, and files of its own. Everything here runs beside it."""

from __future__ import annotations

import bdb
import hashlib
import inspect
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from chatlearn.checkpoint.disk import Written, sealed
from chatlearn.checkpoint.files import Buffers, load_state, take_snapshot, write_snapshot
from chatlearn.checkpoint.manifest import damage, is_complete
from chatlearn.checkpoint.writing import Writing
from chatlearn.errors import ChatLearnError, CheckpointError, StepError
from chatlearn.guards import is_dict, is_instance, is_sequence, kind_of
from chatlearn.modules.base import BaseModule

_WRITING, _BUFFERS = "_writing", "_snapshot_buffers"


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


def save_module(
    module: Any, folder: str, iteration: int, trained: bool, synced: bool, asynchronous: bool = False
) -> bool:
    """Begins to write the state of a module, and calls its own ``save_checkpoint``; :func:`finish_saving` ends it.

    Args:
        module: of any kind.
        folder: of the checkpoint.
        iteration: complete episodes.
        trained: keep the whole state, changed or not.
        synced: its ``model`` comes by parameter sync and need not be kept.
        asynchronous: the files are written on a thread, from a copy of the state, while the module goes on.

    Returns:
        Whether there is anything to keep.

    Raises:
        CheckpointError: the state holds what no checkpoint can.
        StepError: the module's own code raised.
    """
    state = _state(module, synced)
    if not trained and _is_as_after_setup(module, state):
        state = {}
    copies = module.__dict__.setdefault(_BUFFERS, Buffers()) if asynchronous else None
    try:
        snapshot = take_snapshot(state, _names(module), copies) if state else None
    except CheckpointError as error:
        raise CheckpointError(f"{module.name}: {error}") from error.__cause__
    wrote = _own_files(module, "save_checkpoint", folder, iteration)
    own = Path(folder) / f"{module.name}.files"

    def write() -> dict[str, Written]:
        written = {} if snapshot is None else write_snapshot(snapshot, _stem(module, folder))
        if wrote:
            files = sorted(path for path in own.rglob("*") if path.is_file())
            written |= {path.relative_to(folder).as_posix(): sealed(path) for path in files}
        return written

    module.__dict__[_WRITING] = Writing(write, Path(folder), f"checkpoint of {module.name}", asynchronous)
    return snapshot is not None or wrote


def has_saved(module: Any) -> bool:
    """Whether :func:`finish_saving` would not wait."""
    writing: Writing | None = module.__dict__.get(_WRITING)
    return writing is None or writing.has_ended


def finish_saving(module: Any) -> dict[str, Written] | None:
    """Waits for what :func:`save_module` has begun; returns the files by their paths in the checkpoint. ``None``: this
    process has begun nothing, since it has taken the place of another one.

    Raises:
        CheckpointError: one can't be written.
    """
    writing: Writing | None = module.__dict__.get(_WRITING)
    if writing is None:
        return None
    try:
        return writing.result()
    finally:
        if writing.has_ended:  # else somebody has interrupted the wait, and waits again
            del module.__dict__[_WRITING]


def load_module(module: Any, folder: str, iteration: int) -> None:
    """Takes back what :func:`save_module` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or the state does not fit what ``setup()`` made.
        StepError: the module's own ``load_checkpoint`` raised.
    """
    if is_complete(Path(folder)):
        _check_files(Path(folder), f"{module.name}.state", f"{module.name}.files/")
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


def _check_files(folder: Path, *prefixes: str) -> None:
    if problems := [line for prefix in prefixes for line in damage(folder, prefix)]:
        raise CheckpointError("\n".join(problems))


def export_module(module: Any, path: str) -> None:
    """Calls the module's ``export(path)``.

    Raises:
        StepError: it raised.
    """
    with _named(module, "export"):
        module.export(path)


def _names(module: BaseModule) -> dict[str, str]:
    """Beginnings of the names of an optimizer's tensors: with the names of the parameters that they belong to, in the
    place of numbers.
    """
    parameters = {id(value): name for name, value in _parameters(module)}
    names: dict[str, str] = {}
    for attribute, optimizer in module.__dict__.items():
        if isinstance(optimizer, torch.optim.Optimizer):
            groups: list[dict[str, Any]] = optimizer.param_groups
            for number, parameter in enumerate(each for group in groups for each in group["params"]):
                if name := parameters.get(id(parameter)):
                    names[f"{attribute}.state.{number}"] = f"{attribute}.state.{name}"
    return names


def _parameters(module: BaseModule) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of all models of a module, those of ``model`` by the names that it gives them."""
    models = {key: value for key, value in module.__dict__.items() if isinstance(value, torch.nn.Module)}
    for attribute in sorted(models, key=lambda key: key == "model"):
        prefix = "" if attribute == "model" else f"{attribute}."
        for name, parameter in models[attribute].named_parameters():
            yield prefix + name, parameter


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
