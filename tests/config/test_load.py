import pytest

from chatlearn.config import Config, load_config, load_config_text
from chatlearn.errors import ConfigError

PPO = """\
runtime_env:
  backend: local
models:
  policy:
    num_replica: 2
    args: {lr: 1e-4, layers: [1, 2]}
  value:
rlhf:
  num_ppo_episode: ${EPISODES:8}
  seed: ${SEED}
"""


def test_file(write, monkeypatch):
    monkeypatch.delenv("EPISODES", raising=False)
    monkeypatch.setenv("SEED", "12")
    config = load_config(write(PPO))
    assert config.models["policy"].num_replica == 2
    assert config.models["policy"].args == {"lr": 1e-4, "layers": [1, 2]}
    assert config.models["value"].num_replica == 1
    assert (config.runtime.num_episode, config.runtime.seed) == (8, 12)


def test_sources(write, monkeypatch):
    monkeypatch.delenv("EPISODES", raising=False)
    monkeypatch.setenv("SEED", "12")
    sources = load_config(write(PPO), ["models.policy.args.lr=1e-3", "models.policy.args.opt={beta: 0.9}"]).sources
    assert sources["runtime_env.backend"] == "ppo.yaml:2"
    assert sources["runtime_env.isolate"] == "default"
    assert sources["models"] == "ppo.yaml:3"
    assert sources["models.value"] == "ppo.yaml:7"
    assert sources["models.value.num_cpu"] == "default"
    assert sources["models.policy.args.layers"] == "ppo.yaml:6"
    assert sources["models.policy.args.lr"] == "command line"
    assert sources["models.policy.args.opt.beta"] == "command line"
    assert sources["runtime"] == "ppo.yaml:8"
    assert sources["runtime.num_episode"] == "ppo.yaml:9"
    assert sources["runtime.seed"] == "environment SEED (ppo.yaml:10)"
    assert sources["runtime.exp_name"] == "default"


def test_config_keeps_its_sources(write):
    first = load_config(write("runtime:\n  seed: 3\n  log_interval: 2\n"))
    second = load_config(first, ["runtime.seed=4"])
    assert (second.runtime.seed, second.runtime.log_interval) == (4, 2)
    assert second.sources["runtime.seed"] == "command line"
    assert second.sources["runtime.log_interval"] == "ppo.yaml:3"
    assert second.sources["runtime.exp_name"] == "default"
    assert load_config(first) == first


def test_a_changed_copy_keeps_its_changes():
    changed = Config().model_copy(update={"runtime": Config().runtime.model_copy(update={"seed": 5})})
    assert load_config(changed).runtime.seed == 5


@pytest.mark.parametrize("text", ["", "# nothing\n", "models:\nruntime:\nruntime_env:\n", "---\n"])
def test_empty(write, text):
    assert load_config(write(text)) == load_config() == Config()


def test_nothing_under_a_model_or_args(write):
    config = load_config(write("models:\n  policy:\n  value:\n    args:\n"))
    assert config == Config(models={"policy": {}, "value": {"args": {}}})


def test_path_objects(folder, write):
    write("runtime: {seed: 1}")
    assert load_config(folder / "ppo.yaml").sources["runtime.seed"] == f"{folder / 'ppo.yaml'}:1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+5", -2e5),
        ("1.5", 1.5),
        (".inf", float("inf")),
        ("1_000", 1000),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("0b11", 3),
        ("-7", -7),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("=", "="),
        ("on", True),
        ("~", None),
        ("'1e-4'", "1e-4"),
        ("e5", "e5"),
        ("1e", "1e"),
    ],
)
def test_scalars(text, value):
    args = load_config_text(f"models: {{p: {{args: {{x: {text}}}}}}}").models["p"].args
    assert args == {"x": value}
    assert type(args["x"]) is type(value)


