"""What bad configurations get: the words, the place, the fix."""

import pydantic
import pytest

from chatlearn.config import Problem, check_args, load_config, load_config_text, raise_problems
from chatlearn.errors import ConfigError


def test_all_at_once_in_the_order_of_lines(problems, monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    text = """\
runtime_env:
  isolate: maybe
models:
  policy:
    num_replica: 0
    args: {path: "${MISSING}"}
rlhf:
  num_epsiode: 3
  train_micro_batch_size: 4
  train_global_batch_size: 6
  export: polcy
  log_interval: 2
  log_interval: 3
"""
    lines = problems(text, "runtime.seed=x", "runtme.seed=1").splitlines()
    assert lines[0] == "9 problems in the configuration:"
    numbered = [line for line in lines if not line.startswith("     ")][1:]
    starts = [
        " 1. ppo.yaml:2  runtime_env.isolate: expected true or false, got 'maybe'",
        " 2. ppo.yaml:5  models.policy.num_replica: expected an integer >= 1, got 0",
        " 3. ppo.yaml:6  models.policy.args.path: the environment variable MISSING has no value",
        " 4. ppo.yaml:8  rlhf.num_epsiode: unknown key; did you mean `num_episode`?",
        " 5. ppo.yaml:10  rlhf.train_global_batch_size: "
        "must be a multiple of train_micro_batch_size, which is 4; got 6",
        " 6. ppo.yaml:11  rlhf.export: `polcy` is no entry under models; did you mean `policy`?",
        " 7. ppo.yaml:13  rlhf.log_interval: given twice (first at ppo.yaml:12)",
        " 8. command line  runtme.seed: unknown section `runtme`; did you mean `runtime`?",
        " 9. command line  runtime.seed: expected an integer >= 0 and < 2**63, got 'x'",
    ]
    assert numbered == starts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runtime: {seed: true}", "runtime.seed: expected an integer >= 0 and < 2**63, got true"),
        ("runtime: {seed: -1}", "got -1"),
        (f"runtime: {{seed: {2**63}}}", f"got {2**63}"),
        ("runtime: {num_episode: 0}", "runtime.num_episode: expected an integer >= 1, got 0"),
        ("runtime: {num_ppo_episode: 0}", "runtime.num_ppo_episode: expected an integer >= 1, got 0"),
        ("runtime: {num_episode: 1e3}", "got 1e3\n     Fix: write 1000."),
        ("runtime: {exp_name: on}", "expected text, got on\n     Fix: put it in quotes: exp_name: 'on'."),
        ("runtime: {exp_name: 1e3}", "expected text, got 1e3\n     Fix: put it in quotes: exp_name: '1e3'."),
        ("runtime: {export: [007]}", "expected text, got 007\n     Fix: put it in quotes: '007'."),
        ("runtime:\n  num_episode: 1${ABSENT:2}", "got '12'\n     Fix: write num_episode: !!int 1${ABSENT:2}."),
        ("runtime: {num_episode: '8'}", "Fix: write 8 without quotes."),
        ("runtime: {num_episode: }", "expected an integer >= 1, got nothing (null)"),
        ("runtime: {num_episode: }", "leave the key out to take the default, 5000"),
        ("runtime: {num_episode: [1]}", "expected an integer >= 1, got a list"),
        ("runtime: {save_episode_interval: -1}", "expected an integer >= 0 or null, got -1"),
        ("runtime: {exp_name: 3}", "expected text, got 3\n     Fix: put it in quotes: exp_name: '3'."),
        ("runtime: {exp_name: a/b}", "must be a plain folder name without separators, got 'a/b'"),
        ("runtime: {exp_name: ..}", "must be a plain folder name"),
        ("runtime: {exp_name: .}", "must be a plain folder name"),
        ("runtime: {exp_name: 'a\\b'}", "must be a plain folder name"),
        ("runtime: {exp_name: ''}", "runtime.exp_name: must not be empty"),
        ("runtime: {output_dir: ''}", "runtime.output_dir: must not be empty"),
        ("runtime:\n  output_dir: ${HOME/runs", "runtime.output_dir: '${HOME/runs' names no environment variable"),
        ("runtime:\n  output_dir: a${}b", "'${}' names no environment variable"),
        ("runtime:\n  output_dir: a${X:${}}", "'${}' names no environment variable"),
        ("runtime:\n  exp_name: a${A-B}", "Fix: write ${NAME} or ${NAME:default}, or $${ for the text ${."),
        ("runtime: {resume: 3}", "runtime.resume: expected text, got 3"),
        ("runtime: {log_samples: some}", "expected an integer >= 0 or `all`, got 'some'"),
        ("runtime: {log_samples: -1}", "expected an integer >= 0 or `all`, got -1"),
        ("runtime: {log_samples: true}", "expected an integer >= 0 or `all`, got true"),
        ("runtime: {export: 3}", "runtime.export: expected a list, got 3"),
        ("runtime: {export: [3]}", "runtime.export.0: expected text, got 3"),
        ("runtime: {train_micro_batch_size: 8, train_global_batch_size: 4}", "Fix: set it to 8."),
        ("runtime: {train_micro_batch_size: 4, train_global_batch_size: 6}", "Fix: set it to 4 or 8."),
        ("runtime: {train_micro_batch_size: x, train_global_batch_size: null}", "1 problem in"),
        ("runtime: [1]", "runtime: expected a mapping, got a list"),
        ("rlhf: 3", "rlhf: expected a mapping, got 3"),
        ("models: [a]", "models: expected a mapping, got a list"),
        ("models: {a: 3}", "models.a: expected a mapping, got 3"),
        ("models: {a: {args: [1]}}", "models.a.args: expected a mapping, got a list"),
        ("models: {a: {trainable: 'yes please'}}", "expected true or false, got 'yes please'"),
        ("models: {a: {trainable: 1}}", "expected true or false, got 1"),
        ("models: {a: {generation_batch_size: 0}}", "expected an integer >= 1 or null, got 0"),
        ("models: {3: {}}", "models.3: a key must be text, got 3"),
        ("models: {a: {args: {3: 4}}}", "models.a.args.3: a key must be text, got 3"),
        ("runtime_env: {local_threads: 0}", "runtime_env.local_threads: expected an integer >= 1, got 0"),
        (
            "runtime: {stream_data_loader_type: relay}",
            "expected one of `fixed`, `dynamic`, got 'relay'\n"
            "     Fix: write fixed, and in max_replay_episode the number of episodes to train on (-1 is all).",
        ),
        ("runtime: {stream_data_loader_type: dynamc}", "expected one of `fixed`, `dynamic`, got 'dynamc'"),
        (
            "runtime: {data_ratio: 0}",
            "1. ppo.yaml:1  runtime.data_ratio: expected a list or a number > 0 or null, got 0",
        ),
        ("runtime: {data_ratio: true}", "1 problem in"),
        ("models: {a: {fsdp_size: 0}}", "models.a.fsdp_size: expected an integer >= 1 or `-1`, got 0"),
        ("models: {a: {sp_size: -1}}", "models.a.sp_size: expected an integer >= 1, got -1"),
        ("runtime: {max_relay_episode: -2}", "runtime.max_relay_episode: expected an integer >= -1, got -2"),
        ("runtime: {data_ratio: [1, 0]}", "runtime.data_ratio.1: expected a number > 0, got 0"),
        ("runtime: {data_path: [a, b], data_ratio: [1]}", "has 1 numbers, but data_path has 2 files"),
        ("runtime: {data_path: ''}", "runtime.data_path: must not be empty"),
        ("runtime: {sinks: wanb}", "runtime.sinks: there is no sink `wanb`; did you mean `wandb`?"),
        ("runtime: {sinks: 3}", "runtime.sinks: expected a list or null, got 3"),
        ("runtime: {profile_episodes: [0]}", "runtime.profile_episodes.0: expected an integer >= 1, got 0"),
        ("runtime: {early_stop_patience: 3}", "runtime.early_stop_patience: needs best_metric, which is not set"),
        ("runtime: {early_stop_threshold: 3}", "Fix: name the metric in runtime.best_metric."),
        ("runtime: {best_metric: 3, early_stop_patience: 3}", "1 problem in"),
        ("runtime: {early_stop_threshold: .nan, best_metric: x}", "runtime.early_stop_threshold: expected"),
        ("runtime: {best_metric_mode: most}", "expected one of `max`, `min`, got 'most'"),
        ("runtime: {colocation: [a, 'b,a']}", "runtime.colocation: names the model `a` twice"),
        ("runtime: {colocation: 3}", "runtime.colocation: expected a list, got 3"),
        ("runtime: {colocation: [3]}", "runtime.colocation.0: expected a list, got 3"),
        ("runtime: {colocation: [[3]]}", "runtime.colocation.0.0: expected text, got 3"),
        (
            "models: {a: {}}\nruntime: {colocation: ['a,c']}",
            "ppo.yaml:2  runtime.colocation: `c` is no entry under models\n     Fix: use one of: a.",
        ),
        ("models: {a: {}}\nruntime: {colocation: 3, export: 3}", "2 problems"),
        ("models: {a: {sync_frequency: 0}}", "models.a.sync_frequency: expected an integer >= 1, got 0"),
        ("models: {a: {lora: {lora_dim: 0}}}", "models.a.lora.lora_dim: expected an integer >= 1, got 0"),
        ("models: {a: {lora: {lora_dm: 0}}}", "models.a.lora.lora_dm: unknown key; did you mean `lora_dim`?"),
        ("models: {a: {lora: true}}", "models.a.lora: expected a mapping, got true"),
        ("models: {a: {batch_generation: {ranking: 1}}}", "ranking: expected true or false, got 1"),
        ("models: {a: {num_gpu: 1, gpu_per_process: 2}}", "is 2, but the module has 1 GPUs (num_gpu)"),
        (
            "models:\n  a:\n    num_device: 6\n    tensor_model_parallel_size: 2\n    pipeline_model_parallel_size: 2",
            "ppo.yaml:5  models.a.pipeline_model_parallel_size: num_gpu must be a multiple of the tensor, pipeline and "
            "expert parallel sizes together, which are 4 here; it is 6",
        ),
        ("runtime_env: {backend: dask}", "runtime_env.backend: expected one of `local`, `ray`, got 'dask'"),
    ],
)
def test_wrong_values(problems, text, words):
    found = problems(text)
    assert "ppo.yaml:" in found
    assert words in found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runtme: {}", "ppo.yaml:1  runtme: unknown key; did you mean `runtime`?"),
        ("rlfh: {}", "rlfh: unknown key; did you mean `rlhf`?"),
        (
            "num_episode: 3",
            "unknown key here; `num_episode` belongs under runtime\n     Fix: move it under runtime.",
        ),
        (
            "models: {a: {num_episode: 3}}",
            "models.a.num_episode: unknown key here; `num_episode` belongs under runtime",
        ),
        ("models: {a: {num_epsiode: 3}}", "`num_episode` belongs under runtime"),
        ("runtime: {num_replica: 3}", "`num_replica` belongs under models.<name>"),
        ("runtime: {isolate: true}", "`isolate` belongs under runtime_env"),
        ("models: {a: {lr: 3}}", "a setting of your own belongs under models.a.args"),
        (
            "runtime: {zzz: 3}",
            "runtime.zzz: unknown key\n     Fix: remove it; known keys: seed, num_episode,",
        ),
        ("inclides: a.yaml", "inclides: unknown key; did you mean `includes`?"),
        ("models: {a: {lora_dim: 3}}", "`lora_dim` belongs under models.<name>.lora"),
        ("runtime: {debug: true}", "ppo.yaml:1  runtime.debug: this key of older versions is gone"),
        ("runtime: {coalesce_param: true}", "Fix: weights always travel together; remove it."),
        ("rlhf: {nsys: true}", "rlhf.nsys: this key of older versions is gone"),
        ("runtime: {log_config_file: a}", "Fix: name the sinks of metrics in runtime.sinks."),
        ("runtime: {policy_to_regroup_queue: global_barrier}", "this key of older versions is gone"),
        ("runtime: {max_iteration_per_sample: 3}", "write the loop inside a step"),
        ("env_args: {}", "Fix: write runtime_env."),
        ("runtime: {num_ppo_epsiode: 3}", "did you mean `num_ppo_episode`?"),
    ],
)
def test_unknown_keys(problems, text, words):
    assert words in problems(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "runtime: {seed: 1}\nrlhf: {seed: 2}",
            "ppo.yaml:2  rlhf: the same key as `runtime`, which is given too",
        ),
        (
            "runtime:\n  num_episode: 1\n  num_ppo_episode: 1",
            "ppo.yaml:3  runtime.num_ppo_episode: the same key as `runtime.num_episode`",
        ),
        ("models:\n  a: {}\n  a: {}", "ppo.yaml:3  models.a: given twice (first at ppo.yaml:2)"),
        (
            "models:\n  a:\n    args:\n      x: {y: 1,\n       y: 2}",
            "ppo.yaml:5  models.a.args.x.y: given twice",
        ),
    ],
)
def test_given_twice(problems, text, words):
    assert words in problems(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runtime:\n  seed: {1\n", "ppo.yaml:3: not valid YAML: expected ',' or '}'"),
        ("runtime:\n\tseed: 1\n", "Fix: indent with spaces, not with tabs."),
        ("runtime:\n  seed: ${X: 3}\n", "ppo.yaml:2: not valid YAML: mapping values are not allowed here"),
        ("runtime: {}\n---\nmodels: {}\n", "ppo.yaml:2: not valid YAML: expected a single document"),
        ("runtime: *nothing", "ppo.yaml:1: not valid YAML: found undefined alias 'nothing'"),
        ("runtime: \x07", "ppo.yaml:1: not valid YAML: special characters are not allowed"),
        ("- a\n", "ppo.yaml:1: expected sections at the top level, got a list"),
        ("text", "ppo.yaml:1: expected sections at the top level, got 'text'"),
        ("\nruntime: !!python/object/apply:os.getcwd []", "ppo.yaml:2  runtime: the YAML tag"),
        ("runtime:\n  seed: !!python/name:os.getcwd ''", "ppo.yaml:2  runtime.seed: the YAML tag"),
        ("runtime:\n  seed: !!int x", "ppo.yaml:2  runtime.seed: 'x' is not a valid int"),
        ("runtime:\n  seed: !!bool x", "ppo.yaml:2  runtime.seed: 'x' is not a valid bool"),
        ("runtime:\n  seed: !!float ''", "ppo.yaml:2  runtime.seed: '' is not a valid float"),
        ("runtime:\n  seed: " + "9" * 5000, "ppo.yaml:2  runtime.seed:"),
        ("runtime:\n  seed: 0x" + "f" * 5000, "got a very large integer"),
        ("models:\n  ? [a]\n  : 3", "ppo.yaml:2  models: a key must be a single word"),
        ("models: &m\n  a: {args: {m: *m}}", "a YAML alias contains itself"),
        ("models: " + "[" * 3000, "ppo.yaml"),
        (
            "models:\n  a:\n    args:\n      x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"      x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 9)),
            "more than 100000 values",
        ),
    ],
)
def test_broken_yaml(problems, text, words):
    assert words in problems(text)


