"""Ready-made recipes: modules, engine and YAML for one algorithm each."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What a name on the command line stands for.

    Attributes:
        module: import path of a module with ``run(config)``, ``check(config)`` and ``rebuild(config, folder)``.
        config: its configuration, where the command line names no other; a file beside the module.
    """

    module: str
    config: str

    def load(self) -> Any:
        """The module."""
        return importlib.import_module(f"chatlearn.recipes.{self.module}")

    @property
    def config_path(self) -> Path:
        """The file of the configuration."""
        return Path(__file__).parent.joinpath(*self.module.split(".")).parent / self.config


RECIPES = {
    "ppo": Recipe("ppo.recipe", "ppo.yaml"),
    **{name: Recipe("ppo_learned_reward.recipe", f"{name}.yaml") for name in ("ppo_learned_reward", "learned_only")},
    **{
        name: Recipe("grpo.recipe", f"{name}.yaml")
        for name in ("grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "gspo", "cispo", "palindrome")
    },
}
"""Name on the command line -> recipe."""
