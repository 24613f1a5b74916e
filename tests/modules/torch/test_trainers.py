"""The trainers' gradients against plain ones, whatever the micro-batches, padding and minibatches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import build, lay_out, logged, plain_logprobs, plain_model, random_rows
from trainer_cases import (
    AGGREGATIONS,
    NUM_ROWS,
    assert_close,
    build_plain,
    cut,
    gradients,
    make_batch,
    make_columns,
    parameters,
    plain_gradients,
    whitened,
)

from chatlearn.errors import ConfigError
from chatlearn.modules.torch import PolicyTrainer, SFTTrainer, ValueTrainer
from chatlearn.modules.torch.optimization import learning_rate, minibatches, num_train_steps

CASES: list[tuple[type, dict[str, Any]]] = [
    (PolicyTrainer, {"aggregation": "token_mean"}),
    (PolicyTrainer, {"aggregation": "seq_sum_mean", "dual_clip": 1.5}),
    (PolicyTrainer, {"aggregation": "seq_mean_mean", "kl_loss_coef": 0.1, "whiten_advantages": False}),
    (PolicyTrainer, {"temperature": 0.7, "kl_loss_coef": 0.2, "kl_estimator": "k2"}),
    (ValueTrainer, {"value_clip": 0.3}),
    (ValueTrainer, {"value_clip": None}),
    (SFTTrainer, {}),
]


@pytest.mark.parametrize(("cls", "args"), CASES)
def test_micro_batches_make_no_difference(llama: str, cls: type, args: dict[str, Any]) -> None:
    batch = make_batch(llama)
    batch["response_mask"][4] = 0  # a sample that could not be scored, alone in a micro-batch
    whole = build_plain(cls, llama, **args)
    expected = gradients(whole, [batch])
    metrics = logged(whole)
    for sizes in ((3, 3, 3), (4, 1, 4), (4, 4, 1), (1,) * 9):
        parts = build_plain(cls, llama, **args)
        assert_close(gradients(parts, cut(batch, *sizes)), expected)
        assert logged(parts) == {name: pytest.approx(values, abs=1e-4) for name, values in metrics.items()}


@pytest.mark.parametrize("padding", ["left", "right", "wide"])
@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_padding_makes_no_difference(folder: str, cls: type, padding: str) -> None:
    expected = gradients(build_plain(cls, folder), [make_batch(folder, "both")])
    assert_close(gradients(build_plain(cls, folder), [make_batch(folder, padding)]), expected)


# -- against plain implementations, row by row and without padding ----------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(
    ("clip_low", "clip_high", "dual_clip", "temperature", "kl"),
    [(0.2, 0.2, None, 1.0, 0.0), (0.1, 0.3, 1.2, 1.0, 0.0), (0.2, 0.2, None, 0.7, 0.5)],
)
def test_policy_gradient_is_that_of_plain_ppo(
    folder: str,
    aggregation: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    temperature: float,
    kl: float,
) -> None:
    rows = random_rows(NUM_ROWS)
    columns = make_columns(folder, rows)
    model = plain_model(folder)
    losses, clipped, differences = [], [], []
    for i, ((prompt, response), advantage) in enumerate(zip(rows, whitened(columns["advantages"]), strict=True)):
        logprobs = plain_logprobs(model, prompt, response, temperature)
        old = torch.tensor(columns["logprobs"][i], dtype=torch.float64)
        ratio = (logprobs - old).exp()
        gains = [ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage]
        gain = torch.minimum(*gains)
        if dual_clip is not None:
            gain = torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)
        d = logprobs - torch.tensor(columns["ref_logprobs"][i], dtype=torch.float64)
        losses.append(-gain + kl * ((-d).exp() - 1 + d))
        clipped.append(gains[1] < gains[0])
        differences.append((old - logprobs).detach())
    loss = AGGREGATIONS[aggregation](losses)
    expected = plain_gradients(model, loss)

    trainer = build_plain(
        PolicyTrainer,
        folder,
        aggregation=aggregation,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        temperature=temperature,
        kl_loss_coef=kl,
    )
    assert_close(gradients(trainer, cut(lay_out(rows, "both", **columns), 4, 4, 1)), expected)
    metrics = logged(trainer)
    assert metrics["loss"] == [pytest.approx(float(loss.detach()), abs=1e-5)]
    assert metrics["clip_frac"] == [pytest.approx(float(torch.cat(clipped).double().mean()), abs=1e-6)]
    assert metrics["approx_kl"] == [pytest.approx(float(torch.cat(differences).mean()), abs=1e-5)]
    norm = torch.stack([value.norm() for value in expected.values()]).norm()
    assert metrics["grad_norm"] == [pytest.approx(float(norm), rel=1e-4)]
    assert 0.05 < metrics["clip_frac"][0] < 0.95, "the case should clip some ratios"


@pytest.mark.parametrize("clip", [None, 0.4])
def test_value_gradient_is_that_of_the_plain_loss(folder: str, clip: float | None) -> None:
    rows = random_rows(NUM_ROWS)
    columns = make_columns(folder, rows)
    trainer = build_plain(ValueTrainer, folder, value_clip=clip)
    model = copy.deepcopy(trainer.model)
    losses = []
    for i, (prompt, response) in enumerate(rows):
        states = model.backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        values = model.head(states).squeeze(-1)[len(prompt) - 1 : -1]
        old, returns = torch.tensor(columns["values"][i]), torch.tensor(columns["returns"][i])
        errors = (values - returns) ** 2
        if clip is not None:
            moved = old + (values - old).clamp(-clip, clip)
            errors = torch.maximum(errors, (moved - returns) ** 2)
        losses.append(errors / 2)
    loss = torch.cat(losses).mean()
    expected = plain_gradients(model, loss)
    assert_close(gradients(trainer, cut(lay_out(rows, "both", **columns), 4, 4, 1)), expected)
    assert logged(trainer)["value_loss"] == [pytest.approx(float(loss.detach()), rel=1e-5)]


def test_sft_gradient_is_that_of_the_mean_log_likelihood(folder: str) -> None:
    rows = random_rows(NUM_ROWS)
    model = plain_model(folder)
    loss = -torch.cat([plain_logprobs(model, prompt, response) for prompt, response in rows]).mean()
    expected = plain_gradients(model, loss)
    trainer = build_plain(SFTTrainer, folder)
    assert_close(gradients(trainer, cut(lay_out(rows, "both"), 4, 4, 1)), expected)
    assert logged(trainer)["loss"] == [pytest.approx(float(loss.detach()), rel=1e-5)]


# -- minibatches, clipping, schedule -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "num", "sizes"),
    [(4, 2, [2, 2]), (5, 2, [2, 3]), (3, 3, [1, 1, 1]), (6, 1, [6]), (7, 3, [2, 3, 2]), (2, 4, [1, 1])],
)
def test_minibatches_are_even_runs_in_order(count: int, num: int, sizes: list[int]) -> None:
    parts = list(minibatches(list(range(count)), num))
    assert [i for part in parts for i in part] == list(range(count))
    assert sorted(len(part) for part in parts) == sorted(sizes)


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_a_minibatch_is_an_update_with_a_normaliser_of_its_own(llama: str, cls: type) -> None:
    """Advantages come from outside the minibatch, so whitening is apart; see the next test."""
    args = {"whiten_advantages": False} if cls is PolicyTrainer else {}
    data = cut(make_batch(llama), 2, 2, 4, 1)
    at_once = build_plain(cls, llama, num_minibatches=2, **args)
    at_once.train_step(data, {"iteration": 0})
    one_by_one = build_plain(cls, llama, **args)
    for part in (data[:2], data[2:]):
        one_by_one.train_step(part, {"iteration": 0})
    for name, value in parameters(one_by_one).items():
        assert torch.equal(value, parameters(at_once)[name])
    assert len(logged(at_once)["grad_norm"]) == 2


def test_advantages_are_whitened_over_the_global_batch(llama: str) -> None:
    batch = make_batch(llama)
    mask = batch["response_mask"].bool()
    flat = batch["advantages"][mask]
    by_hand = torch.zeros_like(batch["advantages"])
    by_hand[mask] = (flat - flat.mean()) / (flat.var() + 1e-8).sqrt()
    ours = build_plain(PolicyTrainer, llama, num_minibatches=3)
    given = build_plain(PolicyTrainer, llama, num_minibatches=3, whiten_advantages=False)
    expected = gradients(given, cut({**batch, "advantages": by_hand}, 3, 3, 3))
    assert_close(gradients(ours, cut(batch, 3, 3, 3)), expected)


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_gradients_are_clipped_to_their_norm(llama: str, cls: type) -> None:
    batch = make_batch(llama)
    free = gradients(build_plain(cls, llama), [batch])
    norm = torch.stack([value.norm() for value in free.values()]).norm()
    module = build_plain(cls, llama, max_grad_norm=float(norm) / 10)
    clipped = gradients(module, [batch])
    assert logged(module)["grad_norm"] == [pytest.approx(float(norm), rel=1e-5)], "the norm before clipping"
    assert_close({name: 10 * value for name, value in clipped.items()}, free)
    loose = build_plain(cls, llama, max_grad_norm=float(norm) * 1.01)
    assert_close(gradients(loose, [batch]), free)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0] * 10),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]),
        ({"schedule": "linear", "decay_start": 0.6}, [1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "linear", "min_learning_rate_ratio": 0.35}, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, *[0.35] * 4]),
        ({"schedule": "cosine", "decay_start": 0.8}, [1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0]),
        ({"schedule": "linear", "warmup_steps": 2, "decay_start": 0.5}, [0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]),
    ],
)
def test_learning_rate_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    args = PolicyTrainer.Args(model_path="unused", learning_rate=2.0, **settings)
    rates = [learning_rate(args, step, 10) for step in range(10)]
    assert rates == pytest.approx([2.0 * ratio for ratio in expected], abs=1e-12)


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_the_schedule_spans_the_run(llama: str, cls: type) -> None:
    """3 episodes x 2 epochs x 4 global batches (the last one smaller) = 24 train steps."""
    runtime = {
        "num_episode": 3,
        "num_training_epoch": 2,
        "sample_per_episode": 50,
        "train_global_batch_size": 16,
        "train_micro_batch_size": 8,
    }
    module = build(cls, model_path=llama, learning_rate=0.1, schedule="linear", runtime=runtime)
    assert num_train_steps(module.runtime_args) == 24
    module.train_step([make_batch(llama)], {"iteration": 5})
    assert logged(module)["learning_rate"] == [pytest.approx(0.1 * 18 / 24)]
    assert [group["lr"] for group in module.optimizer.param_groups] == [pytest.approx(0.1 * 18 / 24)]
    before = parameters(module)
    module.train_step([make_batch(llama)], {"iteration": 23})
    assert all(torch.equal(value, before[name]) for name, value in parameters(module).items()), "the rate is 0"


def test_adamw_is_told_what_the_args_say(llama: str) -> None:
    module = build(PolicyTrainer, model_path=llama, learning_rate=0.1, betas=(0.8, 0.9), weight_decay=0.25)
    assert isinstance(module.optimizer, torch.optim.AdamW)
    group = module.optimizer.param_groups[0]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.9), 0.25, 0.1)
    count = sum(len(group["params"]) for group in module.optimizer.param_groups)
    assert count == len(list(module.model.parameters()))


# -- state, progress ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_a_resumed_trainer_goes_on_exactly(folder: str, cls: type) -> None:
    batches = [cut(make_batch(folder, seed=i), 4, 4, 1) for i in range(4)]
    args = {"model_path": folder, "learning_rate": 0.01, "num_minibatches": 2}
    straight = build(cls, **args)
    for i in (0, 1):
        straight.train_step(batches[i], {"iteration": i})
    state = copy.deepcopy(straight.state_dict())
    assert {"model", "optimizer"} <= state.keys()
    resumed = build(cls, **args)
    resumed.train_step(batches[3], {"iteration": 0})  # whatever it did before is forgotten
    resumed.load_state_dict(state)
    for module in (straight, resumed):
        logged(module)
        for i in (2, 3):
            module.train_step(batches[i], {"iteration": i})
    assert logged(resumed) == logged(straight)
    for name, value in parameters(straight).items():
        assert torch.equal(value, parameters(resumed)[name]), name


@pytest.mark.parametrize(
    ("cls", "metric", "share"),
    [(PolicyTrainer, "loss", None), (ValueTrainer, "value_loss", 0.3), (SFTTrainer, "loss", 0.3)],
)
def test_the_loss_goes_down(llama: str, cls: type, metric: str, share: float | None) -> None:
    args = {"value_clip": None} if cls is ValueTrainer else {}
    module = build(cls, model_path=llama, learning_rate=0.01, **args)
    data = cut(make_batch(llama), 4, 4, 1)
    for i in range(30):
        module.train_step(data, {"iteration": i})
    losses = logged(module)[metric]
    assert len(losses) == 30
    if share is None:
        # clipped, PPO's gain on fixed experience is bounded: it gets as far as the clipping lets it
        assert losses[-1] < losses[0] - 0.1
    else:
        assert losses[-1] < share * losses[0]


def test_the_policy_moves_towards_what_was_better_than_expected(llama: str) -> None:
    rows = [([3, 4], [10, 11]), ([3, 4], [20, 21])]
    model = plain_model(llama)
    old = [plain_logprobs(model, *row).tolist() for row in rows]
    batch = lay_out(rows, "both", logprobs=old, advantages=[[1.0, 1.0], [-1.0, -1.0]])
    module = build(PolicyTrainer, model_path=llama, learning_rate=0.005, whiten_advantages=False)
    for i in range(10):
        module.train_step([batch], {"iteration": i})
    better, worse = (plain_logprobs(module.model, *row).sum() for row in rows)
    assert better > sum(old[0]) + 0.1
    assert worse < sum(old[1]) - 0.1


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_nothing_to_learn_from_changes_nothing(llama: str, cls: type) -> None:
    batch = make_batch(llama)
    batch["response_mask"] = torch.zeros_like(batch["response_mask"])
    module = build(cls, model_path=llama, learning_rate=0.01)
    before = parameters(module)
    module.train_step(cut(batch, 4, 4, 1), {"iteration": 0})
    assert all(torch.equal(value, before[name]) for name, value in parameters(module).items())
    assert all(value == value for values in logged(module).values() for value in values), "no NaN in the metrics"


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_inputs_stay_as_they_are(llama: str, cls: type) -> None:
    data = cut(make_batch(llama), 4, 4, 1)
    copies = copy.deepcopy(data)
    build(cls, model_path=llama, learning_rate=0.01).train_step(data, {"iteration": 0})
    for batch, kept in zip(data, copies, strict=True):
        assert batch.keys() == kept.keys()
        assert all(torch.equal(batch[key], kept[key]) for key in kept)


@pytest.mark.parametrize("cls", [PolicyTrainer, ValueTrainer, SFTTrainer])
def test_more_minibatches_than_micro_batches_are_refused(llama: str, cls: type) -> None:
    """8 samples in micro-batches of 4 are two minibatches at most."""
    runtime = {"train_global_batch_size": 8, "train_micro_batch_size": 4}
    build(cls, model_path=llama, learning_rate=0.1, num_minibatches=2, runtime=runtime)
    with pytest.raises(ConfigError, match=r"models\.module\.args\.num_minibatches is 3, but a global batch has 2"):
        build(cls, model_path=llama, learning_rate=0.1, num_minibatches=3, runtime=runtime)
