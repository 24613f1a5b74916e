"""Invariants over random configurations and random text."""

import functools
import math
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chatlearn
from chatlearn.config import Config, active, load_config, load_config_text
from chatlearn.config.environment import escape, split_references
from chatlearn.config.schema import ALIASES, SECTIONS
from chatlearn.errors import ConfigError

FAST = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
KEYS = st.one_of(TEXT, st.sampled_from(["null", "1e-4", "<<", "=", "yes", "a: b", "#", "010", "${X}"]))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    TEXT,
    st.sampled_from(["1e-4", "010", "08", "2024-01-01", "12:30", "~", "on", ".5", "1_0", "!x", "&a", "*a", "- a"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=3),
    max_leaves=8,
)
COUNT = st.integers(1, 10**6)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0$"), min_size=1, max_size=8).filter(
    lambda name: name.strip() and name not in (".", "..")
)
MODELS = st.dictionaries(
    KEYS.filter(lambda key: "." not in key),
    st.fixed_dictionaries(
        {},
        optional={
            "num_cpu": st.integers(0, 99),
            "num_replica": COUNT,
            "trainable": st.booleans(),
            "generation_batch_size": st.none() | COUNT,
            "args": st.dictionaries(KEYS, VALUES, max_size=4),
        },
    ),
    max_size=3,
)


@st.composite
def configs(draw) -> Config:
    models = draw(MODELS)
    micro = draw(st.integers(1, 64))
    runtime = {
        "seed": draw(st.integers(0, 2**63 - 1)),
        "train_micro_batch_size": micro,
        "train_global_batch_size": draw(st.none() | st.integers(1, 9).map(lambda times: times * micro)),
        "save_episode_interval": draw(st.none() | st.integers(0, 9)),
        "resume": draw(st.sampled_from(["never", "auto", "true", "runs/a: b", "3"])),
        "exp_name": draw(NAMES),
        "log_samples": draw(st.just("all") | st.integers(0, 99)),
        "export": list(models)[:1],
        draw(st.sampled_from(["num_episode", "num_ppo_episode"])): draw(COUNT),
    }
    return Config(models=models, **{draw(st.sampled_from(["runtime", "rlhf"])): runtime})


@FAST
@given(configs())
def test_round_trip(config):
    text = config.to_yaml()
    again = load_config_text(text)
    assert again == config
    assert again.to_yaml().count("# ") >= len(config.sources)
    assert all("  # " in line for line in text.splitlines())
    assert Config(**config.model_dump()) == config
    assert load_config(config) == config


YAML_WORDS = st.lists(
    st.sampled_from(
        [
            *("runtime", "rlhf", "models", "runtime_env", "seed", "num_episode", "args", "policy", "export"),
            *(":", ":\n", "-", "- -", "[", "]", "{", "}", ",", "|", ">", "?", "%", "@", "`", "#", "'", '"'),
            *("!", "!!", "!!int", "!!set", "&", "&a", "*a", "<<", "~", "---", "...", "=", "1e5", "true"),
            *("\t", "\n", "\n\n", "\n  ", "\n    ", "${", "${X}", "${X:1}", "$${X}", "a${X:b}c", "${X:${Y:", "}}"),
            *("includes", "includes: ", "model_config_file", "absent.yaml", ".", "lora", "colocation", "num_device"),
            *("data_path", "data_ratio", "sinks", "profile_episodes", "early_stop_patience", "log_samples"),
        ]
    ),
    max_size=25,
).map(" ".join)


@settings(FAST, max_examples=400)
@given(st.one_of(TEXT, YAML_WORDS, VALUES.map(str), st.text(max_size=40)))
def test_random_text_raises_nothing_else(text):
    try:
        config = load_config_text(text)
    except ConfigError:
        return
    assert isinstance(config, Config)


@FAST
@given(st.dictionaries(st.sampled_from(["runtime", "rlhf", "models", "runtime_env"]) | KEYS, VALUES, max_size=3))
def test_random_dict_raises_nothing_else(data):
    with suppress(ConfigError):
        load_config(data)


@FAST
@given(
    st.lists(st.sampled_from(["runtime.seed", "models.a.args.x", "models.a", "x.y", "runtime"]), max_size=3),
    TEXT,
)
def test_random_override_raises_nothing_else(keys, value):
    with suppress(ConfigError):
        load_config(None, [f"{key}={value}" for key in keys])


@FAST
@given(
    st.sampled_from([(name, key) for name, cls in SECTIONS.items() for key in cls.model_fields if name]),
    VALUES,
)
def test_any_value_of_any_key_raises_nothing_else(place, value):
    section, key = place
    data = {key: value}
    for part in reversed(section.split(".")):
        data = {"m" if part == "*" else part: data}
    with suppress(ConfigError):
        assert load_config(load_config(data)) == load_config(data)


REAL_KEYS = st.sampled_from(
    sorted({key for cls in SECTIONS.values() for key in (*cls.model_fields, *ALIASES[cls.section])})
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(REAL_KEYS | KEYS, inner, max_size=4),
    max_leaves=12,
)
"""Anything under keys that mean something, on any level."""


