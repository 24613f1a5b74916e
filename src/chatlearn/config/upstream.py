"""Keys that do nothing on the cluster that is chosen, and keys of older configurations that are gone."""

from __future__ import annotations

from chatlearn.config.model import PARALLEL_SIZES
from chatlearn.config.schema import SECTIONS, Config

_WORKERS = "the modules run in this process, with its packages and its folder"
_DEVICES = "one process places no modules on devices"
_RANKS = "one process splits no model over ranks"
_SENDING = "inside one process weights are copied, not sent"
_NO_WORKERS = "there are no other processes; set runtime_env.backend to ray to have them"

_ENVIRONMENT = ("pip", "py_modules", "working_dir", "platform", "excludes")
_TRANSPORT = (
    "param_sync_comm_type",
    "param_sync_max_workers",
    "concurrent_comm",
    "coalesced_buffer_mb",
    "free_sync_collective_group",
    "routed_expert_regrouping_comm_type",
)
_MODEL = {
    "model_type": "the module's class decides",
    "lora": "write models.<name>.args.lora for a ready-made module, with r for lora_dim, alpha for lora_dim x "
    "lora_scaling, dropout for lora_dropout, and names of layers in target_modules for lora_layer",
}
_GENERATION = {"min_prompt_length": "responses are generated for whole batches, in one stage"}
_CHECKSUMS = {"validate_param_sync": "every sync is checked by its checksum"}

WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "runtime_env": {**dict.fromkeys(_ENVIRONMENT, _WORKERS), "address": _NO_WORKERS},
    "models.*": {
        **dict.fromkeys(("num_gpu", "gpu_per_process", "num_cpu"), _DEVICES),
        "python": _NO_WORKERS,
        **dict.fromkeys(PARALLEL_SIZES, _RANKS),
        **_MODEL,
    },
    "models.*.batch_generation": _GENERATION,
    "runtime": {
        **dict.fromkeys(("colocation", "cpu_schedule_strategy"), _DEVICES),
        **dict.fromkeys(("max_replacements", "max_restarts"), _NO_WORKERS),
        **_CHECKSUMS,
        "concurrent_setup": "modules of one process share its generators, so they are set up one after the other",
        **dict.fromkeys(_TRANSPORT, _SENDING),
    },
}
"""Keys that are checked and kept but change nothing in one process, section by section: key -> why."""

WITHOUT_EFFECT_ON_RAY: dict[str, dict[str, str]] = {
    "runtime_env": {
        **dict.fromkeys(
            _ENVIRONMENT,
            "workers have the driver's folder, modules and packages; models.<name>.python names another environment",
        ),
        **dict.fromkeys(("isolate", "local_threads"), "each replica is a process of its own"),
    },
    "models.*": {**dict.fromkeys(PARALLEL_SIZES, "no model is split over ranks yet"), **_MODEL},
    "models.*.batch_generation": _GENERATION,
    "runtime": {
        **_CHECKSUMS,
        "concurrent_setup": "replicas are always set up side by side",
        **dict.fromkeys(
            [key for key in _TRANSPORT if key not in ("concurrent_comm", "coalesced_buffer_mb")],
            "where two replicas live decides how weights go from one to the other",
        ),
    },
}
"""As :data:`WITHOUT_EFFECT`, where each replica is a process."""

OBSOLETE: dict[str, dict[str, str]] = {
    "runtime": {
        "coalesce_param": "weights always travel together; remove it",
        "nsys": "name the episodes to record in runtime.profile_episodes",
        "debug": "remove it; `chatlearn check` finds mistakes without starting, and pdb steps through a local run",
        "log_config_file": "name the sinks of metrics in runtime.sinks",
        "log_args_dict": "name the sinks of metrics in runtime.sinks",
        "policy_to_regroup_queue": "batches are regrouped as each module needs them; remove it",
        "max_iteration_per_sample": "write the loop inside a step; a flow may pass it modules as arguments",
        "save_interval": "write save_episode_interval",
    },
    "models.*": {
        "config_dir": "remove it: model_config_file is relative to the file that names it",
        "args_dict": "write your own settings under args",
    },
    "": {
        "runtime_args": "write runtime",
        "rlhf_args": "write runtime",
        "env_args": "write runtime_env",
    },
}
"""Keys that older versions had, section by section: key -> what to do instead."""


def notes(config: Config) -> list[str]:
    """One line for each key that was set but changes nothing on the cluster that is chosen, with its place.

    A key that keeps its default is not mentioned, and a key that several models set is mentioned once.
    """
    lines: list[str] = []
    sections: dict[str, dict[str, object]] = {
        "runtime_env": {"runtime_env": config.runtime_env},
        "models.*": {f"models.{name}": model for name, model in config.models.items()},
        "models.*.batch_generation": {
            f"models.{name}.batch_generation": model.batch_generation for name, model in config.models.items()
        },
        "runtime": {"runtime": config.runtime},
    }
    in_one_process = config.runtime_env.backend == "local"
    table, where = (WITHOUT_EFFECT, "in one process") if in_one_process else (WITHOUT_EFFECT_ON_RAY, "on a cluster")
    for section, keys in table.items():
        default = SECTIONS[section]()
        for key, why in keys.items():
            given = [
                f"{path}.{key}"
                for path, values in sections[section].items()
                if getattr(values, key) != getattr(default, key)
            ]
            if given:
                source = config.sources.get(given[0], "default")
                lines.append(f"{source}  {', '.join(given)}: no effect {where}: {why}")
    return lines
