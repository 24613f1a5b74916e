"""``chatlearn doctor``: what is installed, what the machine has, and what a missing extra would bring."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# torch.cuda leaves some types open.

EXTRAS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "hf": (("transformers", "tokenizers"), "models and tokenizers from Hugging Face, exported policies"),
    "data": (("datasets", "pyarrow"), "Hugging Face data sets, and Parquet files as prompts"),
    "tensorboard": (("tensorboard",), "metrics as TensorBoard events"),
    "wandb": (("wandb",), "metrics in Weights & Biases"),
    "mlflow": (("mlflow-skinny", "sqlalchemy", "alembic"), "metrics in MLflow"),
    "trackio": (("trackio",), "metrics in Trackio"),
    "math": (("math-verify",), "rewards that know when two answers are equal"),
    "lora": (("peft",), "adapters instead of whole models in training, sync and checkpoints"),
    "ray": (("ray",), "replicas as processes, on this machine or on many"),
    "bench": (("trl", "accelerate", "datasets"), "the benchmark against TRL"),
    "demo": (("matplotlib", "reasoning-gym"), "the recipe `chatlearn run ppo`, and learning_curve.png"),
}
"""Extra -> (distributions that it brings, what for)."""

_SAME = {"mlflow-skinny": "mlflow"}
"""A distribution that also comes as a part of another."""

_FINDINGS = (OSError, RuntimeError, ImportError, AttributeError, ValueError, TypeError, LookupError, AssertionError)
_CORE = ("torch", "numpy", "pydantic", "rich", "safetensors", "msgpack", "cloudpickle", "pyyaml", "xxhash")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def doctor(output_dir: str | Path = "runs") -> str:
    """A report on this installation, as text. Never raises: what can't be found out is said in its line.

    Args:
        output_dir: where runs would be written.
    """
    parts: dict[str, Callable[[], list[str]]] = {
        "Versions": _versions,
        "Devices": _devices,
        "Threads": _threads,
        "Extras": _extras,
        "Output": lambda: _output(Path(output_dir)),
    }
    return "\n\n".join("\n".join([name, *(f"  {line}" for line in _tried(part))]) for name, part in parts.items())


def _tried(part: Callable[[], list[str]]) -> list[str]:
    """A broken driver or a half-installed package is a finding of the doctor, not its end."""
    try:
        return part()
    except _FINDINGS as error:
        return [f"could not be found out: {type(error).__name__}: {error}"]


def _versions() -> list[str]:
    lines = [f"chatlearn {_version('chatlearn') or 'not installed'}"]
    lines += [f"Python {platform.python_version()} ({sys.executable})", platform.platform()]
    return lines + [f"{name} {_version(name) or 'not installed'}" for name in _CORE]


def _devices() -> list[str]:
    lines = [f"{_num_cores()} CPU cores", _memory()]
    try:
        import torch
    except (ImportError, OSError) as error:
        return [*lines, f"torch can't be imported: {error}"]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if torch.cuda.device_count() == 0:
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        lines.append("no CUDA device" + ("" if built else " (this torch is built for CPUs only)"))
    if torch.backends.mps.is_available():
        lines.append("mps (Apple)")
    return lines


def _threads() -> list[str]:
    lines = [f"{name}={os.environ[name]}" if name in os.environ else f"{name} is not set" for name in _THREADS]
    torch = sys.modules.get("torch")
    return lines + ([f"torch uses {torch.get_num_threads()} threads"] if torch else [])


def _extras() -> list[str]:
    lines: list[str] = []
    for extra, (distributions, purpose) in EXTRAS.items():
        found = {name: _version(name) or _version(_SAME.get(name, name)) for name in distributions}
        missing = [name for name, version in found.items() if version is None]
        if missing:
            lines.append(f"{extra}: missing {', '.join(missing)} (for {purpose}): pip install 'chatlearn[{extra}]'")
        else:
            lines.append(f"{extra}: " + ", ".join(f"{name} {version}" for name, version in found.items()))
    return lines


def _output(folder: Path) -> list[str]:
    """Whether a run could write: in the folder, or in the nearest one above it that exists."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return [f"{folder.absolute()} can't be written: {error}. Set runtime.output_dir to a folder that can."]
    return [f"{folder.absolute()} can be written, {shutil.disk_usage(there).free / 2**30:.1f} GiB free"]


def _num_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.1f} GiB memory"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
