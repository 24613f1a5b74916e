"""Keys that older configurations have: every one is accepted, kept without effect, or refused with a hint."""

import pytest

from chatlearn.config import Config, check_models, load_config, notes
from chatlearn.config.schema import ALIASES, SECTIONS
from chatlearn.config.upstream import OBSOLETE, WITHOUT_EFFECT, WITHOUT_EFFECT_ON_RAY

DOCUMENTED = {
    "runtime_env": "pip py_modules working_dir platform excludes",
    "models.*": "num_device num_gpu num_cpu gpu_per_process cpu_per_process num_replica trainable "
    "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size fsdp_size sp_size zero_size "
    "model_config_file model_type generation_batch_size lora batch_generation offload_optimizer_states "
    "sync_frequency offload_weights free_grad_buffers free_memory force_free_memory",
    "models.*.lora": "enable_lora part_module_name lora_dim lora_dropout lora_scaling lora_layer column_only_qkv",
    "models.*.batch_generation": "ranking min_prompt_length",
    "runtime": "num_ppo_episode num_episode sample_per_episode num_training_epoch generation_batch_size "
    "train_micro_batch_size train_global_batch_size save_episode_interval log_interval data_path colocation "
    "eval_episode_interval data_checkpoint_path max_data_ckpt_nums load_data_checkpoint_iteration "
    "stream_data_loader_type debug nsys coalesce_param coalesced_buffer_mb concurrent_comm max_relay_episode "
    "consumed_samples enable_resume_training profiler_dir concurrent_setup param_sync_comm_type "
    "param_sync_max_workers relay_episode_offset bucket_size_mb_in_memory_manager free_sync_collective_group "
    "cpu_schedule_strategy exp_name output_dir data_ratio data_shuffle data_rerank validate_param_sync "
    "enable_eval_before_training policy_to_regroup_queue log_config_file max_iteration_per_sample "
    "training_shuffle_mode routed_expert_regrouping_comm_type",
}
"""The keys that ChatLearn's documentation names up to version 1.0.3."""


@pytest.mark.parametrize("section", DOCUMENTED)
def test_every_documented_key_is_known(section):
    known = {*SECTIONS[section].model_fields, *ALIASES[section]}
    for key in DOCUMENTED[section].split():
        assert (key in known) != (key in OBSOLETE.get(section, {})), key


def test_the_tables_name_keys_that_are_there_or_gone():
    for table in (WITHOUT_EFFECT, WITHOUT_EFFECT_ON_RAY):
        for section, keys in table.items():
            assert set(keys) <= set(SECTIONS[section].model_fields)
    for section, keys in OBSOLETE.items():
        assert not set(keys) & {*SECTIONS[section].model_fields, *ALIASES[section]}


def test_an_old_configuration(write):
    config = load_config(
        write("""\
runtime_env:
  platform: DLC
  excludes: [core, "*pt"]
models:
  policy: {num_device: 8, gpu_per_process: 1, trainable: false, generation_batch_size: 64, free_memory: true}
  ppo_policy: {num_device: 8, trainable: true, sync_frequency: 2}
rlhf:
  colocation: ["policy,ppo_policy"]
  num_ppo_episode: 100
  max_relay_episode: 2
  param_sync_comm_type: p2p
""")
    )
    problems, lines = check_models(config, ["policy", "ppo_policy"])
    assert problems == []
    assert lines == [
        "ppo.yaml:2  runtime_env.platform: no effect in one process: "
        "the modules run in this process, with its packages and its folder",
        "ppo.yaml:3  runtime_env.excludes: no effect in one process: "
        "the modules run in this process, with its packages and its folder",
        "ppo.yaml:5  models.policy.num_gpu, models.ppo_policy.num_gpu: no effect in one process: "
        "one process places no modules on devices",
        "ppo.yaml:8  runtime.colocation: no effect in one process: one process places no modules on devices",
        "ppo.yaml:11  runtime.param_sync_comm_type: no effect in one process: "
        "inside one process weights are copied, not sent",
    ]


def test_a_key_of_an_inner_section_has_its_note():
    config = Config(models={"policy": {"batch_generation": {"min_prompt_length": 8, "ranking": True}}})
    (note,) = notes(config)
    assert "models.policy.batch_generation.min_prompt_length: no effect" in note


def test_keys_at_their_defaults_are_no_notes():
    given = {"runtime": {"concurrent_comm": True}, "models": {"a": {"num_gpu": 0, "lora": {"lora_dim": 8}}}}
    assert notes(Config(**given)) == notes(Config()) == []


def test_trainable_is_held_against_the_flows(write):
    config = load_config(write("models:\n  a: {trainable: true}\n  b: {trainable: true}\n  c:\n"))
    assert check_models(config, ["a", "b", "c"], trained=["b", "c"]) == (
        [],
        ["ppo.yaml:2  models.a.trainable: no flow trains this module"],
    )


BOTH = """\
runtime_env:
  backend: {backend}
  address: auto
  local_threads: 2
  isolate: true
models:
  policy: {{num_gpu: 1, num_cpu: 2, python: /opt/judge/bin/python}}
runtime:
  colocation: [policy]
  cpu_schedule_strategy: PACK
  max_restarts: 1
  validate_param_sync: true
"""
"""Keys of one process, of a cluster, and of neither."""


@pytest.mark.parametrize(
    ("backend", "keys", "where"),
    [
        ("local", "address num_gpu num_cpu python colocation cpu_schedule_strategy max_restarts", "in one process"),
        ("ray", "isolate local_threads", "on a cluster"),
    ],
)
def test_each_cluster_has_its_own_keys_without_effect(write, backend, keys, where):
    lines = notes(load_config(write(BOTH.format(backend=backend))))
    named = [line.split()[1].rstrip(":").rpartition(".")[2] for line in lines]
    assert sorted(named) == sorted([*keys.split(), "validate_param_sync"])
    assert all(f": no effect {where}: " in line for line in lines)
