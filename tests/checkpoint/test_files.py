"""State as files: what goes in comes out, bit by bit, and no pickle is involved."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chatlearn.checkpoint.files import Buffers, load_state, save_state, take_snapshot, write_snapshot
from chatlearn.errors import CheckpointError


def _round_trip(state: Any, folder: Path) -> Any:
    save_state(state, folder / "state")
    return load_state(folder / "state")


def _same(one: Any, other: Any) -> bool:
    """Equal in structure, type and bits; nan equals nan."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(
            _same(a, b) for a, b in zip(one.values(), other.values(), strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return repr(one) == repr(other)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"number": 1, "float": 0.1, "text": "é\n\u2028", "yes": True, "nothing": None},
        {"inf": math.inf, "minus": -math.inf, "nan": math.nan, "zero": -0.0, "tiny": 5e-324, "big": 2**80},
        {"tuple": (1, (2.5, "x"), []), "list": [(), [()]]},
        {1: "int", -2: {3: (4,)}, (5, "a"): 6, None: 7, False: 8},
        {"1": "text key", 1: "int key"},
        {"$tensor": "not a tensor", "$tuple": [1], "plain": {"$items": []}},
        {"t": torch.arange(6).reshape(2, 3), "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3)},
        {"view": torch.arange(12.0).reshape(3, 4).T, "slice": torch.arange(10)[2:5]},
        {"a": np.arange(4, dtype=np.int16), "b": np.array([[math.nan, math.inf]])},
        {"c": np.array(7.5), "d": np.array([True]), "e": np.arange(6).reshape(2, 3).T},
        {"half": torch.tensor([1.5, -0.0]).bfloat16(), "bool": torch.tensor([True, False])},
        {"complex": torch.tensor([1 + 2j, -3j]), "f8": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn)},
        {"u16": torch.tensor([65535], dtype=torch.uint16), "array": np.array([1j])},
        {"u8": torch.tensor([255], dtype=torch.uint8), "double": torch.tensor([0.1], dtype=torch.float64)},
        torch.tensor([1.0]),
        [torch.tensor([1.0]), (torch.tensor([2.0]),)],
    ],
    ids=lambda state: str(list(state))[:20],
)  # fmt: skip
def test_round_trip(state: Any, tmp_path: Path) -> None:
    assert _same(_round_trip(state, tmp_path), state)


