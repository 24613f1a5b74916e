"""A Ray that the engines start: for this machine alone, and gone with them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from programs_on_ray import HERE, facts_of


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return facts_of(HERE / "notebook.py", folder=tmp_path_factory.mktemp("notebook"))


def test_learning_measuring_and_calling_give_what_one_process_gives(found: Any) -> None:
    """Replicas of two modules ask one that counts: who asks when does not depend on the cluster."""
    assert found["first"]


def test_an_exception_of_a_class_of_the_script_comes_back_as_one(found: Any) -> None:
    is_one, what, text = found["cause"]
    assert is_one
    assert what == "below 0"
    assert "RefusedError: below 0\n  raised in policy[0].forward_step" in text


def test_it_listens_on_the_loopback_interface_only(found: Any) -> None:
    assert found["listening"]
    assert set(found["listening"]) <= {
        "0100007F",
        "0000000000000000FFFF00000100007F",
        "00000000000000000000000001000000",
    }


def test_it_has_no_dashboard(found: Any) -> None:
    assert not found["dashboard_url"]
    assert not found["dashboards"]


def test_it_has_the_cores_of_the_machine_or_more_if_more_are_asked_for(found: Any) -> None:
    assert found["cores"] == max(os.cpu_count() or 1, 2 * 2 + 3)


def test_each_replica_is_a_process_of_its_own(found: Any) -> None:
    assert found["workers"] == 5


def test_a_second_engine_shares_it_with_the_first(found: Any) -> None:
    assert found["second"]
    assert found["second_goes_on"]


def test_it_ends_with_its_last_engine_and_another_one_can_begin(found: Any) -> None:
    assert not found["joined"]
    assert found["third"]


def test_no_process_is_left(found: Any) -> None:
    assert found["left"] == []
