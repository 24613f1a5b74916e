"""``chatlearn launch``: its ways, their options, and what each does."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatlearn.errors import ConfigError
from chatlearn.launch.program import EXAMPLE, check_program, environment

_EPILOG = f"""\
examples:
  chatlearn launch hosts --hosts node-1,node-2 -- {EXAMPLE}
  chatlearn launch slurm --nodes 2 --gpus-per-node 8 -o job.sh -- {EXAMPLE}
  chatlearn launch kuberay --image chatlearn --workers 2 --gpus-per-worker 8 -o job.yaml -- {EXAMPLE}
  chatlearn launch dockerfile -o Dockerfile

The words behind -- are the program, which runs once, on the first machine; its replicas run on all of them.
"""

_Option = tuple[tuple[str, ...], dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """One way to start a program on several machines.

    Attributes:
        help: what it does.
        run: gets the options and the program; returns an exit code.
        options: flags and keywords, for argparse.
        takes_program: whether there is a program behind ``--``.
    """

    help: str
    run: Callable[[argparse.Namespace, list[str]], int]
    options: Sequence[_Option]
    takes_program: bool = True


def launch_command(words: Sequence[str]) -> int:
    """Runs ``chatlearn launch`` with the words behind it.

    Returns:
        The program's exit code where it was run, otherwise 0. The process ends with 2 for unusable arguments.

    Raises:
        ChatLearnError: what is wrong, and how to set it right.
    """
    own = list(words)
    program: list[str] = []
    if "--" in own:
        at = own.index("--")
        own, program = own[:at], own[at + 1 :]
    options = _parser().parse_args(own)
    way = WAYS[options.way]
    if program and not way.takes_program:
        raise ConfigError(f"chatlearn launch {options.way} takes no program; leave out what follows --.")
    if way.takes_program:
        program = check_program(program, f"chatlearn launch {shlex.join(own)}")
    return way.run(options, program)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="chatlearn launch",
        description="Start a program on several machines.",
        epilog=_EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    ways = parser.add_subparsers(dest="way", required=True, metavar="WAY")
    for name, way in WAYS.items():
        text = way.help[0].upper() + way.help[1:] + "."
        sub = ways.add_parser(name, help=way.help, description=text, formatter_class=raw, allow_abbrev=False)
        for flags, keywords in way.options:
            sub.add_argument(*flags, **keywords)
        if way.takes_program:
            sub.usage = f"chatlearn launch {name} [OPTION …] -- PROGRAM …"
    return parser


def _hosts(options: argparse.Namespace, program: list[str]) -> int:
    from chatlearn.launch.hosts import read_hosts
    from chatlearn.launch.scripts import Setup
    from chatlearn.launch.session import dry_run, launch

    hosts = read_hosts(options.hosts)
    if not options.ssh.strip():
        raise ConfigError("--ssh is empty. Give a command such as 'ssh -p 22'.")
    setup = Setup(
        port=options.port,
        folder=_folder(options),
        python=options.python,
        token="made-at-random-at-the-start" if options.dry_run else secrets.token_hex(32),
        dashboard=options.dashboard,
        variables=environment(options.env, dict(os.environ)),
    )
    if options.dry_run:
        print(dry_run(hosts, setup, options.ssh, program), end="")
        return 0
    return launch(hosts, setup, options.ssh, options.timeout, program)


def _slurm(options: argparse.Namespace, program: list[str]) -> int:
    from chatlearn.launch.slurm import Job, slurm_script

    more = {key: getattr(options, key) for key in ("partition", "account", "time") if getattr(options, key)}
    for word in options.sbatch:
        key, _, value = word.removeprefix("--").partition("=")
        more[key] = value
    job = Job(
        num_nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        cpus_per_node=options.cpus_per_node,
        folder=_folder(options),
        python=options.python,
        name=options.name,
        options=more,
        timeout=options.timeout,
        variables=environment(options.env, {}, by_value=True),
    )
    _write(slurm_script(job, program), options.out, "sbatch")
    return 0


def _kuberay(options: argparse.Namespace, program: list[str]) -> int:
    from chatlearn.launch.dockerfile import ray_version
    from chatlearn.launch.kuberay import Job, kuberay_manifest

    job = Job(
        image=options.image,
        ray_version=options.ray_version or ray_version(),
        num_workers=options.workers,
        gpus=options.gpus_per_worker,
        cpus=options.cpus_per_worker,
        memory=options.memory_per_worker,
        head_cpus=options.head_cpus,
        head_memory=options.head_memory,
        name=options.name,
        namespace=options.namespace or "",
        volume=options.volume or "",
        folder=options.workdir,
        has_token=not options.no_token,
        variables=environment(options.env, {}, by_value=True),
    )
    _write(kuberay_manifest(job, program), options.out, "kubectl apply -f")
    return 0


def _dockerfile(options: argparse.Namespace, _: list[str]) -> int:
    from chatlearn.launch.dockerfile import dockerfile

    extras = [extra for extra in options.extras.split(",") if extra]
    _write(dockerfile("" if options.cpu else options.cuda, extras), options.out, "docker build -t chatlearn . -f")
    return 0


def _folder(options: argparse.Namespace) -> str:
    return options.workdir or str(Path.cwd())


def _write(text: str, out: Path | None, then: str) -> None:
    """Prints the text, or writes it to a file and prints the command that takes it."""
    if out is None:
        print(text, end="")
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out.absolute()} can't be written: {error.strerror}. Give another path after -o.") from None
    print(f"{then} {shlex.quote(str(out))}")


def _count(least: int) -> Callable[[str], int]:
    """An argument type: a whole number that is not below ``least``."""

    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number from {least} on is needed, not {text!r}")
        return int(text)

    return number


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1024 <= int(text) <= 65534:
        raise argparse.ArgumentTypeError(f"a port between 1024 and 65534 is needed, not {text!r}")
    return int(text)


def _label(text: str) -> str:
    """A name as Kubernetes takes it; KubeRay makes longer ones of it."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"up to 47 small letters, digits and - are needed, not {text!r}")
    return text