@FAST
@given(st.dictionaries(REAL_KEYS | st.just("includes"), NESTED, max_size=4))
def test_nested_values_raise_nothing_else(data):
    """From Python, and the same as YAML."""
    with suppress(ConfigError):
        Config(**data)
    with suppress(ConfigError):
        load_config_text(yaml.safe_dump(data))


ROOT = Path(__file__).parents[2]
RIGHT_FILES = [
    path.read_text(encoding="utf-8")
    for folder in ("src/chatlearn/recipes", "examples")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
    if "includes:" not in path.read_text(encoding="utf-8")  # these need other files beside them
]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "repeat", "indent", "outdent", "swap", "insert", "cut"]),
        st.integers(0, 80),
        st.sampled_from(
            [*"\t:-[]{}#&*!|>'\"%@`,", "${", "$${", "}}", ": ", "- ", "<<: *a", "\0", "\x07", "é", "9" * 400]
        ),
    ),
    min_size=1,
    max_size=5,
)


def edited(text, edits):
    """The file after somebody's mistakes."""
    lines = text.splitlines()
    for what, number, typed in edits:
        at = number % len(lines)
        line = lines[at]
        if what == "drop" and len(lines) > 1:
            del lines[at]
        elif what == "repeat":
            lines.insert(at, line)
        elif what == "swap":
            lines[at], lines[at - 1] = lines[at - 1], line
        else:
            place = number % (len(line) + 1)
            typed_in = {"insert": line[:place] + typed + line[place:], "indent": f"  {line}", "cut": line[:place]}
            lines[at] = typed_in.get(what, line.removeprefix(" "))
    return "\n".join(lines)


def begun(tmp_path_factory, content):
    """What ``init`` makes of a file, or None where it refuses it."""
    path = tmp_path_factory.getbasetemp() / "edited.yaml"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active, "_active", active._Active())
        with suppress(ConfigError):
            return chatlearn.init(path)


def test_the_files_are_right_before_they_are_edited(tmp_path_factory):
    assert len(RIGHT_FILES) >= 4
    assert all(begun(tmp_path_factory, text.encode()) is not None for text in RIGHT_FILES)


@settings(FAST, max_examples=200)
@given(text=st.sampled_from(RIGHT_FILES), edits=EDITS)
def test_an_edited_file_raises_nothing_else(tmp_path_factory, text, edits):
    begun(tmp_path_factory, edited(text, edits).encode())


@FAST
@given(st.binary(max_size=40))
def test_any_bytes_of_a_file_raise_nothing_else(tmp_path_factory, content):
    begun(tmp_path_factory, content)


REFERENCES = st.lists(
    st.one_of(TEXT, st.sampled_from(["${", "}", "$", "$${", "${A}", "${A:b}", "${A:{b}}", "{", ":"])), max_size=8
).map("".join)


@FAST
@given(REFERENCES)
def test_escaped_text_is_taken_as_it_is(text):
    assert "".join(split_references(escape(text))) == text  # type: ignore[arg-type]
    assert load_config_text(Config(models={"p": {"args": {"x": text}}}).to_yaml()).models["p"].args == {"x": text}


@FAST
@given(st.lists(st.one_of(st.sampled_from(["a", "$", ":", "/"]), st.tuples(st.just("X"), TEXT)), max_size=6))
def test_references_are_replaced_by_their_defaults(parts):
    """Against a plain join: a default is any text without braces."""
    plain = [part if isinstance(part, str) else part[1].translate({ord("{"): "", ord("}"): ""}) for part in parts]
    written = [
        "${X:" + text + "}" if isinstance(part, tuple) else text for part, text in zip(parts, plain, strict=True)
    ]
    text = "".join(written)
    if "$${" in text:
        return
    found = ["" if isinstance(part, str) else part for part in split_references(text)]
    assert [part.default for part in found if part] == [
        text for part, text in zip(parts, plain, strict=True) if isinstance(part, tuple)
    ]


def merged(low, high):
    """The reference: mappings key by key, all else replaced."""
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    return {
        key: merged(low[key], high[key]) if key in low and key in high else {**low, **high}[key]
        for key in {**low, **high}
    }


ARGS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.recursive(
        st.integers() | st.none() | st.lists(st.integers(), max_size=2),
        lambda inner: st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
        max_leaves=5,
    ),
    max_size=3,
)


@settings(FAST, max_examples=60)
@given(st.lists(ARGS, min_size=1, max_size=3))
def test_files_merge(tmp_path_factory, args):
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for index, each in enumerate(args):
        paths.append(folder / f"{index}.yaml")
        paths[-1].write_text(Config(models={"p": {"args": each}}).to_yaml())
    (folder / "all.yaml").write_text(f"includes: {[path.name for path in paths]}\n")
    expected = functools.reduce(merged, args)
    assert load_config(paths).models["p"].args == expected
    assert load_config(folder / "all.yaml").models["p"].args == expected
    assert load_config(paths[0], [str(path) for path in paths[1:]]).models["p"].args == expected


@FAST
@given(st.floats(allow_nan=False))
def test_floats_stay_floats(number):
    read = load_config_text(f"models: {{a: {{args: {{x: {number!r}}}}}}}" if math.isfinite(number) else "models: {}")
    if math.isfinite(number):
        assert read.models["a"].args["x"] == number
        assert isinstance(read.models["a"].args["x"], float)
