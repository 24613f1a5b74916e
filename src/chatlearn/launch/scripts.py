"""What a machine is told to do: one bash script for Ray, and one for the program.

A script is sent through the standard input of a shell, so nothing of it shows in a list of processes, the cluster's
token neither. The same input then holds the other end: a line is a signal for what the script has started, and the end
of input, which is also the end of the connection, ends it. So nothing is left behind, whatever becomes of the launcher.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from chatlearn.launch.hosts import Host

STARTED = "Ray runtime started"
"""What ``ray start`` prints once the node belongs to the cluster."""

KILL_SECONDS = 20
"""Between the signal that asks to end and the one that ends."""

TEMP_DIR = '"/tmp/chatlearn-ray-$(id -u)"'
"""Where Ray writes sessions and logs, as bash: one folder a user, so that users of one machine don't meet."""


@dataclass(frozen=True)
class Setup:
    """What holds on all machines of a cluster.

    Attributes:
        port: of the head.
        folder: that everything starts in.
        python: path of the Python that has chatlearn and Ray, where a host names no other.
        token: of the cluster.
        dashboard: whether the head has one, on its loopback interface.
        variables: of the environment, for Ray and for the program.
    """

    port: int
    folder: str
    python: str
    token: str = field(repr=False)
    dashboard: bool = False
    variables: dict[str, str] = field(default_factory=dict[str, str])


def head_command(port: str, client_port: str, dashboard: bool = False) -> list[str]:
    """``ray start`` for the head, as words of bash; so are its ports."""
    web = ["--include-dashboard=true", "--dashboard-host=127.0.0.1"] if dashboard else ["--include-dashboard=false"]
    return ["ray", "start", "--head", f"--port={port}", f"--ray-client-server-port={client_port}", *web]


def common_options() -> list[str]:
    """Options of ``ray start`` on every node, as words of bash."""
    return [
        "--dashboard-agent-listen-port=0",  # any free one: its fixed default belongs to whoever came first
        "--disable-usage-stats",
        "--log-color=false",
        '--temp-dir="$temp_dir"',
        "--block",
    ]


def own_temp_dir() -> str:
    """Lines of bash that make ``$temp_dir`` this user's alone."""
    return f"""\
temp_dir={TEMP_DIR}
mkdir -p -m 700 "$temp_dir"
if [ ! -O "$temp_dir" ] || [ -L "$temp_dir" ]; then
  echo "$temp_dir on $(hostname) belongs to somebody else" >&2
  exit 1
fi"""


def ray_script(host: Host, head: Host, setup: Setup) -> str:
    """Starts Ray on a host and stays; ends it when the input ends."""
    if host == head:
        words = head_command(str(setup.port), str(setup.port + 1), setup.dashboard)
    else:
        words = ["ray", "start", shlex.quote(f"--address={head.at(setup.port)}")]
    options = {"node-ip-address": host.address, "num-gpus": host.gpus, "num-cpus": host.cpus}
    words += [shlex.quote(f"--{key}={value}") for key, value in options.items() if value not in ("", None)]
    command = " ".join([*words, *common_options()])
    # Ray ends its own processes in order; a signal to all of them at once would look like a crash
    return _script(host, setup, f"{own_temp_dir()}\n{_needs('ray')}", command, target='"$child"')


def program_script(head: Host, words: Sequence[str], setup: Setup) -> str:
    """Runs the program on the head; its exit code is the script's."""
    return _script(head, setup, _needs(words[0]), shlex.join(words), target='"-$child"')


def _needs(program: str) -> str:
    """Lines of bash that see whether a command is there."""
    hint = "install chatlearn[ray] there, or name its Python with --python or python=… in the hosts file"
    text = shlex.quote(f"there is no command {program} here: {hint}")
    return f"command -v {shlex.quote(program)} >/dev/null || {{ echo {text} >&2; exit 127; }}"


def _script(host: Host, setup: Setup, before: str, command: str, target: str) -> str:
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": setup.token, **setup.variables}
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    folder = shlex.quote(setup.folder)
    return f"""\
{{ # read to its end before it starts: what follows on this input are signals
cd {folder} || {{ echo "give a folder that all hosts have: --workdir" >&2; exit 1; }}
export PATH={shlex.quote(str(PurePosixPath(host.python or setup.python).parent))}:"$PATH"
{exports}
{before}
set -m
exec 3<&0
{command} </dev/null 3<&- &
child=$!
{{
  while read -r -u 3 name; do kill -s "$name" -- {target}; done
  kill -s TERM -- {target}
  for _ in $(seq {KILL_SECONDS}); do kill -0 "$child" || exit; sleep 1; done
  kill -s KILL -- "-$child"
}} >/dev/null 2>&1 &
watcher=$!
wait "$child" 2>/dev/null  # else bash says in its own words what has ended it
status=$?
kill -s KILL -- "-$watcher" 2>/dev/null
exit "$status"
}}
"""
