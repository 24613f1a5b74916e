"""A module's tensors while it waits: contents in host memory, their own memory released.

What moves is storages, so whatever shares one (tied weights, views) shares it afterwards too. Tensors stay the objects
that they were; those of the module are empty in between, of shape ``[0]``, so that nothing reads what is not there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from chatlearn.errors import ModuleError
from chatlearn.guards import is_instance, is_mapping, is_sequence
from chatlearn.modules.torch.host_memory import BufferMemory, FileMemory, HostMemory, return_freed_memory

MEGABYTE = 1 << 20
TAGS = ("weights", "gradients", "optimizer")


class Memory:
    """What a module's models and optimizers hold, on their device or in host memory.

    With a model on a GPU, what is on GPUs moves to pinned host memory; tensors that are on the host stay there. Else
    what is on the CPU moves to a temporary file. Tensors on other devices stay where they are.

    Args:
        name: of the module, for errors.
        bucket_bytes: storages of so many bytes (or one, if that is larger) are copied before their memory is released.
    """

    def __init__(self, name: str, bucket_bytes: int = 1024 * MEGABYTE) -> None:
        self._name, self._bucket_bytes = name, bucket_bytes
        self._shelves: dict[str, _Shelf] = {}
        self._guards: dict[str, list[RemovableHandle]] = {}

    @property
    def away(self) -> list[str]:
        """Tags of what is in host memory."""
        return list(self._shelves)

    def offload(self, tags: Collection[str], models: Sequence[Any], optimizers: Sequence[Any] = ()) -> None:
        """Moves to host memory what is not there yet. Until :meth:`onload`, using it is a ModuleError.

        Args:
            tags: ``weights`` for parameters and buffers, ``gradients`` for gradients that are there, ``optimizer`` for
                the tensors in the optimizers' state.
            models: of the module; what is no :class:`torch.nn.Module` is left alone.
            optimizers: of the module; what has no ``state`` is left alone.

        Raises:
            ModuleError: host memory has no room; what was asked for with this tag is on its device then.
        """
        wanted = [tag for tag in TAGS if tag in tags and tag not in self._shelves]
        if not wanted:
            return
        models = [model for model in models if isinstance(model, torch.nn.Module)]
        groups = _tensors(models, optimizers)
        is_on_gpu = any(tensor.is_cuda for group in groups.values() for tensor in group)
        places = _places([t for group in groups.values() for t in group if t.is_cuda == is_on_gpu])
        with torch.inference_mode(False), torch.no_grad():
            for tag in wanted:
                keys = dict.fromkeys(StorageWeakRef(tensor.untyped_storage()) for tensor in groups[tag])
                self._fill(tag, [places.pop(key) for key in keys if key in places], is_on_gpu)
                self._guards[tag] = list(_guards(self._name, tag, models, optimizers))
        return_freed_memory()

    def _fill(self, tag: str, places: Sequence[list[_Place]], is_on_gpu: bool) -> None:
        held = [(_resizable(part), part) for part in places]
        if num_bytes := sum(part[0].tensor.untyped_storage().nbytes() for one, part in held if one is None):
            warnings.warn(
                f"{self._name}: {num_bytes / MEGABYTE:.1f} MB of its {tag} stay in memory while it is offloaded, since "
                f"something else holds them too, such as an array of numpy.",
                stacklevel=4,
            )
        try:
            shelf = self._shelves[tag] = _Shelf(BufferMemory() if is_on_gpu else FileMemory())
            shelf.fill([one for one, _ in held if one is not None], self._bucket_bytes)
        except (OSError, RuntimeError) as error:
            if tag in self._shelves and self._shelves[tag].is_empty:
                del self._shelves[tag]
            where = "Make room in host memory" if is_on_gpu else "Let TMPDIR name a folder with more room"
            raise ModuleError(
                f"{self._name}: its {tag} can't be moved to host memory ({error}). {where}, or take "
                f"models.{self._name}.free_memory (or the key for its {tag}) away."
            ) from error

    def onload(self, tags: Collection[str]) -> None:
        """Takes back what :meth:`offload` moved, to the bit; what is not away stays as it is.

        Raises:
            ModuleError: a tensor was replaced in the meantime, or there is no memory for it on its device; what is not
                back by then stays in host memory.
        """
        with torch.inference_mode(False), torch.no_grad():
            for tag in [tag for tag in TAGS if tag in tags and tag in self._shelves]:
                try:
                    self._shelves[tag].empty()
                except (OSError, RuntimeError) as error:
                    raise ModuleError(f"{self._name}: its {tag} can't be taken back: {error}") from error
                del self._shelves[tag]
                for guard in self._guards.pop(tag):
                    guard.remove()


def memory_of(module: Any) -> Memory:
    """The memory of a module, which this makes when it is first asked for it."""
    held = module.__dict__
    if "_memory" not in held:
        megabytes = getattr(module.runtime_args, "bucket_size_mb_in_memory_manager", 1024)
        held["_memory"] = Memory(module.name, megabytes * MEGABYTE)
    return held["_memory"]


@dataclass(frozen=True)
class _Place:
    """A tensor, and which part of its storage it shows."""

    tensor: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    kind: tuple[torch.dtype, torch.device]

    @classmethod
    def of(cls, tensor: Tensor) -> _Place:
        kind = tensor.dtype, tensor.device
        return cls(tensor, tensor.shape, tensor.stride(), int(tensor.storage_offset()), kind)

    def leave(self) -> None:
        """The tensor shows nothing. Setting ``data`` keeps the object, its hooks and its version."""
        self.tensor.data = self.tensor.new_empty(0)

    def show(self, storage: UntypedStorage) -> None:
        """The tensor shows its part of a storage."""
        self.tensor.data = self.tensor.new_empty(0).set_(storage, self.offset, self.size, self.stride)

    def check(self) -> None:
        """Raises RuntimeError where the tensor is no longer what :meth:`leave` made of it."""
        if self.tensor.numel() or (self.tensor.dtype, self.tensor.device) != self.kind:
            now = f"{list(self.tensor.shape)} {self.tensor.dtype} on {self.tensor.device}"
            raise RuntimeError(
                f"a tensor {list(self.size)} {self.kind[0]} on {self.kind[1]} was made {now} while it was offloaded. "
                f"Change what a module holds after its onload"
            )


@dataclass(frozen=True)
class _Held:
    """A storage, and the module's tensors that show parts of it."""

    storage: UntypedStorage
    num_bytes: int
    places: list[_Place]

    def bytes(self) -> Tensor:
        """The whole storage, uint8."""
        return torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage)

    def release(self) -> None:
        for place in self.places:
            place.leave()
        self.storage.resize_(0)

    def show(self) -> None:
        for place in self.places:
            place.show(self.storage)


