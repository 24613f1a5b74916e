"""Section ``runtime_env``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator

from chatlearn.config.registries import CLUSTERS
from chatlearn.config.section import Names, PathText, Section
from chatlearn.config.values import problem

if TYPE_CHECKING:
    Backend: TypeAlias = str
else:
    Backend = Literal[tuple(CLUSTERS)]


class RuntimeEnvConfig(Section):
    """Section ``runtime_env``: the cluster that modules live on."""

    section: ClassVar[str] = "runtime_env"

    backend: Backend = Field(
        default="local",
        description="Cluster that runs the modules: `local` is this process, `ray` gives each replica a process of its "
        "own, on this machine or on many.",
    )
    address: str | None = Field(
        default=None,
        description="Ray cluster to join, such as `10.0.0.1:6379`, or `auto` for the one of this machine. `null` "
        "starts a Ray on this machine for as long as the program needs it.",
    )
    isolate: bool = Field(
        default=False,
        description="Send every argument and result of a step through bytes, as between processes. "
        "Slower; finds modules that rely on shared objects.",
    )
    local_threads: int = Field(
        default=1,
        ge=1,
        description="Threads that run the modules which declare `thread_safe = True`; "
        "1 runs every step in the calling thread.",
    )
    pip: Names = Field(default_factory=list, description="Packages that the workers' Python environment needs.")
    py_modules: Names = Field(default_factory=list, description="Python modules that workers import.")
    working_dir: PathText | None = Field(default=None, description="Folder that workers start in.")
    platform: str = Field(default="", description="Name of the platform that starts the cluster.")
    excludes: Names = Field(
        default_factory=list, description="Files of `working_dir` that are not copied to the workers."
    )

    @field_validator("address", mode="after")
    @classmethod
    def _of_a_head(cls, value: str | None) -> str | None:
        if value is None or value == "auto" or re.fullmatch(r"[^\s/]+:[0-9]{1,5}", value):
            return value
        message = "expected HOST:PORT as `ray start --head` prints it, or auto"
        if value.startswith("ray://"):
            message += "; with ray:// the program would not run on a machine of the cluster, as it has to"
        raise problem(f"{message}; got {value!r}", "write it as in 10.0.0.1:6379, or leave it out to start a Ray here")
