"""Aggregation of per-token losses, and that splitting a minibatch changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.losses import (
    aggregate,
    aggregate_count,
    aggregate_sum,
    policy_loss,
    policy_loss_per_token,
)

MODES = ["token_mean", "seq_sum_mean", "seq_mean_mean", "constant"]
NAN, INF = float("nan"), float("inf")
LOSS = torch.tensor([[1.0, 2.0, NAN, 3.0], [10.0, INF, -INF, NAN]])
MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]])


def reference(rows: list[list[float]], mode: str, max_length: int) -> float:
    """The definitions, from the valid losses of each row."""
    filled = [row for row in rows if row]
    if not filled:
        return 0.0
    total = sum(map(sum, filled))
    return {
        "token_mean": total / sum(map(len, filled)),
        "seq_sum_mean": total / len(filled),
        "seq_mean_mean": sum(sum(row) / len(row) for row in filled) / len(filled),
        "constant": total / (len(rows) * max_length),
    }[mode]


@st.composite
def losses_and_masks(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    size = shape[0] * shape[1]
    loss = draw(st.lists(st.floats(-10, 10, width=32), min_size=size, max_size=size))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape)
    poisoned = torch.where(mask, torch.tensor(loss, dtype=torch.float64).view(shape), NAN)
    return poisoned, mask


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", 16 / 4),
        ("seq_sum_mean", (6 + 10) / 2),
        ("seq_mean_mean", (2 + 10) / 2),
        ("constant", 16 / 16),
    ],
)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
def test_by_hand(mode: str, expected: float, mask_dtype: torch.dtype) -> None:
    assert aggregate(LOSS, MASK.to(mask_dtype), mode, max_length=8).item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
@given(case=losses_and_masks(), max_length=st.integers(1, 9))
def test_matches_the_definition(mode: str, case: tuple[Tensor, Tensor], max_length: int) -> None:
    loss, mask = case
    rows = [row[valid].tolist() for row, valid in zip(loss, mask, strict=True)]
    actual = aggregate(loss, mask, mode, max_length=max_length).item()
    assert actual == pytest.approx(reference(rows, mode, max_length), abs=1e-9)


@pytest.mark.parametrize("mode", MODES)
@given(case=losses_and_masks(), cut=st.integers(0, 5))
def test_sums_and_counts_add_up_over_micro_batches(mode: str, case: tuple[Tensor, Tensor], cut: int) -> None:
    loss, mask = case
    parts = [(loss[:cut], mask[:cut]), (loss[cut:], mask[cut:])]
    total = sum(aggregate_sum(part, part_mask, mode) for part, part_mask in parts)
    count = sum(aggregate_count(part_mask, mode, max_length=7) for _, part_mask in parts)
    torch.testing.assert_close(total / max(1, count), aggregate(loss, mask, mode, max_length=7))


@pytest.mark.parametrize("mode", MODES)
@given(case=losses_and_masks(), data=st.data())
def test_padding_columns_and_the_order_of_rows_change_nothing(
    mode: str, case: tuple[Tensor, Tensor], data: st.DataObject
) -> None:
    loss, mask = case
    order = data.draw(st.permutations(range(len(loss))))
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    padded = torch.nn.functional.pad(loss[order], (left, right), value=INF)
    padded_mask = torch.nn.functional.pad(mask[order], (left, right), value=False)
    expected = aggregate(loss, mask, mode, max_length=7)
    torch.testing.assert_close(aggregate(padded, padded_mask, mode, max_length=7), expected)


@pytest.mark.parametrize("mode", ["token_mean", "seq_sum_mean", "seq_mean_mean"])
def test_rows_without_a_counting_token_are_padding(mode: str) -> None:
    with_row = torch.cat([LOSS, torch.full((1, 4), NAN)]), torch.cat([MASK, torch.zeros(1, 4)])
    torch.testing.assert_close(aggregate(*with_row, mode), aggregate(LOSS, MASK, mode))


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_mask_gives_zero_and_no_gradient(mode: str) -> None:
    loss = torch.full((2, 3), NAN, requires_grad=True)
    result = aggregate(loss, torch.zeros(2, 3), mode, max_length=4)
    result.backward()
    assert result.item() == 0
    assert loss.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_mean", [[1 / 4, 1 / 4, 0, 1 / 4], [1 / 4, 0, 0, 0]]),
        ("seq_sum_mean", [[1 / 2, 1 / 2, 0, 1 / 2], [1 / 2, 0, 0, 0]]),
        ("seq_mean_mean", [[1 / 6, 1 / 6, 0, 1 / 6], [1 / 2, 0, 0, 0]]),
        ("constant", [[1 / 16, 1 / 16, 0, 1 / 16], [1 / 16, 0, 0, 0]]),
    ],
)
def test_the_gradient_is_each_tokens_weight(mode: str, expected: list[list[float]]) -> None:
    loss = LOSS.clone().requires_grad_()
    aggregate(loss, MASK, mode, max_length=8).backward()
    torch.testing.assert_close(loss.grad, torch.tensor(expected))


def test_counts_are_whole_numbers_that_stay_on_the_device() -> None:
    for mode, expected in zip(MODES, (4, 2, 2, 16), strict=True):
        count = aggregate_count(MASK.float(), mode, max_length=8)
        assert (count.item(), count.dtype, count.shape) == (expected, torch.int64, ())


def test_token_mean_takes_packed_rows() -> None:
    assert aggregate(torch.tensor([1.0, NAN, 2.0]), torch.tensor([1, 0, 1]), "token_mean").item() == 1.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [2, 0, 4], [1] * 6])
def test_gradients_of_a_minibatch_do_not_depend_on_its_micro_batches(mode: str, sizes: list[int]) -> None:
    """What a trainer does, against one call over all rows; a linear policy, rows of unequal length."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(6, 5, 4, dtype=torch.float64, generator=generator)
    old_logprobs, advantages = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [0], [2], [4]])

    def train(splits: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        totals = dict.fromkeys(("clip_frac", "approx_kl"), torch.zeros((), dtype=torch.float64))
        count = aggregate_count(mask, mode, max_length=5).clamp(min=1)
        fields = (x.split(splits) for x in (features, old_logprobs, advantages, mask))
        for x, old, advantage, valid in zip(*fields, strict=True):
            loss_BT, metrics_BT = policy_loss_per_token(x @ weight, old, advantage, valid)
            (aggregate_sum(loss_BT, valid, mode) / count).backward()
            totals = {name: total + metrics_BT[name].sum() for name, total in totals.items()}
        return weight.grad, {name: total / mask.sum() for name, total in totals.items()}

    gradient, metrics = train(sizes)
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss_BT, _ = policy_loss_per_token(features @ weight, old_logprobs, advantages, mask)
    aggregate(loss_BT, mask, mode, max_length=5).backward()
    torch.testing.assert_close(gradient, weight.grad)
    if mode != "constant":
        _, expected = policy_loss(features @ weight, old_logprobs, advantages, mask, aggregation=mode)
        torch.testing.assert_close(metrics, {name: value.detach() for name, value in expected.items()})


def test_unknown_modes_are_refused() -> None:
    message = "unknown aggregation 'mean'; legal are 'token_mean', 'seq_sum_mean', 'seq_mean_mean', 'constant'"
    x = torch.zeros(1, 2)
    for call in (
        lambda: aggregate(x, x, "mean"),
        lambda: aggregate_sum(x, x, "mean"),
        lambda: aggregate_count(x, "mean"),
        lambda: policy_loss(x, x, x, x, aggregation="mean"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("max_length", [None, 0, -3])
def test_constant_needs_a_length(max_length: int | None) -> None:
    x = torch.zeros(1, 2)
    message = f"aggregation 'constant' needs a max_length above 0, got {max_length}"
    with pytest.raises(ValueError, match=message):
        aggregate(x, x, "constant", max_length=max_length)
    with pytest.raises(ValueError, match="aggregation 'constant' needs a max_length above 0, got None"):
        policy_loss(x, x, x, x, aggregation="constant")


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_BT has shape \[3\] but loss_BT has shape \[2, 3\]"):
        aggregate(torch.zeros(2, 3), torch.zeros(3), "token_mean")
    for mode in MODES[1:]:
        with pytest.raises(ValueError, match=rf"aggregation '{mode}' needs \[B, T\], got shape \[3\]"):
            aggregate(torch.zeros(3), torch.zeros(3), mode, max_length=3)