def test_environment_is_the_place(problems, monkeypatch):
    monkeypatch.setenv("SEED", "x")
    words = "environment SEED (ppo.yaml:1)  runtime.seed: expected an integer >= 0 and < 2**63, got 'x'"
    assert words in problems("runtime: {seed: '${SEED}'}")


def test_environment_without_a_value(problems, monkeypatch):
    monkeypatch.setenv("SEED", "")
    found = problems("runtime:\n  seed: ${SEED}")
    assert "ppo.yaml:2  runtime.seed: the environment variable SEED has no value" in found
    assert "set SEED, or write a default: ${SEED:default}" in found


class Settings(pydantic.BaseModel):
    path: str


@pytest.mark.parametrize(
    ("text", "override", "words"),
    [
        ("path: 1e3", "runtime.seed=1", "got 1e3\n     Fix: put it in quotes: path: '1e3'."),
        ("path: ${JOB}", "runtime.seed=1", "got 007\n     Fix: write !!str before the reference: path: !!str ${…}."),
        ("path: x", "models.p.args.path=1", "Fix: quote it for YAML and for the shell: models.p.args.path=\"'1'\"."),
    ],
)
def test_a_setting_of_the_users_own_that_should_be_text(monkeypatch, text, override, words):
    monkeypatch.setenv("JOB", "007")
    config = load_config_text(f"models:\n  p:\n    args:\n      {text}\n", "f.yaml", [override])
    for same in (config, load_config(config)):
        (problem,) = check_args("p", Settings, same)
        assert words in str(problem)


