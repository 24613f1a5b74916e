"""The policy trainer's objectives against plain loops over rows, in float64 and without padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import build, lay_out, logged, plain_logprobs, plain_model, random_rows
from trainer_cases import (
    AGGREGATIONS,
    NUM_ROWS,
    assert_close,
    build_plain,
    cut,
    gradients,
    make_columns,
    plain_gradients,
    whitened,
)

from chatlearn.errors import DataError
from chatlearn.modules.torch import PolicyTrainer


def as_float(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ppo(ratio: torch.Tensor, advantage: torch.Tensor, _: Any = None) -> torch.Tensor:
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def gspo(ratio: torch.Tensor, advantage: torch.Tensor, _: Any = None) -> torch.Tensor:
    whole = ratio.log().mean().exp()  # of the sequence, for each of its tokens
    return -torch.minimum(whole * advantage, whole.clamp(1 - 0.1, 1 + 0.2) * advantage)


def cispo(ratio: torch.Tensor, advantage: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    return -ratio.detach().clamp(0.7, 1.3) * advantage * logprobs


def sapo(ratio: torch.Tensor, advantage: torch.Tensor, _: Any = None) -> torch.Tensor:
    tau = torch.where(advantage > 0, 1.5, 2.0).double()
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage


LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo": (ppo, {}),
    "gspo": (gspo, {"clip_low": 0.1, "clip_high": 0.2}),
    "cispo": (cispo, {"clip_low": 0.3, "clip_high": 0.3}),
    "sapo": (sapo, {"tau_pos": 1.5, "tau_neg": 2.0}),
}


def plain_losses(folder: str, model: Any, columns: dict[str, Any], loss: Any, rows: Any) -> Any:
    """The losses of each row's tokens; advantages are one number for a row, as groups give them."""
    found = []
    for i, (prompt, response) in enumerate(rows):
        logprobs = plain_logprobs(model, prompt, response)
        ratio = (logprobs - as_float(columns["logprobs"][i])).exp()
        found.append(loss(ratio, as_float(columns["advantages"][i]), logprobs))
    return found


def experience(folder: str) -> tuple[Any, dict[str, Any]]:
    rows = random_rows(NUM_ROWS)
    columns = make_columns(folder, rows)
    columns["advantages"] = [[row[0]] * len(row) for row in columns["advantages"]]
    return rows, columns


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_has_its_own_aggregation_and_gradient(folder: str, loss: str) -> None:
    rows, columns = experience(folder)
    formula, args = LOSSES[loss]
    model = plain_model(folder)
    aggregation = "token_mean" if loss in ("ppo", "cispo") else "seq_mean_mean"
    value = AGGREGATIONS[aggregation](plain_losses(folder, model, columns, formula, rows))
    expected = plain_gradients(model, value)
    trainer = build_plain(PolicyTrainer, folder, loss=loss, whiten_advantages=False, **args)
    assert_close(gradients(trainer, cut(lay_out(rows, "both", **columns), 4, 4, 1)), expected)
    assert logged(trainer)["loss"] == [pytest.approx(float(value.detach()), abs=1e-5)]


def test_dr_grpo_divides_by_a_constant_length(llama: str) -> None:
    rows, columns = experience(llama)
    model = plain_model(llama)
    losses = plain_losses(llama, model, columns, ppo, rows)
    value = torch.cat(losses).sum() / (NUM_ROWS * 20)
    expected = plain_gradients(model, value)
    args = {"aggregation": "constant", "max_length": 20, "whiten_advantages": False}
    trainer = build_plain(PolicyTrainer, llama, **args)
    assert_close(gradients(trainer, cut(lay_out(rows, "both", **columns), 4, 4, 1)), expected)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_importance_weights_correct_for_the_sampler(llama: str, level: str, mode: str) -> None:
    rows, columns = experience(llama)
    generator = torch.Generator().manual_seed(5)
    columns["old_logprobs"] = [
        [value + 0.5 * float(torch.randn((), generator=generator)) for value in row] for row in columns["logprobs"]
    ]
    model, losses, num_capped = plain_model(llama), [], 0
    for i, (prompt, response) in enumerate(rows):
        old, sampled = as_float(columns["old_logprobs"][i]), as_float(columns["logprobs"][i])
        ratio = (plain_logprobs(model, prompt, response) - old).exp()
        gap = old - sampled
        weight = (gap.sum().expand_as(gap) if level == "sequence" else gap).exp()
        num_capped += int((weight > 1.5).sum())
        weight = weight.clamp(max=1.5) if mode == "truncate" else torch.where(weight > 1.5, 0, weight)
        losses.append(weight * ppo(ratio, as_float(columns["advantages"][i])))
    assert num_capped > 2, "the case should cap some weights"
    expected = plain_gradients(model, torch.cat(losses).mean())
    trainer = build_plain(
        PolicyTrainer,
        llama,
        importance_level=level,
        importance_mode=mode,
        importance_cap=1.5,
        whiten_advantages=False,
    )
    assert_close(gradients(trainer, cut(lay_out(rows, "both", **columns), 4, 4, 1)), expected)


