"""Large tensors and arrays beside the head: over the same memory on both sides, and the same values as ever."""

from __future__ import annotations

import gc
import pickle
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from wire_cases import TORCH_DTYPES, VALUES, same

from chatlearn.errors import DataError
from chatlearn.runtime import memory, wire
from chatlearn.runtime.wire import BESIDE_BYTES, decode, decode_parts, encode, encode_parts


@dataclass
class Named:
    name: str
    value: Any


def aligned(data: bytes, offset: int = 0) -> np.ndarray:
    """The bytes, as a read-only array of which the address is a multiple of 64 plus ``offset``."""
    memory = np.empty(len(data) + 128, dtype=np.uint8)
    start = -memory.ctypes.data % 64 + offset
    array = memory[start : start + len(data)]
    array[:] = np.frombuffer(data, dtype=np.uint8)
    array.flags.writeable = False
    return array


def stored(buffers: list[np.ndarray], offset: int = 0) -> list[np.ndarray]:
    """Buffers as an object store gives them back: elsewhere, and read-only."""
    return [aligned(buffer.tobytes(), offset) for buffer in buffers]


def random_tensor(dtype: torch.dtype, count: int) -> torch.Tensor:
    size = count * torch.empty(0, dtype=dtype).element_size()
    raw = np.random.default_rng(0).integers(0, 2 if dtype == torch.bool else 256, size, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype)


def test_buffers_share_the_memory_of_the_value():
    x, a = torch.arange(8192.0), np.arange(4096)
    b = torch.ones(64, 256, dtype=torch.bfloat16)
    head, buffers = encode_parts({"x": x, "inner": [Named("a", a), (b,)]})
    assert [buffer.ctypes.data for buffer in buffers] == [x.data_ptr(), a.ctypes.data, b.data_ptr()]
    assert [(buffer.dtype, buffer.ndim, len(buffer)) for buffer in buffers] == [
        (np.uint8, 1, 32768),
        (np.uint8, 1, 32768),
        (np.uint8, 1, 32768),
    ]
    assert len(head) < 300
    x[0] = 5.0
    assert buffers[0][:4].tobytes() == np.float32(5.0).tobytes()


def test_the_limit_counts_bytes():
    below, at = torch.zeros(BESIDE_BYTES - 1, dtype=torch.uint8), torch.zeros(BESIDE_BYTES, dtype=torch.uint8)
    assert [len(encode_parts(value)[1]) for value in (below, at, below.numpy(), at.numpy())] == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_a_large_tensor_of_any_dtype_lies_over_its_buffer(dtype):
    tensor = random_tensor(dtype, 3 * BESIDE_BYTES).reshape(3, BESIDE_BYTES)
    head, buffers = encode_parts([tensor])
    kept = stored(buffers)
    (copy,) = decode_parts(head, kept)
    assert (copy.dtype, copy.shape, copy.is_contiguous()) == (dtype, tensor.shape, True)
    assert copy.data_ptr() == kept[0].ctypes.data
    assert kept[0].tobytes() == tensor.view(torch.uint8).numpy().tobytes()
    assert copy.view(torch.uint8).numpy().tobytes() == kept[0].tobytes()


@pytest.mark.parametrize("dtype", ["?", "<i2", ">i4", "<f8", "<c16", "<U40", "S40", "<M8[s]"])
def test_a_large_array_lies_over_its_buffer_and_is_read_only(dtype):
    raw = np.random.default_rng(1).integers(0, 2 if dtype == "?" else 256, 40 * BESIDE_BYTES, dtype=np.uint8)
    array = (np.char.mod("%d", raw[:8000]).astype(dtype) if dtype == "<U40" else raw.view(dtype)).reshape(2, -1)
    head, buffers = encode_parts({"a": array})
    kept = stored(buffers)
    copy = decode_parts(head, kept)["a"]
    assert (copy.dtype, copy.shape, copy.flags.writeable) == (array.dtype, array.shape, False)
    assert copy.ctypes.data == kept[0].ctypes.data
    assert copy.tobytes() == array.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        copy[0, 0] = copy[0, 1]


