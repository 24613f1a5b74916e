"""Stand-ins for batches while a flow is traced.

A :class:`Symbol` is a whole batch: it can be passed to steps and returned, nothing else. Reading from one gives a
:class:`Poisoned` value, harmless until it reaches a step or a return, or Python needs a truth value or a number of it:
then the error names the line of the read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, cast

from chatlearn.errors import FlowError

if TYPE_CHECKING:
    from chatlearn.flow.recorder import Recorder

_NOT_THE_FLOW = ("chatlearn.flow.", "chatlearn.modules.base", "torch.", "numpy.")

_ADVICE = (
    "A flow is run once with stand-ins to learn its graph, before there is any data. Move what depends on data into a "
    "step of a module (a method marked @chatlearn.step will do); branch only on configuration."
)


def caller_place() -> str:
    """``file:line`` of the nearest frame that is neither chatlearn's tracing code nor inside of torch or numpy."""
    frame = inspect.currentframe()
    assert frame is not None
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_FLOW):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


_CHANGING_METHODS = frozenset(
    {
        *("update", "pop", "popitem", "setdefault", "clear"),
        *("append", "extend", "insert", "remove", "sort", "reverse"),
    }
)
"""Of dicts and lists; torch's end in an underscore."""


class _StandIn:
    """Everything that neither a Symbol nor a Poisoned value can do.

    What it knows of itself has names that begin with ``chatlearn_``, since all others are read from the data.
    """

    chatlearn_origin: str

    __array_priority__ = 1000.0
    """numpy's arrays and scalars on the left leave their operators to the stand-in."""

    def _describe(self) -> str:
        return self.chatlearn_origin

    def _refuse(self, what: str) -> NoReturn:
        raise FlowError(f"{caller_place()}: the flow {what} of {self._describe()}. {_ADVICE}")

    def __bool__(self) -> bool:
        self._refuse("asks for the truth value (an `if`, `while`, `and`, `or`, `not` or `assert`)")

    def __len__(self) -> int:
        self._refuse("asks for the length")

    def __iter__(self) -> Iterator[Any]:
        self._refuse("iterates over the contents")
        yield  # a generator: Python replaces a TypeError of iter(), such as ours, with its own inside of `{**out}`

    def __next__(self) -> NoReturn:
        self._refuse("iterates over the contents")

    def __enter__(self) -> NoReturn:
        self._refuse("asks for the context (a `with`)")

    def __exit__(self, *error: object) -> None:
        """Never called; Python looks for it before it enters."""

    def __contains__(self, item: object) -> bool:
        self._refuse(f"asks whether {item!r} is part")

    def __int__(self) -> int:
        self._refuse("needs a number")

    __index__ = __int__

    def __float__(self) -> float:
        self._refuse("needs a number")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("makes an array")

    def __setitem__(self, key: object, value: object) -> None:
        self._refuse(f"sets [{key!r}] in the contents")

    def __delitem__(self, key: object) -> None:
        self._refuse(f"deletes [{key!r}] from the contents")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        name = getattr(function, "__name__", str(function))
        raise FlowError(f"{caller_place()}: the flow hands a stand-in for data to torch ({name}). {_ADVICE}")

    def chatlearn_read(self, what: str) -> Poisoned:
        return Poisoned(f"{self._describe()}{what}", caller_place())

    def __getitem__(self, key: object) -> Poisoned:
        return self.chatlearn_read(f"[{key!r}]")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self.chatlearn_read(f".{name}")

    def __setattr__(self, name: str, value: object) -> None:
        self._refuse(f"sets the attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        self._refuse(f"deletes the attribute {name!r}")

    def __format__(self, spec: str) -> str:
        return repr(self)

    def _change(self, method: str) -> Any:
        def refuse(*args: object, **kwargs: object) -> NoReturn:
            self._refuse(f"changes the contents ({method})")

        return refuse

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: object) -> Any:
        return self

    __hash__ = object.__hash__


def _operator(symbol: str) -> Any:
    def read(self: _StandIn, *others: object) -> Poisoned:
        return self.chatlearn_read(f" {symbol} …" if others else f" (under {symbol})")

    return read


for _name, _symbol in {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>", "divmod": "divmod",
}.items():  # fmt: skip
    for _prefix in ("__", "__r", "__i"):
        setattr(_StandIn, f"{_prefix}{_name}__", _operator(_symbol))
for _name, _symbol in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(_StandIn, f"__{_name}__", _operator(_symbol))
for _name in ("neg", "pos", "abs", "invert", "round"):
    setattr(_StandIn, f"__{_name}__", _operator(_name))


class Symbol(_StandIn):
    """A batch that is not there yet: the flow's argument, or the output of a node."""

    chatlearn_recorder: Recorder
    chatlearn_index: int

    def __init__(self, recorder: Recorder, index: int, origin: str) -> None:
        self.__dict__.update(chatlearn_recorder=recorder, chatlearn_index=index, chatlearn_origin=origin)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise FlowError(
            f"{caller_place()}: the flow calls {self._describe()} like a function. It is a batch: pass it to a step, "
            f"as in `policy.forward_step(batch)`."
        )

    def __ior__(self, other: object) -> NoReturn:
        self._refuse("changes the contents (|=)")

    def __getattr__(self, name: str) -> Any:
        if name in _CHANGING_METHODS:
            return self._change(name)
        return super().__getattr__(name)

    def __repr__(self) -> str:
        return f"<{self.chatlearn_origin}>"


class Poisoned(_StandIn):
    """What was read from a :class:`Symbol`; an error only where something real is needed of it."""

    chatlearn_where: str

    @property
    def chatlearn_read_at(self) -> str:
        """What was read, and the line of the read."""
        return f"{self.chatlearn_origin}, read at {self.chatlearn_where}"

    def __init__(self, origin: str, where: str) -> None:
        self.__dict__.update(chatlearn_origin=origin, chatlearn_where=where)

    def __call__(self, *args: object, **kwargs: object) -> Poisoned:
        return self.chatlearn_read("(…)")

    def __hash__(self) -> int:
        self._refuse("asks for the hash (a key of a dict, or a member of a set)")

    def chatlearn_read(self, what: str) -> Poisoned:
        return Poisoned(f"{self.chatlearn_origin}{what}", self.chatlearn_where)

    def _describe(self) -> str:
        return f"{self.chatlearn_origin} (read at {self.chatlearn_where})"

    def __getattr__(self, name: str) -> Any:
        changes = name in _CHANGING_METHODS or (name.endswith("_") and not name.endswith("__"))
        return self._change(name) if changes else super().__getattr__(name)

    def __repr__(self) -> str:
        return f"<{self.chatlearn_origin}: known only when the flow runs>"


def find_stand_in(value: object) -> _StandIn | None:
    """The first Symbol or Poisoned value inside nested dicts, lists and tuples, if any."""
    if isinstance(value, _StandIn):
        return value
    if isinstance(value, dict):
        parts: Iterable[object] = cast("dict[object, object]", value).values()
    elif isinstance(value, (list, tuple)):
        parts = cast("list[object]", value)
    else:
        return None
    return next((found for part in parts if (found := find_stand_in(part)) is not None), None)
