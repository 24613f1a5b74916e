"""Engines whose flows are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from chatlearn.engine.engine import Engine
from chatlearn.engine.environment import Environment
from chatlearn.engine.evaluator import Evaluation, Evaluator
from chatlearn.engine.trainer import Trainer
from chatlearn.errors import EngineError
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