def test_arrays_are_read_only_over_writeable_buffers_too_and_leave_these_as_they_are():
    head, buffers = encode_parts(np.arange(4096))
    writeable = [buffer.copy() for buffer in buffers]
    assert not decode_parts(head, writeable).flags.writeable
    assert writeable[0].flags.writeable


@pytest.mark.parametrize("offset", [1, 8, 32])
def test_memory_that_is_not_aligned_is_copied_once_to_some_that_is(offset):
    """The bits of a matrix product depend on the alignment."""
    tensor, array = torch.arange(5000.0), np.arange(5000)
    head, buffers = encode_parts((tensor, array))
    kept = stored(buffers, offset)
    assert [buffer.ctypes.data % 64 for buffer in kept] == [offset, offset]
    copies = decode_parts(head, kept)
    assert copies[0].data_ptr() % 64 == copies[1].ctypes.data % 64 == 0
    assert copies[0].tolist() == tensor.tolist()
    assert copies[1].tolist() == array.tolist()
    assert not copies[1].flags.writeable


def test_small_tensors_are_aligned_and_own_their_memory():
    got = decode_parts(*encode_parts([torch.ones(n) for n in range(1, 9)]))
    assert [tensor.data_ptr() % 64 for tensor in got] == [0] * 8
    assert all(tensor.untyped_storage().resizable() for tensor in got)


def test_read_only_memory_draws_no_warning():
    head, buffers = encode_parts([torch.arange(5000.0), torch.ones(9000, dtype=torch.bfloat16), np.arange(5000)])
    kept = stored(buffers)
    assert not kept[0].flags.writeable
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decode_parts(head, kept)
    assert seen == []


def test_what_lies_over_a_buffer_keeps_it_alive():
    head, buffers = encode_parts([torch.arange(100_000), np.arange(100_000)])
    tensor, array = decode_parts(head, [buffer.copy() for buffer in buffers])
    del buffers
    gc.collect()
    filler = [np.full(800_000, 255, dtype=np.uint8) for _ in range(8)]
    assert (int(tensor.sum()), int(array.sum()), len(filler)) == (4999950000, 4999950000, 8)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(20_000).reshape(100, 200).T,
        torch.arange(20_000)[::2],
        torch.zeros(1).expand(20_000),
        torch.arange(20_000) + 0j,
        (torch.arange(20_000) * 1j).conj(),
        (torch.arange(20_000) * 1j).conj().imag,
        torch.arange(20_000.0, requires_grad=True),
        np.arange(20_000).reshape(100, 200).T,
        np.arange(20_000)[::-2],
        np.asfortranarray(np.arange(20_000).reshape(100, 200)),
    ],
    ids=["transposed", "strided", "expanded", "complex", "conjugate", "negative", "grad", "T", "reversed", "fortran"],
)
def test_large_values_of_any_layout_arrive_as_the_numbers_that_they_stand_for(value):
    head, buffers = encode_parts(value)
    copy = decode_parts(head, stored(buffers))
    assert (len(buffers), copy.dtype, copy.shape) == (1, value.dtype, value.shape)
    assert copy.tolist() == value.tolist()
    assert not isinstance(copy, torch.Tensor) or (copy.is_contiguous(), copy.requires_grad) == (True, False)


def test_a_tensor_inside_of_any_object_travels_beside_the_head():
    model = torch.nn.Linear(128, 128)
    value = SimpleNamespace(weights=torch.arange(10_000), array=np.arange(10_000), small=torch.ones(2))
    head, buffers = encode_parts({"model": model, "value": value})
    assert sorted(len(buffer) for buffer in buffers) == [65536, 80_000, 80_000]
    kept = stored(buffers)
    got = decode_parts(head, kept)
    addresses = {buffer.ctypes.data for buffer in kept}
    found = {got["value"].weights.data_ptr(), got["value"].array.ctypes.data, got["model"].weight.data_ptr()}
    assert found == addresses
    assert torch.equal(got["model"].weight, model.weight)
    assert got["model"].weight.requires_grad
    assert isinstance(got["model"].weight, torch.nn.Parameter)
    assert got["value"].weights.tolist() == list(range(10_000))


def test_sharing_inside_of_an_object_is_kept():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    copy = decode(encode(model))
    assert copy[1].weight is copy[0].weight
    tensor = torch.arange(10_000)
    head, buffers = encode_parts(SimpleNamespace(a=tensor, b=tensor))
    assert len(buffers) == 1
    got = decode_parts(head, buffers)
    assert got.a is got.b


