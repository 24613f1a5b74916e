"""Tasks that recipes train on: prompts in splits, a demonstrator for the warm start, a reward, a tokenizer and a model.

A task is a module with the functions ``load_splits``, ``build_tokenizer``, ``build_model`` and
``imperfect_demonstrations``; the recipes' YAML names it (``models.warm_start.args.task``).
"""