def _quantity(text: str) -> str:
    """An amount of memory as Kubernetes takes it."""
    if not re.fullmatch(r"\d+(\.\d+)?([KMGTPE]i?|k|m)?", text):
        raise argparse.ArgumentTypeError(f"an amount such as 64Gi is needed, not {text!r}")
    return text


_OUT: _Option = (("-o", "--out"), {"metavar": "FILE", "type": Path, "help": "write to this file"})
_ENV: _Option = (
    ("--env",),
    {"metavar": "NAME=VALUE", "action": "append", "default": [], "help": "environment variable; may be repeated"},
)
_PYTHON: _Option = (
    ("--python",),
    {"metavar": "PATH", "default": sys.executable, "help": "Python with chatlearn and Ray there (default: this one)"},
)
_WORKDIR: _Option = (
    ("--workdir",),
    {"metavar": "FOLDER", "default": "", "help": "folder that all machines have (default: this one)"},
)
_TIMEOUT: _Option = (
    ("--timeout",),
    {"metavar": "SECONDS", "type": _count(1), "default": 120, "help": "that Ray has to start (default: 120)"},
)


def _option(flag: str, what: str, metavar: str = "NAME", **keywords: Any) -> _Option:
    if "action" not in keywords:
        keywords["metavar"] = metavar
    return (flag,), {"help": what, **keywords}


WAYS: dict[str, Way] = {
    "hosts": Way(
        "start Ray on a list of hosts over ssh, run the program on the first, and end all of it",
        _hosts,
        [
            _option("--hosts", "names, or a file with one host a line", "FILE|a,b,c", required=True),
            _option("--ssh", "command that reaches a host (default: ssh)", "COMMAND", default="ssh"),
            _option("--port", "of Ray's head (default: 6379)", "PORT", type=_port, default=6379),
            _WORKDIR,
            _PYTHON,
            _ENV,
            _TIMEOUT,
            _option("--dashboard", "start Ray's dashboard, on the head's loopback interface", action="store_true"),
            _option("--dry-run", "print the commands and start nothing", action="store_true"),
        ],
    ),
    "slurm": Way(
        "write the script of a Slurm job",
        _slurm,
        [
            _option("--nodes", "number of nodes", "N", type=_count(1), required=True),
            _option("--gpus-per-node", "GPUs of a node (default: 0)", "N", type=_count(0), default=0),
            _option("--cpus-per-node", "CPUs of a node (default: whole nodes)", "N", type=_count(1)),
            _option("--partition", "partition of the cluster", default=""),
            _option("--account", "account that pays", default=""),
            _option("--time", "time limit, as Slurm writes it", "HH:MM:SS", default=""),
            _option("--name", "name of the job (default: chatlearn)", default="chatlearn"),
            _option("--sbatch", "further option of sbatch; may be repeated", "KEY=VALUE", action="append", default=[]),
            _WORKDIR,
            _PYTHON,
            _ENV,
            _TIMEOUT,
            _OUT,
        ],
    ),
    "kuberay": Way(
        "write the manifest of a KubeRay RayJob",
        _kuberay,
        [
            _option("--image", "image with chatlearn and Ray", "IMAGE", required=True),
            _option("--workers", "number of worker pods", "N", type=_count(1), required=True),
            _option("--gpus-per-worker", "GPUs of a worker (default: 0)", "N", type=_count(0), default=0),
            _option("--cpus-per-worker", "CPUs of a worker (default: 8)", "N", type=_count(1), default=8),
            _option(
                "--memory-per-worker", "memory of a worker (default: 64Gi)", "SIZE", type=_quantity, default="64Gi"
            ),
            _option("--head-cpus", "CPUs of the head (default: 4)", "N", type=_count(1), default=4),
            _option("--head-memory", "memory of the head (default: 16Gi)", "SIZE", type=_quantity, default="16Gi"),
            _option("--name", "name of the job (default: chatlearn)", type=_label, default="chatlearn"),
            _option("--namespace", "namespace of the job", type=_label),
            _option("--volume", "PersistentVolumeClaim that all pods share", "CLAIM", type=_label),
            _option("--workdir", "where the program starts, and the volume is (default: /work)", default="/work"),
            _option("--ray-version", "of the image (default: the installed one)", "VERSION", default=""),
            _option("--no-token", "no token, for KubeRay before 1.5.1", action="store_true"),
            _ENV,
            _OUT,
        ],
    ),
    "dockerfile": Way(
        "write a Dockerfile with chatlearn, its extras and Ray",
        _dockerfile,
        [
            _option("--cuda", "CUDA that PyTorch brings (default: 12.8)", "VERSION", default="12.8"),
            _option("--cpu", "PyTorch without CUDA", action="store_true"),
            _option("--extras", "of chatlearn (default: ray,hf,data,tensorboard)", default="ray,hf,data,tensorboard"),
            _OUT,
        ],
        takes_program=False,
    ),
}
"""All ways, in the order of ``--help``."""
