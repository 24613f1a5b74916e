import copy
import json
import pickle
from enum import StrEnum
from pathlib import Path

import pytest

from chatlearn.config import Config, ModelConfig, RuntimeConfig, load_config, load_config_text
from chatlearn.config.schema import ALIASES, SECTIONS
from chatlearn.errors import ConfigError


def test_defaults():
    """The defaults that runs were made with, and those that older configurations document."""
    config = Config()
    assert config.models == {}
    for section, wanted in DEFAULTS.items():
        values = {"runtime_env": config.runtime_env, "runtime": config.runtime, "models.*": ModelConfig()}[section]
        assert {key: values.model_dump()[key] for key in wanted} == wanted


DEFAULTS = {
    "runtime_env": {
        "backend": "local",
        "isolate": False,
        "local_threads": 1,
        "pip": [],
        "py_modules": [],
        "platform": "",
        "excludes": [],
    },
    "models.*": {
        "num_gpu": 0,
        "gpu_per_process": 1,
        "num_cpu": 0,
        "cpu_per_process": 1,
        "num_replica": 1,
        "trainable": False,
        "generation_batch_size": None,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "fsdp_size": 1,
        "sp_size": 1,
        "zero_size": 1,
        "model_config_file": None,
        "lora": {
            "enable_lora": False,
            "part_module_name": None,
            "lora_dim": 8,
            "lora_dropout": 0.0,
            "lora_scaling": 1.0,
            "lora_layer": [
                "ColumnParallelLinear",
                "Embedding",
                "LinearLayer",
                "RowParallelLinear",
                "VocabParallelEmbedding",
            ],
            "column_only_qkv": False,
        },
        "batch_generation": {"ranking": False, "min_prompt_length": 0},
        "sync_frequency": 1,
        "offload_weights": False,
        "offload_optimizer_states": False,
        "free_grad_buffers": False,
        "free_memory": False,
        "force_free_memory": False,
        "args": {},
    },
    "runtime": {
        "seed": 0,
        "num_episode": 5000,
        "sample_per_episode": 1000,
        "generation_batch_size": 2,
        "train_micro_batch_size": 2,
        "train_global_batch_size": 2,
        "num_training_epoch": 1,
        "data_path": None,
        "data_ratio": None,
        "data_shuffle": True,
        "data_rerank": False,
        "stream_data_loader_type": "fixed",
        "max_replay_episode": 1,
        "replay_episode_offset": 0,
        "consumed_samples": 0,
        "validate_param_sync": False,
        "param_sync_comm_type": "broadcast",
        "param_sync_max_workers": None,
        "concurrent_comm": True,
        "coalesced_buffer_mb": 100,
        "bucket_size_mb_in_memory_manager": 1024,
        "free_sync_collective_group": False,
        "routed_expert_regrouping_comm_type": "alltoall",
        "colocation": [],
        "cpu_schedule_strategy": "SPREAD",
        "eval_episode_interval": 0,
        "enable_eval_before_training": False,
        "best_metric": None,
        "best_metric_mode": "max",
        "early_stop_patience": None,
        "early_stop_threshold": None,
        "save_episode_interval": None,
        "max_data_ckpt_nums": None,
        "resume": "never",
        "enable_resume_training": True,
        "data_checkpoint_path": None,
        "load_data_checkpoint_iteration": None,
        "output_dir": "runs",
        "exp_name": "chatlearn",
        "log_interval": 1,
        "log_samples": 16,
        "sinks": None,
        "trace": True,
        "profile_episodes": [],
        "profiler_dir": None,
        "export": [],
        "concurrent_setup": False,
        "deterministic": False,
        "training_shuffle_mode": "batch",
    },
}


def test_every_key_is_described():
    for cls in SECTIONS.values():
        for name, field in cls.model_fields.items():
            assert field.description, f"{cls.__name__}.{name}"


def test_every_alias_names_a_field():
    for section, aliases in ALIASES.items():
        assert set(aliases.values()) <= set(SECTIONS[section].model_fields)
        assert not set(aliases) & set(SECTIONS[section].model_fields)


def test_both_spellings_are_read():
    config = Config(rlhf={"num_ppo_episode": 3})
    assert config.rlhf is config.runtime
    assert config.runtime.num_ppo_episode == config.runtime.num_episode == 3
    assert config == Config(runtime={"num_episode": 3})


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="num_epsiode"):
        _ = Config().runtime.num_epsiode
    assert not hasattr(Config(), "rlfh")


