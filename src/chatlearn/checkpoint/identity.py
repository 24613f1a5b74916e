"""What has to stay as it was for a run to go on as it began."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatlearn.errors import CheckpointError
from chatlearn.guards import is_mapping

MAY_CHANGE = frozenset(
    {
        *("backend", "address", "isolate", "local_threads", "num_replica", "num_cpu", "num_gpu", "python"),
        *("gpu_per_process", "cpu_per_process", "colocation", "cpu_schedule_strategy", "share_weights"),
        *("stream_data_loader_type", "concurrent_setup", "concurrent_comm", "validate_param_sync"),
        *("hang_timeout_seconds", "max_replacements", "max_restarts", "sigterm_seconds"),
        *("num_episode", "eval_episode_interval", "resume", "output_dir", "exp_name", "allow_change"),
        *("save_episode_interval", "save_minutes_interval", "async_save", "max_data_ckpt_nums"),
        *("log_interval", "log_samples", "export", "sinks", "trace", "profile_episodes", "profiler_dir"),
        *("best_metric", "best_metric_mode", "early_stop_patience", "early_stop_threshold"),
        *("model_config_file", "enable_eval_before_training"),
        *("offload_weights", "offload_optimizer_states", "free_grad_buffers", "free_memory", "force_free_memory"),
        *("data_checkpoint_path", "load_data_checkpoint_iteration", "enable_resume_training"),
        *("pip", "py_modules", "working_dir", "platform", "excludes"),
    }
)
"""Keys of the configuration that a resumed run may change: they don't decide what an episode computes."""


@dataclass(frozen=True)
class Change:
    """A setting that a resumed run has changed on purpose.

    Attributes:
        key: its path.
        was: before.
        now: since then.
    """

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.was!r} and is {self.now!r}"

    def as_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Line:
    """The class of a module and those that it inherits from.

    Attributes:
        classes: ``package.module:Class``, its own first.
        has_state: a checkpoint holds state of the module.
    """

    classes: tuple[str, ...]
    has_state: bool = True

    @classmethod
    def of_class(cls, kind: type) -> Line:
        """The line of a class."""
        return cls(tuple(f"{each.__module__}:{each.__qualname__}" for each in kind.__mro__ if each is not object))

    @property
    def name(self) -> str:
        """The class itself."""
        return self.classes[0]

    def of(self, other: Line | None) -> str:
        """The class's name; that of the other line where going on with it is the same: no state has to fit, one class
        inherits from the other, or it is called so because its script was run in another way.
        """
        if other is None:
            return self.name
        own, its = self.name.partition(":"), other.name.partition(":")
        is_script = own[2] == its[2] and "__main__" in (own[0], its[0])
        is_related = self.name in other.classes or other.name in self.classes
        return other.name if is_script or is_related or not self.has_state else self.name


def check_same_identity(
    checkpoint: Path, saved: Mapping[str, Any], current: Mapping[str, Any], allowed: Collection[str] = ()
) -> list[Change]:
    """Refuses to go on under settings that change the numbers of a run.

    Args:
        checkpoint: for the error.
        saved: the settings that the checkpoint was written under, as plain data.
        current: the present ones.
        allowed: keys that may differ all the same, with what lies below them.

    Returns:
        What differs and is allowed.

    Raises:
        CheckpointError: other keys differ than those of :data:`MAY_CHANGE`; all are listed.
    """
    before, now = _flat(saved), _flat(current)
    changes = [
        Change(key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not may_change(key)
    ]
    refused = [change for change in changes if not any(_is_below(change.key, key) for key in allowed)]
    if refused:
        lines = "\n  ".join(map(str, refused))
        words = " ".join(f"--allow-change {change.key}" for change in refused)
        raise CheckpointError(
            f"{checkpoint} was written under other settings, so the run would not go on as it began:\n  {lines}\n"
            f"Put them back, start a new run with runtime.resume=never, or go on with other numbers by {words}"
        )
    return changes


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of a key. What a user has named is never among them."""
    section, *rest = key.split(".")
    return (
        rest[-1:] != []
        and rest[-1] in MAY_CHANGE
        and section not in ("classes", "datasets")
        and "args" not in rest[:-1]
    )


def _is_below(key: str, allowed: str) -> bool:
    return key == allowed or key.startswith(allowed + ".")


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if is_mapping(value) else {f"{path}{key}": value}
    return flat