class _Shelf:
    """Storages that were released, bucket by bucket, and the host memory that has their contents."""

    def __init__(self, host: HostMemory) -> None:
        self._host = host
        self._buckets: list[list[_Held]] = []

    @property
    def is_empty(self) -> bool:
        return not self._buckets

    def fill(self, held: Sequence[_Held], bucket_bytes: int) -> None:
        """Moves contents to the host; puts all of them back if one can't be moved."""
        try:
            for bucket in _buckets(held, bucket_bytes):
                self._host.put([one.bytes() for one in bucket])
                self._buckets.append(bucket)
                for one in bucket:
                    one.release()
        except BaseException:
            self.empty()
            raise

    def empty(self) -> None:
        """Moves contents back; raises RuntimeError where a tensor is another one now or memory is short, with the rest
        still on the shelf.
        """
        for place in (place for bucket in self._buckets for one in bucket for place in one.places):
            place.check()
        while self._buckets:
            bucket = self._buckets[-1]
            try:
                for one in bucket:
                    one.storage.resize_(one.num_bytes)
                self._host.take([one.bytes() for one in bucket])
            except BaseException:
                for one in bucket:
                    one.storage.resize_(0)
                raise
            self._buckets.pop()
            for one in bucket:
                one.show()


def _buckets(held: Sequence[_Held], bucket_bytes: int) -> Iterator[list[_Held]]:
    """Runs of neighbours with at most so many bytes together, or one that has more."""
    bucket: list[_Held] = []
    for one in held:
        if bucket and sum(other.num_bytes for other in bucket) + one.num_bytes > bucket_bytes:
            yield bucket
            bucket = []
        bucket.append(one)
    if bucket:
        yield bucket


