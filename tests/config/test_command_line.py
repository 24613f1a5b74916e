import pytest

from chatlearn.config import load_config, parse_command_line
from chatlearn.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "path", "overrides"),
    [
        ("", None, []),
        ("-c a.yaml", "a.yaml", []),
        ("-ca.yaml", "a.yaml", []),
        ("--config a.yaml", "a.yaml", []),
        ("--config=a.yaml", "a.yaml", []),
        ("runtime.seed=3 -c a.yaml rlhf.seed=4", "a.yaml", ["runtime.seed=3", "rlhf.seed=4"]),
        ("models.policy.args.x=a=b", None, ["models.policy.args.x=a=b"]),
        ("runtime_env.isolate=true", None, ["runtime_env.isolate=true"]),
        ("--resume", None, ["runtime.resume=auto"]),
        ("--resume -c a", "a", ["runtime.resume=auto"]),
        ("--resume runtime.seed=3", None, ["runtime.resume=auto", "runtime.seed=3"]),
        ("--resume runs/a runtime.seed=3", None, ["runtime.resume=runs/a", "runtime.seed=3"]),
        ("--resume=runs/a", None, ["runtime.resume=runs/a"]),
        ("--resume 3", None, ["runtime.resume='3'"]),
        ("train --lr 3 --foo.bar=1 a=b a.b x.y=1 --verbose -v", None, []),
        ("-- runtime.seed=3", None, []),
        # Mistyped ones go on to load_config, which says so.
        ("runtme.seed=1", None, ["runtme.seed=1"]),
        ("model.policy.num_cpu=1", None, ["model.policy.num_cpu=1"]),
        ("--runtime.seed=1", None, ["--runtime.seed=1"]),
    ],
)
def test_words(words, path, overrides):
    assert parse_command_line(words.split()) == (path, overrides)


@pytest.mark.parametrize("path", ["3", "true", "null", "a: b", "it's # 1", "1e5", "[x", "runs/a b", "~"])
def test_resume_keeps_any_path(path):
    _, overrides = parse_command_line(["--resume", path])
    assert load_config(None, overrides).runtime.resume == path


@pytest.mark.parametrize("words", ["-c", "--config", "--config=", "-c --resume"])
def test_no_file(words):
    with pytest.raises(ConfigError, match="command line: `-c` or `--config` comes without a file"):
        parse_command_line(words.split())


def test_two_files():
    with pytest.raises(ConfigError, match="more than one configuration file: a, b"):
        parse_command_line(["-c", "a", "--config=b"])
