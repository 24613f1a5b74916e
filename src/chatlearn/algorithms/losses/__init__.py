"""Losses: per token or pair, and aggregated to a scalar.

Shape legend: ``B`` samples, ``T`` tokens; position t of a ``[B, T]`` tensor belongs to token t. A mask is
nonzero where a token counts; whatever stands elsewhere, NaN included, reaches neither loss nor gradient. Half
precision is computed in float32. Nothing here waits for the device: metrics are detached tensors.

Two levels, so that a minibatch can be trained in micro-batches or on several ranks:

- ``policy_loss``, ``gspo_loss``, ``cispo_loss``, ``sapo_loss``, ``value_loss`` and ``dpo_loss`` give the scalar of
  the batch that they are called with.
- ``policy_loss_per_token`` and its like give ``[B, T]``. :func:`aggregate_sum` and :func:`aggregate_count` are
  numerator and denominator of :func:`aggregate`. Each of them *adds up* over micro-batches and ranks; means do
  not. So a trainer writes ::

    count = all_reduce(aggregate_count(minibatch_mask, mode)).clamp(min=1)
    for micro in micro_batches:
        loss_BT, metrics_BT = policy_loss_per_token(...)
        (aggregate_sum(loss_BT, micro_mask, mode) / count).backward()

  and the sum of the gradients over micro-batches and ranks is that of the whole minibatch, however it was
  split, as long as a row stays whole. (Where ranks *average* gradients, as DDP and FSDP do by default, multiply
  by the number of ranks.) ``dpo_loss_per_pair`` gives ``[B]``, to be summed and divided by the number of pairs.

An entropy bonus needs no function of its own: it is ``loss_BT - coefficient * entropy_BT`` before aggregation, with
:func:`chatlearn.algorithms.logprobs.entropy`. The same goes for a KL term.
"""

from chatlearn.algorithms.losses.aggregation import Aggregation, aggregate, aggregate_count, aggregate_sum
from chatlearn.algorithms.losses.cispo import cispo_loss, cispo_loss_per_token
from chatlearn.algorithms.losses.dpo import DPOVariant, dpo_loss, dpo_loss_per_pair
from chatlearn.algorithms.losses.gspo import gspo_loss, gspo_loss_per_token
from chatlearn.algorithms.losses.ppo import policy_loss, policy_loss_per_token
from chatlearn.algorithms.losses.sapo import sapo_loss, sapo_loss_per_token
from chatlearn.algorithms.losses.value import value_loss, value_loss_per_token

__all__ = [
    "Aggregation",
    "DPOVariant",
    "aggregate",
    "aggregate_count",
    "aggregate_sum",
    "cispo_loss",
    "cispo_loss_per_token",
    "dpo_loss",
    "dpo_loss_per_pair",
    "gspo_loss",
    "gspo_loss_per_token",
    "policy_loss",
    "policy_loss_per_token",
    "sapo_loss",
    "sapo_loss_per_token",
    "value_loss",
    "value_loss_per_token",
]
