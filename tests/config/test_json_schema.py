"""The JSON Schema against what the loader takes. Not covered: what spans several keys, which no schema says."""

from importlib.resources import files

import jsonschema
import pytest
import yaml

from chatlearn.config import load_config, load_config_text
from chatlearn.config.json_schema import json_schema
from chatlearn.config.schema import ALIASES, SECTIONS
from chatlearn.errors import ConfigError

GOOD = [
    "",
    "includes: base.yaml",
    "models:\n  a:\n  b: {}",
    "models: {a: {args: }}",
    "rlhf: {num_ppo_episode: 3, max_relay_episode: -1}",
    "runtime: {seed: '${SEED:0}', exp_name: 'a${X:1}', stream_data_loader_type: '${LOADER:fixed}'}",
    "runtime: {export: 'a,b', sinks: 'jsonl, wandb', colocation: ['a,b', [c]]}",
    "runtime: {resume: true, log_samples: all, train_global_batch_size: null, save_episode_interval: null}",
    "runtime: {data_path: [a, b], data_ratio: [1, 0.5], profile_episodes: 3, early_stop_patience: null}",
    "runtime: {data_ratio: 2}\nmodels: {a: {fsdp_size: -1}, b: {fsdp_size: null}, c: {fsdp_size: 4}}",
    "runtime: {profile_episodes: [1, '${E:2}'], best_metric: x, early_stop_threshold: 1}",
    "models: {a: {num_device: 8, generation_batch_size: -1, gpu_per_process: null, lora: {lora_layer: 'A,B'}}}",
    "models: {a: {args: {anything: [1, {x: null}]}, model_config_file: ''}}",
    "runtime_env: {pip: [numpy], working_dir: null}",
]
BAD = [
    "inclides: a",
    "runtme: {}",
    "runtime: {num_epsiode: 3}",
    "runtime: {seed: -1}",
    "runtime: {seed: x}",
    "runtime: {num_episode: 1.5}",
    "runtime: {stream_data_loader_type: relay}",
    "runtime: {sinks: [wanb]}",
    "runtime: {data_ratio: [0]}",
    "runtime: {data_ratio: 0}",
    "models: {a: {fsdp_size: 0}}",
    "models: {a: {fsdp_size: -2}}",
    "runtime: {debug: true}",
    "runtime: [1]",
    "models: {a: {lr: 3}}",
    "models: {a: {trainable: 'yes please'}}",
    "models: {a: {lora: {lora_dim: 0}}}",
    "runtime_env: {local_threads: 0}",
]


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("text", GOOD)
def test_what_the_loader_takes_is_valid(validator, text, folder):
    (folder / "base.yaml").write_text("")
    load_config_text(text)
    assert list(validator.iter_errors(yaml.safe_load(text) or {})) == []


@pytest.mark.parametrize("text", BAD)
def test_what_the_loader_refuses_is_not(validator, text):
    with pytest.raises(ConfigError):
        load_config_text(text)
    assert not validator.is_valid(yaml.safe_load(text))


def test_the_recipes_are_valid(validator):
    path = files("chatlearn.recipes.ppo") / "ppo.yaml"
    load_config(str(path))
    assert list(validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))) == []


def test_every_key_has_a_description():
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    sections = {cls.__name__: cls for cls in SECTIONS.values()}
    definitions = {**schema["$defs"], "Config": schema}
    for name, cls in sections.items():
        properties = definitions[name]["properties"]
        assert {*cls.model_fields, *ALIASES[cls.section]} <= set(properties)
        assert all(each["description"] for each in properties.values())
        assert definitions[name]["additionalProperties"] is False
    assert definitions["RuntimeConfig"]["properties"]["num_episode"]["default"] == 5000
