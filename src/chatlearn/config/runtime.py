"""Section ``runtime``."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from chatlearn.config.registries import SINKS
from chatlearn.config.section import Count, Names, PathText, Section, Text
from chatlearn.config.values import listed, name_groups, problem, shown, split_names
from chatlearn.guards import is_list

Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_SinkPath = Annotated[str, Field(pattern=r"^[^\s:,]+:[^\s:,]+$")]
_SampleCount = Annotated[int, Field(ge=0)] | Literal["all"]

if TYPE_CHECKING:
    SinkName: TypeAlias = str
else:
    SinkName = Literal[tuple(SINKS)]


class RuntimeConfig(Section):
    """Section ``runtime`` (also spelled ``rlhf``): the episode loop and what the run leaves behind."""

    section: ClassVar[str] = "runtime"

    # The loop
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed that all randomness of the run is derived from.")
    num_episode: int = Field(default=5000, ge=1, description="Episodes of the run.")
    sample_per_episode: int = Field(
        default=1000,
        ge=1,
        description="Samples (not prompts) that an episode begins with; steps that expand or filter change the number.",
    )
    generation_batch_size: int = Field(default=2, ge=1, description="Samples in one call of an inference step.")
    train_micro_batch_size: int = Field(
        default=2, ge=1, description="Samples in one forward and backward pass of training."
    )
    train_global_batch_size: int = Field(
        default_factory=lambda data: data["train_micro_batch_size"],
        ge=1,
        description="Samples in one call of `train_step`; a multiple of `train_micro_batch_size`. "
        "`null` (the default) takes the value of `train_micro_batch_size`.",
    )
    num_training_epoch: int = Field(default=1, ge=1, description="Times that each sample of an episode is trained on.")
    training_shuffle_mode: Literal["batch", "sample"] = Field(
        default="batch",
        description="What is shuffled from the second training epoch on: whole micro-batches (`batch`), or samples "
        "(`sample`). The samples of one prompt stay together either way.",
    )
    deterministic: bool = Field(
        default=False, description="Use only kernels that give the same bits each time; slower on a GPU."
    )
    concurrent_setup: bool = Field(default=False, description="Set the modules up at the same time.")

    # Prompts and experience
    data_path: PathText | list[PathText] | None = Field(
        default=None,
        description="File of prompts (JSONL, Parquet or CSV), or a list of files; "
        "read where the program calls no `set_dataset`.",
    )
    data_ratio: list[Ratio] | Ratio | None = Field(
        default=None,
        description="Shares of several data sets in an episode: one number > 0 for each, or a single number for equal "
        "shares; `null` goes by their lengths.",
    )
    data_shuffle: bool = Field(default=True, description="Shuffle the prompts anew in each pass over them.")
    data_rerank: bool = Field(
        default=False, description="Sort the prompts of an episode by length, the longest first; needs less padding."
    )
    num_inference_per_prompt: int = Field(
        default=1,
        ge=1,
        description="Samples of each prompt (its group), one after another. Generation batches, global batches and "
        "`sample_per_episode` count samples and are multiples of it, since no batch splits a group.",
    )
    stream_data_loader_type: Literal["fixed", "dynamic"] = Field(
        default="fixed",
        description="`fixed` trains once an episode's experience is complete, `dynamic` while it arrives.",
    )
    max_refill_rounds: int = Field(
        default=0,
        ge=0,
        description="Further rounds of prompts at most in an episode of which steps that filter have left fewer than "
        "`sample_per_episode` samples (dynamic sampling); 0 goes on with fewer.",
    )
    refill_round_size: int | None = Field(
        default=None, ge=1, description="Samples in each further round; `null` is as many as in `sample_per_episode`."
    )
    max_replay_episode: int = Field(
        default=1,
        ge=-1,
        description="Episodes whose experience is trained on: 0 and 1 only the current one, -1 all so far. "
        "`engine.set_replay_sample_fn` chooses samples among them.",
    )
    replay_episode_offset: int = Field(
        default=0, ge=0, description="Replay begins after so many episodes; what came before is not kept."
    )
    consumed_samples: int = Field(
        default=0, ge=0, description="Samples that an earlier run has used up: a new run begins behind them."
    )

    # Parameter synchronisation
    validate_param_sync: bool = Field(
        default=False, description="Compare both sides' weights, value by value, after each synchronisation."
    )
    param_sync_comm_type: Literal["broadcast", "p2p"] = Field(
        default="broadcast", description="How weights travel between devices."
    )
    param_sync_max_workers: int | None = Field(
        default=None, ge=1, description="Threads that send weights; `null` is as many as there are pairs."
    )
    concurrent_comm: bool = Field(default=True, description="Synchronise several pairs of modules at the same time.")
    coalesced_buffer_mb: int = Field(default=100, ge=1, description="Megabytes of weights that are sent together.")
    bucket_size_mb_in_memory_manager: int = Field(
        default=1024, ge=1, description="Megabytes of weights that are moved together when a module is offloaded."
    )
    free_sync_collective_group: bool = Field(
        default=False, description="Free the communication group after each synchronisation."
    )
    routed_expert_regrouping_comm_type: Literal["alltoall", "allgather"] = Field(
        default="alltoall", description="How the weights of experts are regrouped."
    )

    # Placement
    colocation: list[list[str]] = Field(
        default_factory=list[list[str]],
        description="Groups of models that share devices: a list whose items are text with commas between names, "
        "or lists of names.",
    )
    cpu_schedule_strategy: Literal["SPREAD", "PACK"] = Field(
        default="SPREAD", description="Whether modules without a GPU are spread over the nodes or packed together."
    )

    # Failures
    hang_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=1800.0,
        description="Seconds in which no call of any module ends before the run is taken to hang. On a cluster it ends "
        "with what each worker is executing; in one process a note says it. `null` waits for ever.",
    )
    max_replacements: int = Field(
        default=3, ge=0, description="Times that each inference replica that dies is replaced within the run."
    )
    max_restarts: int = Field(
        default=0,
        ge=0,
        description="Times that the run goes on from its last checkpoint by itself, after a module that is trained, or "
        "one that keeps state, has died.",
    )

    # Evaluation and the best checkpoint
    eval_episode_interval: int = Field(
        default=0, ge=0, description="Evaluate after every so many episodes; 0 is never."
    )
    enable_eval_before_training: bool = Field(default=False, description="Evaluate before the first episode too.")
    best_metric: Text | None = Field(
        default=None, description="Metric that decides which checkpoint is the best, as it stands in `metrics.jsonl`."
    )
    best_metric_mode: Literal["max", "min"] = Field(
        default="max", description="Whether a larger or a smaller value of `best_metric` is better."
    )
    early_stop_patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after so many values of `best_metric` in a row that are no better than the best.",
    )
    early_stop_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None, description="Stop as soon as `best_metric` reaches this value."
    )

    # Saving and resuming
    save_episode_interval: int | None = Field(
        default=None,
        ge=0,
        description="Save a checkpoint after every so many episodes; `null` and 0 are never.",
    )
    save_minutes_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Save a checkpoint at the end of the first episode that is complete so many minutes after the last "
        "one was saved; `null` is never.",
    )
    async_save: bool = Field(
        default=False,
        description="Write checkpoints from a copy of the state while training goes on. The copy takes as much host "
        "memory as the checkpoint.",
    )
    sigterm_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=10.0,
        description="After SIGTERM the episode at hand is finished and saved if that takes no longer than so many "
        "seconds; otherwise it is abandoned. 0 abandons it at once.",
    )
    max_data_ckpt_nums: int | None = Field(
        default=None, ge=1, description="Checkpoints that are kept: the newest so many; `null` keeps all."
    )
    resume: PathText = Field(
        default="never",
        description="`never` starts a new run; `auto` goes on with the newest run of `exp_name`; "
        "a path goes on with that run folder or checkpoint. `false` and `true` mean `never` and `auto`.",
    )
    allow_change: Names = Field(
        default_factory=list,
        description="Settings in which a resumed run may differ from its checkpoint although they decide its numbers: "
        "key paths such as `models.learner.args.lr` or `runtime.seed`, `classes.<module>`, `datasets.<name>`. "
        "Checkpoints keep a record of what was changed.",
    )
    enable_resume_training: bool = Field(
        default=True, description="Go on from the newest checkpoint in `data_checkpoint_path`, if there is one."
    )
    data_checkpoint_path: PathText | None = Field(
        default=None,
        description="Folder of checkpoints; `null` is the folder `checkpoints` of the run. A program that is started "
        "again goes on from what lies there.",
    )
    load_data_checkpoint_iteration: int | None = Field(
        default=None,
        ge=0,
        description="Episode of the checkpoint to go on from; `null` is the newest. Later ones are replaced.",
    )

    # What a run leaves behind
    output_dir: PathText = Field(default="runs", description="Folder in which each run gets a folder of its own.")
    exp_name: Text = Field(default="chatlearn", description="Name of the run's folder under `output_dir`: no path.")
    log_interval: int = Field(
        default=1, ge=1, description="Print a line after every so many episodes; metrics are written after each."
    )
    log_samples: int | Literal["all"] = Field(
        default=16,
        description="Samples of each episode that are written to the run folder: a number >= 0, or `all`.",
    )
    sinks: list[Text] | None = Field(
        default=None,
        description=f"Where metrics go: names among {', '.join(f'`{name}`' for name in SINKS)}, and import "
        "paths of classes of your own (`my_package.my_module:MySink`), as a list or with commas. `jsonl` is always "
        "written; `null` adds `tensorboard` where it is installed.",
    )
    trace: bool = Field(default=True, description="Write `trace.json`, the time line of all calls.")
    profile_episodes: list[Count] = Field(
        default_factory=list[int], description="Episodes, counted from 1, that the torch profiler records."
    )
    profiler_dir: PathText | None = Field(
        default=None, description="Folder of the profiler's files; `null` is the folder `profile` of the run."
    )
    export: Names = Field(
        default_factory=list,
        description="Names of the modules to export at the end: a list, or text with commas between names.",
    )

    @field_validator("train_global_batch_size", mode="before", json_schema_input_type=Count | None)
    @classmethod
    def _null_is_micro_batch(cls, value: Any, info: ValidationInfo) -> Any:
        # 1 stands in while the micro-batch size itself is wrong, which is reported already.
        return info.data.get("train_micro_batch_size", 1) if value is None else value

    @field_validator("train_global_batch_size", mode="after")
    @classmethod
    def _whole_micro_batches(cls, value: int, info: ValidationInfo) -> int:
        micro = info.data.get("train_micro_batch_size", 1)
        if value % micro:
            below = value // micro * micro
            choices = f"{below} or {below + micro}" if below else str(micro)
            raise problem(
                f"must be a multiple of train_micro_batch_size, which is {micro}; got {value}",
                f"set it to {choices}",
            )
        return value

    @field_validator("data_path", "data_ratio", mode="before")
    @classmethod
    def _tuple_is_list(cls, value: Any) -> Any:
        return listed(value)

    @field_validator("data_ratio", mode="after")
    @classmethod
    def _one_ratio_for_each_path(
        cls, value: list[float] | float | None, info: ValidationInfo
    ) -> list[float] | float | None:
        paths = info.data.get("data_path")
        if is_list(value) and is_list(paths) and len(value) != len(paths):
            raise problem(
                f"has {len(value)} numbers, but data_path has {len(paths)} files", "give one number for each file"
            )
        return value

    @field_validator("stream_data_loader_type", mode="before", json_schema_input_type=Literal["fixed", "dynamic"])
    @classmethod
    def _replay_is_no_loader(cls, value: Any) -> Any:
        if value in ("relay", "replay"):
            raise problem(
                f"expected one of `fixed`, `dynamic`, got {shown(value)}",
                "write fixed, and in max_replay_episode the number of episodes to train on (-1 is all)",
            )
        return value

    @field_validator("colocation", mode="before", json_schema_input_type=list[str | list[str]] | str | None)
    @classmethod
    def _groups(cls, value: Any) -> Any:
        return name_groups(value)

    @field_validator("colocation", mode="after")
    @classmethod
    def _one_group_for_each(cls, value: list[list[str]]) -> list[list[str]]:
        seen: set[str] = set()
        for name in (name for group in value for name in group):
            if name in seen:
                raise problem(f"names the model `{name}` twice", "keep it in one group")
            seen.add(name)
        return value

    @field_validator("early_stop_patience", "early_stop_threshold", mode="after")
    @classmethod
    def _needs_a_metric(cls, value: float | None, info: ValidationInfo) -> float | None:
        # The key is missing from the data while the metric itself is wrong, which is reported already.
        if value is not None and info.data.get("best_metric", "") is None:
            raise problem("needs best_metric, which is not set", "name the metric in runtime.best_metric")
        return value

    @field_validator("resume", mode="before", json_schema_input_type=str | bool)
    @classmethod
    def _resume_as_text(cls, value: Any) -> Any:
        return {True: "auto", False: "never"}[value] if isinstance(value, bool) else value

    @field_validator("exp_name", mode="after")
    @classmethod
    def _plain_folder_name(cls, value: str) -> str:
        if value in (".", "..") or "/" in value or "\\" in value:
            raise problem(
                f"must be a plain folder name without separators, got {value!r}",
                "name the folder above it in runtime.output_dir",
            )
        return value

    @field_validator("log_samples", mode="before", json_schema_input_type=_SampleCount)
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        if value == "all" or (type(value) is int and value >= 0):
            return value
        raise problem(f"expected an integer >= 0 or `all`, got {shown(value)}")

    @field_validator("sinks", mode="before", json_schema_input_type=list[SinkName | _SinkPath] | str | None)
    @classmethod
    def _sinks(cls, value: Any) -> Any:
        names = None if value is None else split_names(value)
        own = "the import path of a class of your own, such as my_package.my_module:MySink"
        for name in names if is_list(names) else []:
            if not isinstance(name, str) or name in SINKS:
                continue
            module, colon, attribute = name.partition(":")
            if not colon:
                near = difflib.get_close_matches(name, SINKS, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise problem(f"there is no sink `{name}`{hint}", f"use names among: {', '.join(SINKS)}; or {own}")
            if not all(part.isidentifier() for part in [*module.split("."), attribute]):
                raise problem(f"`{name}` is no import path", f"give {own}")
        return names

    @field_validator("profile_episodes", mode="before", json_schema_input_type=list[Count] | Count | None)
    @classmethod
    def _episodes(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if type(value) is int else listed(value)
