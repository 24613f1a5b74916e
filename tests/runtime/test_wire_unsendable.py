"""What can't be sent: the error names the culprit's path in the value, its type, and what to do."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chatlearn.errors import DataError
from chatlearn.modules.base import BaseModule, Description
from chatlearn.runtime.arguments import unsendable
from chatlearn.runtime.wire import carried, encode, encode_parts, obstacle

LOCK = threading.Lock()


@dataclasses.dataclass
class Config:
    name: str
    lock: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    handle: Any


class Pair(collections.namedtuple("Pair", ["left", "right"])):
    __slots__ = ()


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def call(self):
        return self.lock


class Dropping:
    """Leaves its lock out of its pickle, but has something else that does not go."""

    def __init__(self):
        self.lock = threading.Lock()
        self.rows = (i for i in ())

    def __getstate__(self):
        return {"rows": self.rows}


class Refusing:
    def __reduce__(self):
        raise OSError("it is tied to the machine.")


def closing_over(lock):
    return lambda: lock


def with_default(lock):
    def function(x, guard=lock, *, other=1):
        return x

    return function


def in_a_loop():
    value = {"name": "a", "self": None, "lock": LOCK}
    value["self"] = value
    return value


def object_array():
    array = np.empty((2, 2), dtype=object)
    array[1, 0] = LOCK
    return array


LOCK_TYPE, FILE, GENERATOR = "_thread.lock", "_io.TextIOWrapper", "generator"
CASES: dict[str, tuple[Any, str]] = {
    "dataclass": ({"model": [Config("a", LOCK)]}, f"`['model'][0].lock` ({LOCK_TYPE})"),
    "nested": (
        Config("a", {"notes": [1, 2, 3, SimpleNamespace(handle=sys.__stdout__)]}),
        f"`.lock['notes'][3].handle` ({FILE})",
    ),
    "slots": ((Slotted(1), Slotted(LOCK)), f"`[1].handle` ({LOCK_TYPE})"),
    "object": ([Locked()], f"`[0].lock` ({LOCK_TYPE})"),
    "method": ({"f": Locked().call}, f"`['f'].__self__.lock` ({LOCK_TYPE})"),
    "named tuple": (Pair(1, [LOCK]), f"`[1][0]` ({LOCK_TYPE})"),
    "ordered dict": (collections.OrderedDict(a=1, b=LOCK), f"`['b']` ({LOCK_TYPE})"),
    "deque": (collections.deque([1, LOCK]), f"`[1]` ({LOCK_TYPE})"),
    "set": ({"x": {LOCK}}, f"`['x']{{…}}` ({LOCK_TYPE})"),
    "key": ({"x": {(1, LOCK): 2}}, f"`['x'].keys()[0][1]` ({LOCK_TYPE})"),
    "array": ({"x": object_array()}, f"`['x'][1, 0]` ({LOCK_TYPE})"),
    "closure": ({"f": closing_over(LOCK)}, f"`['f'].__closure__['lock']` ({LOCK_TYPE})"),
    "default": ([with_default(LOCK)], f"`[0].__defaults__[0]` ({LOCK_TYPE})"),
    "partial": (functools.partial(sorted, [1], key=LOCK), f"`.keywords['key']` ({LOCK_TYPE})"),
    "state": ([Dropping()], f"`[0].rows` ({GENERATOR})"),
    "refusing": ([1, Refusing()], "`[1]` (test_wire_unsendable.Refusing)"),
    "loop": (in_a_loop(), f"`['lock']` ({LOCK_TYPE})"),
    "itself": (LOCK, f"an object of type {LOCK_TYPE}"),
}


@pytest.mark.parametrize(("value", "words"), CASES.values(), ids=CASES)
def test_the_error_names_the_path_of_the_culprit(value, words):
    for way in (encode, encode_parts):
        with pytest.raises(DataError) as caught:
            way(value)
        assert str(caught.value).startswith(f"{words} can't be sent to another process: ")
        assert "in setup()" in str(caught.value)
        assert caught.value.__cause__ is not None


def test_the_reason_is_given():
    with pytest.raises(DataError, match=r"process: it is tied to the machine\. Send plain values"):
        encode([Refusing()])
    with pytest.raises(DataError, match=r"process: cannot pickle '_thread\.lock' object\. Send"):
        encode([LOCK])


def test_a_file_is_refused_whether_it_could_be_read_or_not(tmp_path):
    path = tmp_path / "notes.txt"
    for mode in ("w", "r"):
        with (
            path.open(mode) as file,
            pytest.raises(DataError, match=r"^`\['file'\]` \(_io\.TextIOWrapper\) can't be sent"),
        ):
            encode({"file": file})


def test_carrying_inside_of_the_process_names_it_too():
    class Local:
        lock = LOCK

        def __init__(self, value):
            self.value = value

    assert carried(Local(1)).value == 1
    with pytest.raises(DataError, match=r"^`\['x'\]\.value` \(_thread\.lock\) can't be sent"):
        carried({"x": Local(LOCK)})


def test_a_class_that_goes_by_value_with_a_lock_is_named():
    class Local:
        guards = (1, LOCK)

    with pytest.raises(DataError, match=r"^`\[0\]\.__class__\.guards\[1\]` \(_thread\.lock\)"):
        encode([Local()])


def local_class(part):
    class Base:
        handle = part

    return Base


def class_with(**parts):
    return type("Made", (), parts)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (type("Derived", (local_class(LOCK),), {}), ".__bases__[0].handle"),
        (class_with(make=classmethod(closing_over(LOCK))), ".make.__func__.__closure__['lock']"),
        (class_with(made=property(closing_over(LOCK))), ".made.fget.__closure__['lock']"),
        (class_with(make=functools.partialmethod(len, LOCK)), ".make.args[0]"),
    ],
    ids=["base", "class method", "property", "partial method"],
)
def test_what_a_class_by_value_takes_along_is_named(kind, path):
    found = obstacle(kind)
    assert (found.path, found.kind) == (path, LOCK_TYPE)


def test_what_a_function_by_value_takes_along_is_named():
    def function(x, *, guard=LOCK):
        return x

    assert obstacle(function).path == ".__kwdefaults__['guard']"
    function.__kwdefaults__ = None
    function.note = {"lock": LOCK}
    assert obstacle(function).path == ".note['lock']"
    function.note = LOCK_TYPE
    assert obstacle(function) is None


def test_a_state_of_any_form_is_searched():
    class Listed:
        def __getstate__(self):
            return [1, LOCK]

    assert obstacle(Listed()).path == ".__getstate__()[1]"


def test_a_value_that_can_be_sent_has_no_obstacle():
    assert obstacle({"x": torch.ones(20_000), "f": closing_over(1), "m": Config}) is None


def test_a_deep_path_is_shortened():
    value: Any = LOCK
    for _ in range(120):
        value = {"key": value}
    path = obstacle(value).path
    assert len(path) == 201
    assert path.startswith("['key']['key']")
    assert path.endswith("['key']['key']")


def test_an_interrupt_during_the_search_is_not_swallowed():
    class Interrupting:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode([LOCK, Interrupting()][::-1])


class Tokenizer:
    def __init__(self):
        self.lock = threading.Lock()


class Policy(BaseModule):
    def __init__(self, name, tokenizer=None, *more, scale=1.0, **others):
        super().__init__(name)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        (("policy",), {"tokenizer": Tokenizer()}, f"`tokenizer.lock` ({LOCK_TYPE})"),
        (("policy", Tokenizer()), {}, f"`tokenizer.lock` ({LOCK_TYPE})"),
        (("policy", 1, 2, [io.TextIOWrapper(io.BytesIO())]), {}, f"`args[1][0]` ({FILE})"),
        (("policy",), {"scale": LOCK}, f"`scale` ({LOCK_TYPE})"),
        (("policy",), {"stream": {"a": (i for i in ())}}, f"`stream['a']` ({GENERATOR})"),
    ],
    ids=["by name", "by place", "beyond", "keyword", "other"],
)
def test_arguments_of_a_constructor_are_named(args, kwargs, words):
    found = unsendable(Description(Policy, args, kwargs, "policy"))
    assert found is not None
    assert found.startswith(f"models.policy: argument {words} of Policy(…) can't be sent to a worker (cannot pickle ")
    assert found.endswith("make it in setup(), from arguments that are plain values.")


def test_a_class_that_can_not_be_imported_and_takes_a_lock_along_is_named():
    class Guarded(Policy):
        guard = LOCK

    found = unsendable(Description(Guarded, ("policy",), {}, "policy"))
    assert found is not None
    assert f"`{Guarded.__qualname__}.guard` ({LOCK_TYPE}) can't (cannot pickle '_thread.lock' object)" in found


def test_arguments_that_can_be_sent_are_not_named():
    given = {"scale": torch.ones(3), "function": closing_over(2)}
    assert unsendable(Description(Policy, ("policy", [1]), given, "policy")) is None


SCRIPT = """
import threading
from chatlearn.modules.base import BaseModule, Description
from chatlearn.runtime.arguments import unsendable

LOCK = threading.Lock()

class Policy(BaseModule):
    def forward_step(self, data):
        return self.locked(data)
    def locked(self, data):
        with LOCK:
            return data

class Plain(BaseModule):
    def forward_step(self, data):
        return data

print(unsendable(Description(Policy, ("policy",), {}, "policy")))
print(unsendable(Description(Plain, ("plain",), {}, "plain")))
"""


def test_a_class_of_a_script_that_uses_a_lock_is_named(tmp_path: Path):
    ran = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, cwd=tmp_path)
    first, second = ran.stdout.splitlines()
    assert first.startswith("models.policy: the class Policy can't be sent to a worker")
    assert "`Policy.locked.__globals__['LOCK']` (_thread.lock) can't (cannot pickle '_thread.lock' object)" in first
    assert second == "None"