@pytest.mark.parametrize(
    ("text", "environ", "value"),
    [
        ("${X:s3://b:1}", {}, "s3://b:1"),
        ("${X:8}", {}, 8),
        ("${X:true}", {}, True),
        ("${X:[1, 2]}", {}, [1, 2]),
        ("'${X:{a: 1}}'", {}, {"a": 1}),
        ("${X:}", {}, None),
        ("${X:8}", {"X": "1e-4"}, 1e-4),
        ("${X}", {"X": "[a, 1]"}, ["a", 1]),
        ("${X}", {"X": "'8'"}, "8"),
        ("${X:8}", {"X": ""}, 8),
        ("${X}", {"X": "a: b"}, "a: b"),
        ("${X}", {"X": "a: b\nc: d"}, "a: b\nc: d"),
        ("${X}", {"X": "- a"}, "- a"),
        ("${X}", {"X": "a #b"}, "a #b"),
        ("${X}", {"X": "*x"}, "*x"),
        ("${X}", {"X": "'a' or 'b'"}, "'a' or 'b'"),
        ("${X}", {"X": "'a': b"}, "'a': b"),
        ("${X}", {"X": "[a]: b"}, "[a]: b"),
        ("${X}", {"X": "{a: 1}"}, {"a": 1}),
        ("${X}", {"X": " 7 "}, 7),
        ("${X}", {"X": "null"}, None),
        ("${X:#ff0}", {}, "#ff0"),
        ("'${X:a: b}'", {}, "a: b"),
        ("!!str ${X}", {"X": "7"}, "7"),
        ("&here !!str ${X:5}", {}, "5"),
        ("!!int 1${X}", {"X": "2"}, 12),
        ("[1, '${X:2}']", {}, [1, 2]),
        ("${X}", {"X": "${Y}"}, "${Y}"),
        ("a${X:1}b", {}, "a1b"),
        ("$${X}", {"X": "1"}, "${X}"),
        ("$$${X:1}", {}, "$${X:1}"),
        ("pre${X:1}/sub", {}, "pre1/sub"),
        ("pre${X}/sub", {"X": "3"}, "pre3/sub"),
        ("${X:1}${X:2}", {}, "12"),
        ("${X:s3://b:1}/${X:p}:2", {}, "s3://b:1/p:2"),
        ("a${X:}b", {}, "ab"),
        ("'${X: a } '", {}, " a  "),
        ("${X:${Y:1}}", {}, 1),
        ("a${X:b${Y:1}}", {}, "ab1"),
        ("a${X:$${Y}}", {}, "a${Y}"),
        ("'a${X:{b}}'", {}, "a{b}"),
        ("a$${X}${X:1}", {}, "a${X}1"),
        ("a${X}", {"X": "${HOME}"}, "a${HOME}"),
        ("[a, 'x${X:2}', {k: '${X:3}'}]", {}, ["a", "x2", {"k": 3}]),
        ("cost: $5 {x}".replace(": ", ""), {}, "cost$5 {x}"),
    ],
)
def test_environment(monkeypatch, text, environ, value):
    monkeypatch.delenv("X", raising=False)
    monkeypatch.delenv("Y", raising=False)
    for name, setting in environ.items():
        monkeypatch.setenv(name, setting)
    assert load_config_text(f"models:\n  p:\n    args:\n      x: {text}\n").models["p"].args == {"x": value}


def test_merge_keys_and_anchors():
    text = """\
models:
  a: &a
    num_cpu: 1
    args: &args {x: 1}
  b:
    <<: *a
    num_cpu: 2
  c: *a
  d: {args: *args}
"""
    config = load_config_text(text, "f.yaml")
    assert config.models["b"].model_dump() == {**config.models["a"].model_dump(), "num_cpu": 2}
    assert config.models["c"] == config.models["a"]
    assert config.models["d"].args == {"x": 1}
    assert config.sources["models.b.args.x"] == "f.yaml:4"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("runtime.num_episode=3", lambda c: c.runtime.num_episode, 3),
        ("rlhf.num_ppo_episode=3", lambda c: c.runtime.num_episode, 3),
        ("runtime.exp_name=a", lambda c: c.runtime.exp_name, "a"),
        ("runtime.export=policy,value", lambda c: c.runtime.export, ["policy", "value"]),
        ("models.policy.args.lr=1e-4", lambda c: c.models["policy"].args["lr"], 1e-4),
        ("models.policy.args.a.b=x=y", lambda c: c.models["policy"].args["a"], {"b": "x=y"}),
        ("models.policy.args={q: 1}", lambda c: c.models["policy"].args, {"q": 1}),
        ("models.policy={num_cpu: 3}", lambda c: c.models["policy"].num_cpu, 3),
        ("models.policy.args.betas.0=0.5", lambda c: c.models["policy"].args["betas"], {0: 0.5, 1: 2}),
        ("models.value.args=", lambda c: c.models["value"].args, {}),
        ("models.new.num_replica=2", lambda c: c.models["new"].num_replica, 2),
    ],
)
def test_overrides(override, read, value):
    text = "models:\n  policy:\n    args: {lr: 1, betas: {0: 1, 1: 2}}\n  value:\nrlhf:\n  num_episode: 5\n"
    assert read(load_config_text(text, overrides=[override])) == value


