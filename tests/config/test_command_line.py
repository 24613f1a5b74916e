import pytest

from chatlearn.config import load_config, parse_command_line
from chatlearn.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "paths", "overrides"),
    [
        ("", "", []),
        ("-c a.yaml", "a.yaml", []),
        ("-ca.yaml", "a.yaml", []),
        ("-c=a.yaml", "a.yaml", []),
        ("-c=a.yaml b.yaml", "a.yaml", []),
        ("--config a.yaml", "a.yaml", []),
        ("--config=a.yaml", "a.yaml", []),
        ("runtime.seed=3 -c a.yaml rlhf.seed=4", "a.yaml", ["runtime.seed=3", "rlhf.seed=4"]),
        ("models.policy.args.x=a=b", "", ["models.policy.args.x=a=b"]),
        ("runtime_env.isolate=true", "", ["runtime_env.isolate=true"]),
        ("--resume", "", ["runtime.resume=auto"]),
        ("--resume -c a", "a", ["runtime.resume=auto"]),
        ("--resume runtime.seed=3", "", ["runtime.resume=auto", "runtime.seed=3"]),
        ("--resume runs/a runtime.seed=3", "", ["runtime.resume='runs/a'", "runtime.seed=3"]),
        ("--resume=runs/a", "", ["runtime.resume='runs/a'"]),
        ("--resume 3", "", ["runtime.resume='3'"]),
        ("train --lr 3 --foo.bar=1 a=b a.b x.y=1 --verbose -v", "", []),
        ("-- runtime.seed=3", "", []),
        ("-c a.yaml -c b.yaml", "a.yaml b.yaml", []),
        ("--set runtime.seed=3 --set b.yaml -c a.yaml", "a.yaml", ["runtime.seed=3", "b.yaml"]),
        ("--set=runtime.seed=3", "", ["runtime.seed=3"]),
        # Mistyped ones go on to load_config, which says so.
        ("runtme.seed=1", "", ["runtme.seed=1"]),
        ("model.policy.num_cpu=1", "", ["model.policy.num_cpu=1"]),
        ("--runtime.seed=1", "", ["--runtime.seed=1"]),
    ],
)
def test_words(words, paths, overrides):
    assert parse_command_line(words.split()) == (paths.split(), overrides)


@pytest.mark.parametrize(
    "path", ["3", "true", "null", "a: b", "it's # 1", "1e5", "[x", "runs/a b", "~", "${HOME}", "$${x"]
)
def test_resume_keeps_any_path(path):
    _, overrides = parse_command_line(["--resume", path])
    assert load_config(None, overrides).runtime.resume == path


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("-c", "`-c` comes without a file"),
        ("-c --resume", "`-c` comes without a file"),
        ("-c= a.yaml", "`-c` comes without a file"),
        ("--config", "`--config` comes without a file"),
        ("--config=", "`--config` comes without a file"),
        ("--set", "`--set` comes without a setting"),
        ("--set=", "write `--set section.key=value`, or `--set FILE`"),
        ("--set -c a.yaml", "`--set` comes without a setting"),
    ],
)
def test_no_value(words, text):
    with pytest.raises(ConfigError, match="command line: ") as caught:
        parse_command_line(words.split())
    assert text in str(caught.value)


def test_two_files(folder):
    (folder / "a.yaml").write_text("runtime: {seed: 1, log_interval: 2}\nmodels:\n  p: {args: {x: {y: 1, z: 2}}}\n")
    (folder / "b.yaml").write_text("rlhf:\n  seed: 3\nmodels:\n  p: {args: {x: {y: 5}}}\n")
    config = load_config(*parse_command_line(["-c", "a.yaml", "--config=b.yaml"]))
    assert (config.runtime.seed, config.runtime.log_interval) == (3, 2)
    assert config.models["p"].args == {"x": {"y": 5, "z": 2}}
    assert config.sources["runtime.seed"] == "b.yaml:2"
    assert config.sources["runtime.log_interval"] == "a.yaml:1"
    assert config.sources["models.p.args.x.z"] == "a.yaml:3"


def test_what_goes_over_it_goes_in_order(folder):
    (folder / "a.yaml").write_text("runtime: {seed: 1}\n")
    (folder / "more.yaml").write_text("runtime:\n  seed: 2\n  log_interval: 2\n")
    words = "-c a.yaml runtime.log_interval=7 --set more.yaml --set rlhf.seed=3"
    config = load_config(*parse_command_line(words.split()))
    assert (config.runtime.seed, config.runtime.log_interval) == (3, 2)
    assert config.sources["runtime.seed"] == "command line"
    assert config.sources["runtime.log_interval"] == "more.yaml:3"
    swapped = load_config(*parse_command_line(["-c", "a.yaml", "--set", "rlhf.seed=3", "--set=more.yaml"]))
    assert swapped.runtime.seed == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "--set mor.yaml",
            "command line: {}/mor.yaml: no such file\n     Fix: the nearest name in that folder is more",
        ),
        ("--set seed", "command line: {}/seed: no such file"),
        ("--set runtime=1", "expected an override, got 'runtime=1'"),
        ("--set more.yaml", "more.yaml:2  runtime.sed: unknown key; did you mean `seed`?"),
        ("-c more.yaml -c absent.yaml", "{}/absent.yaml: no such file"),
    ],
)
def test_bad_words(folder, words, text):
    (folder / "more.yaml").write_text("runtime:\n  sed: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(*parse_command_line(words.split()))
    assert text.format(folder) in str(caught.value)
