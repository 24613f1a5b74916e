"""Ready-made recipes: modules, engine and YAML for one algorithm each."""

RECIPES = {"ppo": "chatlearn.recipes.ppo.recipe"}
"""Name on the command line -> module with ``CONFIG``, ``run(config)`` and ``check(config)``."""