def test_frozen():
    config = Config(models={"policy": {}})
    for section, name in [
        (config, "models"),
        (config.runtime, "seed"),
        (config.models["policy"], "args"),
        (config.runtime_env, "isolate"),
    ]:
        with pytest.raises(ConfigError, match="can't be changed"):
            setattr(section, name, 1)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda c: c.models.update(q=1), "models"),
        (lambda c: c.models.__delitem__("p"), "models"),
        (lambda c: c.models["p"].args.pop("x"), "models.<name>.args"),
        (lambda c: c.models["p"].args["x"].setdefault("z", 1), "models.<name>.args.x"),
        (lambda c: c.models["p"].args["x"]["y"].append(3), "models.<name>.args.x.y"),
        (lambda c: c.models["p"].lora.lora_layer.sort(), "models.<name>.lora.lora_layer"),
        (lambda c: c.runtime.export.extend(["q"]), "runtime.export"),
        (lambda c: c.runtime.colocation[0].clear(), "runtime.colocation.0"),
        (lambda c: delattr(c.runtime, "seed"), "runtime.seed"),
    ],
)
def test_frozen_to_the_bottom(change, key):
    given = {
        "models": {"p": {"args": {"x": {"y": [1, 2]}}}},
        "runtime": {"export": ["p"], "colocation": ["p"]},
    }
    loaded = Config(**given)
    for config in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), load_config(loaded)):
        with pytest.raises(ConfigError, match="can't be changed once it is loaded") as caught:
            change(config)
        assert str(caught.value).startswith(f"{key}: ")
        assert config == Config(**given)


def test_what_a_configuration_holds_is_read_like_any_list_and_dict():
    args = Config(models={"p": {"args": {"x": {"y": [1, 2]}}}}).models["p"].args
    assert json.loads(json.dumps(args)) == {"x": {"y": [1, 2]}}
    assert {**args, "z": 1} == args | {"z": 1} == {"x": {"y": [1, 2]}, "z": 1}
    for own in (copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        own["x"]["y"].append(3)
        assert own == {"x": {"y": [1, 2, 3]}}
    shallow = copy.copy(args["x"]["y"])
    shallow.append(3)
    assert args == {"x": {"y": [1, 2]}}


def test_equal_shares_as_one_number():
    """ChatLearn takes a list or one number for all data sets."""
    runtime = Config(runtime={"data_path": ["a", "b"], "data_ratio": 1}).runtime
    assert runtime.data_ratio == 1


@pytest.mark.parametrize(("given", "size"), [(-1, -1), (4, 4), (None, 1)])
def test_ranks_of_fsdp(given, size):
    config = Config(models={"p": {"fsdp_size": given, "num_gpu": 8}})
    assert config.models["p"].fsdp_size == size
    assert load_config_text(config.to_yaml()) == config


def test_models_as_sections():
    assert Config(runtime=RuntimeConfig(seed=4), models={"a": ModelConfig(num_cpu=2)}) == Config(
        runtime={"seed": 4}, models={"a": {"num_cpu": 2}}
    )


def test_constructor_lists_problems():
    with pytest.raises(ConfigError, match=r"(?s)^2 problems.*dict  runtime\.seed.*runtime\.num_epsiode"):
        Config(runtime={"seed": "x", "num_epsiode": 3})


def test_global_batch_takes_the_micro_batch():
    assert Config(runtime={"train_micro_batch_size": 8}).runtime.train_global_batch_size == 8
    explicit = Config(runtime={"train_micro_batch_size": 8, "train_global_batch_size": None})
    assert explicit.runtime.train_global_batch_size == 8


def test_global_batch_follows_an_overridden_micro_batch():
    config = load_config(Config(), ["runtime.train_micro_batch_size=8"])
    assert config.runtime.train_global_batch_size == 8


@pytest.mark.parametrize("value", [-1, None])
def test_generation_batch_size_inherits(value):
    assert Config(models={"p": {"generation_batch_size": value}}).models["p"].generation_batch_size is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("false", "never"), ("true", "auto"), ("auto", "auto"), ("runs/a", "runs/a"), ("never", "never")],
)
def test_resume(text, value):
    assert load_config_text(f"runtime:\n  resume: {text}").runtime.resume == value


def test_paths_are_taken():
    config = Config(runtime={"output_dir": Path("a/b"), "resume": Path("c")}, models={"p": {"args": {"x": Path("d")}}})
    assert (config.runtime.output_dir, config.runtime.resume) == ("a/b", "c")
    assert config.models["p"].args == {"x": "d"}


@pytest.mark.parametrize(
    ("text", "names"),
    [("[a, b]", ["a", "b"]), ("a", ["a"]), ("a, b", ["a", "b"]), ("", []), ("[]", []), ("'a,'", ["a"])],
)
def test_export(text, names):
    assert load_config_text(f"runtime:\n  export: {text}").runtime.export == names


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("['a, b', c]", [["a", "b"], ["c"]]),
        ("[[a, b], [c]]", [["a", "b"], ["c"]]),
        ("a,b", [["a", "b"]]),
        ("", []),
        ("[]", []),
    ],
)
def test_colocation(text, groups):
    assert load_config_text(f"runtime:\n  colocation: {text}").runtime.colocation == groups


