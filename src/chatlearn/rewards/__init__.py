"""Verifiable rewards: functions from prompts and completions to one number per sample."""

from chatlearn.rewards.base import RewardFunction, find_failing, resolve, score
from chatlearn.rewards.build import REWARDS, build_reward
from chatlearn.rewards.format import Contains, ExactMatch, LengthPenalty, OverlongPenalty, RegexFormat
from chatlearn.rewards.math import MathReward, Questions, extract_answer
from chatlearn.rewards.reasoning_gym import ReasoningGymReward

__all__ = [
    "REWARDS",
    "Contains",
    "ExactMatch",
    "LengthPenalty",
    "MathReward",
    "OverlongPenalty",
    "Questions",
    "ReasoningGymReward",
    "RegexFormat",
    "RewardFunction",
    "build_reward",
    "extract_answer",
    "find_failing",
    "resolve",
    "score",
]
