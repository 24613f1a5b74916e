"""Description of a run: the schema, loading it, and saying all that is wrong with it at once."""

from chatlearn.config.active import active_generation, get_config, init
from chatlearn.config.check import Problem, check_args, check_models, notes, raise_problems
from chatlearn.config.load import load_config, load_config_text, parse_command_line
from chatlearn.config.schema import Config, ModelConfig, RuntimeConfig, RuntimeEnvConfig

__all__ = [
    "Config",
    "ModelConfig",
    "Problem",
    "RuntimeConfig",
    "RuntimeEnvConfig",
    "active_generation",
    "check_args",
    "check_models",
    "get_config",
    "init",
    "load_config",
    "load_config_text",
    "notes",
    "parse_command_line",
    "raise_problems",
]
