"""The page on names of ChatLearn tells the truth: what it says is here is here, and it leaves no key out.

That its programs run is ``make docs-check``, not a test.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import chatlearn
import chatlearn.modules.torch
from chatlearn import BaseModule, Engine, Environment, Evaluator, TorchModule, Trainer
from chatlearn.cli import COMMANDS
from chatlearn.config.schema import ALIASES, SECTIONS
from chatlearn.config.upstream import OBSOLETE, WITHOUT_EFFECT, WITHOUT_EFFECT_ON_RAY

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-chatlearn.md"

KEYS = {
    "runtime_env": "pip py_modules working_dir platform excludes",
    "models.NAME": "num_device gpu_per_process trainable tensor_model_parallel_size pipeline_model_parallel_size "
    "model_config_file model_type generation_batch_size lora enable_lora part_module_name lora_dim lora_dropout "
    "lora_scaling lora_layer column_only_qkv batch_generation ranking min_prompt_length offload_optimizer_states "
    "num_gpu num_cpu cpu_per_process num_replica zero_size sync_frequency offload_weights free_grad_buffers "
    "free_memory expert_model_parallel_size fsdp_size sp_size force_free_memory",
    "runtime": "num_ppo_episode num_episode sample_per_episode num_training_epoch generation_batch_size "
    "train_micro_batch_size train_global_batch_size save_episode_interval log_interval data_path colocation "
    "eval_episode_interval data_checkpoint_path max_data_ckpt_nums load_data_checkpoint_iteration "
    "stream_data_loader_type debug nsys coalesce_param coalesced_buffer_mb concurrent_comm max_relay_episode "
    "consumed_samples enable_resume_training profiler_dir concurrent_setup param_sync_comm_type "
    "param_sync_max_workers relay_episode_offset bucket_size_mb_in_memory_manager free_sync_collective_group "
    "cpu_schedule_strategy exp_name output_dir data_ratio data_shuffle data_rerank validate_param_sync "
    "enable_eval_before_training policy_to_regroup_queue log_config_file max_iteration_per_sample "
    "training_shuffle_mode routed_expert_regrouping_comm_type "
    # of the main branch only
    "train_backend rollout_backend task_type use_rollout_manager use_partial_rollout max_replay_episode "
    "num_inference_per_prompt packing max_token_in_packing replica_dp_size free_gpu_memory entropy_coef kl_coef "
    "optimizer max_prompt_tokens_length max_response_tokens_length use_group_sequence_policy "
    "ulysses_sequence_parallel_size groupgemm meta_init max_rollout_round rollout_ratio",
}
"""Every key of ChatLearn's versions 0.1 to 1.2 and of its main branch, by the heading it stands under."""

NAMES = (
    "chatlearn.init chatlearn.get_args chatlearn.get RLHFModule BaseModule RLHFTorchModule TorchModule "
    "RLHFMegatronModule MegatronModule RLHFVLLMModule VLLMModule VLLMModuleV2 DeepSpeedModule FSDPModule SGLangModule "
    "AsyncSGLangModule AgentModule RolloutManager PartialRolloutManager init setup before_episode after_episode "
    "validate forward_step train_step eval_step eval_forward build_dataset build_all_dataset save_checkpoint "
    "enable_stage_resume load_stage_outputs save_stage_outputs offload_optimizer_states onload_optimizer_states "
    "offload_weights onload_weights offload_main_weights onload_main_weights free_grad_buffers build_grad_buffers "
    "offload onload self.put self.get self.add_padding_config self.register_eval_func self.timers "
    "self.resume_training self.rlhf_args self.runtime_args self.module_args self.model_args self.num_replica "
    "self.replica_id self._metric_list self._metric_prefix self.get_and_clear_metrics Environment "
    "Environment.set_dataset Environment.set_multiple_datasets Trainer Evaluator Evaluator.set_dataset "
    "Evaluator.set_post_process_func Evaluator.eval Evaluator.post_process Engine Engine.set_parameter_sync "
    "Engine.set_dataset Engine.set_multiple_datasets Engine.set_trainer Engine.set_environment Engine.set_evaluator "
    "Engine.learn Engine.evaluate Engine.save_checkpoint Engine.logging_summary Engine.get_model Engine.models "
    "Engine.stop Engine.set_relay_sample_fn Engine.set_relay_sample_manager Engine.set_replay_sample_manager "
    "RLHFEngine EvalEngine OnlineDPOEngine DPOEngine GRPOEngine GRPOMathEngine MCTSEnv SPRLEnv StreamDataset "
    "StreamDataset.next StreamDataset.has_next StreamDataset.shuffle StreamDataset.set_dataset "
    "StreamDataset.total_samples StreamDataset.batch_per_episode StreamDataset.episode_relay_buffers"
)
"""The public names of ChatLearn's programming interface."""


