"""The replicas of a cluster: their actors, their processes, and which of them a failure is the loss of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayError

from chatlearn.errors import ChatLearnError, WorkerError
from chatlearn.runtime.base import Handle
from chatlearn.runtime.ray import api
from chatlearn.runtime.ray.failures import Failed, restored
from chatlearn.runtime.ray.host import Identity, versions
from chatlearn.runtime.ray.logs import keep_logs
from chatlearn.runtime.ray.losses import loss
from chatlearn.runtime.ray.payload import unpacked
from chatlearn.runtime.ray.tasks import RayFuture, Task
from chatlearn.runtime.wire import encode

_PING_SECONDS = 10


class Replicas:
    """All replicas that have been spawned; a replacement takes the place of the one before."""

    def __init__(self) -> None:
        self._actors: dict[Handle, Any] = {}
        self._handles: dict[str, Handle] = {}
        self._constructed: dict[Handle, RayFuture] = {}
        self._identities: dict[Handle, Identity] = {}
        self._replaceable: dict[Handle, bool] = {}
        self._log_folder: Path | None = None

    def __iter__(self) -> Iterator[Handle]:
        return iter(list(self._actors))

    def add(self, handle: Handle, actor: Any, constructed: RayFuture, replaceable: bool) -> None:
        """Takes in a replica whose construction has been submitted."""
        self._actors[handle], self._constructed[handle] = actor, constructed
        self._handles[api.actor_id(actor)] = handle
        self._replaceable[handle] = replaceable
        self._identities.pop(handle, None)

    def actor(self, handle: Handle) -> Any:
        """The actor of a replica.

        Raises:
            WorkerError: it is not running.
        """
        if handle not in self._actors:
            raise WorkerError(f"{handle} is not running: it was killed, or the cluster was shut down.")
        return self._actors[handle]

    def is_replaceable(self, handle: Handle) -> bool:
        """Whether another process may take its place, since it keeps no state; so for a replica alone."""
        return self._replaceable.get(handle, False)

    def identity(self, handle: Handle) -> Identity:
        """The process of a replica, once it is constructed.

        Raises:
            WorkerError: it runs other versions than the driver.
        """
        if handle not in self._identities:
            identity: Identity = self._constructed[handle].result()
            if other := {name: v for name, v in identity.versions.items() if v != versions()[name]}:
                theirs = ", ".join(f"{name} {version}" for name, version in other.items())
                ours = ", ".join(f"{name} {versions()[name]}" for name in other)
                raise WorkerError(
                    f"{handle} on {identity.host} runs {theirs}, but the driver runs {ours}. Install the same versions "
                    f"on all machines, or set models.{handle.module}.python to an environment that has them."
                )
            self._identities[handle] = identity
            keep_logs(self._log_folder, {handle: identity})
        return self._identities[handle]

    def known(self) -> dict[Handle, Identity]:
        """The processes of all replicas that have been constructed; waits for none."""
        for handle, future in self._constructed.items():
            if handle not in self._identities:
                with contextlib.suppress(RayError, ChatLearnError):
                    if api.ready([future.ref]):
                        self._identities[handle] = unpacked(api.get(future.ref))
        return self._identities

    def keep_logs(self, folder: Path) -> None:
        """Has one file for the output of each worker in a folder."""
        self._log_folder = folder
        keep_logs(folder, {handle: self.identity(handle) for handle in self})

    def kill(self, handle: Handle) -> None:
        """Ends the process of a replica."""
        actor = self._actors.pop(handle, None)
        if actor is not None:
            api.kill(actor)

    def end(self) -> None:
        """Ends the processes of all; what they have written stays."""
        keep_logs(self._log_folder, self._identities, as_copies=True)
        for handle in self:
            self.kill(handle)

    def lost(self, task: Task, cause: BaseException) -> Handle:
        """The replica whose death made a call fail: its own, that of an input, or one that it asked."""
        if isinstance(cause, Failed) and cause.lost is not None:
            return Handle(*cause.lost)
        return self._handles.get(getattr(cause, "actor_id", None) or "", task.handle)

    def is_alive(self, handle: Handle, cause: BaseException) -> bool:
        """Whether a replica that a call lost has been made up for already."""
        actor = self.actor(handle)
        if isinstance(cause, Failed):  # a step has asked it, perhaps the one before
            try:
                return bool(api.get(actor.control.remote(encode(("ping", ()))), timeout=_PING_SECONDS))
            except RayError:
                return False
        return getattr(cause, "actor_id", None) not in (None, api.actor_id(actor))

    def loss(self, handle: Handle, cause: BaseException, running: Task | None) -> WorkerError:
        """What to say of a replica that died."""
        return loss(handle, self.known().get(handle), cause, running)

    def error(self, cause: BaseException) -> Exception:
        """What to raise where a value is not there."""
        if isinstance(cause, Failed):
            return restored(cause)
        if isinstance(cause, RayActorError):
            handle = self._handles.get(cause.actor_id or "")
            if handle is not None:
                return self.loss(handle, cause, None)
        return WorkerError(f"A value of the cluster is lost: {str(cause).strip()}")
