"""Engines whose flows are known."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from chatlearn.algorithms.reward_mixing import RewardMixing
from chatlearn.engine.engine import Engine
from chatlearn.engine.environment import Environment
from chatlearn.engine.evaluator import Evaluation, Evaluator
from chatlearn.engine.trainer import Trainer
from chatlearn.errors import EngineError
from chatlearn.guards import is_instance, is_sequence
from chatlearn.modules.advantage_estimator import AdvantageEstimator
from chatlearn.modules.base import BaseModule


class EvalEngine(Engine):
    """Measures only: runs one flow over evaluation data sets.

    Args:
        eval_flow: ``def eval_flow(batch): …``; or
        evaluator: an evaluator over it.

    Raises:
        EngineError: neither or both are given.
    """

    def __init__(self, eval_flow: Callable[[Any], Any] | None = None, evaluator: Evaluator | None = None) -> None:
        if eval_flow is not None and evaluator is None:
            evaluator = Evaluator(eval_flow)
        elif eval_flow is not None or evaluator is None:
            raise EngineError("EvalEngine takes a flow, or an evaluator: EvalEngine(eval_flow).")
        super().__init__(evaluator=evaluator)

    def set_dataset(self, prompts: Sequence[Any] | str | Path) -> Self:
        """Sets the prompts to evaluate on."""
        self._measures.set_dataset(prompts)
        return self

    def set_multiple_datasets(
        self, datasets: Sequence[Any] | Mapping[str, Any], data_ratio: Sequence[float] | None = None
    ) -> Self:
        """Sets several data sets to evaluate on, one after the other.

        Raises:
            EngineError: there are none, a name is no plain word, or there is a ratio (each is measured as a whole).
        """
        if data_ratio is not None:
            raise EngineError("An evaluation goes over each data set as a whole: leave data_ratio out.")
        self._measures.set_multiple_datasets(datasets)
        return self

    @property
    def _measures(self) -> Evaluator:
        if self.evaluator is None:
            raise EngineError("The engine has no evaluator any more. Call set_evaluator(Evaluator(eval_flow)).")
        return self.evaluator

    def eval(self) -> Evaluation:
        """One pass over the data; the same as ``evaluate()``."""
        return self.evaluate()


class RLHFEngine(Engine):
    """PPO with six models.

    The policy samples, reference and value score what it sampled, the reward sees all three; the two trainers get the
    outputs of value and reward, merged, and their weights go back to policy and value.

    Args:
        policy: inference; takes the raw batch and builds the data set.
        reference: inference.
        reward: inference; called with the outputs of policy, reference and value, merged in this order.
        value: inference.
        ppo_policy: trains the policy.
        ppo_value: trains the value model.
    """

    def __init__(
        self,
        policy: BaseModule,
        reference: BaseModule,
        reward: BaseModule,
        value: BaseModule,
        ppo_policy: BaseModule,
        ppo_value: BaseModule,
    ) -> None:
        def env_flow(batch: Any) -> Any:
            policy_out = policy.forward_step(batch)
            ref_out = reference.forward_step(policy_out)
            value_out = value.forward_step(policy_out)
            reward_out = reward.forward_step(policy_out, ref_out, value_out)
            return value_out, reward_out

        def trainer_flow(batch: Any) -> None:
            ppo_policy.train_step(batch)
            ppo_value.train_step(batch)

        super().__init__(Environment(env_flow), Trainer(trainer_flow))
        self.set_parameter_sync(ppo_policy, policy).set_parameter_sync(ppo_value, value)


class GRPOEngine(Engine):
    """GRPO and its family: a prompt's other responses are what a response is compared with, in place of a value model.

    Each prompt is sampled ``runtime.num_inference_per_prompt`` times (G), as a group that is kept whole. The policy
    samples, the reference scores what it sampled, the rewards see both; an :class:`AdvantageEstimator` adds
    ``advantages`` (a reward module that gives ``advantages`` itself is left its own), the trainer gets all of it, and
    its weights go back to the policy.

    Args:
        policy: inference; takes the raw batch and builds the data set.
        reference: inference; ``None`` where nothing reads the KL; the policy itself where it holds an adapter, whose
            base model is then the reference (its step ``reference_step``).
        reward: inference; called with the outputs of policy and reference, merged. A list of such modules, each giving
            ``rewards``, is combined into a weighted sum.
        ppo_policy: trains the policy.
        advantages: how rewards become advantages; left out, ``AdvantageEstimator("advantages")``, which
            ``models.advantages`` may configure.
        reward_weights: one number for each reward of a list; left out, all are 1.
        combine: of several rewards: ``sum_then_normalize`` estimates advantages from the weighted sum;
            ``normalize_then_sum`` brings each reward to one scale within its group first.
        recompute_logprobs: the trainer computes the log-probabilities of the sampled tokens again (its
            ``forward_step``), as ``old_logprobs``: for importance correction, and to see the mismatch.
        greedy_baseline: the baseline is the reward of the greedy response to each prompt (ReMax).
        drop_silent_groups: groups without signal are left out (dynamic sampling); ``runtime.max_refill_rounds``
            fills up.

    Raises:
        EngineError: there is no reward, or the weights don't fit.
    """

    def __init__(
        self,
        policy: BaseModule,
        reference: BaseModule | None,
        reward: BaseModule | Sequence[BaseModule],
        ppo_policy: BaseModule,
        *,
        advantages: BaseModule | None = None,
        reward_weights: Sequence[float] | None = None,
        combine: RewardMixing = "sum_then_normalize",
        recompute_logprobs: bool = False,
        greedy_baseline: bool = False,
        drop_silent_groups: bool = False,
    ) -> None:
        rewards = _rewards(reward)
        weights = _weights(reward_weights, rewards)
        names = [each.name for each in rewards]
        estimator = AdvantageEstimator("advantages") if advantages is None else advantages
        _check_parts({"policy": policy, "ppo_policy": ppo_policy}, reference, estimator)
        if combine not in get_args(RewardMixing):
            raise EngineError(f"GRPOEngine: combine is {combine!r}; give {' or '.join(get_args(RewardMixing))}.")
        if greedy_baseline and combine == "normalize_then_sum":
            raise EngineError(
                "GRPOEngine: greedy_baseline compares rewards on their own scale, and normalize_then_sum takes it "
                "away: a greedy response is the same in its whole group. Take combine='sum_then_normalize'."
            )

        def rewarded(samples: Any, *scored: Any) -> Any:
            outputs = [each.forward_step(samples, *scored) for each in rewards]
            if weights == [1.0]:
                return outputs[0]
            return estimator.combine(*outputs, names=names, weights=weights, mode=combine)

        def env_flow(batch: Any) -> Any:
            samples = policy.forward_step(batch)
            seen = [samples]
            if recompute_logprobs:
                seen.append(ppo_policy.forward_step(samples))
            if reference is policy:
                seen.append(_reference_step(policy)(samples))
            elif reference is not None:
                seen.append(reference.forward_step(samples))
            seen.append(rewarded(*seen))
            if greedy_baseline:
                seen.append(estimator.remax(*seen, rewarded(policy.forward_step(batch, greedy=True))))
            else:
                seen.append(estimator.forward_step(*seen))
            if drop_silent_groups:
                seen.append(estimator.keep_signal(*seen))
            return tuple(seen)

        def trainer_flow(batch: Any) -> None:
            ppo_policy.train_step(batch)

        super().__init__(Environment(env_flow), Trainer(trainer_flow))
        self.set_parameter_sync(ppo_policy, policy)


def _reference_step(policy: BaseModule) -> Callable[[Any], Any]:
    """The step of a policy with an adapter that scores without it."""
    found = getattr(policy, "reference_step", None)
    if found is None:
        raise EngineError(
            f"GRPOEngine: {policy.name!r} is to be its own reference, but {type(policy).__name__} has no step "
            f"`reference_step`. Give a reference module, or None."
        )
    return found


def _rewards(given: Any) -> list[BaseModule]:
    """The reward modules: one, or those of a list."""
    rewards: list[Any] = list(given) if is_sequence(given) else [given]
    if not rewards:
        raise EngineError("GRPOEngine got no reward. Give a reward module, or a list of them.")
    for each in rewards:
        if not is_instance(each, BaseModule):
            raise EngineError(f"GRPOEngine: a reward is a module, or a list of them, got {type(each).__name__}.")
    names = [each.name for each in rewards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise EngineError(f"GRPOEngine: the reward {twice[0]} is given twice. Give it once, with both weights added.")
    return rewards


def _check_parts(needed: Mapping[str, Any], reference: Any, estimator: Any) -> None:
    """The other arguments are modules, and the estimator has the steps that the flow may call."""
    for role, part in needed.items():
        if not is_instance(part, BaseModule):
            raise EngineError(f"GRPOEngine: {role} is a module, got {type(part).__name__}.")
    if reference is not None and not is_instance(reference, BaseModule):
        raise EngineError(f"GRPOEngine: reference is a module or None, got {type(reference).__name__}.")
    if not is_instance(estimator, AdvantageEstimator):
        raise EngineError(
            f"GRPOEngine: advantages is an AdvantageEstimator, or of a subclass, got {type(estimator).__name__}."
        )


def _weights(given: Any, rewards: Sequence[BaseModule]) -> list[float]:
    """One weight for each reward."""
    if given is None:
        return [1.0] * len(rewards)
    names = ", ".join(each.name for each in rewards)
    if not is_sequence(given) or not all(is_instance(each, numbers.Real) and math.isfinite(each) for each in given):
        raise EngineError(f"GRPOEngine: reward_weights has a finite number for each of {names}; got {given!r}.")
    if len(given) != len(rewards):
        raise EngineError(
            f"GRPOEngine got {len(given)} reward_weights for {len(rewards)} rewards ({names}). Give one number for "
            f"each."
        )
    if not any(given):
        raise EngineError(f"GRPOEngine: all reward_weights ({names}) are 0, so nothing would be learned.")
    return [float(each) for each in given]
