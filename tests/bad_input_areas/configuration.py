"""Bad configurations beside their files: the command line, Python values, what does not fit the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
from bad_input_areas.cause import Causes
from bad_input_areas.program import NotYet, command, engine_of, program

import chatlearn
from chatlearn import ConfigError, Engine, ModuleError, Trainer

CAUSES = Causes()
cause, yaml, command_line = CAUSES.cause, CAUSES.yaml, CAUSES.command_line

# -- The command line --------------------------------------------------------------------------------------------------

command_line(
    "A setting on the command line begins with a mistyped section.",
    "runtme.seed=1",
    says="unknown section `runtme`; did you mean `runtime`?",
    at="command line  runtme.seed",
    fix="write runtime.seed=…",
)
command_line(
    "A setting on the command line is written like an option.",
    "--runtime.seed=1",
    says="an override has no dashes",
    at="command line  runtime.seed",
    fix="write runtime.seed=1",
)
command_line(
    "A setting on the command line goes below a plain value.",
    "runtime.seed=1 runtime.seed.start=2",
    says="`runtime.seed` is 1, so nothing can be set below it",
    at="command line  runtime.seed.start",
    fix="set `runtime.seed` itself",
)
command_line(
    "A value on the command line is broken YAML.",
    "runtime.export=[policy",
    says="not valid YAML",
    at="command line  runtime.export",
    fix="put quotes around text with special characters",
)
command_line(
    "An option comes without its value.",
    "-c",
    says="`-c` comes without a file",
    at="command line",
    fix="write `-c FILE`, with the path of a YAML file",
)
command_line(
    "A file of settings isn't there.",
    "--set quick.yaml",
    says="quick.yaml: no such file",
    at="command line",
    fix="that folder holds no YAML file",
)


@cause(ConfigError, says="Nothing reads 'seed=1'", at="'seed=1'", fix="settings such as runtime.num_episode=3")
def word_that_nothing_reads() -> None:
    """`chatlearn check` gets a word that means nothing."""
    command("check", "ppo", "seed=1")


@cause(ConfigError, says="There is no recipe 'pop'", at="'pop'", fix="did you mean 'ppo'?")
def no_recipe() -> None:
    """There is no such recipe."""
    command("run", "pop")


@cause(ConfigError, says="There is no program", at="train.py", fix="Give the path of a Python file")
def no_program() -> None:
    """The program isn't there."""
    command("check", "train.py")


# -- Python values -----------------------------------------------------------------------------------------------------


@cause(
    ConfigError,
    says="expected a configuration, got 3",
    at="the argument",
    fix="give the path of a YAML file or a list of paths, a dict or a Config",
)
def number_as_configuration() -> None:
    """`init` gets something that is no configuration."""
    program(config=3)


@cause(
    ConfigError,
    says="must consist of plain values, got an object of type builtin_function_or_method at `reward`",
    at="dict  models.policy.args",
    fix="pass objects to the module's constructor",
)
def function_as_setting() -> None:
    """A setting of one's own is a function."""
    program(config={"models": {"policy": {"args": {"reward": len}}}})


@cause(ConfigError, says="the mapping is nested too deeply, or contains itself", at="dict", fix="take it out of itself")
def endless_dict() -> None:
    """A dict contains itself."""
    config: dict[str, Any] = {}
    config["models"] = config
    program(config=config)


@cause(
    ConfigError,
    says="a configuration can't be changed once it is loaded",
    at="runtime.seed",
    fix="Give the value to chatlearn.init(), as runtime.seed=… on the command line",
)
def change() -> None:
    """A program changes a configuration after it was loaded."""
    config: Any = chatlearn.init({"runtime": {"seed": 1}})
    config.runtime.seed = 2
    engine_of(NotYet("policy")).learn()


@cause(ConfigError, says="There is no configuration yet", at="at the top of the program", fix="Call chatlearn.init()")
def no_init() -> None:
    """A program asks for the configuration before `init`."""
    chatlearn.get_config()


# -- Settings of modules -----------------------------------------------------------------------------------------------


