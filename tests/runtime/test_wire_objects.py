"""Objects, classes and functions on their way through bytes: nothing of them runs, and classes stay what they are."""

from __future__ import annotations

import copy
import dataclasses
import enum
import subprocess
import sys
from typing import Any

import pytest
import torch

from chatlearn.runtime.objects import Layout, instance_of
from chatlearn.runtime.wire import carried, decode, encode

WAYS = {"wire": lambda value: decode(encode(value)), "carried": carried}


@dataclasses.dataclass
class Doubled:
    """Its constructor makes something else of what it gets, and leaves things out."""

    x: Any
    start: dataclasses.InitVar[int]
    count: int = dataclasses.field(init=False, default=0)

    def __post_init__(self, start):
        self.x = self.x * 2
        self.count = start


@dataclasses.dataclass(init=False)
class OwnInit:
    x: int

    def __init__(self, words):
        self.x = len(words)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: Any
    y: Any = None

    def __post_init__(self):
        object.__setattr__(self, "y", "computed")


@dataclasses.dataclass
class Counted(dict):
    x: int = 0


@dataclasses.dataclass
class Reduced:
    x: int

    def __reduce__(self):
        return (Reduced, (self.x + 100,))


@dataclasses.dataclass
class Stated:
    x: int

    def __getstate__(self):
        return {"x": self.x, "stored": True}

    def __setstate__(self, state):
        self.x = state["x"] + state["stored"]


@dataclasses.dataclass
class Turn:
    """A node of a tree that knows its parent."""

    text: str
    parent: Any = None
    children: list = dataclasses.field(default_factory=list)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_constructor_of_a_dataclass_runs_on_arrival(way):
    doubled, own_init, slotted, counted = Doubled(3, start=5), OwnInit("abc"), Slotted([1]), Counted(x=4)
    doubled.extra = torch.ones(2)
    own_init.later = "set"
    object.__setattr__(slotted, "y", "changed")
    counted["key"] = 1
    got = way({"doubled": [doubled], "own": own_init, "slotted": (slotted,), "counted": counted})
    assert (got["doubled"][0].x, got["doubled"][0].count) == (6, 5)
    assert got["doubled"][0].extra.tolist() == [1, 1]
    assert vars(got["own"]) == {"x": 3, "later": "set"}
    assert (got["slotted"][0].x, got["slotted"][0].y) == ([1], "changed")
    assert (dict(got["counted"]), got["counted"].x) == ({"key": 1}, 4)


def test_a_dataclass_that_lacks_attributes_arrives_without_them():
    bare = Turn.__new__(Turn)
    bare.text = "a"
    assert vars(decode(encode(bare))) == {"text": "a"}
    assert not hasattr(decode(encode(Slotted.__new__(Slotted))), "x")


def test_dataclasses_with_a_say_in_their_own_pickling_keep_it():
    assert decode(encode(Reduced(1))).x == copy.copy(Reduced(1)).x == 101
    assert decode(encode(Stated(1))).x == copy.copy(Stated(1)).x == 2


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_holds_itself_arrives_holding_itself(way):
    root = Turn("question")
    root.children.append(Turn("answer", root))
    got = way({"turns": [root]})["turns"][0]
    assert got is not root
    assert (got.text, got.children[0].text) == ("question", "answer")
    assert got.children[0].parent is got


def test_classes_without_an_import_path_stay_the_same_inside_of_the_process():
    seen = []

    class Local:
        marks = seen

        def __init__(self, x):
            seen.append(x)
            self.x = x

        def method(self):
            return type(self)

    @dataclasses.dataclass
    class LocalPoint:
        x: Any

        def __post_init__(self):
            seen.append(self.x)

    class Shade(enum.Enum):
        DARK = 1

    method, inner = Local.method, [1]
    values = {"classes": [Local, LocalPoint, Shade], "objects": (Local(inner), LocalPoint(inner), Shade.DARK)}
    got = carried(values)
    assert [a is b for a, b in zip(got["classes"], values["classes"], strict=True)] == [True] * 3
    plain, point, shade = got["objects"]
    assert (type(plain), type(point), shade) == (Local, LocalPoint, Shade.DARK)
    assert plain.x == point.x == [1]
    assert plain.x is not inner
    assert point.x is not inner
    assert carried(plain.method)() is Local
    assert carried(lambda: Local)() is Local
    assert Local.method is method
    assert Local.marks is seen
    assert seen == [[1], [1]]


def test_a_function_without_an_import_path_keeps_what_it_closes_over_to_itself():
    kept = []
    copy_of = carried(lambda x: kept.append(x) or list(kept))
    assert (copy_of(1), copy_of(2)) == ([1], [1, 2])
    assert kept == []


LIVE_SCRIPT = """
from dataclasses import dataclass
from chatlearn.runtime.wire import carried

SCALE = 1

@dataclass
class Sample:
    x: int
    def __post_init__(self):
        self.x += 1
    def scaled(self):
        return SCALE * self.x

def helper():
    return SCALE

class Policy:
    def __init__(self, x):
        self.x = x
    def scaled(self):
        return SCALE * self.x

methods = Policy.scaled, Policy.__init__, Sample.scaled
old = Policy

class Policy(old):
    pass

policy, sample, function, call, former = carried([Policy(5), Sample(1), helper, lambda: helper, old])
SCALE = 2
print(type(policy) is Policy, policy.scaled(), type(sample) is Sample, sample.scaled())
print(function is helper, call() is helper, former is old)
print((old.scaled, old.__init__, Sample.scaled) == methods, Policy(1).scaled())
"""


def test_classes_and_functions_of_a_script_stay_the_same_inside_of_the_process():
    printed = subprocess.run([sys.executable, "-c", LIVE_SCRIPT], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["True", "10", "True", "4", "True", "True", "True", "True", "2"]


@dataclasses.dataclass(slots=True)
class WithSlots:
    a: int
    b: str


def test_attributes_of_a_sender_without_slots_fill_the_slots_of_the_receiver():
    """A class of a script loses its slots on the way through cloudpickle."""
    sent = Layout("module", "WithSlots", attributes=("a", "b"), slots=())
    assert instance_of(WithSlots, sent, [1, "x"]) == WithSlots(1, "x")
