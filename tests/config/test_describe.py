"""The table of resolved values."""

import re

from chatlearn.config import Config, load_config
from chatlearn.config.describe import describe
from chatlearn.config.schema import SECTIONS


def rows_of(text: str) -> dict[str, tuple[str, str]]:
    """Value and source by section and key; for values without two blanks in them."""
    rows, section = {}, ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            section = line
        elif line.strip():
            key, value, source = ([*re.split(r" {2,}", line.strip()), "", ""])[:3]
            rows[f"{section}: {key}"] = (value, source)
    return rows


def test_values_and_sources(write, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    text = """\
models:
  policy:
    num_cpu: 2
    lora: {lora_dim: 4}
    args: {lr: 1e-4, opt: {beta: 0.9}, empty: {}}
  value:
rlhf:
  seed: ${SEED}
  num_ppo_episode: 3
"""
    rows = rows_of(describe(load_config(write(text), ["runtime.exp_name=first one"])))
    wanted = {
        "models.policy: num_cpu": ("2", "ppo.yaml:3"),
        "models.policy: lora.lora_dim": ("4", "ppo.yaml:4"),
        "models.policy: args.lr": ("0.0001", "ppo.yaml:5"),
        "models.policy: args.opt.beta": ("0.9", "ppo.yaml:5"),
        "models.policy: args.empty": ("{}", "ppo.yaml:5"),
        "models.<name>, where nothing else is said: num_replica": ("1", "default"),
        "models.<name>, where nothing else is said: num_cpu": ("0", "default"),
        "runtime: seed": ("7", "environment SEED (ppo.yaml:8)"),
        "runtime: num_episode": ("3", "ppo.yaml:9"),
        "runtime: exp_name": ("first one", "command line"),
        "runtime: output_dir": ("runs", "default"),
        "runtime_env: backend": ("local", "default"),
    }
    assert {key: rows[key] for key in wanted} == wanted


def test_every_key_is_there():
    text = describe(Config(models={"a": {}}))
    for section, cls in SECTIONS.items():
        for key in cls.model_fields if section else ():
            assert f" {key}" in text or f".{key}" in text or f" {key}." in text, key


def test_a_key_that_all_models_set_has_no_default_left(write):
    rows = rows_of(describe(load_config(write("models:\n  a: {num_cpu: 1}\n  b: {num_cpu: 2, num_gpu: 1}\n"))))
    assert "models.<name>, where nothing else is said: num_cpu" not in rows
    assert rows["models.<name>, where nothing else is said: num_gpu"] == ("0", "default")
