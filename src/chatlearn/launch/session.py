"""Ray on a list of machines for as long as one program runs there, over ssh connections that are held open."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from types import FrameType

from chatlearn.errors import WorkerError
from chatlearn.launch.hosts import Host
from chatlearn.launch.program import with_cluster
from chatlearn.launch.scripts import KILL_SECONDS, STARTED, Setup, program_script, ray_script

GRACE_SECONDS = 60
"""That a program has to end after Ctrl-C, before the cluster is taken away from under it."""

_QUOTED_LINES = 15
_SSH_FAILED = 255


class Terminated(BaseException):
    """SIGTERM or SIGHUP reached the launcher."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals_raise() -> Generator[None]:
    """SIGTERM and SIGHUP raise :class:`Terminated` (in the main thread, where signals arrive)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which is what nohup asks for
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ssh_command(ssh: str) -> list[str]:
    """The words of ``--ssh``. ssh itself never asks here, and gives up on a machine that is not there."""
    words = shlex.split(ssh)
    if words and os.path.basename(words[0]) == "ssh":  # of an option given twice ssh takes the first
        words += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=30"]
    return words


def dry_run(hosts: Sequence[Host], setup: Setup, ssh: str, words: Sequence[str]) -> str:
    """The commands that a launch would run, as text: what is called here, and the script that it is given there."""
    head = hosts[0]
    parts = [(host, "Ray's head" if host == head else "Ray", ray_script(host, head, setup)) for host in hosts]
    parts.append((head, "the program", program_script(head, with_cluster(words, head.at(setup.port)), setup)))
    return "\n".join(
        f"# {host.name}: {what}\n{shlex.join(_call(ssh, host))} <<'END'\n{script}END\n" for host, what, script in parts
    )


def _call(ssh: str, host: Host) -> list[str]:
    return [*ssh_command(ssh), host.name, "bash -s"]


class Connection:
    """A script that runs on a machine for as long as this process holds it.

    Args:
        host: the machine.
        script: for bash.
        ssh: words of ``--ssh``.
        shows: whether its output goes to this process's own; otherwise its last lines are kept.
    """

    def __init__(self, host: Host, script: str, ssh: str, shows: bool = False) -> None:
        self.host = host
        self.is_closing = False
        self.has_joined = False
        self.settled = threading.Event()
        self.lines: deque[str] = deque(maxlen=_QUOTED_LINES)
        self.process = subprocess.Popen(
            _call(ssh, host),
            stdin=subprocess.PIPE,
            stdout=None if shows else subprocess.PIPE,
            stderr=None if shows else subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a Ctrl-C is for the launcher, which passes it on
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        if not shows:
            self._reader.start()
        self.tell(script)

    def tell(self, text: str) -> None:
        """Sends text to the script's input; one that has ended does not mind."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(text)
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if STARTED in line:
                self.has_joined = True
                self.settled.set()
        code = self.process.wait()
        if self.has_joined and not self.is_closing:
            print(f"Ray on {self.host.name} has ended (exit code {code}):\n{self.quote}", file=sys.stderr, flush=True)
        self.settled.set()

    @property
    def quote(self) -> str:
        """The last lines of its output, indented."""
        return "\n".join(f"    {line}" for line in self.lines if line.strip()) or "    (it has printed nothing)"

    def begin_close(self) -> None:
        """Ends the script and what it has started, without waiting for it."""
        self.is_closing = True
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def end_close(self, deadline: float) -> bool:
        """Waits until it has ended, but not beyond a time of the monotonic clock; returns whether it has."""
        try:
            self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return True


