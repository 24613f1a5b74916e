"""What seeds a step, a hook and a data set on every cluster. The derivation itself: test_seeding.py."""

from __future__ import annotations

import pytest
import torch
from runtime_cases import Rolling, apply, run, spawn

from chatlearn import BaseModule


def drawn(cluster, *, name="rolling", seed=5, replica=0, before=(), **call):
    """What a fresh replica draws in one call, after other calls."""
    handle = spawn(cluster, Rolling(name), replica=replica, seed=seed)
    for index in before:
        run(cluster, handle, {"x": [0]}, index=index)
    call = {"index": 3, "sample_ids": (7, 8), **call}
    output = run(cluster, handle, {"x": [0, 0]}, **call)
    return {key: value if isinstance(value, list) else value.tolist() for key, value in output.items()}


def test_a_call_draws_the_same_on_any_replica_after_any_calls(cluster):
    first = drawn(cluster)
    assert drawn(cluster, replica=4) == first
    assert drawn(cluster, before=(0, 1, 2)) == first
    torch.rand(5)
    assert drawn(cluster) == first


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6}, {"phase": "eval"}, {"name": "other"}, {"step": "other"}, {"occurrence": 1}, {"index": 4},
    ],
    ids=str,
)  # fmt: skip
def test_each_part_of_the_place_has_numbers_of_its_own(cluster, change):
    """Noise of samples does not depend on the batch, so for another index only the global generators change."""
    first, second = drawn(cluster), drawn(cluster, **change)
    for kind in ("torch", "numpy", "random"):
        assert first[kind] != second[kind]
    assert (first["uniforms"] == second["uniforms"]) == ("index" in change)


def test_noise_of_a_sample_is_the_same_in_any_batch(cluster):
    both = drawn(cluster)["uniforms"]
    assert drawn(cluster, sample_ids=(8, 7), index=9)["uniforms"] == both[::-1]
    assert drawn(cluster, sample_ids=(9, 8), replica=2)["uniforms"][1] == both[1]
    assert both[0] != both[1]


def test_construction_and_setup_draw_the_same_on_each_replica_but_not_in_each_module(cluster):
    def start(module):
        return module.at_construction, module.at_setup

    replicas = [apply(cluster, spawn(cluster, Rolling("a"), replica), start) for replica in range(3)]
    assert len(set(replicas)) == 1
    others = [
        apply(cluster, spawn(cluster, Rolling("b")), start),
        apply(cluster, spawn(cluster, Rolling("a"), seed=1), start),
    ]
    assert len({value for pair in (*replicas[:1], *others) for value in pair}) == 6


def test_hooks_and_data_sets_have_seeds_of_their_own(cluster):
    handle = spawn(cluster, Rolling("a"))

    def hook(episode):
        return cluster.get(cluster.call(handle, "hook", "before_episode", episode))

    for key, is_eval in (("train-0", False), ("eval-1", True)):
        cluster.get(cluster.call(handle, "build_dataset", key, [0] * 5, is_eval))

    def fetched(key, position):
        return cluster.get(cluster.call(handle, "fetch", [(key, 4), (key, 2)], position))["torch"].tolist()

    assert hook(1) == hook(1) != hook(2)
    assert fetched("train-0", 8) == fetched("train-0", 8)
    numbers = [*fetched("train-0", 8), *fetched("train-0", 9), *fetched("eval-1", 8), hook(1), hook(2)]
    assert len(set(numbers)) == 8


def test_steps_run_on_the_configured_number_of_threads(cluster):
    class Threads(BaseModule):
        def setup(self):
            self.at_setup = torch.get_num_threads()

        def forward_step(self, data):
            return {"threads": [torch.get_num_threads()]}

    first, second = (spawn(cluster, Threads(f"t{n}"), num_threads=n) for n in (1, 2))
    assert run(cluster, second, {"x": [0]}) == {"threads": [2]}
    assert run(cluster, first, {"x": [0]}) == {"threads": [1]}
    assert [apply(cluster, handle, lambda module: module.at_setup) for handle in (first, second)] == [1, 2]