@dataclass(frozen=True)
class Row:
    """One line of a table whose third column is ``here``.

    Attributes:
        heading: that the table stands under.
        names: code in the first column.
        here: the third column.
        difference: the fourth.
    """

    heading: str
    names: tuple[str, ...]
    here: str
    difference: str

    @property
    def ours(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.here)


def _rows() -> list[Row]:
    rows, heading, is_ours = [], "", False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading, is_ours = line.lstrip("# "), False
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and cells[2] == "here":
            is_ours = True
        elif is_ours and line.startswith("| ") and set(cells[0]) != {"-"}:
            rows.append(Row(heading, tuple(re.findall(r"`([^`]+)`", cells[0])), *cells[2:]))
    return rows


ROWS = _rows()
KEY_ROWS = [row for row in ROWS if row.heading in KEYS]


def _leaf(name: str) -> str:
    """A name without its arguments and without what stands before it: ``Engine(...).f(x)`` -> ``Engine``."""
    return re.split(r"[(\s]", name.removeprefix("with "))[0]


def _is_key(path: str) -> bool:
    section, _, key = path.rpartition(".")
    return section in SECTIONS and key in {*SECTIONS[section].model_fields, *ALIASES[section]}


def _resolves(name: str) -> bool:
    """Whether something of ours has this name: a key, a command, an import path, or an attribute of a public class."""
    if name.startswith("chatlearn "):
        return name.split()[1] in COMMANDS
    if name.endswith("()"):
        return name[:-2] in HOOKS
    if _is_key(name):
        return True
    path = name.removeprefix("chatlearn.").split(".")
    if hasattr(chatlearn, path[0]) and path[0] in chatlearn.__all__:
        target: Any = getattr(chatlearn, path[0])
    elif path[0] in chatlearn.modules.torch.__all__:
        target = getattr(chatlearn.modules.torch, path[0])
    else:
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute) if module.startswith("chatlearn.") else False
    if path[1:2] == ["Args"]:
        return path[2] in target.Args.model_fields
    return len(path) == 1 or (len(path) == 2 and hasattr(target, path[1]))


@pytest.mark.parametrize("heading", KEYS)
def test_every_key_of_chatlearn_is_in_the_tables(heading: str) -> None:
    told = [key for row in KEY_ROWS if row.heading == heading for key in row.names]
    assert sorted(KEYS[heading].split()) == sorted(told)


def test_every_name_of_chatlearn_is_in_the_tables() -> None:
    told = {_leaf(name) for row in ROWS for name in row.names}
    assert [name for name in NAMES.split() if name not in told] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(row.names))
def test_what_is_said_to_be_here_is_here(row: Row) -> None:
    assert row.ours or row.here in ("not here", "refused")
    assert [name for name in row.ours if not _resolves(name)] == []


def test_the_check_for_names_knows_wrong_ones() -> None:
    wrong = "Engine.teach GRPOMathEngine runtime.sed models.*.gpus chatlearn.data.replay.Nothing self.timers nothing()"
    assert [name for name in wrong.split() if _resolves(name)] == []
    assert not _resolves("chatlearn fly")
    with pytest.raises(ModuleNotFoundError):
        _resolves("chatlearn.nothing.at_all")


