"""Sections ``models.<name>``, ``models.<name>.lora`` and ``models.<name>.batch_generation``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from chatlearn.config.section import Count, Names, PathText, Section
from chatlearn.config.values import plain, problem

PARALLEL_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
    "fsdp_size",
    "sp_size",
    "zero_size",
)
"""Keys that say over how many ranks a replica is split."""

_SIZES_FROM_ONE = tuple(key for key in PARALLEL_SIZES if key != "fsdp_size")


class LoraConfig(Section):
    """Section ``models.<name>.lora``: low-rank adapters on the weights of one module."""

    section: ClassVar[str] = "models.*.lora"

    enable_lora: bool = Field(default=False, description="Whether the module trains low-rank adapters.")
    part_module_name: str | None = Field(
        default=None, description="Part of the model that gets adapters; `null` is all of it."
    )
    lora_dim: int = Field(default=8, ge=1, description="Rank of the adapters.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters.")
    lora_scaling: float = Field(default=1.0, gt=0, description="Factor of the adapters' product A · B.")
    lora_layer: Names = Field(
        default_factory=lambda: [
            "ColumnParallelLinear",
            "Embedding",
            "LinearLayer",
            "RowParallelLinear",
            "VocabParallelEmbedding",
        ],
        description="Classes of the layers that get adapters: a list, or text with commas between names. "
        "The default is ColumnParallelLinear, Embedding, LinearLayer, RowParallelLinear, VocabParallelEmbedding.",
    )
    column_only_qkv: bool = Field(
        default=False, description="Only the projection to query, key and value gets adapters."
    )


class BatchGenerationConfig(Section):
    """Section ``models.<name>.batch_generation``: the order in which prompts are answered."""

    section: ClassVar[str] = "models.*.batch_generation"

    ranking: bool = Field(default=False, description="Sort the prompts of an episode by length.")
    min_prompt_length: int = Field(
        default=0, ge=0, description="Length of the prompt that the first stage of generation takes together."
    )


class ModelConfig(Section):
    """Section ``models.<name>``: size and placement of one module, and the user's own settings for it."""

    section: ClassVar[str] = "models.*"

    num_gpu: int = Field(default=0, ge=0, description="GPUs of the module, all replicas together.")
    gpu_per_process: int = Field(default=1, ge=1, description="GPUs that each process of the module sees.")
    num_cpu: int = Field(default=0, ge=0, description="CPU cores reserved for each replica; 0 is `cpu_per_process`.")
    cpu_per_process: int = Field(default=1, ge=1, description="Threads that each process may use for computing.")
    num_replica: int = Field(default=1, ge=1, description="Copies of the module that share its batches.")
    python: PathText | None = Field(
        default=None,
        description="Python of another environment that the module's workers run in, such as `/opt/judge/bin/python`; "
        "it needs chatlearn with the extra `ray`, of the driver's versions.",
    )
    trainable: bool = Field(
        default=False,
        description="Whether the module is trained. The trainer's flow decides; this states it for the reader.",
    )
    generation_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Samples in one call of an inference step. "
        "`null` (or -1) takes the value of `runtime.generation_batch_size`.",
    )
    tensor_model_parallel_size: int = Field(default=1, ge=1, description="Ranks that share each weight matrix.")
    pipeline_model_parallel_size: int = Field(default=1, ge=1, description="Ranks that share the layers.")
    expert_model_parallel_size: int = Field(default=1, ge=1, description="Ranks that share the experts.")
    fsdp_size: Count | Literal[-1] = Field(
        default=1, description="Ranks that fully sharded data parallelism splits weights over; -1 is all ranks."
    )
    sp_size: int = Field(default=1, ge=1, description="Ranks that share each sequence.")
    zero_size: int = Field(default=1, ge=1, description="Ranks that ZeRO splits the optimizer's state over.")
    model_type: str = Field(default="", description="Kind of the model. The module's class decides.")
    model_config_file: PathText | None = Field(
        default=None,
        description="YAML file with settings that go under `args`: what stands in `args` itself wins. "
        "The path is relative to the file that names it.",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description="Low-rank adapters.")
    batch_generation: BatchGenerationConfig = Field(
        default_factory=BatchGenerationConfig, description="Order of the prompts in generation."
    )
    sync_frequency: int = Field(
        default=1, ge=1, description="The module's weights are synchronised after every so many episodes."
    )
    share_weights: bool = Field(
        default=False,
        description="Replicas that sit on the trained module's machine and on its CPU use the memory that the weights "
        "are published in, in place of a copy each.",
    )
    offload_weights: bool = Field(default=False, description="Move the weights to the CPU while the module waits.")
    offload_optimizer_states: bool = Field(
        default=False, description="Move the optimizer's state to the CPU while the module waits."
    )
    free_grad_buffers: bool = Field(default=False, description="Free the gradients while the module waits.")
    free_memory: bool = Field(
        default=False,
        description="All three together: `offload_weights`, `offload_optimizer_states`, `free_grad_buffers`, where the "
        "module shares its devices with another.",
    )
    force_free_memory: bool = Field(
        default=False, description="As `free_memory`, also where the module shares its devices with no other."
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="The user's own settings, passed to the module as they are. Plain values only: numbers, "
        "text, true/false, null, lists, mappings. Checked by the module class's `Args` model if it has one.",
    )

    @property
    def offload_tags(self) -> tuple[str, ...]:
        """What the module gives up while it waits, as tags of ``offload``: weights, gradients, optimizer."""
        everything = self.free_memory or self.force_free_memory
        wanted = {
            "weights": self.offload_weights,
            "gradients": self.free_grad_buffers,
            "optimizer": self.offload_optimizer_states,
        }
        return tuple(tag for tag, asked in wanted.items() if asked or everything)

    @field_validator("generation_batch_size", mode="before", json_schema_input_type=Count | Literal[-1] | None)
    @classmethod
    def _minus_one_inherits(cls, value: Any) -> Any:
        return None if type(value) is int and value == -1 else value

    @field_validator("fsdp_size", mode="before", json_schema_input_type=Count | Literal[-1] | None)
    @classmethod
    def _no_size_is_one(cls, value: Any) -> Any:
        return 1 if value is None else value

    @field_validator("gpu_per_process", *_SIZES_FROM_ONE, mode="before", json_schema_input_type=Count | None)
    @classmethod
    def _nothing_is_one(cls, value: Any) -> Any:
        return 1 if value is None else value

    @field_validator("model_config_file", mode="before", json_schema_input_type=str | None)
    @classmethod
    def _empty_is_nothing(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("gpu_per_process", mode="after")
    @classmethod
    def _within_the_gpus(cls, value: int, info: ValidationInfo) -> int:
        num_gpu = info.data.get("num_gpu", 0)
        if 0 < num_gpu < value:
            raise problem(f"is {value}, but the module has {num_gpu} GPUs (num_gpu)", f"set it to {num_gpu} or less")
        return value

    @field_validator(*PARALLEL_SIZES[:3], mode="after")
    @classmethod
    def _divides_the_gpus(cls, value: int, info: ValidationInfo) -> int:
        num_gpu, size = info.data.get("num_gpu", 0), value
        for key in PARALLEL_SIZES[:3]:
            size *= info.data.get(key, 1)
        if num_gpu % size:
            raise problem(
                f"num_gpu must be a multiple of the tensor, pipeline and expert parallel sizes together, "
                f"which are {size} here; it is {num_gpu}",
                "change num_gpu or the parallel sizes",
            )
        return value

    @field_validator("args", mode="before", json_schema_input_type=dict[str, Any] | None)
    @classmethod
    def _plain_args(cls, value: Any) -> Any:
        return {} if value is None else plain(value)
