"""Files that build upon others: order, places, mistakes."""

from pathlib import Path

import pytest

from chatlearn.config import Config, init, load_config, load_config_text
from chatlearn.errors import ConfigError


@pytest.fixture
def files(folder: Path):
    """Writes files by name; returns the folder."""

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            path = folder / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return folder

    return write


def error_of(source, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_the_file_wins_over_what_it_includes_and_the_later_include_over_the_earlier(files):
    files(
        one="runtime: {seed: 1, log_interval: 1, num_episode: 1}\n",
        two="runtime: {seed: 2, log_interval: 2}\n",
        main="includes: [one.yaml, two.yaml]\nruntime: {seed: 3}\n",
    )
    runtime = load_config("main.yaml").runtime
    assert (runtime.seed, runtime.log_interval, runtime.num_episode) == (3, 2, 1)


def test_mappings_merge_and_all_else_is_replaced(files):
    files(
        base="models:\n  a: {args: {x: {k: 1, l: 2}, list: [1, 2], gone: {k: 1}}}\n  b: {num_cpu: 1}\n",
        main="includes: base.yaml\nmodels:\n  a: {args: {x: {k: 5}, list: [3], gone: 0}}\n  c:\n",
    )
    config = load_config("main.yaml")
    assert config.models["a"].args == {"x": {"k": 5, "l": 2}, "list": [3], "gone": 0}
    assert list(config.models) == ["a", "b", "c"]
    sources = config.sources
    assert sources["models.a.args.x.k"] == "main.yaml:3"
    assert sources["models.a.args.x.l"] == "base.yaml:2"
    assert sources["models.a.args.list"] == sources["models.a.args.gone"] == "main.yaml:3"
    assert sources["models.b.num_cpu"] == "base.yaml:3"
    assert "models.a.args.gone.k" not in sources


def test_both_spellings_of_a_key_are_one(files):
    files(base="rlhf: {num_ppo_episode: 3}\n", main="includes: base.yaml\nruntime: {num_episode: 4}\n")
    assert load_config("main.yaml").runtime.num_episode == 4


def test_paths_are_relative_to_the_file_that_includes(files):
    files(
        deep__inner__leaf="runtime: {seed: 7}\n",
        deep__middle="includes: inner/leaf.yaml\n",
        beside="runtime: {log_interval: 7}\n",
        deep__up="includes: [middle.yaml, ../beside.yaml]\n",
        main="includes: deep/up.yaml\n",
    )
    config = load_config("main.yaml")
    assert (config.runtime.seed, config.runtime.log_interval) == (7, 7)
    assert config.sources["runtime.seed"] == "deep/inner/leaf.yaml:1"
    assert config.sources["runtime.log_interval"] == "beside.yaml:1"


def test_absolute_paths(files):
    folder = files(base="runtime: {seed: 7}\n")
    files(sub__main=f"includes: {folder / 'base.yaml'}\n")
    assert load_config("sub/main.yaml").sources["runtime.seed"] == f"{folder / 'base.yaml'}:1"


def test_paths_from_the_environment(files, monkeypatch):
    monkeypatch.setenv("SIZE", "small")
    monkeypatch.delenv("BASE", raising=False)
    files(
        base="runtime: {seed: 1}\n",
        small="runtime: {log_interval: 3}\n",
        main="includes: ['${BASE:base}.yaml', '${SIZE}.yaml']\n",
    )
    runtime = load_config("main.yaml").runtime
    assert (runtime.seed, runtime.log_interval) == (1, 3)


def test_one_file_included_twice(files):
    files(
        base="runtime: {seed: 1}\n",
        left="includes: base.yaml\n",
        right="includes: base.yaml\nruntime: {seed: 2}\n",
        main="includes: [right.yaml, left.yaml]\n",
    )
    assert load_config("main.yaml").runtime.seed == 1


@pytest.mark.parametrize("text", ["includes:\nruntime: {seed: 1}\n", "includes: []\nruntime: {seed: 1}\n"])
def test_no_files(files, text):
    files(main=text)
    assert load_config("main.yaml").runtime.seed == 1


def test_from_text_and_mappings(files):
    files(base="runtime: {seed: 1, log_interval: 2}\n")
    wanted = {"seed": 4, "log_interval": 2}
    for config in (
        load_config_text("includes: base.yaml\nruntime: {seed: 4}\n"),
        load_config({"includes": ["base.yaml"], "runtime": {"seed": 4}}),
        Config(includes=Path("base.yaml"), rlhf={"seed": 4}),
        init({"includes": ["base.yaml"], "runtime": {"seed": 4}}),
        load_config({"includes": "base.yaml"}, ["runtime.seed=4"]),
    ):
        assert {key: getattr(config.runtime, key) for key in wanted} == wanted
        assert config.sources["runtime.log_interval"] == "base.yaml:1"


def test_the_resolved_configuration_includes_nothing(files):
    files(base="runtime: {seed: 1}\n", main="includes: base.yaml\n")
    config = load_config("main.yaml")
    assert "includes" not in config.to_yaml()
    assert load_config_text(config.to_yaml()) == config


def test_overrides_repair_what_an_included_file_gets_wrong(files):
    files(base="runtime: {seed: x}\n", main="includes: base.yaml\n")
    assert load_config("main.yaml", ["runtime.seed=1"]).runtime.seed == 1


def test_the_file_repairs_what_an_included_file_gets_wrong(files, monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    files(base="runtime:\n  seed: ${MISSING}\n", main="includes: base.yaml\nruntime: {seed: 3}\n")
    assert load_config("main.yaml").runtime.seed == 3


def test_a_missing_file(files):
    folder = files(base="", main="runtime: {seed: x}\nincludes:\n- bse.yaml\n")
    text = error_of("main.yaml")
    assert f"main.yaml:3  includes.0: {folder}/bse.yaml: no such file" in text
    assert "the nearest name in that folder is base.yaml" in text
    assert "main.yaml:1  runtime.seed: expected an integer" in text  # all at once


def test_nothing_is_said_about_models_while_a_file_is_missing(files):
    files(main="includes: absent.yaml\nmodels: {a: {}}\nruntime: {export: b}\n")
    assert error_of("main.yaml").startswith("1 problem ")


def test_a_broken_file(files):
    files(base="runtime:\n  seed: {1\n", main="includes: base.yaml\n")
    assert "base.yaml:3: not valid YAML" in error_of("main.yaml")


def test_a_file_without_sections(files):
    files(base="- a\n", main="includes: base.yaml\n")
    assert "base.yaml:1: expected sections at the top level, got a list" in error_of("main.yaml")


def test_mistakes_in_several_files_come_together(files):
    files(
        base="runtime:\n  sede: 1\n",
        other="models:\n  a: {num_cpus: 1}\n",
        main="includes: [base.yaml, other.yaml]\nruntime:\n  num_episode: x\n",
    )
    text = error_of("main.yaml", "runtime.seed=y")
    assert text.startswith("4 problems")
    for words in (
        "base.yaml:2  runtime.sede: unknown key; did you mean `seed`?",
        "other.yaml:2  models.a.num_cpus: unknown key",
        "main.yaml:3  runtime.num_episode: expected an integer",
        "command line  runtime.seed: expected an integer",
    ):
        assert words in text


def test_a_cycle(files):
    files(a="includes: b.yaml\n", b="includes: [c.yaml]\n", c="includes: a.yaml\n")
    text = error_of("a.yaml")
    assert "c.yaml:1  includes: " in text
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml: includes go round" in text
    assert text.startswith("1 problem ")


def test_a_file_that_includes_itself(files):
    files(a="includes: ./a.yaml\n")
    assert "a.yaml -> a.yaml: includes go round" in error_of("a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("includes: 3", "main.yaml:1  includes: expected the path of a YAML file or a list of paths, got 3"),
        ("includes: {a: b}", "includes: expected the path of a YAML file or a list of paths, got a mapping"),
        ("includes: [a.yaml, 3]", "includes: expected the path of a YAML file or a list of paths, got 3"),
        ("includes: .", "it is a folder"),
        ("includes: [a.yaml]\nincludes: b.yaml", "main.yaml:2  includes: given twice"),
        ("runtime: {includes: a.yaml}", "runtime.includes: unknown key"),
    ],
)
def test_wrong_values(files, text, words):
    files(main=text, a="")
    assert words in error_of("main.yaml")


def test_settings_of_a_model_from_a_file(files):
    files(
        models__llama="lr: 0.1\nopt: {beta: 0.9, eps: 1e-8}\n",
        main="models:\n  policy:\n    model_config_file: models/llama.yaml\n    args: {lr: 0.2, opt: {beta: 0.5}}\n",
    )
    config = load_config("main.yaml", ["models.policy.args.opt.eps=1"])
    assert config.models["policy"].args == {"lr": 0.2, "opt": {"beta": 0.5, "eps": 1}}
    plain = load_config("main.yaml")
    assert plain.models["policy"].args == {"lr": 0.2, "opt": {"beta": 0.5, "eps": 1e-8}}
    assert plain.sources["models.policy.args.lr"] == "main.yaml:4"
    assert plain.sources["models.policy.args.opt.eps"] == "models/llama.yaml:2"
    assert plain.sources["models.policy.model_config_file"] == "main.yaml:3"


def test_without_args_of_its_own(files):
    files(
        llama="lr: 0.1\n", main="models:\n  a: {model_config_file: llama.yaml}\n  b: {model_config_file: '', args: }\n"
    )
    config = load_config("main.yaml")
    assert (config.models["a"].args, config.models["b"].args) == ({"lr": 0.1}, {})
    assert config.models["b"].model_config_file is None


def test_the_path_is_relative_to_the_file_that_names_it(files, monkeypatch):
    folder = files(
        sub__llama="includes: more.yaml\nlr: 0.1\n",
        sub__more="lr: 3\nsteps: ${STEPS:4}\n",
        sub__base="models: {policy: {model_config_file: llama.yaml}}\n",
        main="includes: sub/base.yaml\n",
    )
    monkeypatch.delenv("STEPS", raising=False)
    config = load_config("main.yaml")
    assert config.models["policy"].args == {"lr": 0.1, "steps": 4}
    assert config.models["policy"].model_config_file == str(folder / "sub" / "llama.yaml")
    assert config.sources["models.policy.args.steps"] == "sub/more.yaml:2"


def test_a_later_file_replaces_the_earlier_one_altogether(files):
    files(
        one="lr: 1\nx: 1\n",
        two="lr: 2\n",
        base="models: {p: {model_config_file: one.yaml, args: {y: 1}}}\n",
        main="includes: base.yaml\nmodels: {p: {model_config_file: two.yaml}}\n",
    )
    assert load_config("main.yaml").models["p"].args == {"lr": 2, "y": 1}
    assert load_config("main.yaml", ["models.p.model_config_file=one.yaml"]).models["p"].args == {
        "lr": 1,
        "x": 1,
        "y": 1,
    }
    assert Config(models={"p": {"model_config_file": Path("one.yaml")}}).models["p"].args == {"lr": 1, "x": 1}


def test_a_configuration_holds_what_the_file_said(files):
    """The file is not read again: it may have changed, or be gone."""
    folder = files(one="lr: 1\n", main="models: {p: {model_config_file: one.yaml}}\n")
    config = load_config("main.yaml")
    (folder / "one.yaml").write_text("lr: 2\n")
    again = load_config(config, ["runtime.seed=3"])
    assert again.models["p"].args == {"lr": 1}
    assert again.sources["models.p.args.lr"] == "one.yaml:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "main.yaml:1  models.p.model_config_file: {}/one.yaml: no such file"),
        ("lr: {1\n", "one.yaml:2  models.p.args: not valid YAML"),
        ("- 1\n", "one.yaml:1  models.p.args: expected settings at the top level, got a list"),
        ("lr: 1\nlr: 2\n", "one.yaml:2  models.p.args.lr: given twice (first at one.yaml:1)"),
        ("includes: one.yaml\n", "one.yaml -> one.yaml: includes go round"),
    ],
)
def test_mistakes_in_the_file(files, text, words):
    folder = files(main="models: {p: {model_config_file: one.yaml}}\n", **({"one": text} if text else {}))
    assert words.format(folder) in error_of("main.yaml")


@pytest.mark.parametrize(("value", "words"), [("3", "expected text or null, got 3"), ("[a]", "got a list")])
def test_no_path(files, value, words):
    files(main=f"models: {{p: {{model_config_file: {value}}}}}\n")
    assert words in error_of("main.yaml")


def test_args_that_are_no_mapping(files):
    files(one="lr: 1\n", main="models: {p: {model_config_file: one.yaml, args: [1]}}\n")
    assert "models.p.args: expected a mapping, got a list" in error_of("main.yaml")
