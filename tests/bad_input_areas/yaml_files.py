"""Bad configuration files: their text, the files that they name, the environment, keys and values."""

from __future__ import annotations

import os
from pathlib import Path

from bad_input_areas.cause import Causes
from bad_input_areas.program import program

from chatlearn import ConfigError

CAUSES = Causes()
cause, yaml = CAUSES.cause, CAUSES.yaml

# -- The text of a file ------------------------------------------------------------------------------------------------

yaml(
    "A bracket is never closed.",
    "runtime:\n  export: [policy\n",
    says="not valid YAML: expected ',' or ']'",
    at="my.yaml:3",
    fix="check the indentation and the punctuation",
)
yaml(
    "A line is indented with a tab.",
    "runtime:\n\tseed: 1\n",
    says="not valid YAML",
    at="my.yaml:2",
    fix="indent with spaces, not with tabs",
)
yaml(
    "A value contains a colon and has no quotes.",
    "runtime:\n  exp_name: ppo: second try\n",
    says="mapping values are not allowed here",
    at="my.yaml:2",
    fix="put quotes around a value that contains `: `",
)
yaml(
    "A file holds two documents.",
    "runtime: {seed: 1}\n---\nmodels: {}\n",
    says="expected a single document",
    at="my.yaml:2",
    fix="remove the `---` between the parts",
)
yaml(
    "A file holds a control character.",
    "runtime: {exp_name: \x07}",
    says="special characters are not allowed",
    at="my.yaml:1",
    fix="save the file as plain UTF-8 text",
)
yaml(
    "A file is not UTF-8.",
    "runtime: {exp_name: café}".encode("latin-1"),
    says="not UTF-8 text (byte 23)",
    at="my.yaml",
    fix="save the file as UTF-8",
)
yaml(
    "An alias has no anchor.",
    "runtime: *common\n",
    says="found undefined alias 'common'",
    at="my.yaml:1",
    fix="write &common before the value that it stands for",
)
yaml(
    "An alias contains itself.",
    "models: &models\n  policy: {args: {others: *models}}\n",
    says="a YAML alias contains itself",
    at="my.yaml:2  models.policy.args.others",
    fix="write the value out",
)
yaml(
    "Aliases of aliases make a huge value.",
    "models:\n  policy:\n    args:\n      x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"      x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    says="more than 100000 values",
    at="my.yaml:",
    fix="use fewer aliases",
)
yaml(
    "A value has a tag that would make a Python object.",
    "models:\n  policy:\n    args: {folder: !!python/object/apply:os.getcwd []}\n",
    says="the YAML tag '!!python/object/apply:os.getcwd' is not allowed",
    at="my.yaml:3  models.policy.args.folder",
    fix="write a plain value",
)
yaml(
    "A value does not fit its tag.",
    "runtime:\n  seed: !!int one\n",
    says="'one' is not a valid int",
    at="my.yaml:2  runtime.seed",
    fix="correct the value",
)
yaml(
    "A file begins with a list.",
    "- runtime\n- models\n",
    says="expected sections at the top level, got a list",
    at="my.yaml:1",
    fix="start with a section such as `runtime:`",
)
yaml(
    "A key is given twice in one file.",
    "runtime:\n  seed: 1\n  log_interval: 2\n  seed: 3\n",
    says="given twice (first at my.yaml:2)",
    at="my.yaml:4  runtime.seed",
    fix="keep one of the two",
)
yaml(
    "A key is given in both of its spellings.",
    "runtime:\n  num_episode: 1\n  num_ppo_episode: 1\n",
    says="the same key as `runtime.num_episode`, which is given too",
    at="my.yaml:3  runtime.num_ppo_episode",
    fix="keep one of the two",
)
yaml(
    "A module's name is a number.",
    "models:\n  1: {num_replica: 2}\n",
    says="a key must be text, got 1",
    at="my.yaml:2  models.1",
    fix="put quotes around it",
)
yaml(
    "A key is a list.",
    "models:\n  ? [policy, value]\n  : {num_replica: 2}\n",
    says="a key must be a single word, got a list or a mapping",
    at="my.yaml:2  models",
    fix="write one `key: value` line for each",
)

# -- Files -------------------------------------------------------------------------------------------------------------


@cause(ConfigError, says="no such file", at="ppo.yml", fix="the nearest name in that folder is ppo.yaml")
def no_file() -> None:
    """The configuration file isn't there."""
    Path("ppo.yaml").touch()
    program(config="ppo.yml")


