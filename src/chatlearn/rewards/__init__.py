"""Verifiable rewards: plain functions from prompts and completions to one number per sample."""

from chatlearn.rewards.base import RewardFunction, resolve, score
from chatlearn.rewards.reasoning_gym import ReasoningGymReward

__all__ = ["ReasoningGymReward", "RewardFunction", "resolve", "score"]