@pytest.mark.parametrize("value", ["12345", "on", "1e3", "true", "null", "#ff0", "a: b", "{question}", "[x] y", "~"])
def test_text_from_outside_stays_text(monkeypatch, value):
    """A number in YAML is no text, but who sets a variable or a word of the command line has text only."""
    monkeypatch.setenv("VALUE", value)
    monkeypatch.delenv("ABSENT", raising=False)
    for text in ("${VALUE}", f"'${{ABSENT:{value}}}'"):
        config = load_config_text(f"runtime:\n  exp_name: {text}\n")
        assert config.runtime.exp_name == value
    assert load_config(None, [f"runtime.exp_name={value}"]).runtime.exp_name == value


def test_numbers_from_outside_in_places_that_take_text(folder, monkeypatch):
    monkeypatch.setenv("JOB", "007")
    (folder / "123").write_text("x: 1\n")
    words = ["runtime.data_path=[1.0, a]", "models.p.model_config_file=123", "models.p.model_type=${JOB}"]
    config = load_config(None, [*words, "runtime.resume=true", "runtime.profiler_dir=null"])
    assert config.runtime.data_path == ["1.0", "a"]
    assert (config.models["p"].model_type, config.models["p"].args) == ("007", {"x": 1})
    assert (config.runtime.resume, config.runtime.profiler_dir) == ("auto", None)


def test_sections_made_on_the_command_line_come_from_there():
    config = load_config_text("runtime: {seed: 1}", "f.yaml", ["models.p.args.x.y=1", "runtime.log_interval=2"])
    keys = ("models", "models.p", "models.p.args", "models.p.args.x", "models.p.args.x.y", "runtime.log_interval")
    assert {config.sources[key] for key in keys} == {"command line"}
    assert config.sources["runtime"] == "f.yaml:1"


def test_later_override_wins():
    config = load_config(None, ["runtime.num_episode=3", "rlhf.num_ppo_episode=4"])
    assert config.runtime.num_episode == 4


def test_override_repairs_a_value_that_could_not_be_read(write, monkeypatch):
    monkeypatch.delenv("SEED", raising=False)
    assert load_config(write("runtime:\n  seed: ${SEED}\n"), ["runtime.seed=3"]).runtime.seed == 3


def test_override_from_the_environment(monkeypatch):
    monkeypatch.setenv("SEED", "5")
    config = load_config({}, ["runtime.seed=${SEED}"])
    assert (config.runtime.seed, config.sources["runtime.seed"]) == (5, "environment SEED (command line)")


def test_to_yaml(write):
    config = load_config(write('models:\n  policy:\n    args: {lr: 1e-4, text: "a\\nb # \'"}\n'), ["runtime.seed=3"])
    lines = config.to_yaml().splitlines()
    assert "runtime_env:  # default" in lines
    assert "models:  # ppo.yaml:1" in lines
    assert "  policy:  # ppo.yaml:2" in lines
    assert "      lr: 0.0001  # ppo.yaml:3" in lines
    assert '      text: "a\\nb # \'"  # ppo.yaml:3' in lines
    assert "  seed: 3  # command line" in lines
    assert "  train_global_batch_size: 2  # default" in lines
    assert "  save_episode_interval: null  # default" in lines
    assert load_config_text(config.to_yaml()) == config


def test_source_of_a_text_from_the_environment(monkeypatch):
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("B", "2")
    monkeypatch.delenv("X", raising=False)
    config = load_config_text("models:\n  p:\n    args: {x: 'u${A}v${B}${A}', y: 'u${X:3}'}\n", "f.yaml")
    assert config.models["p"].args == {"x": "u1v21", "y": "u3"}
    assert config.sources["models.p.args.x"] == "environment A, B (f.yaml:3)"
    assert config.sources["models.p.args.y"] == "f.yaml:3"


@pytest.mark.parametrize("source", [3, b"ppo.yaml", ["a", 3], object()])
def test_wrong_source(source):
    with pytest.raises(ConfigError, match="the argument: expected a configuration"):
        load_config(source)