@pytest.mark.parametrize("row", [row for row in ROWS if row.here == "not here"], ids=lambda row: ", ".join(row.names))
def test_what_is_said_not_to_be_here_is_not(row: Row) -> None:
    for name in map(_leaf, row.names):
        if row in KEY_ROWS:
            assert not _is_key(f"runtime.{name}")
            assert name not in OBSOLETE["runtime"]
        elif name.startswith("self."):
            assert not hasattr(TorchModule, name.removeprefix("self."))
        elif name not in ("Engine", "python"):  # these two rows are about arguments
            assert not hasattr(chatlearn, name.removeprefix("chatlearn."))


@pytest.mark.parametrize("row", KEY_ROWS, ids=lambda row: ", ".join(row.names))
def test_a_key_is_said_to_have_no_effect_where_it_has_none(row: Row) -> None:
    for path in filter(_is_key, row.ours):
        section, _, key = path.rpartition(".")
        field = ALIASES[section].get(key, key)
        without = [table for table in (WITHOUT_EFFECT, WITHOUT_EFFECT_ON_RAY) if field in table.get(section, {})]
        assert ("no effect" in row.difference) == (len(without) == 2), path
        assert ("on a cluster" in row.difference) == (without == [WITHOUT_EFFECT]), path


def test_refused_keys_are_refused() -> None:
    refused = {name for row in KEY_ROWS if row.here == "refused" for name in row.names}
    assert refused
    assert refused <= set(OBSOLETE["runtime"])


# -- methods that a user writes -------------------------------------------------------------------

HOOKS = (
    *("setup", "build_dataset", "forward_step", "eval_step", "train_step", "before_episode", "after_episode"),
    *("save_checkpoint", "load_checkpoint", "offload", "onload"),
)
"""What a module of a user's may define; the test below sees each of them called."""

CALLED: set[str] = set()


class Everything(BaseModule):
    """Notes which of its methods are called, with arguments as ChatLearn's documents have them."""

    def setup(self) -> None:
        CALLED.add("setup")
        self.model = torch.nn.Linear(1, 1)

    def build_dataset(self, train_prompts: list[int], is_eval: bool = False) -> list[dict[str, int]]:
        CALLED.add("build_dataset")
        return [{"x": prompt} for prompt in train_prompts]

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        CALLED.add("forward_step")
        return data

    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        CALLED.add("eval_step")
        return data

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        CALLED.add("train_step")

    def before_episode(self) -> None:
        CALLED.add("before_episode")

    def after_episode(self) -> None:
        CALLED.add("after_episode")

    def save_checkpoint(self, iteration: int) -> None:
        CALLED.add("save_checkpoint")

    def load_checkpoint(self, iteration: int) -> None:
        CALLED.add("load_checkpoint")

    def offload(self, tags: Collection[str]) -> None:
        CALLED.add("offload")

    def onload(self, tags: Collection[str]) -> None:
        CALLED.add("onload")


def _engine(folder: Path, resume: str) -> Engine:
    runtime = {"num_episode": 2, "sample_per_episode": 2, "save_episode_interval": 1, "eval_episode_interval": 1}
    runtime |= {"output_dir": str(folder), "resume": resume}
    models = {name: {"free_memory": True} for name in ("policy", "learner")}
    chatlearn.init({"models": models, "runtime": runtime})
    policy, learner = Everything("policy"), Everything("learner")
    environment = Environment(lambda batch: policy.forward_step(batch))
    evaluator = Evaluator(lambda batch: policy.eval_step(batch)).set_dataset([1])
    return Engine(environment, Trainer(lambda batch: learner.train_step(batch)), evaluator).set_dataset([1, 2])


def test_every_method_of_the_page_is_called(tmp_path: Path) -> None:
    def interrupt(info: Any) -> None:
        if info.episode == 1:
            raise InterruptedError

    CALLED.clear()
    with pytest.raises(InterruptedError):
        _engine(tmp_path, "never").add_callback("before_episode", interrupt).learn()
    assert set(HOOKS) - CALLED == {"load_checkpoint"}
    _engine(tmp_path, "auto").learn()
    assert set(HOOKS) == CALLED
