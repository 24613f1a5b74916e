"""GRPO and its family on a small language model, on the CPU: one recipe, one YAML for each algorithm."""
