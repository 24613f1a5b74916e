"""Seeds that come from a place in a run."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.runtime.seeding import derive_seed, preserved_globals, seed_everything

PARTS = st.lists(st.integers() | st.text("abc_"), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("place", "digest"),
    [((0, "experience", "policy", "forward_step", 0, 17), "46191685f2b630f2"), ((7,), "e75017cace788f82")],
)
def test_seeds_are_blake2b_digests_of_the_place(place, digest):
    """The digests are the output of ``b2sum -l 64`` over the parts with the byte 0x1f between them."""
    assert derive_seed(*place).to_bytes(8, "little").hex() == digest


@given(first=PARTS, second=PARTS)
def test_different_places_have_different_seeds(first, second):
    assert (derive_seed(*first) == derive_seed(*second)) == (list(map(str, first)) == list(map(str, second)))


@given(seed=st.integers(0, 2**64 - 1))
def test_all_global_generators_start_at_the_seed(seed):
    """The expected numbers come from generators of their own, seeded by the libraries themselves."""
    with preserved_globals():
        seed_everything(seed)
        drawn = random.random(), np.random.rand(), torch.rand(1).item(), torch.randn(1).item()
    generator = torch.Generator().manual_seed(seed)
    expected = torch.rand(1, generator=generator).item(), torch.randn(1, generator=generator).item()
    assert drawn == (random.Random(seed).random(), np.random.RandomState(seed % 2**32).rand(), *expected)


def test_the_callers_generators_and_thread_count_come_back_also_after_an_error():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def disturb():
        with preserved_globals():
            draw()
            seed_everything(4)
            torch.set_num_threads(threads + 1)
            raise ValueError("stop")

    threads = torch.get_num_threads()
    with preserved_globals():
        seed_everything(3)
        with pytest.raises(ValueError, match="stop"):
            disturb()
        after = draw()
        seed_everything(3)
        assert after == draw()
        assert torch.get_num_threads() == threads
