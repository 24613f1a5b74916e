import subprocess
import sys

import pytest

from chatlearn.config import Config, active, active_generation, get_config, init
from chatlearn.errors import ConfigError


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(active, "_active", active._Active())


@pytest.fixture
def command_line(monkeypatch):
    return lambda words: monkeypatch.setattr(sys, "argv", ["prog.py", *words.split()])


def test_get_config_before_init():
    assert active_generation() == 0
    with pytest.raises(ConfigError, match=r"Call chatlearn\.init\(\) first"):
        get_config()


def test_command_line(command_line, write):
    write("runtime: {seed: 1, num_episode: 2}")
    command_line("train -c ppo.yaml --lr 3 rlhf.seed=4 --resume --foo.bar=1")
    config = init()
    assert get_config() is config
    assert (config.runtime.seed, config.runtime.num_episode, config.runtime.resume) == (4, 2, "auto")


def test_defaults_and_overrides_without_a_file(command_line):
    command_line("runtime.seed=4")
    assert init() == Config(runtime={"seed": 4})


def test_mistyped_word_on_the_command_line(command_line):
    command_line("runtme.seed=4 runtime.sede=3")
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*did you mean `runtime`.*did you mean `seed`"):
        init()


def test_an_argument_ignores_the_command_line(command_line, write):
    command_line("-c missing.yaml runtime.seed=4")
    assert init({"runtime": {"seed": 1}}).runtime.seed == 1
    assert init(write("runtime: {seed: 2}")).runtime.seed == 2
    config = Config(rlhf={"seed": 3})
    assert init(config) is config


def test_again():
    first, second = init({}), init({"runtime": {"seed": 1}})
    assert first != second
    assert get_config() is second
    assert active_generation() == 2


def test_a_failed_init_changes_nothing():
    first = init({})
    with pytest.raises(ConfigError):
        init({"runtime": {"seed": "x"}})
    assert get_config() is first
    assert active_generation() == 1


@pytest.mark.parametrize("argument", [3, ["a.yaml", 3], b"a.yaml", Config])
def test_wrong_argument(argument):
    with pytest.raises(ConfigError, match="expected a configuration, got"):
        init(argument)


def test_import_pulls_in_nothing_heavy():
    code = "import chatlearn.config, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "chatlearn.config" in loaded
    assert not {"torch", "ray", "transformers", "rich", "numpy", "yaml"} & set(loaded)
