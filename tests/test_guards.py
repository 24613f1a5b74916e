"""Kinds of values. That a type checker follows them is what pyright checks in the rooms that use them."""

import collections
import pathlib
import types

import pytest

from chatlearn.guards import is_dict, is_instance, is_list, is_mapping, is_path, is_sequence, kind_of

VALUES = {
    "dict": {"a": 1},
    "a dict's subclass": collections.Counter("a"),
    "read-only mapping": types.MappingProxyType({"a": 1}),
    "list": [1],
    "tuple": (1,),
    "text": "a",
    "path": pathlib.PurePath("a"),
    "range": range(1),
    "nothing": None,
}


@pytest.mark.parametrize(
    ("guard", "names"),
    [
        (is_dict, {"dict", "a dict's subclass"}),
        (is_mapping, {"dict", "a dict's subclass", "read-only mapping"}),
        (is_list, {"list"}),
        (is_sequence, {"list", "tuple"}),
        (is_path, {"text", "path"}),
    ],
)
def test_a_guard_accepts_its_kinds_only(guard, names):
    assert {name for name, value in VALUES.items() if guard(value)} == names


def test_is_instance_takes_one_kind_or_several():
    assert is_instance(1, int)
    assert is_instance("a", (int, str))
    assert not is_instance("a", int)


def test_kind_of_is_the_class_itself_and_not_a_parent():
    assert kind_of(VALUES["a dict's subclass"]) is collections.Counter
    assert kind_of(True) is bool
