"""The papers' losses for one token or one sequence in plain Python, for the tests of the policy losses."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class TokenResult:
    """What a loss function has to give for one token."""

    loss: float
    clipped: float
    gate: float = 0.0


def clip(x: float, clip_low: float, clip_high: float) -> float:
    return min(max(x, 1 - clip_low), 1 + clip_high)


def gspo_row(log_ratios: list[float], advantages: list[float], clip_low: float, clip_high: float) -> list[TokenResult]:
    """Zheng et al. 2025, eq. 5: s = (p_new(y) / p_old(y)) ** (1 / |y|)."""
    ratio = math.prod(map(math.exp, log_ratios)) ** (1 / max(1, len(log_ratios)))
    return [surrogate(ratio, a, clip_low, clip_high) for a in advantages]


def surrogate(ratio: float, advantage: float, clip_low: float, clip_high: float) -> TokenResult:
    objective, bounded = ratio * advantage, clip(ratio, clip_low, clip_high) * advantage
    return TokenResult(-min(objective, bounded), float(bounded < objective))


def cispo_token(logprob: float, old_logprob: float, advantage: float, clip_low: float, clip_high: float) -> TokenResult:
    """MiniMax 2025, eq. 4 and 5."""
    ratio = math.exp(logprob - old_logprob)
    return TokenResult(
        -clip(ratio, clip_low, clip_high) * advantage * logprob, float(clip(ratio, clip_low, clip_high) != ratio)
    )


def sapo_token(log_ratio: float, advantage: float, tau_pos: float, tau_neg: float) -> TokenResult:
    """Gao et al. 2025, eq. 5 and 6."""
    tau = tau_pos if advantage > 0 else tau_neg
    opening = 1 / (1 + math.exp(-tau * (math.exp(log_ratio) - 1)))
    return TokenResult(-4 * opening / tau * advantage, 0.0, 4 * opening * (1 - opening))


def mean_over_tokens(rows: list[list[float]]) -> float:
    values = [x for row in rows for x in row]
    return sum(values) / max(1, len(values))


def mean_over_rows(rows: list[list[float]]) -> float:
    means = [sum(row) / len(row) for row in rows if row]
    return sum(means) / max(1, len(means))
