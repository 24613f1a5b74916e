"""What a resumed run may change, and how the classes of its modules are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatlearn import CheckpointError
from chatlearn.checkpoint.identity import Change, Line, check_same_identity

SAVED = {"runtime": {"seed": 1, "num_episode": 2}, "models": {"a": {"args": {"lr": 0.1, "k": 3}}}}


def _now(**args: Any) -> dict[str, Any]:
    return {"runtime": {"seed": 1, "num_episode": 9}, "models": {"a": {"args": {"lr": 0.1, "k": 3, **args}}}}


def test_what_decides_no_numbers_may_change() -> None:
    assert check_same_identity(Path("c"), SAVED, _now()) == []


def test_all_other_changes_are_listed_with_the_way_to_allow_them() -> None:
    with pytest.raises(CheckpointError) as raised:
        check_same_identity(Path("c"), SAVED, _now(lr=0.2, k=4))
    text = str(raised.value)
    assert "models.a.args.k was 3 and is 4\n  models.a.args.lr was 0.1 and is 0.2" in text
    assert "--allow-change models.a.args.k --allow-change models.a.args.lr" in text


@pytest.mark.parametrize("allowed", [["models.a.args.lr"], ["models.a"], ["models"]])
def test_a_change_is_allowed_by_its_key_or_by_one_above(allowed: list[str]) -> None:
    changes = check_same_identity(Path("c"), SAVED, _now(lr=0.2), allowed)
    assert changes == [Change("models.a.args.lr", 0.1, 0.2)]
    assert changes[0].as_dict() == {"key": "models.a.args.lr", "was": 0.1, "now": 0.2}


@pytest.mark.parametrize("allowed", ["models.a.args.l", "odels.a", "runtime"])
def test_other_keys_allow_nothing(allowed: str) -> None:
    with pytest.raises(CheckpointError, match=r"models\.a\.args\.lr was 0\.1 and is 0\.2"):
        check_same_identity(Path("c"), SAVED, _now(lr=0.2), [allowed])


class Policy:
    pass


class Instrumented(Policy):
    pass


class Other:
    pass


@pytest.mark.parametrize(
    ("saved", "current", "same"),
    [
        (Policy, Policy, True),
        (Policy, Instrumented, True),
        (Instrumented, Policy, True),
        (Policy, Other, False),
        (Instrumented, Other, False),
    ],
)
def test_classes_are_the_same_where_one_inherits_from_the_other(saved: type, current: type, same: bool) -> None:
    line, now = Line.of_class(saved), Line.of_class(current)
    assert (line.of(now) == now.name) is same


def test_a_class_without_state_and_one_of_a_script_may_be_called_otherwise() -> None:
    other = Line.of_class(Other)
    assert Line(Line.of_class(Policy).classes, has_state=False).of(other) == other.name
    assert Line(("__main__:Other",)).of(other) == other.name
    assert Line(("__main__:Policy",)).of(other) == "__main__:Policy"
    assert other.of(None) == other.name