def test_the_ways_out_work(monkeypatch):
    monkeypatch.setenv("JOB", "007")
    by_tag = load_config_text("models: {p: {args: {path: !!str '${JOB}'}}}")
    assert check_args("p", Settings, by_tag) == []
    assert check_args("p", Settings, load_config(by_tag, ["models.p.args.path='1'"])) == []
    assert load_config_text("runtime: {num_episode: !!int '1${JOB}'}").runtime.num_episode == 1007


def test_environment_with_broken_yaml(problems, monkeypatch):
    monkeypatch.setenv("SEED", "[1")
    assert "environment SEED (ppo.yaml:2)  runtime.seed: not valid YAML" in problems("runtime:\n  seed: ${SEED}")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "runtime.num_epsiode=3",
            "command line  runtime.num_epsiode: unknown key; did you mean `num_episode`?",
        ),
        ("runtime.seed='3'", "command line  runtime.seed: expected an integer"),
        ("runtime.seed=[1", "command line  runtime.seed: not valid YAML"),
        (
            "runtime.seed.x=1",
            "command line  runtime.seed.x: `runtime.seed` is 1, so nothing can be set below it",
        ),
        ("runtime.num_episode.x=1", "command line  runtime.num_episode: expected an integer >= 1, got a mapping"),
        ("rlhf.num_ppo_episode.x.y=1", "command line  rlhf.num_ppo_episode: expected an integer >= 1, got a mapping"),
        ("runtime.data_ratio.0=3", "command line  runtime.data_ratio: expected a list"),
        ("models.a.b.c=1", "command line  models.a.b: unknown key"),
        ("models.policy.num_replica.x=1", "command line  models.policy.num_replica: expected an integer >= 1"),
        ("runtime=1", "command line: expected an override, got 'runtime=1'"),
        ("runtime.=1", "write section.key=value, as in runtime.num_episode=3"),
        (
            "--runtime.seed=1",
            "command line  runtime.seed: an override has no dashes\n     Fix: write runtime.seed=1.",
        ),
        ("model.policy.num_cpu=1", "unknown section `model`; did you mean `models`?"),
        (
            "zzz.a=1",
            "command line  zzz.a: unknown section `zzz`\n     Fix: begin with one of: runtime_env, models,",
        ),
    ],
)
def test_bad_overrides(problems, override, words):
    assert words in problems("runtime: {seed: 1}", override)