_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    st.lists(st.integers(-100, 100), max_size=3).map(lambda values: np.array(values, dtype=np.int64)),
)
_keys = st.one_of(
    st.sampled_from(["a", "a/b", "b", "/", "$tensor", "0", "1"]), st.integers(-2, 2), st.tuples(st.integers(0, 1))
)
_states = st.recursive(
    _leaves,
    lambda part: st.one_of(
        st.lists(part, max_size=3), st.lists(part, max_size=3).map(tuple), st.dictionaries(_keys, part, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(state=_states)
def test_round_trip_of_anything(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert _same(_round_trip(state, tmp_path_factory.mktemp("state")), state)


def test_keys_that_look_alike_keep_their_tensors_apart(tmp_path: Path) -> None:
    state = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 1: torch.tensor(3), "1": torch.tensor(4)}
    assert _same(_round_trip(state, tmp_path), state)


def test_numbers_of_numpy_become_plain_ones(tmp_path: Path) -> None:
    state = {"f": np.float64(0.1), "h": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True)}
    assert _same(_round_trip(state, tmp_path), {"f": 0.1, "h": 0.5, "i": 3, "b": True})


def test_random_states(tmp_path: Path) -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    loaded = _round_trip(state, tmp_path)
    assert loaded["python"] == state["python"]
    random.setstate(loaded["python"])
    np.random.set_state(loaded["numpy"])
    torch.set_rng_state(loaded["torch"])


def test_tied_tensors(tmp_path: Path) -> None:
    embedding = torch.nn.Embedding(3, 2)
    head = torch.nn.Linear(2, 3, bias=False)
    head.weight = embedding.weight
    model = torch.nn.ModuleDict({"embedding": embedding, "head": head})
    loaded = _round_trip(model.state_dict(), tmp_path)
    assert loaded["embedding.weight"].equal(embedding.weight)
    assert loaded["head.weight"].equal(embedding.weight)


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Adagrad"])
def test_an_optimizer_goes_on_exactly(name: str, tmp_path: Path) -> None:
    """Ten steps in one go against four, saved and loaded, and six."""

    def made() -> tuple[torch.nn.Linear, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05, **options)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    def steps(parts: Any, first: int, last: int) -> None:
        model, optimizer, scheduler = parts
        for i in range(first, last):
            optimizer.zero_grad()
            model(torch.arange(6.0).reshape(2, 3) + i).square().mean().backward()
            optimizer.step()
            scheduler.step()

    whole, first, second = made(), made(), made()
    steps(whole, 0, 10)
    steps(first, 0, 4)
    save_state([part.state_dict() for part in first], tmp_path / "state")
    for part, state in zip(second, load_state(tmp_path / "state"), strict=True):
        part.load_state_dict(state)
    steps(second, 4, 10)
    assert second[0].weight.equal(whole[0].weight)
    assert second[2].state_dict() == whole[2].state_dict()


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", print, 1j, np.array(["text"]), np.array([None])])
def test_what_a_checkpoint_cannot_hold_is_named(value: Any, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"optimizer/3/extra is .*, which a checkpoint can't hold.*state_dict\(\)"
    ):
        save_state({"optimizer": [0, 1, 2, {"extra": value}]}, tmp_path / "state")


@pytest.mark.parametrize("damage", ["no json", "torn json", "torn tensors", "no tensors"])
def test_damage_is_an_error_that_names_the_file(damage: str, tmp_path: Path) -> None:
    save_state({"a": torch.ones(3)}, tmp_path / "state")
    json_file, tensors = tmp_path / "state.json", tmp_path / "state.rank0.safetensors"
    if damage == "no json":
        json_file.unlink()
    elif damage == "torn json":
        json_file.write_bytes(json_file.read_bytes()[:-8])
    elif damage == "torn tensors":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    else:
        tensors.unlink()
    named = "state.json" if "json" in damage else "state.rank0.safetensors"
    with pytest.raises(CheckpointError, match=rf"{named} can't be read.*earlier checkpoint"):
        load_state(tmp_path / "state")


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle is used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    state = {"optimizer": optimizer.state_dict(), "array": np.ones(2), "tensor": torch.ones(2)}
    assert _same(_round_trip(state, tmp_path), state)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_tensors_come_back_aligned_as_torch_aligns_its_own(tmp_path):
    """The bits of a matrix product depend on the alignment of its operands, and files know none."""
    state = {f"{name}": torch.arange(size, dtype=torch.float32) for name, size in enumerate((1, 3, 5, 2, 7, 1))}
    save_state({**state, "array": np.arange(3.0)}, tmp_path / "state")
    loaded = load_state(tmp_path / "state")
    assert all(loaded[name].equal(tensor) for name, tensor in state.items())
    assert [loaded[name].data_ptr() % 64 for name in state] == [0] * 6
    assert loaded["array"].ctypes.data % 64 == 0


def test_others_read_the_tensors_by_the_names_of_the_state(tmp_path: Path) -> None:
    state = {"model": {"head.weight": torch.rand(2, 3), "scale": torch.tensor(2.5)}, "list": [torch.arange(3)]}
    save_state(state, tmp_path / "state")
    read = load_file(tmp_path / "state.rank0.safetensors")
    assert sorted(read) == ["list.0", "model.head.weight", "model.scale"]
    assert read["model.head.weight"].equal(state["model"]["head.weight"])
    assert read["list.0"].equal(torch.arange(3))


def test_parts_may_be_called_otherwise(tmp_path: Path) -> None:
    snapshot = take_snapshot(
        {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, {"optimizer.state.0": "adam.head"}
    )
    write_snapshot(snapshot, tmp_path / "state")
    assert list(load_file(tmp_path / "state.rank0.safetensors")) == ["adam.head.exp_avg"]
    assert load_state(tmp_path / "state")["optimizer"]["state"][0]["exp_avg"].equal(torch.ones(2))


def test_a_tensor_that_is_there_twice_is_written_once(tmp_path: Path) -> None:
    tensor = torch.rand(1000)
    save_state({"a": tensor, "b": tensor, "part": tensor[:500]}, tmp_path / "state")
    assert sorted(load_file(tmp_path / "state.rank0.safetensors")) == ["a", "part"]
    loaded = load_state(tmp_path / "state")
    assert loaded["b"].equal(tensor)
    assert loaded["part"].equal(tensor[:500])


def test_blocks_of_several_ranks_make_up_a_tensor(tmp_path: Path) -> None:
    """As a state of two ranks lies there: rows of one matrix, columns of another, and one tensor whole."""
    rows, columns, whole = torch.rand(5, 4), torch.rand(3, 6), torch.arange(3)
    save_state({"rows": rows, "columns": columns, "whole": whole}, tmp_path / "state")
    content = json.loads((tmp_path / "state.json").read_text())
    parts = [{"rows": rows[:2], "columns": columns[:, :4].contiguous(), "whole": whole}]
    parts.append({"rows": rows[2:], "columns": columns[:, 4:].contiguous()})
    for rank, part in enumerate(parts):
        save_file(part, tmp_path / f"state.rank{rank}.safetensors")
    offsets = {"rows": ([0, 0], [2, 0]), "columns": ([0, 0], [0, 4])}
    for name, (first, second) in offsets.items():
        content["tensors"][name]["blocks"] = [
            {"file": f"state.rank{rank}.safetensors", "offset": at, "shape": list(parts[rank][name].shape)}
            for rank, at in enumerate((first, second))
        ]
    (tmp_path / "state.json").write_text(json.dumps(content))
    loaded = load_state(tmp_path / "state")
    assert loaded["rows"].equal(rows)
    assert loaded["columns"].equal(columns)
    assert loaded["whole"].equal(whole)
    del content["tensors"]["rows"]["blocks"][1]
    (tmp_path / "state.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"the blocks of rows don't make up its shape \[5, 4\]"):
        load_state(tmp_path / "state")


def test_a_copy_is_not_changed_by_what_follows_and_the_next_one_takes_its_memory(tmp_path: Path) -> None:
    weight, copies = torch.ones(4), Buffers()
    first = take_snapshot({"weight": weight}, copies=copies)
    weight.fill_(7)
    write_snapshot(first, tmp_path / "first")
    assert load_state(tmp_path / "first")["weight"].equal(torch.ones(4))
    second = take_snapshot({"weight": weight}, copies=copies)
    assert second.tensors["weight"].data_ptr() == first.tensors["weight"].data_ptr()
    assert second.tensors["weight"].equal(torch.full((4,), 7.0))
    assert take_snapshot({"weight": weight}).tensors["weight"].data_ptr() == weight.data_ptr()


def test_a_tensor_that_no_file_holds_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a/b is a tensor of torch\.float32 with layout torch\.sparse_coo"):
        save_state({"a": {"b": torch.eye(2).to_sparse()}}, tmp_path / "state")
