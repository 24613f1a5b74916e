"""Section ``runtime_env``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from chatlearn.config.section import Names, PathText, Section


class RuntimeEnvConfig(Section):
    """Section ``runtime_env``: the cluster that modules live on."""

    section: ClassVar[str] = "runtime_env"

    backend: Literal["local"] = Field(
        default="local", description="Cluster that runs the modules: `local` is this process."
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
