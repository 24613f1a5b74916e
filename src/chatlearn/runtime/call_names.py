"""What calls of a worker's methods are called, for people."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "construct": "__init__",
    "remember_setup": "setup",
    "save_module": "save_checkpoint",
    "load_module": "load_checkpoint",
    "export_module": "export",
    "lines": "record of samples",
}
"""Methods of a worker and functions beside a module -> what a user knows."""


def name_of(method: str, args: tuple[Any, ...]) -> str:
    """The step or the hook that a call runs, or what is done beside the module."""
    if method in ("run", "answer", "hook", "move") and args:
        return str(getattr(args[0], "step", args[0]))
    if method == "apply" and args:
        if str(getattr(args[0], "__module__", "")).startswith("chatlearn.sync."):
            return "parameter sync"
        method = str(getattr(args[0], "__name__", method))
    return _NAMES.get(method, method)


def place_of(method: str, args: tuple[Any, ...]) -> str:
    """Where in the run a call stands, such as ``episode 3, batch 17``; empty where that is not known."""
    if method in ("run", "answer") and args:
        return str(args[0].place)
    return " ".join(map(str, args[1:])) if method == "hook" else ""


def words_of(handle: Any, method: str, args: tuple[Any, ...]) -> str:
    """A call in words: ``policy[0].forward_step, episode 3, batch 17``."""
    name, place = name_of(method, args), place_of(method, args)
    return f"{handle}{': ' if ' ' in name else '.'}{name}{f', {place}' if place else ''}"
