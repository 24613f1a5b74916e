"""What is used of Ray, with types: Ray leaves most of them open."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray._private import worker

_Function = TypeVar("_Function", bound=Callable[..., Any])


def actor_class(cls: type, **options: Any) -> Any:
    """A class whose instances are actors: ``actor_class(Host).options(num_cpus=1).remote(…)``."""
    return ray.remote(**options)(cls) if options else ray.remote(cls)


def task(function: Callable[..., Any], **options: Any) -> Any:
    """A function that runs elsewhere: ``task(function).remote(…)``."""
    return ray.remote(**options)(function)


def method(**options: Any) -> Callable[[_Function], _Function]:
    """Options of an actor's method."""
    decorated: Any = ray.method(**options)
    return decorated


def get(ref: Any, timeout: float | None = None) -> Any:
    """The value of a reference.

    Raises:
        RayError: the call raised, or its value is lost; GetTimeoutError after ``timeout`` seconds.
    """
    return ray.get(ref, timeout=timeout)


def put(value: Any) -> Any:
    """A reference to a value of this process."""
    return ray.put(value)


def wait(refs: Sequence[Any], num: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
    """Waits until ``num`` references are there, wherever that is; returns (there, missing)."""
    return ray.wait(list(refs), num_returns=num, timeout=timeout, fetch_local=False)


def ready(refs: Sequence[Any]) -> list[Any]:
    """Those that are there now."""
    return wait(refs, len(refs), 0)[0] if refs else []


def kill(actor: Any) -> None:
    """Ends an actor's process."""
    ray.kill(actor)


def actor_id(actor: Any) -> str:
    """What Ray calls an actor in its errors."""
    return actor._actor_id.hex()


def init(**options: Any) -> None:
    """Joins a Ray, or starts one."""
    ray.init(**options)


def is_initialized() -> bool:
    """Whether this process has joined a Ray."""
    return ray.is_initialized()


def shutdown() -> None:
    """Leaves Ray; ends one that this process has started."""
    ray.shutdown()


def log_folder() -> str:
    """Where the processes of the Ray that this process has started write their output."""
    node: Any = worker._global_node
    return node.get_logs_dir_path()


def nodes() -> list[dict[str, Any]]:
    """What Ray knows of the nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_id() -> str:
    """Ray's name of the node that this process is on."""
    return ray.get_runtime_context().get_node_id()


def node_address() -> str:
    """Address of the node that this process is on."""
    return ray.util.get_node_ip_address()


def free() -> dict[str, float]:
    """What nobody holds of the cluster's resources."""
    return dict(ray.available_resources())