@cause(ConfigError, says="no such file", at="configs/ppo.yaml", fix="there is no folder configs either")
def no_folder() -> None:
    """The folder of the configuration file isn't there."""
    program("-c", "configs/ppo.yaml")


@cause(ConfigError, says="it is a folder", at="configs", fix="name the YAML file in it")
def folder() -> None:
    """The path of the configuration is a folder."""
    Path("configs").mkdir()
    program("-c", "configs")


yaml(
    "An included file isn't there.",
    "includes: [base.yaml]\nruntime: {seed: 1}\n",
    says="base.yaml: no such file",
    at="my.yaml:1  includes.0",
    fix="the nearest name in that folder is my.yaml",
)
yaml(
    "A file includes itself.",
    "includes: my.yaml\n",
    says="my.yaml -> my.yaml: includes go round",
    at="my.yaml:1  includes",
    fix="take one of them out",
)
yaml(
    "`includes` is not the path of a file.",
    "includes: {base: base.yaml}\n",
    says="expected the path of a YAML file or a list of paths, got a mapping",
    at="my.yaml:1  includes",
    fix="write includes: [base.yaml]",
)
yaml(
    "The file with a model's own settings isn't there.",
    "models:\n  policy: {model_config_file: policy.yaml}\n",
    says="policy.yaml: no such file",
    at="my.yaml:2  models.policy.model_config_file",
    fix="the nearest name in that folder is my.yaml",
)

# -- The environment ---------------------------------------------------------------------------------------------------

yaml(
    "An environment variable has neither a value nor a default.",
    "models:\n  policy:\n    args: {path: '${DATA_ROOT}/prompts.jsonl'}\n",
    says="the environment variable DATA_ROOT has no value",
    at="my.yaml:3  models.policy.args.path",
    fix="set DATA_ROOT, or write a default: ${DATA_ROOT:default}",
)
yaml(
    "A reference to the environment is malformed.",
    "runtime:\n  output_dir: ${OUTPUT-DIR}/runs\n",
    says="'${OUTPUT-DIR}' names no environment variable",
    at="my.yaml:2  runtime.output_dir",
    fix="write ${NAME} or ${NAME:default}, or $${ for the text ${",
)


@cause(
    ConfigError,
    says="expected an integer >= 0 and < 2**63, got 'random'",
    at="environment SEED (my.yaml:2)  runtime.seed",
    fix="leave the key out to take the default, 0",
)
def environment_of_wrong_type() -> None:
    """An environment variable holds a value of the wrong type."""
    os.environ["SEED"] = "random"
    Path("my.yaml").write_text("runtime:\n  seed: ${SEED:1}\n")
    program(config="my.yaml")


# -- Keys --------------------------------------------------------------------------------------------------------------

yaml(
    "A key is mistyped.",
    "runtime:\n  num_episod: 3\n",
    says="unknown key; did you mean `num_episode`?",
    at="my.yaml:2  runtime.num_episod",
    fix="write `num_episode`, or remove it",
)
yaml(
    "A key stands in the wrong section.",
    "models:\n  policy:\n    num_episode: 3\n",
    says="unknown key here; `num_episode` belongs under runtime",
    at="my.yaml:3  models.policy.num_episode",
    fix="move it under runtime",
)
yaml(
    "A setting of one's own stands beside a model's keys.",
    "models:\n  policy:\n    beam_width: 4\n",
    says="unknown key",
    at="my.yaml:3  models.policy.beam_width",
    fix="a setting of your own belongs under models.policy.args",
)
yaml(
    "A key of older versions is gone.",
    "runtime:\n  nsys: true\n",
    says="this key of older versions is gone",
    at="my.yaml:2  runtime.nsys",
    fix="name the episodes to record in runtime.profile_episodes",
)

# -- Values ------------------------------------------------------------------------------------------------------------