@pytest.mark.parametrize(
    ("text", "names"), [("jsonl,wandb", ["jsonl", "wandb"]), ("[trackio]", ["trackio"]), ("", None), ("[]", [])]
)
def test_sinks(text, names):
    assert load_config_text(f"runtime:\n  sinks: {text}").runtime.sinks == names


@pytest.mark.parametrize(("text", "episodes"), [("[1, 3]", [1, 3]), ("2", [2]), ("", [])])
def test_profile_episodes(text, episodes):
    assert load_config_text(f"runtime:\n  profile_episodes: {text}").runtime.profile_episodes == episodes


def test_several_data_sets():
    given = {"data_path": (Path("a.jsonl"), "b.csv"), "data_ratio": (1, 0.5)}
    runtime = Config(runtime=given).runtime
    assert runtime.data_path == ["a.jsonl", "b.csv"]
    assert runtime.data_ratio == [1.0, 0.5]
    assert Config(runtime={"data_path": Path("a.jsonl")}).runtime.data_path == "a.jsonl"


def test_replay_has_two_spellings():
    runtime = Config(runtime={"max_relay_episode": -1, "relay_episode_offset": 2}).runtime
    assert (runtime.max_replay_episode, runtime.replay_episode_offset) == (-1, 2)
    assert (runtime.max_relay_episode, runtime.relay_episode_offset) == (-1, 2)


def test_gpus_have_two_spellings():
    model = Config(models={"p": {"num_device": 8, "tensor_model_parallel_size": 4}}).models["p"]
    assert model.num_gpu == model.num_device == 8


@pytest.mark.parametrize(
    ("given", "tags"),
    [
        ({}, ()),
        ({"offload_weights": True}, ("weights",)),
        ({"free_grad_buffers": True, "offload_optimizer_states": True}, ("gradients", "optimizer")),
        ({"free_memory": True}, ("weights", "gradients", "optimizer")),
        ({"force_free_memory": True}, ("weights", "gradients", "optimizer")),
    ],
)
def test_what_a_waiting_module_gives_up(given, tags):
    assert ModelConfig(**given).offload_tags == tags


def test_early_stopping():
    runtime = Config(
        runtime={"best_metric": "eval/accuracy", "early_stop_patience": 3, "early_stop_threshold": 1}
    ).runtime
    assert (runtime.early_stop_patience, runtime.early_stop_threshold) == (3, 1.0)


@pytest.mark.parametrize("value", [0, 5, "all"])
def test_log_samples(value):
    assert Config(runtime={"log_samples": value}).runtime.log_samples == value


def test_args_are_copied_as_plain_values():
    class Kind(StrEnum):
        A = "a"

    given = {"x": (1, 2), "kind": Kind.A, "nested": {"y": [1.5, None, True]}}
    args = Config(models={"p": {"args": given}}).models["p"].args
    assert args == {"x": [1, 2], "kind": "a", "nested": {"y": [1.5, None, True]}}
    assert type(args["kind"]) is str
    given["nested"]["y"].append(3)
    assert len(args["nested"]["y"]) == 3


def test_args_refuse_objects():
    with pytest.raises(ConfigError, match=r"models\.p\.args: must consist of plain values, got an object of type"):
        Config(models={"p": {"args": {"fn": print}}})


def test_model_falls_back_only_while_there_are_no_models():
    assert Config().model("anything") == ModelConfig()
    config = Config(models={"policy": {"num_cpu": 2}})
    assert config.model("policy").num_cpu == 2
    with pytest.raises(ConfigError, match=r"`polcy` has no entry under models.*`policy`"):
        config.model("polcy")


def test_sources_are_no_part_of_the_value(write):
    from_file = load_config(write("runtime:\n  seed: 3\n"))
    from_dict = load_config({"runtime": {"seed": 3}})
    assert from_file == from_dict
    assert from_file != load_config({"runtime": {"seed": 4}})
    assert from_file != "text"
    assert "sources" not in str(from_file.model_dump())
    assert from_file.sources["runtime.seed"] == "ppo.yaml:2"
    assert from_dict.sources["runtime.seed"] == "dict"


def test_sources_survive_copies():
    config = load_config({"runtime": {"seed": 3}}, ["runtime.exp_name=x"])
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), config.model_copy()):
        assert other == config
        assert dict(other.sources) == dict(config.sources)
    with pytest.raises(TypeError):
        config.sources["runtime.seed"] = "x"  # type: ignore[index]
