"""A Ray of our own, or one that is there already."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants, services, utils

from chatlearn.errors import WorkerError
from chatlearn.runtime.placement import Node, Resources
from chatlearn.runtime.ray import api
from chatlearn.runtime.ray.reaper import Reaper

_CONNECT_SECONDS = 10
_VARIABLES = {
    "PYTHONHASHSEED": "0",  # the order of sets of texts is the same on all replicas
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its warning about a default that will change
    "RAY_task_events_report_interval_ms": "0",  # a log of all calls, which takes memory for the first 60,000 of them
    "RAY_worker_niceness": "0",  # workers are what the machine is there for
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # the driver reports errors itself, each once
}
"""Of Ray, where the user has not set them."""

_SETTINGS_FRAME = b"\x04"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS_FRAME + bytes(5)
"""With which a client of gRPC begins (RFC 9113, 3.4); the server answers with a frame of the same type."""

_users = 0
_joined_here = False
_started_here = False
_reaper: Reaper | None = None


@dataclass(frozen=True)
class Machine(Node):
    """A node, and what Ray calls it.

    Attributes:
        id: of the node in Ray.
        host: its address.
    """

    id: str = ""
    host: str = ""


def connect(address: str | None, need: Resources) -> None:
    """Joins the Ray at ``address`` (or ``RAY_ADDRESS``), or one that this process has joined already; without one,
    starts a Ray on this machine, on the loopback interface and without a dashboard. Each call needs a
    :func:`disconnect`.

    Raises:
        WorkerError: no Ray answers at the address, or one with another version of Ray or Python.
    """
    global _users, _joined_here
    if not api.is_initialized():
        if address is None and (address := os.environ.get("RAY_ADDRESS") or None) == "local":
            address = None
        try:
            _start(need) if address is None else _join(address)
        except BaseException:
            _end()  # what there is of it
            raise
        _joined_here = True
    _users += 1


def disconnect() -> None:
    """Leaves Ray once nobody of this process uses it any more; one that was started here ends, and one that this
    process had joined before stays joined.
    """
    global _users, _joined_here, _started_here
    _users -= 1
    if _users == 0 and _joined_here:
        _joined_here = _started_here = False
        _end()


def _end() -> None:
    global _reaper
    api.shutdown()
    if _reaper is not None:
        _reaper.reap()
        _reaper = None


def machines() -> list[Machine]:
    """The nodes that are alive, this one first, with all that they offer. A machine that runs this program alone offers
    any number of cores: then they say how many threads a worker takes, not how many workers there may be.
    """
    here = api.node_id()
    found = [
        Machine(
            name=node["NodeManagerHostname"],
            cpus=math.inf if _started_here else node["Resources"].get("CPU", 0),
            gpus=int(node["Resources"].get("GPU", 0)),
            id=node["NodeID"],
            host=node["NodeManagerAddress"],
        )
        for node in api.nodes()
    ]
    return sorted(found, key=lambda node: (node.id != here, node.host, node.id))


def _start(need: Resources) -> None:
    global _started_here, _reaper
    cores = max(os.cpu_count() or 1, math.ceil(need.cpus))
    with _on_loopback():
        _init(address="local", num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1")
    _started_here, _reaper = True, Reaper(api.log_folder())


def _join(address: str) -> None:
    _look_for_ray(_found(address))
    try:
        _init(address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"The Ray at {address} can't be joined: {str(error).strip()}\nThe driver runs Ray {ray.__version__} and "
            f"Python {platform.python_version()}; a cluster needs the same versions everywhere, and the driver runs on "
            f"one of its machines. runtime_env.address says which Ray to join."
        ) from None


def _found(address: str) -> str:
    """What Ray takes an address for: the newest Ray of this machine for ``auto``, the machine's own address for
    ``localhost``.
    """
    try:
        return str(services.canonicalize_bootstrap_address(address))
    except ConnectionError:
        raise WorkerError(
            "No Ray runs on this machine, and runtime_env.address is `auto`. Start one with `ray start --head`, give "
            "the address of another machine's, such as 10.0.0.1:6379, or leave the key out to start a Ray for this "
            "program."
        ) from None
    except (OSError, ValueError):  # a name without an address, or none at all
        return address


def _look_for_ray(address: str) -> None:
    """Ray itself tries for minutes whatever is wrong with an address."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise WorkerError(
            f"{address!r} is no address of a Ray that can be joined. Set runtime_env.address (or RAY_ADDRESS) to "
            f"HOST:PORT as `ray start --head` prints it, such as 10.0.0.1:6379, or to `auto` on a machine of the "
            f"cluster."
        )
    how = (
        "Set runtime_env.address to the address that `ray start --head` printed, such as 10.0.0.1:6379, and see that "
        "its port can be reached from here."
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise WorkerError(f"No Ray answers at {address} ({error}). {how}") from None
    if answer[3:4] != _SETTINGS_FRAME:
        raise WorkerError(f"What listens at {address} is no Ray. {how}")


def _init(**options: Any) -> None:
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _own_sigterm():
        api.init(logging_level=logging.ERROR, log_to_driver=True, **options)


def _leave_it(handler: object) -> None:
    """Takes the handler that Ray would set."""


@contextmanager
def _own_sigterm() -> Generator[None]:
    """Ray takes SIGTERM for itself as it starts: in Python to exit at once, in C++ to abort seconds later. Whoever
    handles it now goes on to do so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, of_ray = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    utils.set_sigterm_handler = _leave_it
    try:
        yield
    finally:
        utils.set_sigterm_handler = of_ray
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _on_loopback() -> Generator[None]:
    """Inside, Ray takes 127.0.0.1 as the address of this machine, so that its servers listen there only."""
    constants: Any = ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    variable: str = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    os.environ[variable], outer = "0", os.environ.get(variable)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        if outer is None:
            del os.environ[variable]
        else:
            os.environ[variable] = outer
