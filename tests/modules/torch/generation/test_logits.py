"""Filters of logits against transformers' processors: the same numbers, and the same tokens left."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from plain_sampling import (
    EOS,
    MAX_NEW_TOKENS,
    PAD,
    VOCABULARY,
    assert_same,
    left_padded,
    make_model,
    plain_sample,
    random_prompts,
    rows_of,
)
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatlearn.modules.noise import uniforms
from chatlearn.modules.torch.generation import Sampling, sample
from chatlearn.modules.torch.generation.logits import (
    NextTokens,
    draw,
    min_p_filtered,
    repetition_penalized,
    top_k_filtered,
    top_p_filtered,
)


def some_logits(vocabulary: int = 200) -> torch.Tensor:
    """Flat and peaked rows, ties, forbidden tokens, and a row with a single token left."""
    torch.manual_seed(0)
    logits = torch.randn(24, vocabulary) * torch.logspace(-1, 1, 24)[:, None]
    logits[3] = logits[3].round()
    logits[4] = 0
    logits[5, ::2] = -torch.inf
    logits[6] = -torch.inf
    logits[6, 17] = 2.0
    return logits


NO_IDS: Any = None


@pytest.mark.parametrize("top_k", [1, 2, 7, 199, 200, 1000])
def test_top_k_is_that_of_transformers(top_k: int) -> None:
    logits = some_logits()
    expected = TopKLogitsWarper(top_k)(NO_IDS, logits.clone())
    assert torch.equal(top_k_filtered(logits.clone(), top_k), expected)
    assert (expected[0].isfinite().sum() == min(top_k, 200)).item()


@pytest.mark.parametrize("top_p", [1e-9, 1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_transformers(top_p: float) -> None:
    logits = some_logits()
    expected = TopPLogitsWarper(top_p)(NO_IDS, logits.clone())
    assert torch.equal(top_p_filtered(logits.clone(), top_p), expected)
    assert (expected.isfinite().sum(1) >= 1).all()


@pytest.mark.parametrize("min_p", [1e-6, 0.05, 0.5, 1.0])
def test_min_p_is_that_of_transformers(min_p: float) -> None:
    logits = some_logits()
    expected = MinPLogitsWarper(min_p)(NO_IDS, logits.clone())
    assert torch.equal(min_p_filtered(logits.clone(), min_p), expected)


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = some_logits()[:5]
    ids = torch.tensor([[0, 1, 1, 9], [3, 3, 3, 3], [199, 7, 8, 9], [4, 5, 6, 7], [1, 2, 3, 4]])
    seen = torch.zeros(5, 200, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(repetition_penalized(logits.clone(), seen, penalty), expected)


def test_top_p_by_hand() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05: the first two make 0.8."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    for top_p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3])):
        assert top_p_filtered(logits, top_p).isfinite().nonzero()[:, 1].tolist() == kept


OPTIONS = {
    "temperature": [1.0, 0.7],
    "top_k": [None, 6],
    "top_p": [1.0, 0.8],
    "min_p": [0.0, 0.1],
    "repetition_penalty": [1.0, 1.7],
    "min_new_tokens": [0, 4],
}


def processors(options: Sampling, num_prompt: int, *, greedy: bool = False) -> LogitsProcessorList:
    """Those of ``generate``, in its order."""
    found = LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.min_new_tokens:
        found.append(MinNewTokensLengthLogitsProcessor(num_prompt, options.min_new_tokens, [EOS, 5]))
    if options.temperature != 1.0:
        found.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k is not None:
        found.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        found.append(TopPLogitsWarper(options.top_p))
    if options.min_p > 0.0:
        found.append(MinPLogitsWarper(options.min_p))
    return found


@pytest.mark.parametrize("greedy", [False, True])
def test_every_combination_of_filters_samples_what_transformers_processors_do(greedy: bool) -> None:
    """64 combinations through the whole sampler: tokens, and log-probabilities of the filtered distribution.

    With padding, with a padding token that is a token of prompts too, and with sequences that join later.
    """
    model = make_model("llama")
    prompts = [*random_prompts(3, group=2), [PAD, 4], [4]]
    noise = None if greedy else uniforms(3, range(len(prompts)), 8)
    differences = set[str]()
    for values in itertools.product(*OPTIONS.values()):
        options = Sampling(**dict(zip(OPTIONS, values, strict=True)))
        got = sample(
            model,
            *left_padded(prompts),
            max_new_tokens=8,
            eos_token_ids=[EOS, 5],
            pad_token_id=PAD,
            options=options,
            noise=noise,
            max_running=5,
        )
        expected = [
            plain_sample(
                model,
                prompt,
                None if noise is None else noise[row],
                max_new_tokens=8,
                processors=processors(options, len(prompt)),
                ends=(EOS, 5),
            )
            for row, prompt in enumerate(prompts)
        ]
        assert_same(rows_of(got), expected)
        differences.add(str(expected))
    assert len(differences) > 30, "the filters should make a difference"


def test_the_end_can_be_drawn_from_the_minimum_on() -> None:
    model = make_model("qwen2")
    prompts = random_prompts(40, group=1)
    for minimum in (0, 5):
        responses = sample(
            model,
            *left_padded(prompts),
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_ids=[EOS, 5, 9],
            pad_token_id=PAD,
            options=Sampling(min_new_tokens=minimum),
            noise=uniforms(3, range(len(prompts)), MAX_NEW_TOKENS),
        )
        assert int(responses.mask.sum(1).min()) == minimum + 1


def test_draws_by_hand() -> None:
    """Cumulative probabilities 0.125, 0.125, 0.625, 1."""
    logits = torch.tensor([[0.125, 0.0, 0.5, 0.375]]).log().repeat(6, 1)
    tokens, logprobs = draw(logits, torch.tensor([0.1, 0.124, 0.126, 0.6, 0.63, 1 - 2**-24]))
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.125, 0.125, 0.5, 0.5, 0.375, 0.375]))
    tokens, logprobs = draw(logits, None)
    assert tokens.tolist() == [2] * 6
    torch.testing.assert_close(logprobs.exp(), torch.full((6,), 0.5))


def test_a_rare_token_of_a_large_vocabulary_is_drawn_at_its_probability() -> None:
    """The last of 200,000 tokens has 2e-6: a sum of the others in float32 steps would be off by more than that."""
    logits = torch.zeros(1, 200_000)
    logits[0, -1] = torch.tensor(0.4).log()
    share = 0.4 / 199_999.4
    noise = torch.tensor([1 - 2 * share, 1 - 0.5 * share])
    assert draw(logits.repeat(2, 1), noise)[0].tolist() == [199_998, 199_999]


def test_seen_tokens_are_those_of_each_row_alone() -> None:
    """Rows in any order, padding apart; tokens that were drawn count from then on."""
    ids, mask = left_padded([[3], [4, 5]], pad=7)
    tokens = NextTokens(Sampling(repetition_penalty=2.0), [EOS], ids, mask, None)

    def penalized(rows: list[int]) -> list[list[int]]:
        logits = torch.ones(len(rows), VOCABULARY)
        filtered = tokens.filtered(logits, torch.tensor(rows), torch.zeros(len(rows)), rows)
        return [row.nonzero().flatten().tolist() for row in filtered == 0.5]

    assert penalized([1, 0]) == [[4, 5], [3]]
    tokens.drawn(torch.tensor([9, 7]), torch.tensor([1, 0]), [1, 0])
    assert penalized([0, 1]) == [[3, 7], [4, 5, 9]]
