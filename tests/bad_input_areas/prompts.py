"""Bad prompts: what is no data set, and files that can't be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, begin, engine_of

from chatlearn import DataError, EngineError, Evaluator

CAUSES = Causes()
cause = CAUSES.cause


def prompts(given: Any) -> None:
    """An engine with this data set."""
    engine_of(Echo("policy"), prompts=given).learn()


def file(name: str, text: str | bytes) -> None:
    """An engine with this file as its data set."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    prompts(name)


# -- What is given as a data set ---------------------------------------------------------------------------------------


@cause(EngineError, says="env_flow has no data set", at="env_flow", fix="Call `engine.set_dataset(prompts)`")
def no_data_set() -> None:
    """An engine has no data set."""
    engine_of(Echo("policy"), prompts=None).learn()


@cause(
    EngineError,
    says="eval_flow has no data set",
    at="eval_flow",
    fix="Call `Evaluator(…).set_dataset(prompts)`",
)
def evaluator_without_data_set() -> None:
    """An evaluator has no data set."""
    policy = Echo("policy")

    def eval_flow(batch: Any) -> Any:
        return policy.forward_step(batch)

    engine_of(policy).set_evaluator(Evaluator(eval_flow)).learn()


@cause(DataError, says="The data set of env_flow is empty", at="env_flow", fix="at least one prompt")
def no_prompts() -> None:
    """A data set is empty."""
    prompts([])


@cause(
    DataError,
    says="a generator, which has no length, so they can't be shuffled or resumed",
    at="the prompts",
    fix="Give a sequence, such as list(data)",
)
def stream_of_prompts() -> None:
    """Prompts are a generator."""
    prompts(line for line in ["a", "b"])


@cause(
    DataError,
    says="the prompts are a dict with the keys train, test",
    at="the prompts",
    fix="Choose one, such as data['train']",
)
def dict_of_splits() -> None:
    """Prompts are a dict of splits."""
    prompts({"train": ["a"], "test": ["b"]})


@cause(
    DataError,
    says="the prompts are a set",
    at="the prompts",
    fix="Give a list, a data set with __len__ and __getitem__, or the path of a file",
)
def set_of_prompts() -> None:
    """Prompts are a set."""
    prompts({"a", "b"})


@cause(
    DataError,
    says="the prompts are a table of Arrow",
    at="the prompts",
    fix="Give its rows: data.to_pylist()",
)
def table_of_arrow() -> None:
    """Prompts are a table."""
    import pyarrow

    prompts(pyarrow.table({"prompt": ["a", "b"]}))


@cause(
    DataError,
    says="the prompts are a list of paths with 'b.jsonl' in it",
    at="'b.jsonl'",
    fix="Give paths only (pathlib.Path), or prompts only",
)
def paths_and_prompts() -> None:
    """A list mixes paths with texts."""
    prompts([Path("a.jsonl"), "b.jsonl"])


@cause(
    EngineError,
    says="data_ratio is [3], but there are 2 data sets",
    at="data_ratio",
    fix="give each a number above 0",
)
def too_few_shares() -> None:
    """There are fewer shares than data sets."""
    engine_of(Echo("policy"), prompts=None).set_multiple_datasets([["a"], ["b"]], data_ratio=[3]).learn()


@cause(
    EngineError,
    says="set_multiple_datasets got no data sets",
    at="set_multiple_datasets",
    fix="Give a list of data sets, or a dict of them",
)
def no_data_sets() -> None:
    """A list of data sets is empty."""
    engine_of(Echo("policy"), prompts=None).set_multiple_datasets([]).learn()


@cause(
    EngineError,
    says="Got 'math/easy'",
    at="Evaluator.set_multiple_datasets",
    fix="names are text without '/'",
)
def name_of_a_data_set() -> None:
    """The name of an evaluator's data set has a slash."""
    policy = Echo("policy")
    Evaluator(lambda batch: policy.forward_step(batch)).set_multiple_datasets({"math/easy": ["a"]})


# -- Files -------------------------------------------------------------------------------------------------------------


@cause(
    DataError,
    says="there is no file 'promts.jsonl'",
    at="promts.jsonl",
    fix=("Did you mean 'prompts.jsonl'?", "prompts themselves are given as a list: ['promts.jsonl']"),
)
def no_file() -> None:
    """The file of prompts isn't there."""
    Path("prompts.jsonl").touch()
    prompts("promts.jsonl")


@cause(
    DataError,
    says="no file matches 'data/*.jsonl'",
    at="dict  runtime.data_path",
    fix="Name a file of prompts, a folder, or a pattern",
)
def no_matching_file() -> None:
    """No file matches a pattern."""
    begin(data_path="data/*.jsonl")
    prompts(None)


@cause(
    DataError,
    says="the ending '.yaml' is not known",
    at="prompts.yaml",
    fix="Prompts are read from files that end with .jsonl",
)
def unknown_ending() -> None:
    """A file of prompts has another form."""
    file("prompts.yaml", "- a\n- b\n")


@cause(DataError, says="the file holds no prompts", at="prompts.txt", fix="Give a file with at least one")
def empty_file() -> None:
    """A file of prompts is empty."""
    file("prompts.txt", "\n\n")


@cause(DataError, says="the folder holds no files", at="data: the folder", fix="that end with .jsonl")
def empty_folder() -> None:
    """A folder holds no file of prompts."""
    Path("data").mkdir()
    prompts("data")


@cause(
    DataError,
    says="bad JSON, Expecting value at column 12",
    at="prompts.jsonl:1",
    fix="JSON Lines hold one whole record a line",
)
def broken_line() -> None:
    """A line of JSON Lines is broken."""
    file("prompts.jsonl", '{"prompt": }\n')


@cause(
    DataError,
    says="got 7",
    at=("sample 1 of the data set", "prompts.jsonl:2"),
    fix="a row is an object, a string or a list of chat messages",
)
def number_as_row() -> None:
    """A line of JSON Lines is a number."""
    file("prompts.jsonl", '{"prompt": "a"}\n7\n')


@cause(
    DataError,
    says="bad JSON, Expecting ',' delimiter at column 10",
    at="prompts.json:1",
    fix="name a file with a record a line .jsonl",
)
def broken_list() -> None:
    """A file with one JSON list is broken."""
    file("prompts.json", '["a", "b"')


@cause(DataError, says="not UTF-8 (invalid continuation byte)", at="prompts.txt:2", fix="Save the file as UTF-8")
def not_utf8() -> None:
    """A file of prompts is not UTF-8."""
    file("prompts.txt", b"a\ncaf\xe9 au lait\n")


@cause(
    DataError,
    says="3 values for the 2 columns prompt, answer",
    at="prompts.csv:2",
    fix="Quote values that hold the separator",
)
def too_many_values() -> None:
    """A line of CSV has more values than there are columns."""
    file("prompts.csv", "prompt,answer\n1, 2 or 3?,2\n")


@cause(
    DataError,
    says="a column's name stands twice in prompt, prompt",
    at="prompts.csv:1",
    fix="Rename one",
)
def column_twice() -> None:
    """Two columns of CSV have one name."""
    file("prompts.csv", "prompt,prompt\na,b\n")


@cause(DataError, says="no readable Parquet file", at="prompts.parquet", fix="Write it again")
def broken_parquet() -> None:
    """A Parquet file holds something else."""
    file("prompts.parquet", "prompt,answer\n1 + 2 =,3\n")
