"""The user's own settings of a module."""

from __future__ import annotations

import difflib
from typing import Any

import yaml
from yaml.representer import SafeRepresenter

from chatlearn.guards import kind_of


class Settings(dict[str, Any]):
    """A dict whose keys are attributes too: ``settings.lr`` is ``settings["lr"]``, in nested dicts as well, which
    become ``Settings`` of their own: ``settings.optimizer.pop("lr")`` and ``settings["optimizer"]`` mean one dict.

    A key that is called like a method of a dict (``items``, ``get``, …) is found by ``settings["items"]`` only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _wrapped(value))

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def copy(self) -> Settings:
        """The same settings in a dict of their own."""
        return Settings(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self:
            near = difflib.get_close_matches(name, list(map(str, self)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(str, self)) or 'none'}."
            raise AttributeError(f"There is no setting {name!r} under models.<name>.args; {hint}", name=name, obj=self)
        return self[name]


def _wrapped(value: Any) -> Any:
    kind = kind_of(value)
    if kind is dict:
        return Settings(value)
    return [_wrapped(part) for part in value] if kind is list else value


for _dumper in (yaml.SafeDumper, yaml.Dumper):
    _dumper.add_representer(Settings, SafeRepresenter.represent_dict)