def test_export_is_free_while_there_are_no_models():
    assert load_config({"runtime": {"export": "policy"}}).runtime.export == ["policy"]


def test_missing_file(folder):
    (folder / "ppo.yaml").write_text("")
    (folder / "notes.txt").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_config("poo.yaml")
    assert f"{folder / 'poo.yaml'}: no such file" in str(caught.value)
    assert "the nearest name in that folder is ppo.yaml" in str(caught.value)


def test_missing_folder(folder):
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        load_config("nowhere/ppo.yaml")


def test_unreadable_files(folder):
    with pytest.raises(ConfigError, match="it is a folder"):
        load_config(folder)
    (folder / "bad.yaml").write_bytes(b"runtime: \xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 9\)"):
        load_config("bad.yaml")
    with pytest.raises(ConfigError, match="can't be read"):
        load_config("a\0b")


def test_the_text_of_a_configuration_is_no_path():
    for text in ("runtime: {seed: 1}", "runtime:\n  seed: 1\n" + "# words\n" * 5000, "x" * 30_000):
        with pytest.raises(ConfigError, match="the argument: expected the path of a YAML file, got '") as caught:
            load_config(text)
        assert "give the path of a file or a dict" in str(caught.value)
        assert len(str(caught.value)) < 300


def test_a_path_with_a_colon_is_a_path(folder):
    (folder / "a: b.yaml").write_text("runtime: {seed: 4}")
    assert load_config("a: b.yaml").runtime.seed == 4


