"""A Dockerfile: this Python, this Ray, chatlearn with extras, and a user without rights."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Sequence

from chatlearn.errors import ConfigError

RAY_VERSION = "2.60.0"
"""The Ray of an image, where none is installed here."""

EXTRAS = ("ray", "hf", "data", "tensorboard")


def ray_version() -> str:
    """The installed Ray's version; all machines of a cluster need the same."""
    return _installed("ray") or RAY_VERSION


def _installed(package: str) -> str:
    """The version of a package without its build tag; empty if it is not installed."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def dockerfile(cuda: str = "12.8", extras: Sequence[str] = EXTRAS) -> str:
    """The text of a Dockerfile, to be built in a checkout of chatlearn.

    Args:
        cuda: version of the CUDA that PyTorch brings, for example ``12.8``; empty for none.
        extras: of chatlearn.

    Raises:
        ConfigError: that is no version, or no name of an extra.
    """
    if cuda and not re.fullmatch(r"\d+\.\d+", cuda):
        raise ConfigError(f"--cuda {cuda}: give a version such as 12.8, or --cpu.")
    if wrong := [extra for extra in extras if not re.fullmatch(r"[a-z][\w-]*", extra)]:
        raise ConfigError(f"--extras: {', '.join(map(repr, wrong))} is no name of an extra. Give --extras ray,hf")
    names = ",".join(dict.fromkeys(["ray", *extras]))
    torch = f"torch=={version}" if (version := _installed("torch")) else "torch"
    index = f"https://download.pytorch.org/whl/{'cu' + cuda.replace('.', '') if cuda else 'cpu'}"
    gpu = "\n    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \\" if cuda else ""
    return f"""\
# chatlearn and Ray, the same on every machine. Build it in a checkout: docker build -t chatlearn -f Dockerfile .
# Driver and workers need one Python and one Ray: those of this file.
FROM python:{platform.python_version()}-slim

# a compiler for kernels that PyTorch and Triton build at run time; wget for the probes of KubeRay
RUN apt-get update \\
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev wget \\
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \\{gpu}
    RAY_USAGE_STATS_ENABLED=0

RUN pip install --index-url {index} "{torch}"

# by name, so that nothing else of the folder gets into the image
COPY pyproject.toml README.md LICENSE constraints.txt /opt/chatlearn/
COPY src /opt/chatlearn/src
RUN pip install -c /opt/chatlearn/constraints.txt "ray[default]=={ray_version()}" "/opt/chatlearn[{names}]"

RUN useradd --uid 1000 --create-home chatlearn && install -d -o chatlearn /work
USER 1000
WORKDIR /work
CMD ["chatlearn", "doctor"]
"""