class Sampling(NotYet):
    """Has settings of its own."""

    class Args(pydantic.BaseModel):
        """``models.<name>.args``."""

        max_new_tokens: int = pydantic.Field(ge=1, description="the most tokens of a response")
        temperature: float = 1.0
        schedule: str = "constant"

        @pydantic.field_validator("schedule")
        @classmethod
        def _known(cls, value: str) -> str:
            if value != "constant":
                raise ValueError("there is only the schedule 'constant'")
            return value


def _with_args(**args: Any) -> None:
    program(config={"models": {"policy": {"args": args}}}, uses=Sampling("policy"))


@cause(
    ConfigError,
    says="unknown key; did you mean `temperature`?",
    at="dict  models.policy.args.temp",
    fix="write `temperature`, or remove it",
)
def mistyped_setting() -> None:
    """A module's class has no such setting."""
    _with_args(max_new_tokens=8, temper=0.5)


@cause(
    ConfigError,
    says="missing; expected an integer >= 1 (the most tokens of a response)",
    at="dict  models.policy.args.max_new_tokens",
    fix="add `max_new_tokens: …` under models.policy.args",
)
def missing_setting() -> None:
    """A setting that a module's class needs is missing."""
    _with_args(temperature=0.5)


@cause(
    ConfigError,
    says="there is only the schedule 'constant'; got 'linear'",
    at="dict  models.policy.args.schedule",
    fix="leave the key out to take the default, 'constant'",
)
def refused_setting() -> None:
    """A module's class refuses the value of a setting."""
    _with_args(max_new_tokens=8, schedule="linear")


@cause(
    ConfigError,
    says="there is no folder models/qwen",
    at="dict  models.policy.args.model_path",
    fix="give an existing model folder, or a name on the Hub",
)
def no_model_folder() -> None:
    """The folder of a model isn't there."""
    from chatlearn.modules.torch import PolicyInference

    args = {"model_path": "./models/qwen", "max_new_tokens": 8}
    program(config={"models": {"policy": {"args": args}}}, uses=PolicyInference("policy"))


@cause(
    ConfigError,
    says="qwen holds no config.json",
    at="dict  models.policy.args.model_path",
    fix="give a folder that save_pretrained wrote",
)
def no_model_in_folder() -> None:
    """The folder of a model holds no model."""
    from chatlearn.modules.torch import PolicyInference

    Path("qwen").mkdir()
    args = {"model_path": "qwen", "max_new_tokens": 8}
    program(config={"models": {"policy": {"args": args}}}, uses=PolicyInference("policy"))


# -- Configuration and program -----------------------------------------------------------------------------------------

yaml(
    "A module has no entry, while others have one.",
    "models:\n  poliy: {num_replica: 2}\n",
    says="the module `policy` has no entry under models, while others have one",
    at="my.yaml:1  models.policy",
    fix="rename the entry `poliy` or add `policy:` under models",
)
yaml(
    "A module is to be exported that no flow uses.",
    "runtime:\n  export: value\n",
    says="no flow uses a module `value`",
    at="my.yaml:2  runtime.export",
    fix="use one of: policy",
)
yaml(
    "A module is to be exported that can't be.",
    "runtime:\n  export: policy\n",
    says="NotYet (module 'policy') has no method export(path)",
    at="my.yaml:2  runtime.export",
    fix="define it, or take the name off the list",
)


@cause(
    ConfigError,
    says="is 2, but the trainer's flow trains 'learner', and one replica never sees what another learns",
    at="dict  models.learner.num_replica",
    fix="set it to 1",
)
def replicas_of_a_trained_module() -> None:
    """A module that is trained has several replicas."""
    learner = NotYet("learner")
    chatlearn.init({"models": {"learner": {"num_replica": 2}}})
    Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset([1, 2]).learn()


@cause(
    ModuleError,
    says="Counting is stateful (it keeps state between calls), so it has one replica",
    at="`models.policy.num_replica` is 2",
    fix="Set it to 1",
)
def replicas_of_a_stateful_module() -> None:
    """A module that keeps state between calls has several replicas."""

    class Counting(NotYet):
        stateful = True

    program(config={"models": {"policy": {"num_replica": 2}}}, uses=Counting("policy"))