class HostCluster:
    """Ray on some machines, the first of which is the head; a context manager that starts and ends it.

    Args:
        hosts: at least one.
        setup: what holds on all of them.
        ssh: the command that reaches one, as one line of shell.
        timeout: seconds that Ray has to start on all of them.

    Raises:
        WorkerError: on entering: a machine can't be reached, Ray does not start on it, or it does not join in time.
    """

    def __init__(self, hosts: Sequence[Host], setup: Setup, ssh: str, timeout: float) -> None:
        self._hosts, self._setup, self._ssh, self._timeout = hosts, setup, ssh, timeout
        self._connections: list[Connection] = []

    @property
    def address(self) -> str:
        """Where a program joins the cluster."""
        return self._hosts[0].at(self._setup.port)

    def __enter__(self) -> HostCluster:
        head, *others = self._hosts
        deadline = time.monotonic() + self._timeout
        try:
            self._start([head], deadline)
            self._start(others, deadline)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, hosts: Sequence[Host], deadline: float) -> None:
        """Starts Ray on machines side by side, and waits for all of them."""
        head = self._hosts[0]
        started: list[Connection] = []
        for host in hosts:
            started.append(Connection(host, ray_script(host, head, self._setup), self._ssh))
            self._connections.append(started[-1])
        for each in started:
            each.settled.wait(max(deadline - time.monotonic(), 0))
        if problems := [self._problem(each) for each in started if not each.has_joined]:
            raise WorkerError("\n".join(problems))

    def _problem(self, connection: Connection) -> str:
        """Why Ray does not run on a machine."""
        name, code = connection.host.name, connection.process.poll()
        if code == _SSH_FAILED:
            test = shlex.join([*_call(self._ssh, connection.host)[:-1], "true"])
            return f"{name} can't be reached:\n{connection.quote}\n  Make this work, without a question: {test}"
        if code is not None:
            return f"Ray does not start on {name} (exit code {code}):\n{connection.quote}"
        return (
            f"{name} has not joined the cluster at {self.address} within {self._timeout:g} s:\n{connection.quote}\n"
            f"  See that {name} reaches {self.address} and that no firewall is between the hosts; "
            "with address=… in the hosts file Ray takes another interface; --timeout waits longer."
        )

    def run(self, words: Sequence[str]) -> int:
        """Runs a program on the head; its output goes to this process's own.

        A Ctrl-C and SIGTERM are passed on to it.

        Returns:
            Its exit code.
        """
        head = self._hosts[0]
        program = Connection(
            head, program_script(head, with_cluster(words, self.address), self._setup), self._ssh, shows=True
        )
        self._connections.append(program)
        try:
            code = program.process.wait()
        except (KeyboardInterrupt, Terminated) as stop:
            number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
            program.tell(f"{signal.Signals(number).name.removeprefix('SIG')}\n")
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt, Terminated):
                return program.process.wait(GRACE_SECONDS)
            return 128 + number
        if code == _SSH_FAILED:
            print(f"The connection to {head.name} has failed; the program there was ended.", file=sys.stderr)
        return code

    def close(self) -> None:
        """Ends everything that was started: the program, then the workers, then the head; says what may be left."""
        connections, self._connections = self._connections, []
        head, workers, programs = connections[:1], connections[1 : len(self._hosts)], connections[len(self._hosts) :]
        for group in (programs, workers, head):
            for each in group:
                each.begin_close()
            deadline = time.monotonic() + KILL_SECONDS + 10
            for each in group:
                if not each.end_close(deadline):
                    print(f"Ray may still run on {each.host.name}: it did not end in time.", file=sys.stderr)


def launch(hosts: Sequence[Host], setup: Setup, ssh: str, timeout: float, words: Sequence[str]) -> int:
    """Runs a program on a cluster that lives as long as it does.

    Returns:
        The program's exit code; 130 or 143 after Ctrl-C or SIGTERM before it had begun.

    Raises:
        WorkerError: the cluster does not come to stand.
    """
    with _signals_raise():
        try:
            print(f"Starting Ray on {', '.join(host.name for host in hosts)} …", file=sys.stderr, flush=True)
            with HostCluster(hosts, setup, ssh, timeout) as cluster:
                print(f"Ray runs at {cluster.address} on {len(hosts)} hosts.", file=sys.stderr, flush=True)
                return cluster.run(words)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except Terminated as stop:
            return 128 + stop.number
