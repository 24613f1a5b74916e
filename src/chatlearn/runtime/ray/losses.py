"""Why a worker died, as far as can be found out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.exceptions import OutOfMemoryError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chatlearn.errors import WorkerError
from chatlearn.runtime.base import Handle
from chatlearn.runtime.lost import LostReplicaError
from chatlearn.runtime.ray import api
from chatlearn.runtime.ray.host import Identity
from chatlearn.runtime.ray.oom import kills_since
from chatlearn.runtime.ray.tasks import Task
from chatlearn.runtime.stacks import users_frames

_LOG_LINES = 12
_REMOTE_SECONDS = 20


def loss(handle: Handle, identity: Identity | None, error: BaseException, running: Task | None) -> WorkerError:
    """What is known about the death of a replica.

    Args:
        handle: the replica.
        identity: its process; ``None`` where it had not come up.
        error: what Ray says.
        running: the call that it was in.

    Raises:
        LostReplicaError: its node is gone, and with it the devices that are reserved for it.
    """
    doing = _doing(running)
    if identity is None:
        return WorkerError(f"{handle} could not be started: {_start_problem(handle, error)}")
    where = f"process {identity.pid} on {identity.host}"
    try:
        left: Remains = on_node(identity.node, remains, identity.last_words, identity.log)
    except WorkerError as unreachable:
        raise lost_with_node({handle: identity}, [running] if running else []) or LostReplicaError(
            f"{handle} is lost{doing} ({where}): {unreachable}. See what has become of the machine."
        ) from None
    text = f"{handle} died{doing} ({where}): {_cause(error, left)}."
    if left.frames:
        text += f"\nWhat it was executing:\n{left.frames}"
    if left.log:
        text += f"\nThe last lines of its log:\n{left.log}"
    return LostReplicaError(text)


def lost_with_node(identities: Mapping[Handle, Identity], unfinished: Iterable[Task]) -> LostReplicaError | None:
    """What to say where replicas are gone together with their machine; ``None`` where all machines are there.

    Args:
        identities: the processes of all replicas.
        unfinished: calls that were lost, in the order of submission.
    """
    alive = alive_nodes()
    gone = {handle: identity for handle, identity in identities.items() if identity.node not in alive}
    if not gone:
        return None
    running = next((task for task in unfinished if task.handle in gone), None)
    handle = running.handle if running else next(iter(gone))
    others = [str(other) for other in gone if other != handle]
    identity, beside = gone[handle], f", and with it {', '.join(others)}" if others else ""
    return LostReplicaError(
        f"{handle} is lost{_doing(running)}: its node {identity.host} is gone{beside}. Ray called the node "
        f"{identity.node[:12]}…. See what has become of the machine; the run needs as many devices to go on."
    )


def _doing(running: Task | None) -> str:
    if running is None:
        return ""
    return f" while it ran {running.name}{f' ({running.place})' if running.place else ''}"


@dataclass(frozen=True)
class Remains:
    """What a process that is gone has left on its machine.

    Attributes:
        exit_code: given to ``os._exit``.
        crash: words of Python's fault handler.
        frames: of the user's code at that time.
        log: the last lines of its output.
        oom_kills: processes that the kernel's out-of-memory killer has ended in its time.
    """

    exit_code: str
    crash: str
    frames: str
    log: str
    oom_kills: int


def remains(last_words: str, log: str) -> Remains:
    """Looks for what a process has left.

    Args:
        last_words: path of the file for stacks.
        log: path of its output.
    """
    told = _read(last_words)
    ends = [*re.finditer(r"^os\._exit\((?P<code>-?\d+)\) was called|^Fatal Python error: (?P<crash>.+)", told, re.M)]
    exit_code = crash = frames = ""
    if ends:  # what stands before it are answers to questions
        exit_code, crash = ends[-1]["code"] or "", ends[-1]["crash"] or ""
        frames = users_frames(_own_thread(told[ends[-1].start() :]))
    return Remains(exit_code, crash, frames, last_lines(log), kills_since(told))


def _own_thread(text: str) -> str:
    """The part of a crash's stacks that is about the thread that crashed; the text itself where there are no others."""
    return next((part for part in text.split("\n\n") if part.startswith("Current thread")), text)


def alive_nodes() -> set[str]:
    """Ray's ids of the nodes that are there."""
    return {node["NodeID"] for node in api.nodes()}


def on_node(node: str, function: Callable[..., Any], *args: Any) -> Any:
    """Runs a function on a node: here if it is this one, else as a task of Ray.

    Raises:
        WorkerError: the node does not answer.
    """
    if node == api.node_id():
        return function(*args)
    if node not in alive_nodes():
        raise WorkerError(f"node {node[:12]}… is gone")
    try:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        answer = api.task(function, num_cpus=0, scheduling_strategy=strategy).remote(*args)
        return api.get(answer, timeout=_REMOTE_SECONDS)
    except Exception as error:
        raise WorkerError(f"node {node[:12]}… does not answer: {error}") from None


def last_lines(path: str, count: int = _LOG_LINES) -> str:
    """The end of a worker's log, without what Ray writes into it for itself."""
    lines = [line for line in _read(path).splitlines() if not line.startswith(":") and line.strip()]
    return "\n".join(f"  {line}" for line in lines[-count:])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            file.seek(max(os.path.getsize(path) - 64_000, 0))
            return file.read()
    except OSError:
        return ""


def _cause(error: BaseException, left: Remains) -> str:
    said = str(error)
    if isinstance(error, OutOfMemoryError) or "memory monitor" in said:
        return (
            "Ray ended it since the machine's memory was nearly used up. Give the module smaller batches, fewer "
            "replicas on one machine, or more memory"
        )
    if left.exit_code:
        return f"its code ended the process with os._exit({left.exit_code})"
    if left.crash:
        return f"it crashed: {left.crash}"
    if "SIGTERM" in said:
        return "somebody ended it with SIGTERM"
    if left.oom_kills:
        return (
            f"it was killed by SIGKILL, for want of memory: the kernel's out-of-memory killer has ended "
            f"{left.oom_kills} processes here since this one was started. Use smaller batches or fewer replicas, or "
            f"give it more memory"
        )
    return "it was killed by SIGKILL (by somebody's `kill -9`, or for want of memory), and left no trace"


def _start_problem(handle: Handle, error: BaseException) -> str:
    said = str(error).strip()
    if isinstance(error, RuntimeEnvSetupError) or "runtime_env" in said or "py_executable" in said:
        return f"its Python environment could not be set up. See models.{handle.module}.python.\n{said}"
    if found := re.search(r"No module named '([^']+)'", said):
        return (
            f"its Python has no {found[1]}. Install chatlearn with the extra `ray`, of the driver's version, on all "
            f"machines, or name an environment that has it: models.{handle.module}.python."
        )
    return (
        f"{said}\nSee that this Python has chatlearn with the extra `ray` and starts there: "
        f"models.{handle.module}.python."
    )
