"""The actor that runs a replica: a :class:`~chatlearn.runtime.worker.Worker` behind Ray's calls."""

from __future__ import annotations

import faulthandler
import importlib.metadata
import os
import platform
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.exceptions import RayActorError, RayTaskError

from chatlearn.errors import DataError, StepError
from chatlearn.runtime.calls import Report, StepCall
from chatlearn.runtime.ray import api
from chatlearn.runtime.ray.failures import Failed, LostPeer, failed, original, restored
from chatlearn.runtime.ray.oom import note
from chatlearn.runtime.ray.payload import Argument, Payload, packed, replaced, unpacked
from chatlearn.runtime.wire import decode
from chatlearn.runtime.worker import Worker
from chatlearn.types import Batch

Peers = Mapping[str, Sequence[Any]]
"""Actors of the modules that a call may ask, by name and replica."""

Asked = Callable[[], tuple[str, tuple[Any, ...]]]
"""Gives the method and the arguments of a call."""


@dataclass(frozen=True)
class Surroundings:
    """What a worker takes over from the driver's process.

    Attributes:
        folder: that relative paths begin in.
        paths: where Python looks for modules, beside the environment's own.
        epoch: seconds since the epoch where the driver's ``time.perf_counter()`` is 0.
        boot: what tells machines apart that share a clock.
        dtype: torch's default.
        matmul_precision: torch's, of float32.
        deterministic: whether torch takes deterministic algorithms only, and whether it only warns of others.
    """

    folder: str
    paths: tuple[str, ...]
    epoch: float
    boot: str
    dtype: torch.dtype
    matmul_precision: str
    deterministic: tuple[bool, bool]

    @staticmethod
    def of_this_process() -> Surroundings:
        """Those of the driver."""
        environment = (sys.prefix, sys.base_prefix)
        return Surroundings(
            folder=os.getcwd(),
            paths=tuple(p for p in sys.path if os.path.isdir(p) and not os.path.abspath(p).startswith(environment)),
            epoch=_epoch(),
            boot=boot_id(),
            dtype=torch.get_default_dtype(),
            matmul_precision=torch.get_float32_matmul_precision(),
            deterministic=(
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
        )

    def take(self) -> float:
        """Makes this process like the driver's.

        Returns:
            Seconds to add to ``time.perf_counter()`` of this process to get the driver's.
        """
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        sys.path += [path for path in self.paths if path not in sys.path]
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.matmul_precision)
        enabled, warns_only = self.deterministic
        if enabled:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=warns_only)
        return 0.0 if boot_id() == self.boot else _epoch() - self.epoch


@dataclass(frozen=True)
class Identity:
    """A worker's process.

    Attributes:
        pid: its number on its machine.
        node: Ray's id of the node.
        host: address of the node.
        log: file that its output goes to.
        last_words: file that a crash or a signal writes Python stacks to.
        versions: of what has to be the same as in the driver's process.
    """

    pid: int
    node: str
    host: str
    log: str
    last_words: str
    versions: dict[str, str]


