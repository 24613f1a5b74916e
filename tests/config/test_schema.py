import copy
import pickle
from enum import StrEnum
from pathlib import Path

import pytest
from pydantic import ValidationError

from chatlearn.config import Config, ModelConfig, RuntimeConfig, load_config, load_config_text
from chatlearn.config.schema import ALIASES, SECTIONS
from chatlearn.errors import ConfigError


def test_defaults():
    config = Config()
    assert config.runtime_env.model_dump() == {"backend": "local", "isolate": False}
    assert config.models == {}
    assert config.runtime.model_dump() == {
        "seed": 0,
        "num_episode": 5000,
        "sample_per_episode": 1000,
        "generation_batch_size": 2,
        "train_micro_batch_size": 2,
        "train_global_batch_size": 2,
        "num_training_epoch": 1,
        "eval_episode_interval": 0,
        "save_episode_interval": None,
        "resume": "never",
        "output_dir": "runs",
        "exp_name": "chatlearn",
        "log_interval": 1,
        "log_samples": 16,
        "export": [],
    }
    assert ModelConfig().model_dump() == {
        "num_cpu": 0,
        "num_replica": 1,
        "cpu_per_process": 1,
        "trainable": False,
        "generation_batch_size": None,
        "args": {},
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
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)


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