@pytest.mark.parametrize("estimator", ["k1+", "k3+"])
def test_a_straight_through_kl_descends_the_square(llama: str, estimator: str) -> None:
    rows, columns = experience(llama)
    columns["advantages"] = [[0.0] * len(row) for row in columns["advantages"]]
    model, squares, values = plain_model(llama), [], []
    for i, (prompt, response) in enumerate(rows):
        d = plain_logprobs(model, prompt, response) - as_float(columns["ref_logprobs"][i])
        squares.append(0.3 * d.square() / 2)
        values.append((d if estimator == "k1+" else (-d).exp() - 1 + d).detach())
    expected = plain_gradients(model, torch.cat(squares).mean())
    trainer = build_plain(PolicyTrainer, llama, kl_loss_coef=0.3, kl_estimator=estimator, whiten_advantages=False)
    assert_close(gradients(trainer, cut(lay_out(rows, "both", **columns), 4, 4, 1)), expected)
    assert logged(trainer)["kl"] == [pytest.approx(float(torch.cat(values).mean()), abs=1e-5)]


def test_the_entropy_bonus_raises_entropy(llama: str) -> None:
    rows, columns = experience(llama)
    columns["advantages"] = [[0.0] * len(row) for row in columns["advantages"]]
    model, entropies = plain_model(llama), []
    for prompt, response in rows:
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
        steps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        entropies.append(-(steps.exp() * steps).sum(-1))
    mean = torch.cat(entropies).mean()
    expected = plain_gradients(model, -0.2 * mean)
    trainer = build_plain(PolicyTrainer, llama, entropy_coef=0.2, whiten_advantages=False)
    assert_close(gradients(trainer, cut(lay_out(rows, "both", **columns), 4, 4, 1)), expected)
    assert logged(trainer)["entropy"] == [pytest.approx(float(mean.detach()), rel=1e-5)]


def test_the_weight_of_the_kl_follows_its_target_and_is_resumed(llama: str) -> None:
    rows, columns = experience(llama)
    args = {"kl_loss_coef": 0.1, "kl_target": 1e-4, "kl_horizon": 100.0}
    trainer = build_plain(PolicyTrainer, llama, **args)
    trainer.train_step(cut(lay_out(rows, "both", **columns), 4, 4, 1), {"iteration": 0})
    assert logged(trainer)["kl_coef"] == [0.1]
    raised = 0.1 * (1 + 0.2 * NUM_ROWS / 100)
    assert trainer.kl_controller.coef == pytest.approx(raised)
    again = build_plain(PolicyTrainer, llama, **args)
    again.load_state_dict({"kl_controller": trainer.state_dict()["kl_controller"]})
    assert again.kl_controller.coef == pytest.approx(raised)


def test_the_trainer_says_how_far_it_is_from_the_sampler(llama: str) -> None:
    rows, columns = experience(llama)
    model, gaps = plain_model(llama), []
    for i, (prompt, response) in enumerate(rows):
        with torch.no_grad():
            gaps.append(as_float(columns["logprobs"][i]) - plain_logprobs(model, prompt, response))
    gap = torch.cat(gaps)
    expected = float(((-gap).exp() - 1 + gap).mean())
    data = cut(lay_out(rows, "both", **columns), 4, 4, 1)
    trainer = build_plain(PolicyTrainer, llama)
    trainer.train_step(data, {"iteration": 0})
    metrics = logged(trainer)
    assert metrics["mismatch_kl"] == [pytest.approx(expected, rel=1e-4)]
    assert metrics["mismatch_max"] == [pytest.approx(float(gap.abs().max()), rel=1e-5)]
    # recomputed by its own step, before anything is trained
    asked = build_plain(PolicyTrainer, llama)
    whole = lay_out(rows, "both", **columns)
    old = asked.forward_step(whole)["old_logprobs"]
    assert logged(asked)["mismatch_kl"] == [pytest.approx(expected, rel=1e-4)]
    assert (old[whole["response_mask"] == 0] == 0).all()
    first = whole["response_mask"][0].bool()
    torch.testing.assert_close(old[0][first].double(), plain_logprobs(model, *rows[0]).detach(), atol=1e-5, rtol=0)
    asked.train_step([{**whole, "old_logprobs": old}], {"iteration": 0})
    assert "mismatch_kl" not in logged(asked), "it was told already"


