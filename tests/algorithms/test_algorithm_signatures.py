"""Names and order of arguments that modules and users' programs build on."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from chatlearn.algorithms import advantages, importance, kl, lengths, losses, reward_mixing

FIELDS = "(logprobs, old_logprobs, advantages, mask, *, "
SURROGATE = ", aggregation='seq_mean_mean', weights=None)"
PAIRS = "(chosen, rejected, ref_chosen, ref_rejected, *, beta, variant='sigmoid', label_smoothing=0.0)"
SIGNATURES = {
    advantages.gae: "(rewards_BT, values_BT, mask_BT, *, gamma, lam)",
    advantages.grpo: "(rewards_B, group_ids_B, *, normalize_std=True, eps=1e-06)",
    advantages.dr_grpo: "(rewards_B, group_ids_B)",
    advantages.rloo: "(rewards_B, group_ids_B)",
    advantages.reinforce_plus_plus: "(rewards_BT, mask_BT, *, gamma=1.0)",
    advantages.reinforce_plus_plus_baseline: "(rewards_B, group_ids_B)",
    advantages.remax: "(rewards_B, baseline_rewards_B)",
    importance.importance_weights: "(train_logprobs, rollout_logprobs, mask, *, level, mode, cap)",
    kl.kl_estimate: "(logprobs, ref_logprobs, estimator)",
    kl.AdaptiveKLController: "(coef, target, horizon, *, clip=0.2)",
    lengths.overlong_penalty: "(lengths_B, *, max_length, buffer)",
    reward_mixing.combine_rewards: "(components, weights, group_ids_B, *, mode='sum_then_normalize', eps=1e-06)",
    losses.aggregate: "(loss_BT, mask_BT, mode, *, max_length=None)",
    losses.aggregate_sum: "(loss_BT, mask_BT, mode)",
    losses.aggregate_count: "(mask_BT, mode, *, max_length=None)",
    losses.policy_loss: FIELDS + "clip_low=0.2, clip_high=0.2, dual_clip=None, aggregation='token_mean', weights=None)",
    losses.policy_loss_per_token: FIELDS + "clip_low=0.2, clip_high=0.2, dual_clip=None, weights=None)",
    losses.gspo_loss: FIELDS + "clip_low, clip_high" + SURROGATE,
    losses.gspo_loss_per_token: FIELDS + "clip_low, clip_high, weights=None)",
    losses.cispo_loss: FIELDS + "clip_low, clip_high, aggregation='token_mean', weights=None)",
    losses.cispo_loss_per_token: FIELDS + "clip_low, clip_high, weights=None)",
    losses.sapo_loss: FIELDS + "tau_pos=1.0, tau_neg=1.05" + SURROGATE,
    losses.sapo_loss_per_token: FIELDS + "tau_pos=1.0, tau_neg=1.05, weights=None)",
    losses.value_loss: "(values, old_values, returns, mask, *, clip=None)",
    losses.value_loss_per_token: "(values, old_values, returns, mask, *, clip=None)",
    losses.dpo_loss: PAIRS,
    losses.dpo_loss_per_pair: PAIRS,
}


def without_types(function: Callable) -> str:
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_arguments_keep_their_names_and_order(function: Callable) -> None:
    assert without_types(function) == SIGNATURES[function]


def test_every_name_of_the_losses_is_pinned() -> None:
    assert {f.__name__ for f in SIGNATURES} >= {name for name in losses.__all__ if name[0].islower()}
