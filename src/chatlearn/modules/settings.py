"""The user's own settings of a module."""

from __future__ import annotations

import difflib
from typing import Any

from chatlearn.guards import kind_of


class Settings(dict[str, Any]):
    """A dict whose keys are attributes too: ``settings.lr`` is ``settings["lr"]``, in nested dicts as well, which
    become ``Settings`` of their own: ``settings.optimizer.pop("lr")`` and ``settings["optimizer"]`` mean one dict.

    A key that is called like a method of a dict (``items``, ``get``, …) is found by ``settings["items"]`` only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for key, value in self.items():
            if kind_of(value) is dict:
                self[key] = Settings(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self:
            near = difflib.get_close_matches(name, list(map(str, self)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(str, self)) or 'none'}."
            raise AttributeError(f"There is no setting {name!r} under models.<name>.args; {hint}", name=name, obj=self)
        return self[name]