class Host:
    """A replica's process. Data calls run one after another on one thread; questions of other replicas' steps, and
    control calls, have threads of their own.

    Args:
        name: such as ``policy[0]``; the prefix of its lines in the terminal.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._peers: dict[str, Sequence[Any]] = {}
        self._clock = 0.0
        self._worker: Worker | None = None

    def __repr__(self) -> str:
        return self._name

    def construct(self, surroundings: bytes, head: Payload, *buffers: Any) -> Payload:
        """Makes the worker; returns the :class:`Identity` of the process."""
        return self._guarded(self._construct, surroundings, [head, *buffers] if buffers else head)

    def _construct(self, surroundings: bytes, payload: Payload) -> Payload:
        self._clock = decode(surroundings).take()
        identity = _settle_in(self._name)
        self._worker = Worker(*unpacked(payload))
        self._worker.ask = self._ask
        return packed(identity)

    def call(self, *parts: Any) -> Payload:
        """Data call of a method of the worker."""
        return self._guarded(lambda: self._packed(self._result(*parts), lambda: decode(parts[0])))

    @api.method(num_returns=2)
    def call_pair(self, *parts: Any) -> tuple[Payload, Payload]:
        """Data call of a method that returns two values, the second a report."""
        return self._guarded(lambda: self._pair(self._result(*parts), lambda: decode(parts[0])))

    @api.method(num_returns=2)
    def call_apart(self, *parts: Any) -> tuple[Payload, bytes]:
        """Data call whose value stays on the cluster: beside it comes a receipt."""
        return self._guarded(lambda: (self._packed(self._result(*parts), lambda: decode(parts[0])), b""))

    @api.method(num_returns=1, concurrency_group="questions")
    def answer(self, head: Payload, *buffers: Any) -> Payload:
        """A call from inside a step of another replica."""

        def run() -> Payload:
            call, data, peers = unpacked([head, *buffers] if buffers else head)
            self._peers.update(peers)
            output, report = self._own.answer(call, data)
            return self._packed((output, _shifted(report, self._clock)), lambda: ("run", (call,)))

        return self._guarded(run)

    @api.method(num_returns=1, concurrency_group="control")
    def control(self, head: bytes) -> Payload:
        """Control call of a method of the worker."""

        def run() -> Payload:
            method, args = decode(head)
            return packed(getattr(self._own, method)(*args))

        return self._guarded(run)

    @property
    def _own(self) -> Worker:
        assert self._worker is not None
        return self._worker

    def _result(self, head: bytes, peers: Peers | bytes, *values: Payload) -> Any:
        """Runs a method of the worker.

        Args:
            head: the method and its arguments.
            peers: actors that the call may ask; empty without any.
            values: that its arguments name by number.
        """
        method, args = decode(head)
        if not isinstance(peers, bytes):
            self._peers.update(peers)
        if values:
            arrived: dict[int, Any] = {}

            def value(argument: Argument) -> Any:
                if argument.number not in arrived:
                    arrived[argument.number] = unpacked(values[argument.number])
                return arrived[argument.number]

            args = replaced(args, Argument, value)
        return getattr(self._own, method)(*args)

    def _pair(self, result: tuple[Any, Any], asked: Asked) -> tuple[Payload, Payload]:
        output, report = result
        if isinstance(report, Report):
            report = _shifted(report, self._clock)
        return self._packed(output, asked), self._packed(report, asked)

    def _packed(self, value: Any, asked: Asked) -> Payload:
        """What a call returns, ready to leave.

        Raises:
            StepError: it can't.
        """
        try:
            return packed(value)
        except DataError as error:
            method, args = asked()
            what = f"{args[0].step} ({args[0].place})" if method == "run" else method
            raise StepError(f"The result of {self._name}.{what}: {error}") from None

    def _ask(self, module: str, replica: int, call: StepCall, data: tuple[Batch, ...]) -> tuple[Any, Report]:
        payload = packed((call, data, {}))
        arguments = [payload] if isinstance(payload, bytes) else payload
        try:
            answer: Payload = api.get(self._peers[module][replica].answer.remote(*arguments))
        except RayTaskError as error:
            cause = original(error)
        except RayActorError:
            raise LostPeer(module, replica) from None
        else:
            output, report = unpacked(answer)
            return output, _shifted(report, -self._clock)
        raise restored(cause) if isinstance(cause, Failed) else cause  # out here its own cause stays

    def _guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except (SystemExit, KeyboardInterrupt) as error:  # which Ray would take for its own
            ended = StepError(f"{self._name}: its code raised {error!r}. Return, or raise an error.")
            ended.__cause__ = error
            raise failed(ended) from None
        except Exception as error:
            raise failed(error) from None


def _shifted(report: Report, seconds: float) -> Report:
    """A report with times of a clock that is so much ahead."""
    if not seconds:
        return report
    spans = tuple(
        (track, label, asked + seconds, start + seconds, end + seconds, rows, caller)
        for track, label, asked, start, end, rows, caller in report.spans
    )
    return replace(report, start=report.start + seconds, end=report.end + seconds, spans=spans)


def versions() -> dict[str, str]:
    """What a worker has to share with the driver."""
    return {
        "chatlearn": importlib.metadata.version("chatlearn"),
        "ray": importlib.metadata.version("ray"),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def boot_id() -> str:
    """What machines that share a clock have in common: processes of one machine, since it was started."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return platform.node()


def _epoch() -> float:
    return time.time() - time.perf_counter()


def _settle_in(name: str) -> Identity:
    """Has this process write all output to one file, and leave its stacks behind when it crashes or is asked."""
    log = _output_file()
    if log:
        os.dup2(1, 2)  # one order of lines
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    folder = os.path.dirname(log) or "/tmp"
    path = os.path.join(folder, f"chatlearn-{os.getpid()}.stacks")
    last_words = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  # for as long as the process lives
    last_words.write(note())
    faulthandler.enable(last_words, all_threads=True)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, last_words, all_threads=True)
    leave, own = os._exit, os.getpid()

    def told_exit(code: int) -> None:
        if os.getpid() != own:  # a process that was forked from this one
            leave(code)
        last_words.write(f"os._exit({code}) was called:\n{''.join(traceback.format_stack()[:-1])}")
        last_words.flush()
        leave(code)

    os._exit = told_exit
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    return Identity(os.getpid(), api.node_id(), api.node_address(), log, path, versions())


def _output_file() -> str:
    """The file that this process writes its output to, if it is one."""
    try:
        path = os.readlink("/proc/self/fd/1")
    except OSError:
        return ""
    return path if os.path.isfile(path) else ""