def test_a_place_that_is_long_takes_no_time():
    """Quadratic work on this place would take hours."""
    problem = Problem("x" * 5_000_000, "", "is wrong")
    with pytest.raises(ConfigError, match="2 problems"):
        raise_problems([problem, Problem("f.yaml:3", "", "is wrong")])


def test_args_that_are_no_settings():
    endless: list = [1]
    endless.append(endless)
    for args, words in [
        ({"x": {(1, 2): 3}}, "models.p.args: has a list as a key at `x`\n     Fix: use text or numbers as keys."),
        ({"x": endless}, "models.p.args: is nested too deeply, or contains itself"),
        ({"x": "\ud800"}, "models.p.args: '\\ud800' holds a lone surrogate at `x`"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config({"models": {"p": {"args": args}}})
        assert words in str(caught.value)


def test_a_lone_surrogate_in_a_name():
    with pytest.raises(ConfigError, match=r"there is no sink `\\ud800`"):
        load_config({"runtime": {"sinks": "\ud800"}})


def test_a_dict_that_contains_itself():
    endless: dict = {}
    endless["models"] = endless
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(endless)


def test_raise_problems():
    raise_problems([])
    problem = Problem("f.yaml:3", "runtime.x", "is wrong", "change it")
    with pytest.raises(ConfigError) as caught:
        raise_problems([problem, problem])
    text = "1 problem in the configuration:\n 1. f.yaml:3  runtime.x: is wrong\n     Fix: change it."
    assert str(caught.value) == text
