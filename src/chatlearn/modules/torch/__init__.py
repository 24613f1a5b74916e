"""Ready-made modules for Hugging Face models in plain PyTorch, imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_HOMES = {
    "TorchModule": "module",
    "PolicyInference": "policy",
    "PolicyReference": "policy",
    "ValueInference": "value",
    "RewardInference": "reward",
    "LearnedReward": "reward_model",
    "LearnedRewardArgs": "reward_model",
    "RewardTrainer": "reward_trainer",
    "PolicyTrainer": "policy_trainer",
    "ValueTrainer": "value_trainer",
    "SFTTrainer": "sft_trainer",
}

__all__ = [
    "LearnedReward",
    "LearnedRewardArgs",
    "PolicyInference",
    "PolicyReference",
    "PolicyTrainer",
    "RewardInference",
    "RewardTrainer",
    "SFTTrainer",
    "TorchModule",
    "ValueInference",
    "ValueTrainer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chatlearn.modules.torch' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"chatlearn.modules.torch.{_HOMES[name]}"), name)


if TYPE_CHECKING:
    from chatlearn.modules.torch.module import TorchModule
    from chatlearn.modules.torch.policy import PolicyInference, PolicyReference
    from chatlearn.modules.torch.policy_trainer import PolicyTrainer
    from chatlearn.modules.torch.reward import RewardInference
    from chatlearn.modules.torch.reward_model import LearnedReward, LearnedRewardArgs
    from chatlearn.modules.torch.reward_trainer import RewardTrainer
    from chatlearn.modules.torch.sft_trainer import SFTTrainer
    from chatlearn.modules.torch.value import ValueInference
    from chatlearn.modules.torch.value_trainer import ValueTrainer