yaml(
    "A number is text.",
    "runtime:\n  num_episode: '8'\n",
    says="expected an integer >= 1, got '8'",
    at="my.yaml:2  runtime.num_episode",
    fix="write 8 without quotes",
)
yaml(
    "A number is too small.",
    "models:\n  policy:\n    num_replica: 0\n",
    says="expected an integer >= 1, got 0",
    at="my.yaml:3  models.policy.num_replica",
    fix="leave the key out to take the default, 1",
)
yaml(
    "A text is a number.",
    "runtime:\n  exp_name: 7\n",
    says="expected text, got 7",
    at="my.yaml:2  runtime.exp_name",
    fix="put it in quotes: exp_name: '7'",
)
yaml(
    "A switch is neither true nor false.",
    "runtime_env:\n  isolate: sometimes\n",
    says="expected true or false, got 'sometimes'",
    at="my.yaml:2  runtime_env.isolate",
    fix="write true or false, without quotes",
)
yaml(
    "A value is none of the known ones.",
    "runtime:\n  stream_data_loader_type: static\n",
    says="expected one of `fixed`, `dynamic`, got 'static'",
    at="my.yaml:2  runtime.stream_data_loader_type",
    fix="leave the key out to take the default, 'fixed'",
)
yaml(
    "A key has no value.",
    "runtime:\n  sample_per_episode:\n",
    says="expected an integer >= 1, got nothing (null)",
    at="my.yaml:2  runtime.sample_per_episode",
    fix="leave the key out to take the default, 1000",
)
yaml(
    "A section is a single value.",
    "models: policy\n",
    says="expected a mapping, got 'policy'",
    at="my.yaml:1  models",
    fix="put `key: value` lines under `models`, indented",
)
yaml(
    "A text is empty.",
    "runtime:\n  output_dir: ''\n",
    says="must not be empty",
    at="my.yaml:2  runtime.output_dir",
    fix="give it a value or leave the key out",
)
yaml(
    "The name of an experiment is a path.",
    "runtime:\n  exp_name: tests/ppo\n",
    says="must be a plain folder name without separators, got 'tests/ppo'",
    at="my.yaml:2  runtime.exp_name",
    fix="name the folder above it in runtime.output_dir",
)
yaml(
    "There is no such sink of metrics.",
    "runtime:\n  sinks: jsonl, tensorbord\n",
    says="there is no sink `tensorbord`; did you mean `tensorboard`?",
    at="my.yaml:2  runtime.sinks",
    fix="use names among: jsonl, tensorboard, wandb, mlflow, trackio",
)

# -- Values that do not fit each other ---------------------------------------------------------------------------------

yaml(
    "A global batch is no whole number of micro-batches.",
    "runtime:\n  train_micro_batch_size: 8\n  train_global_batch_size: 20\n",
    says="must be a multiple of train_micro_batch_size, which is 8; got 20",
    at="my.yaml:3  runtime.train_global_batch_size",
    fix="set it to 16 or 24",
)
yaml(
    "Early stopping has no metric to follow.",
    "runtime:\n  early_stop_patience: 3\n",
    says="needs best_metric, which is not set",
    at="my.yaml:2  runtime.early_stop_patience",
    fix="name the metric in runtime.best_metric",
)
yaml(
    "There are fewer shares than files of prompts.",
    "runtime:\n  data_path: [easy.jsonl, hard.jsonl]\n  data_ratio: [1]\n",
    says="has 1 numbers, but data_path has 2 files",
    at="my.yaml:3  runtime.data_ratio",
    fix="give one number for each file",
)
yaml(
    "A model stands in two groups that share devices.",
    "models: {policy: {}, value: {}}\nruntime:\n  colocation: ['policy,valuese', policy]\n",
    says="names the model `policy` twice",
    at="my.yaml:3  runtime.colocation",
    fix="keep it in one group",
)
yaml(
    "A group that shares devices names a model that isn't there.",
    "models: {policy: {}, value: {}}\nruntime:\n  colocation: ['policy,values']\n",
    says="`values` is no entry under models; did you mean `value`?",
    at="my.yaml:3  runtime.colocation",
    fix="use one of: policy, value",
)
yaml(
    "The parallel sizes do not divide the GPUs.",
    "models:\n  policy:\n    num_gpu: 6\n    tensor_model_parallel_size: 4\n",
    says="num_gpu must be a multiple of the tensor, pipeline and expert parallel sizes together, which are 4 here",
    at="my.yaml:4  models.policy.tensor_model_parallel_size",
    fix="change num_gpu or the parallel sizes",
)
yaml(
    "A process is to see more GPUs than the module has.",
    "models:\n  policy:\n    num_gpu: 1\n    gpu_per_process: 2\n",
    says="is 2, but the module has 1 GPUs (num_gpu)",
    at="my.yaml:4  models.policy.gpu_per_process",
    fix="set it to 1 or less",
)
yaml(
    "Three mistakes at once.",
    "runtime:\n  num_episod: 3\n  seed: random\nmodels:\n  policy: {num_replica: 0}\n",
    says=("3 problems", "unknown key", "got 'random'", "got 0"),
    at=("my.yaml:2  runtime.num_episod", "my.yaml:3  runtime.seed", "my.yaml:5  models.policy.num_replica"),
    fix=("write `num_episode`", "to take the default, 0", "to take the default, 1"),
)
