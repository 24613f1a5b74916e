"""A Ray of two nodes that is there already: the program joins it, places its modules there and leaves it as it was."""

from __future__ import annotations

from typing import Any

import pytest
from programs_on_ray import HERE, facts_of


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return facts_of(HERE / "two_nodes.py", folder=tmp_path_factory.mktemp("two_nodes"))


def test_each_replica_is_where_it_was_placed(found: Any) -> None:
    assert found["nodes"] == 2
    assert found["is"] == found["placed"]
    assert set(found["is"]) == {"policy[0]", "policy[1]", "reward[0]", "learner[0]"}
    assert len(set(found["is"].values())) == 2


def test_two_nodes_give_the_record_of_one_process(found: Any) -> None:
    assert found["same_record"]


def test_weights_come_to_the_replicas_of_both_nodes(found: Any) -> None:
    (first, second), (learner,) = found["weights"]
    assert found["is"]["policy[0]"] != found["is"]["policy[1]"]
    assert first == second == learner


def test_the_run_leaves_the_cluster_as_it_was(found: Any) -> None:
    actors, groups = found["states"]
    assert actors.count("ALIVE") >= 4
    assert groups == ["CREATED", "CREATED"]
    assert not found["joined_after_stop"]
    actors, groups = found["states_after"]
    assert set(actors) == {"DEAD"}
    assert set(groups) == {"REMOVED"}
    assert found["nodes_after"] == 2
    assert found["free_after"] == [8, 3]


def test_the_address_may_stand_in_the_environment(found: Any) -> None:
    assert found["by_variable"]


def test_a_ray_that_the_program_has_joined_is_used_and_stays_joined(found: Any) -> None:
    assert found["that_was_joined_before"]
    assert found["joined_by_the_user_after_stop"]
