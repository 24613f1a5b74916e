"""Packing, token budgets, checkpointing, autocast and compilation: what they change and what they must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import Row, build, lay_out, logged, random_rows
from torch import Tensor, nn
from trainer_cases import RATE, build_plain, cut, gradients, make_columns, parameters

from chatlearn.data.balance import longest_first
from chatlearn.errors import ConfigError, DataError
from chatlearn.modules.torch import PolicyTrainer, SFTTrainer, ValueTrainer, preparation
from chatlearn.modules.torch.micro_batches import balanced_groups, padded_groups
from chatlearn.modules.torch.optimization import run_updates
from chatlearn.types import Batch, SampleIds

TRAINERS = [PolicyTrainer, ValueTrainer, SFTTrainer]


def make_rows() -> list[Row]:
    """Nine rows: two groups of three with one prompt each, and three rows of their own."""
    responses = [response for _, response in random_rows(6, seed=2)]
    prompts = [[5, 6, 7, 8]] * 3 + [[9, 10]] * 3
    return [*zip(prompts, responses, strict=True), *random_rows(3, seed=4)]


def make_batch(folder: str, padding: str = "both") -> Batch:
    rows = make_rows()
    return lay_out(rows, padding, **make_columns(folder, rows))


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def assert_equal_within_rounding(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """1e-5 relative to the norm."""
    norm = flat(expected).norm()
    assert norm > 1e-3, "the case should have a gradient"
    assert (flat(got) - flat(expected)).norm() <= 1e-5 * norm


# -- what must not change the gradient -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True},
        {"max_tokens_per_micro_batch": 30},
        {"packing": True, "max_tokens_per_micro_batch": 30},
        {"packing": True, "max_tokens_per_micro_batch": 14},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "packing": True},
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("cls", TRAINERS)
def test_the_gradient_is_that_of_padded_micro_batches(folder: str, cls: type, options: dict[str, Any]) -> None:
    whole = build_plain(cls, folder)
    expected = gradients(whole, [make_batch(folder)])
    metrics = logged(whole)
    for padding, sizes in (("both", (9,)), ("left", (3, 3, 3)), ("right", (4, 1, 4))):
        module = build_plain(cls, folder, **options)
        assert_equal_within_rounding(gradients(module, cut(make_batch(folder, padding), *sizes)), expected)
        assert logged(module) == {name: pytest.approx(values, abs=1e-4) for name, values in metrics.items()}


@pytest.mark.parametrize("aggregation", ["seq_sum_mean", "seq_mean_mean"])
def test_losses_over_sequences_do_not_depend_on_packing_and_budget(llama: str, aggregation: str) -> None:
    expected = gradients(build_plain(PolicyTrainer, llama, aggregation=aggregation), [make_batch(llama)])
    module = build_plain(PolicyTrainer, llama, aggregation=aggregation, packing=True, max_tokens_per_micro_batch=20)
    assert_equal_within_rounding(gradients(module, cut(make_batch(llama), 5, 4)), expected)


def test_constant_aggregation_divides_by_rows_and_length(llama: str) -> None:
    """Sums over tokens / (rows x length): the token mean times tokens / (9 x 50)."""
    batch = make_batch(llama)

    def step(**options: Any) -> dict[str, Tensor]:
        module = build_plain(SFTTrainer, llama)
        before = parameters(module)
        run_updates(module, cut(batch, 4, 5), 0, module._sums, **options)
        return {name: (before[name] - value) / RATE for name, value in parameters(module).items()}

    share = float(batch["response_mask"].sum()) / (9 * 50)
    expected = {name: share * value for name, value in step().items()}
    assert_equal_within_rounding(step(aggregation="constant", max_length=50), expected)


# -- token budget --------------------------------------------------------------------------------------------


def places_per_call(module: Any, data: list[Batch]) -> list[int]:
    """Input tokens, padding included, of each forward pass of a train step."""
    sizes: list[int] = []
    backbone = module.model.backbone if isinstance(module, ValueTrainer) else module.model.base_model
    hook = backbone.register_forward_pre_hook(
        lambda _, inputs, options: sizes.append(options["input_ids"].numel()), with_kwargs=True
    )
    module.train_step(data, {"iteration": 0})
    hook.remove()
    return sizes


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("cls", TRAINERS)
def test_micro_batches_stay_within_the_budget(llama: str, cls: type, packing: bool) -> None:
    data = cut(make_batch(llama), *[1] * 9)
    module = build_plain(cls, llama, packing=packing, max_tokens_per_micro_batch=26)
    places_per_call(module, data)  # when a model is seen for the first time, some things are tried
    sizes = places_per_call(module, data)
    assert len(sizes) < 9, "rows come together"
    assert max(sizes) <= 26


def test_a_minibatch_is_regrouped_on_its_own(llama: str) -> None:
    batch = make_batch(llama)
    once = build_plain(SFTTrainer, llama, num_minibatches=2, max_tokens_per_micro_batch=30)
    once.train_step(cut(batch, 4, 5), {"iteration": 0})
    apart = build_plain(SFTTrainer, llama)
    for part in cut(batch, 4, 5):
        apart.train_step([part], {"iteration": 0})
    for name, value in parameters(once).items():
        torch.testing.assert_close(value, parameters(apart)[name], atol=1e-5, rtol=1e-5)
    assert len(logged(once)["grad_norm"]) == 2


@pytest.mark.parametrize("cls", TRAINERS)
def test_a_sequence_longer_than_the_budget_is_named(llama: str, cls: type) -> None:
    rows = [([3, 4], [5]), ([3, 4], [5, 6]), ([3] * 6, [4] * 5), ([3], [4])]
    batch = lay_out(rows, "both", **make_columns(llama, rows))
    module = build(cls, model_path=llama, learning_rate=0.1, max_tokens_per_micro_batch=10)
    message = r"module\.train_step: {} has 11 tokens, but models\.module\.args\.max_tokens_per_micro_batch is 10"
    with pytest.raises(DataError, match=message.format("row 2 of the global batch")):
        module.train_step([batch], {"iteration": 0})
    module._context.ids = SampleIds((70, 71, 72, 73), (7, 7, 7, 7))
    with pytest.raises(DataError, match=message.format("sample 72") + r"\. Raise it to 11 at least"):
        module.train_step([batch], {"iteration": 0})


@pytest.mark.parametrize("lengths", [[5, 9, 3, 3, 8, 2, 7, 7], [10] * 5, [1] * 30, [6, 6, 6, 4, 4, 4], [3], []])
def test_groups_hold_every_sample_once_within_the_budget(lengths: list[int]) -> None:
    for groups, size in (
        (balanced_groups(lengths, 10), lambda group: sum(lengths[i] for i in group)),
        (padded_groups(lengths, 10), lambda group: len(group) * max(lengths[i] for i in group)),
    ):
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        assert all(group == sorted(group) and size(group) <= 10 for group in groups)


def test_groups_are_balanced() -> None:
    """Under a budget of 16, first fit gives 16 and 8; the difference method finds 12 and 12."""
    groups = balanced_groups([8, 4, 4, 4, 4], 16)
    assert sorted(sum([8, 4, 4, 4, 4][i] for i in group) for group in groups) == [12, 12]


def test_padded_groups_put_neighbours_in_length_together() -> None:
    assert padded_groups([9, 2, 10, 3, 2], 20) == [[0, 2], [1, 3, 4]]


def test_parts_get_the_longest_sample_first() -> None:
    assert longest_first([5, 1, 4, 3, 2], 2) == [[0, 4, 1], [2, 3]]
    assert longest_first([2], 3) == [[0], [], []]


# -- checkpointing, autocast, compilation --------------------------------------------------------------------


def saved_bytes(module: Any, data: list[Batch]) -> int:
    """What the backward pass of a train step keeps, each tensor's memory once."""
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        module.train_step(data, {"iteration": 0})
    return sum(kept.values())


