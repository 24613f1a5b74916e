"""Buffers that a replica fills anew are noticed among those that somebody still holds; the rest is forgotten."""

from __future__ import annotations

import numpy as np
import torch

from chatlearn.runtime.batches import ReturnedTensors, normalise


def test_a_buffer_is_found_by_its_key_while_its_values_are_held():
    returned, buffer = ReturnedTensors(), torch.zeros(3)
    held = normalise({"a": torch.ones(3), "deep": {"b": [buffer] * 3}})
    assert returned.overwritten(held) is None
    assert returned.overwritten(normalise({"deep": {"b": [buffer] * 3}, "a": held["a"]})) is None
    buffer += 1
    assert returned.overwritten(normalise({"x": torch.ones(3), "y": buffer})) == "y"


def test_a_buffer_whose_values_nobody_holds_may_be_filled_anew():
    returned, buffer = ReturnedTensors(), torch.zeros(3)
    for _ in range(3):
        assert returned.overwritten(normalise({"x": buffer})) is None
        buffer += 1


def test_tensors_without_elements_are_never_mistaken_for_each_other():
    returned = ReturnedTensors()
    first, second = torch.zeros(3, 0), torch.zeros(3, 0)
    held = normalise({"x": first})
    assert returned.overwritten(held) is None
    first.add_(1)
    assert returned.overwritten(normalise({"x": second})) is None


def test_what_nobody_holds_is_forgotten():
    """50,000 tensors of different places, of which 3,000 are held: what is known stays of the order of these."""
    returned, everything = ReturnedTensors(), torch.zeros(50_000, 16)
    held = []
    for number, row in enumerate(everything):
        batch = normalise({"x": row})
        assert returned.overwritten(batch) is None
        if number % 16 == 0 and len(held) < 3000:
            held.append(batch)
    assert len(returned._known) <= 2 * 3000 + 1024


def test_results_lie_at_multiples_of_64_bytes():
    """A column that begins at any byte is copied, and so is a part of a larger memory; a whole one is not."""
    tensor = torch.arange(64, dtype=torch.float32)
    parts = {f"{i}": tensor[i : i + 4] for i in (0, 1, 4, 16, 17)}
    array = np.arange(20.0)[1:5]
    batch = normalise({**parts, "list": [tensor[3:5]] * 4, "array": torch.from_numpy(array)})
    assert normalise({"whole": tensor})["whole"].data_ptr() == tensor.data_ptr()
    tensors = [batch[key] for key in parts] + [batch["list"][0], batch["array"]]
    assert [t.data_ptr() % 64 for t in tensors] == [0] * 7
    assert all(batch[key].equal(part) for key, part in parts.items())
    assert [batch[key].data_ptr() == parts[key].data_ptr() for key in parts] == [False] * 5