def test_only_the_first_update_of_a_global_batch_tells_the_mismatch(llama: str) -> None:
    rows, columns = experience(llama)
    data = cut(lay_out(rows, "both", **columns), 4, 5)
    trainer = build_plain(PolicyTrainer, llama, num_minibatches=2)
    trainer.train_step(data, {"iteration": 0})
    alone = build_plain(PolicyTrainer, llama)
    alone.train_step(data[:1], {"iteration": 0})
    assert logged(trainer)["mismatch_kl"] == logged(alone)["mismatch_kl"]


def test_advantages_of_a_value_model_are_whitened_and_those_of_groups_are_not(llama: str) -> None:
    rows, columns = experience(llama)
    grouped = {name: column for name, column in columns.items() if name not in ("values", "returns")}
    by_hand = {**grouped, "advantages": [row.tolist() for row in whitened(columns["advantages"])]}

    def of(experience: dict[str, Any], **args: Any) -> Any:
        return gradients(build_plain(PolicyTrainer, llama, **args), cut(lay_out(rows, "both", **experience), 4, 5))

    assert_close(of(columns), of(by_hand))
    assert_close(of(grouped), of(columns, whiten_advantages=False))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"loss": "gspo", "aggregation": "token_mean"},
            "use aggregation seq_mean_mean",
        ),
        ({"loss": "sapo", "aggregation": "constant"}, "is not for loss 'sapo'"),
        ({"aggregation": "constant"}, "set max_length"),
        ({"loss": "sapo", "clip_low": 0.1}, "leave clip_low and clip_high out"),
        ({"loss": "cispo", "dual_clip": 3.0}, "dual_clip is not for loss 'cispo'"),
        ({"kl_target": 0.1}, "set kl_loss_coef above 0"),
        ({"importance_cap": 0.0}, "importance_cap"),
    ],
)
def test_what_does_not_fit_together_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PolicyTrainer.Args(model_path="unused", learning_rate=1.0, **args)
    assert message in str(caught.value.errors())


@pytest.mark.parametrize(
    ("args", "key"), [({"kl_loss_coef": 0.1}, "ref_logprobs"), ({"importance_level": "token"}, "old_logprobs")]
)
def test_a_key_that_the_settings_need_is_named(llama: str, args: dict[str, Any], key: str) -> None:
    rows, columns = experience(llama)
    del columns["ref_logprobs"]
    trainer = build(PolicyTrainer, model_path=llama, learning_rate=0.1, **args)
    with pytest.raises(DataError, match=f"has no '{key}', but models.module.args"):
        trainer.train_step([lay_out(rows, "both", **columns)], {"iteration": 0})


def test_the_usual_bounds_belong_to_the_loss(llama: str) -> None:
    """GSPO's range is a thousand times narrower than PPO's: what is clipped tells which one was used."""
    rows, columns = experience(llama)
    data = [lay_out(rows, "both", **columns)]
    shares = {}
    for loss in ("ppo", "gspo", "cispo"):
        trainer = build_plain(PolicyTrainer, llama, loss=loss, whiten_advantages=False)
        trainer.train_step(data, {"iteration": 0})
        shares[loss] = logged(trainer)["clip_frac"][0]
    model, sequences = plain_model(llama), []
    for i, (prompt, response) in enumerate(rows):
        with torch.no_grad():
            ratio = float((plain_logprobs(model, prompt, response) - as_float(columns["logprobs"][i])).mean().exp())
        advantage = columns["advantages"][i][0]
        clipped = ratio > 1 + 4e-4 if advantage > 0 else ratio < 1 - 3e-4
        sequences += [clipped] * len(response)
    assert shares["gspo"] == pytest.approx(sum(sequences) / len(sequences), abs=1e-6)
    assert 0 < shares["ppo"] < 1
    assert shares["cispo"] == 0
    assert math.isfinite(sum(shares.values()))