@pytest.mark.parametrize("cls", TRAINERS)
def test_checkpointed_layers_keep_less_for_the_backward_pass(folder: str, cls: type) -> None:
    data = [make_batch(folder)]
    every = saved_bytes(build_plain(cls, folder), data)
    least = saved_bytes(build_plain(cls, folder, gradient_checkpointing=True), data)
    assert least < 0.6 * every


def test_a_model_without_layers_to_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gradient_checkpointing: true, but Sequential has no layers"):
        preparation.checkpoint_layers(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("cls", TRAINERS)
def test_autocast_computes_in_bfloat16_and_keeps_float32(folder: str, cls: type) -> None:
    exact = gradients(build_plain(cls, folder), [make_batch(folder)])
    module = build_plain(cls, folder, autocast="bfloat16")
    dtypes: list[torch.dtype] = []
    layer = next(part for part in module.model.modules() if "Attention" in type(part).__name__)
    layer.register_forward_hook(lambda _, inputs, output: dtypes.append(output[0].dtype))
    rounded = gradients(module, [make_batch(folder)])
    assert set(dtypes) == {torch.bfloat16}
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    difference = (flat(rounded) - flat(exact)).norm() / flat(exact).norm()
    assert 1e-4 < difference < 0.1
    assert torch.isfinite(flat(rounded)).all()


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer])
def test_a_compiled_model_gives_the_same_gradient_and_tells_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, llama: str, cls: type, packing: bool
) -> None:
    """With the back end that runs the captured graph as it is: capturing is what can go wrong, and code generation
    takes a minute. Names of parameters stay.
    """
    monkeypatch.setattr(preparation, "COMPILE_BACKEND", "eager")
    torch.compiler.reset()
    expected = gradients(build_plain(cls, llama), [make_batch(llama)])
    module = build_plain(cls, llama, compile=True, packing=packing)
    assert_equal_within_rounding(gradients(module, [make_batch(llama)]), expected)
    first = logged(module)["compile_seconds"]
    module.train_step([make_batch(llama)], {"iteration": 0})
    again = logged(module)["compile_seconds"]
    assert first[0] > 0
    assert again == [0.0]


def test_options_leave_the_state_as_it_is(llama: str) -> None:
    plain = build(SFTTrainer, model_path=llama, learning_rate=0.1)
    changed = build(SFTTrainer, model_path=llama, learning_rate=0.1, gradient_checkpointing=True, compile=True)
    assert plain.model.state_dict().keys() == changed.model.state_dict().keys()
