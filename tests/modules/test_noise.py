"""Noise of samples, held against SplitMix64 written with plain integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.modules.noise import uniforms

SEEDS = st.integers(0, 2**64 - 1)
IDS = st.lists(st.integers(0, 2**63 - 1), max_size=6)
WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def finalise(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def splitmix64(seed: int, count: int) -> list[int]:
    return [finalise((seed + GOLDEN * i) % WORD) for i in range(1, count + 1)]


def test_the_reference_gives_the_published_numbers_of_seed_1234567():
    """Test vector of the public-domain C program by S. Vigna, as listed in many ports of it."""
    assert splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(seed=SEEDS, ids=IDS, n=st.integers(0, 5))
def test_each_row_is_a_splitmix64_sequence_of_its_own(seed, ids, n):
    noise = uniforms(seed, ids, n)
    assert noise.shape == (len(ids), n)
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"
    for row, i in zip(noise, ids, strict=True):
        bits = splitmix64(finalise((i * GOLDEN + seed) % WORD), n)
        assert row.double().tolist() == [((b >> 41) + 0.5) / 2**23 for b in bits]


@given(seed=SEEDS, ids=IDS, data=st.data())
def test_a_row_is_the_same_in_any_batch_and_with_any_number_of_columns(seed, ids, data):
    order = data.draw(st.permutations(range(len(ids))))
    whole = uniforms(seed, ids, 4)
    assert torch.equal(uniforms(seed, [ids[i] for i in order], 4), whole[list(order)])
    assert torch.equal(uniforms(seed, ids, 2), whole[:, :2])
    for i in range(len(ids)):
        assert torch.equal(uniforms(seed, ids[i : i + 1], 4), whole[i : i + 1])


def test_extreme_bits_stay_inside_of_the_open_interval():
    """The largest and the smallest number that 23 bits and a half can give, computed as the function does."""
    top, bottom = ((torch.tensor([2**23 - 1, 0], dtype=torch.float32) + 0.5) * 2.0**-23).tolist()
    assert 0 < bottom < top < 1
    noise = uniforms(7, range(2000), 500)
    assert bottom <= noise.min() < 1e-5
    assert top >= noise.max() > 1 - 1e-5


@pytest.mark.parametrize("view", ["along a row", "along ids", "along seeds"])
def test_it_is_uniform_and_neighbours_are_independent(view):
    """Moments and the correlation of neighbours of 100 000 numbers, each within five standard errors."""
    count = 100_000
    x = {
        "along a row": lambda: uniforms(1, [5], count)[0],
        "along ids": lambda: uniforms(1, range(count), 1)[:, 0],
        "along seeds": lambda: torch.cat([uniforms(seed, range(count // 500), 1)[:, 0] for seed in range(500)]),
    }[view]().double()
    error = count**-0.5
    assert abs(x.mean() - 1 / 2) < 5 * error * (1 / 12) ** 0.5
    assert abs((x**2).mean() - 1 / 3) < 5 * error * (4 / 45) ** 0.5
    assert abs(torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1]) < 5 * error
    counts = torch.histc(x, bins=64, min=0, max=1)
    chi2 = ((counts - count / 64) ** 2 / (count / 64)).sum()
    assert chi2 < 63 + 5 * (2 * 63) ** 0.5


def fold(i: int) -> int:
    """The word of an id: its lowest 64 bits, changed by those above as a SplitMix64 state changes."""
    word = 0
    for shift in reversed(range(0, max(i.bit_length(), 1), 64)):
        word = finalise(word * GOLDEN % WORD) ^ (i >> shift) % WORD
    return word


@given(seed=SEEDS, ids=st.lists(st.integers(0, 2**200), max_size=4))
def test_ids_beyond_64_bits_are_folded_into_a_word(seed, ids):
    assert torch.equal(uniforms(seed, ids, 3), uniforms(seed, [fold(i) for i in ids], 3))


@pytest.mark.parametrize("depth", [1, 3, 4, 5, 8])
def test_rows_made_of_rows_have_noise_of_their_own(depth):
    """Each step that expands moves the id by 16 bits and numbers the rows below; samples 0, 1, 65,535, 65,536 and
    2^40.
    """
    ids = [0, 1, 65535, 65536, 2**40]
    for _ in range(depth):
        ids = [(i << 16) + row for i in ids for row in range(2)]
    assert len({tuple(row) for row in uniforms(7, ids, 4).tolist()}) == 5 * 2**depth


def test_integers_of_numpy_and_torch_are_ids_too():
    wanted = uniforms(1, [3, 2**40], 2)
    assert torch.equal(uniforms(1, np.array([3, 2**40]), 2), wanted)
    assert torch.equal(uniforms(1, torch.tensor([3, 2**40]), 2), wanted)