def test_what_holds_itself_takes_no_buffer_twice():
    value: list[Any] = [torch.arange(10_000)]
    value.append(value)
    head, buffers = encode_parts(value)
    got = decode_parts(head, stored(buffers))
    assert len(buffers) == 1
    assert got[1] is got
    assert got[0].tolist() == list(range(10_000))


@pytest.mark.parametrize("depth", [100, 300])
def test_deep_values_come_back(depth):
    value: Any = 7
    for _ in range(depth):
        value = [value]
    copy = decode(encode(value))
    for _ in range(depth):
        assert type(copy) is list
        (copy,) = copy
    assert copy == 7


@given(value=VALUES)
def test_a_round_trip_in_parts(value):
    head, buffers = encode_parts(value)
    assert same(decode_parts(head, stored(buffers)), value)


@given(value=VALUES)
def test_a_round_trip_with_everything_beside(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "BESIDE_BYTES", 1)
        head, buffers = encode_parts(value)
    kept = stored(buffers)
    assert same(decode_parts(head, kept), value)
    assert [buffer.tobytes() for buffer in kept] == [buffer.tobytes() for buffer in buffers]


def test_without_large_values_the_head_is_all():
    value = {"prompt": ["a", "b"], "x": torch.ones(2, 3)}
    head, buffers = encode_parts(value)
    assert buffers == []
    assert head == encode(value)


def test_a_payload_survives_pickling_out_of_band():
    """As an object store carries it: the buffers stay out of the pickle."""
    head, buffers = encode_parts({"x": torch.arange(10_000)})
    outside: list[pickle.PickleBuffer] = []
    data = pickle.dumps([head, *buffers], protocol=5, buffer_callback=outside.append)
    assert len(data) < 500
    got_head, *got_buffers = pickle.loads(data, buffers=[bytes(buffer) for buffer in outside])
    assert decode_parts(got_head, got_buffers)["x"].tolist() == list(range(10_000))


OBJECTS = [
    torch.nn.Parameter(torch.ones(3)),
    torch.nn.Linear(2, 2),
    SimpleNamespace(x=torch.ones(2), y=np.ones(2), z=np.float32(1)),
    np.float32(1.5),
    np.datetime64("2020-01-01"),
    np.array(["text"]),
    np.array([{"a": torch.ones(1)}], dtype=object),
    {np.int64(1): {np.bool_(True)}},
    torch.float8_e4m3fn,
    torch.device("cpu"),
    torch.Size([1, 2]),
]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_nothing_names_the_inner_parts_of_torch_or_numpy(value):
    """Those move between versions, and a worker may have others."""
    data = encode(value)
    for name in (
        b"_rebuild",
        b"_load_from_bytes",
        b"numpy._core",
        b"numpy.core",
        b"_reconstruct",
        b"scalar",
        b"_frombuffer",
    ):
        assert name not in data
    assert type(decode(data)) is type(value)


def test_numbers_and_objects_of_numpy_come_back():
    array = np.array([{"a": [1]}, [1, 2], [3, 4], np.int8(4)], dtype=object).reshape(2, 2)
    got = decode(encode([np.float16(1.5), np.datetime64("2020-01-01", "ms"), np.complex64(1j), np.True_, array]))
    assert [(type(value), value.dtype.str) for value in got[:4]] == [
        (np.float16, "<f2"),
        (np.datetime64, "<M8[ms]"),
        (np.complex64, "<c8"),
        (np.bool_, "|b1"),
    ]
    assert got[:4] == [1.5, np.datetime64("2020-01-01"), 1j, True]
    assert (got[4].dtype, got[4].tolist()) == (object, array.tolist())
    assert type(got[4][1, 1]) is np.int8


def test_a_dtype_that_the_receiver_s_torch_lacks_is_named(monkeypatch):
    data = encode(torch.ones(2, dtype=torch.float8_e4m3fn))
    monkeypatch.delitem(memory._DTYPES, "torch.float8_e4m3fn")
    with pytest.raises(
        DataError, match=r"torch .* has no torch\.float8_e4m3fn: a tensor comes from a process with a newer"
    ):
        decode(data)