def _tensors(models: Sequence[torch.nn.Module], optimizers: Sequence[Any]) -> dict[str, list[Tensor]]:
    """What models and optimizers hold in memory, by tag."""
    parameters = [parameter for model in models for parameter in model.parameters()]
    buffers = [buffer for model in models for buffer in model.buffers()]
    gradients = [parameter.grad for parameter in parameters if not is_lazy(parameter)]
    states = [list(getattr(optimizer, "state", {}).values()) for optimizer in optimizers]
    values: list[Iterable[Any]] = [[*parameters, *buffers], gradients, states]
    return {tag: [t for part in value for t in _plain(part)] for tag, value in zip(TAGS, values, strict=True)}


def _plain(value: Any) -> Iterator[Tensor]:
    """The tensors with memory on a CPU or GPU in a value: in its entries, inside of a tensor made of others."""
    if is_mapping(value):
        for part in value.values():
            yield from _plain(part)
    elif is_sequence(value):
        for part in value:
            yield from _plain(part)
    elif isinstance(value, Tensor) and not is_lazy(value):
        if is_traceable_wrapper_subclass(value):
            names, _ = value.__tensor_flatten__()
            for name in names:
                yield from _plain(getattr(value, name))
        elif (
            value.layout == torch.strided and value.device.type in ("cpu", "cuda") and value.untyped_storage().nbytes()
        ):
            yield value
            yield from _plain(value._base)  # a view keeps the tensor that it was made of


def _places(tensors: Iterable[Tensor]) -> dict[StorageWeakRef, list[_Place]]:
    """The tensors that show parts of each storage, each once."""
    unique = {id(tensor): tensor for tensor in tensors}.values()
    places: dict[StorageWeakRef, list[_Place]] = {}
    for tensor in unique:
        places.setdefault(StorageWeakRef(tensor.untyped_storage()), []).append(_Place.of(tensor))
    return places


def _resizable(places: list[_Place]) -> _Held | None:
    """The storage of these tensors. One that can't be resized, such as that of a mapped file or one that numpy has
    seen, gives way to a copy; ``None`` where something else holds it too, which would not see the copy.
    """
    storage = places[0].tensor.untyped_storage()
    if storage.resizable():
        return _Held(storage, storage.nbytes(), places)
    copy, former = storage.clone(), StorageWeakRef(storage)
    for place in places:
        place.show(copy)
    del storage
    if former.expired():
        return _Held(copy, copy.nbytes(), places)
    kind: Any = UntypedStorage
    restored = kind._new_with_weak_ptr(former.cdata)  # pyright: ignore[reportUnknownMemberType]
    for place in places:
        place.show(restored)
    return None


def _guards(
    name: str, tag: str, models: Sequence[torch.nn.Module], optimizers: Sequence[Any]
) -> Iterator[RemovableHandle]:
    """Hooks that refuse what needs tensors that are away."""

    def refusing(what: str) -> Callable[..., None]:
        return partial(_refuse, name, tag, what)

    parts: list[Any] = [part for model in models for part in model.modules()]  # torch leaves the hooks' types open
    for part in parts:
        if tag == "weights":
            yield part.register_forward_pre_hook(refusing("its model is called"), prepend=True)
            yield part.register_state_dict_pre_hook(refusing("its model's state is read"))
            yield part.register_load_state_dict_pre_hook(refusing("its model's state is loaded"))
        elif tag == "gradients":
            yield part.register_forward_pre_hook(partial(_refuse_training, name))
    for optimizer in optimizers:
        if is_instance(optimizer, torch.optim.Optimizer):
            yield optimizer.register_step_pre_hook(refusing("its optimizer makes a step"))
            if tag == "optimizer":
                yield optimizer.register_state_dict_pre_hook(refusing("its optimizer's state is read"))
                yield optimizer.register_load_state_dict_pre_hook(refusing("its optimizer's state is loaded"))


def _refuse(name: str, tag: str, what: str, *_: Any, **__: Any) -> None:
    away = "optimizer's state is" if tag == "optimizer" else f"{tag} are"
    raise ModuleError(
        f"{name}: {what} while its {away} in host memory. Call onload([{tag!r}]) of the module first. In a run the "
        f"modules of each phase are loaded; before_episode and after_episode may find theirs offloaded."
    )


def _refuse_training(name: str, *_: Any) -> None:
    if torch.is_grad_enabled():
        _refuse(name, "gradients", "its model is called with gradients enabled")
