"""The sampler against a plain loop of full forwards; and that it does less work than one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_sampling import (
    EOS,
    MAX_NEW_TOKENS,
    PAD,
    Row,
    assert_same,
    left_padded,
    make_model,
    plain_sample,
    random_prompts,
    rows_of,
)
from torch import Tensor

from chatlearn import DataError
from chatlearn.modules.noise import uniforms
from chatlearn.modules.torch.generation import Responses, sample

FAMILIES = ("llama", "llama-eager", "qwen2", "qwen3", "gpt2", "bloom", "mistral-sliding", "gemma3-mixed")
PROMPTS = random_prompts(6, group=4)


def run(model: Any, prompts: list[list[int]], noise: Tensor | None, **options: Any) -> Responses:
    options = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_ids": [EOS], "pad_token_id": PAD, **options}
    return sample(model, *left_padded(prompts), noise=noise, **options)


def plain(model: Any, prompts: list[list[int]], noise: Tensor | None, **options: Any) -> list[Row]:
    return [
        plain_sample(model, prompt, None if noise is None else noise[row], **options)
        for row, prompt in enumerate(prompts)
    ]


class Calls:
    """What a model is asked for, call by call: rows, new columns, columns that it attends to."""

    def __init__(self, model: Any) -> None:
        self.prefills: list[tuple[int, int]] = []
        self.steps: list[tuple[int, int]] = []
        self.masked: list[bool] = []
        self.buffers: set[int] = set()
        self._handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _model: Any, _inputs: Any, given: dict[str, Any]) -> None:
        rows, columns = given["input_ids"].shape
        cache = given.get("past_key_values")
        if cache is None:  # the plain loop
            return
        if seen := cache.get_seq_length():
            self.steps.append((rows, seen + columns))
            self.masked.append(given["attention_mask"] is not None)
            self.buffers.add(cache.layers[0].keys.data_ptr())
        else:
            self.prefills.append((rows, columns))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_running", [None, 7])
def test_a_batch_gets_what_each_sequence_gets_alone(family: str, max_running: int | None) -> None:
    """Groups of equal prompts, padding, uneven ends, and sequences that join later, in all kinds of caches."""
    model = make_model(family)
    noise = uniforms(3, range(len(PROMPTS)), MAX_NEW_TOKENS)
    ends = (EOS, 5, 9, 14, 20, 23)
    got = rows_of(run(model, PROMPTS, noise, eos_token_ids=ends, max_running=max_running))
    assert_same(got, plain(model, PROMPTS, noise, ends=ends))
    assert len({len(tokens) for tokens, _, _ in got}) > 3, "the case should have responses of many lengths"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mistral-sliding"])
def test_greedy_decoding_takes_the_most_likely_token(family: str) -> None:
    model = make_model(family)
    assert_same(rows_of(run(model, PROMPTS, None)), plain(model, PROMPTS, None))


def test_a_model_with_recurrent_layers_keeps_its_own_cache() -> None:
    """Short convolutions: their states can't be cut into columns. Without padding, which such layers see."""
    model = make_model("lfm2-convolution")
    prompts = [prompt for prompt in PROMPTS if len(prompt) == len(PROMPTS[0])] * 3
    noise = uniforms(3, range(len(prompts)), MAX_NEW_TOKENS)
    got = rows_of(run(model, prompts, noise, max_running=5))
    assert_same(got, plain(model, prompts, noise))
    assert len({len(tokens) for tokens, _, _ in got}) > 2


def test_equal_neighbours_are_prefilled_once() -> None:
    model = make_model("llama")
    calls = Calls(model)
    run(model, PROMPTS, uniforms(3, range(len(PROMPTS)), MAX_NEW_TOKENS))
    assert calls.prefills == [(6, max(map(len, PROMPTS)))]
    assert calls.steps[0][0] > 6
    run(model, [[5, 6], [5, 6, 7], [5, 6]], None)
    assert calls.prefills[1] == (3, 3), "equal prompts that aren't neighbours, and beginnings of others, are not shared"


def test_a_prompt_that_holds_the_padding_token_is_not_its_neighbour() -> None:
    model = make_model("llama")
    prompts = [[7, 8], [PAD, 7, 8], [PAD, 7, 8]]
    calls = Calls(model)
    got = rows_of(run(model, prompts, uniforms(0, [4, 4, 4], MAX_NEW_TOKENS)))
    assert calls.prefills == [(2, 3)]
    assert_same(got, plain(model, prompts, uniforms(0, [4, 4, 4], MAX_NEW_TOKENS)))


def ends_at(lengths: list[int]) -> Any:
    return lambda rows, texts: [len(text) >= lengths[row] for row, text in zip(rows, texts, strict=True)]


def test_sequences_that_have_ended_leave_and_so_do_columns_that_nobody_needs() -> None:
    """Rows of length 2, 4, …, and the longest prompts end first: worked out by hand from lengths."""
    model = make_model("qwen2")
    prompts = [[5] * (16 - row) for row in range(8)]
    lengths = [2 * row + 2 for row in range(8)]
    calls = Calls(model)
    noise = uniforms(0, range(8), 16)
    got = rows_of(run(model, prompts, noise, max_new_tokens=16, eos_token_ids=(), ended=ends_at(lengths)))
    assert [len(tokens) for tokens, _, _ in got] == lengths
    # the call that makes token t + 1 has the rows longer than t, and their widest prompt beside t tokens
    running = [[row for row in range(8) if lengths[row] > t] for t in range(1, 16)]
    assert [rows for rows, _ in calls.steps] == [len(rows) for rows in running]
    widths = [max(len(prompts[row]) for row in rows) + t for t, rows in enumerate(running, 1)]
    assert [width for _, width in calls.steps] == widths
    assert [calls.masked[0], calls.masked[-1]] == [True, False], "a mask only where there is padding"


def test_a_row_gets_the_same_whether_others_end_or_not() -> None:
    model = make_model("llama")
    prompts, lengths = random_prompts(40, group=1), [1 + row % 11 for row in range(40)]
    noise = uniforms(1, range(40), MAX_NEW_TOKENS)
    free = rows_of(run(model, prompts, noise, eos_token_ids=()))
    cut = rows_of(run(model, prompts, noise, eos_token_ids=(), ended=ends_at(lengths)))
    expected = [(t[:n], p[:n], True) for (t, p, _), n in zip(free, lengths, strict=True)]
    assert_same(cut, expected)


def test_no_more_than_max_running_sequences_run_and_the_next_ones_join() -> None:
    model = make_model("llama")
    prompts = random_prompts(30, group=1, seed=5)
    lengths = [1 + (7 * row) % 12 for row in range(30)]
    noise = uniforms(2, range(30), MAX_NEW_TOKENS)
    calls = Calls(model)
    few = run(model, prompts, noise, eos_token_ids=(), ended=ends_at(lengths), max_running=8)
    assert max(rows for rows, _ in calls.steps) == 8
    # waves of 8 without joining would have at least 4 times the longest response's steps
    assert len(calls.steps) < 4 * (max(lengths) - 1)
    joined = [rows for rows, _ in calls.prefills]
    assert joined[0] == 8
    assert sum(joined) == 30
    assert len(joined) > 4
    together = run(model, prompts, noise, eos_token_ids=(), ended=ends_at(lengths))
    assert_same(rows_of(few), rows_of(together))


def test_a_sequence_at_the_limit_leaves_though_it_is_the_only_one() -> None:
    """One of 33 has all its tokens when the others, which joined after its third, have two to go."""
    model = make_model("llama")
    prompts = [[2 + row % 28] for row in range(65)]
    lengths = [MAX_NEW_TOKENS, *[3] * 32, *[MAX_NEW_TOKENS] * 32]
    noise = uniforms(2, range(65), MAX_NEW_TOKENS)
    options: dict[str, Any] = {"eos_token_ids": (), "ended": ends_at(lengths)}
    calls = Calls(model)
    few = rows_of(run(model, prompts, noise, max_running=33, **options))
    assert [rows for rows, _ in calls.steps] == [33] * (MAX_NEW_TOKENS - 1) + [32] * 2
    assert_same(few, rows_of(run(model, prompts, noise, **options)))


@pytest.mark.parametrize("max_running", [None, 5])
def test_equal_arguments_give_equal_bits(max_running: int | None) -> None:
    model = make_model("llama")
    noise = uniforms(3, range(len(PROMPTS)), MAX_NEW_TOKENS)
    first, second = (run(model, PROMPTS, noise, max_running=max_running) for _ in range(2))
    for name in ("tokens", "mask", "logprobs", "finished"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_no_token_moves_the_cache() -> None:
    model = make_model("llama")
    calls = Calls(model)
    run(model, PROMPTS, None, eos_token_ids=())
    assert len(calls.steps) == MAX_NEW_TOKENS - 1
    assert len(calls.buffers) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("max_running", [None, 5])
def test_buffers_that_are_full_grow(family: str, max_running: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is filled with NaN here, so that a column that is read before it is written shows."""
    from chatlearn.modules.torch.generation import cache

    monkeypatch.setattr(cache, "_MIN_ROOM", 1)
    model = make_model(family)
    prompts = random_prompts(12, group=2, seed=1)
    noise = uniforms(3, range(len(prompts)), 30)
    calls = Calls(model)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        got = rows_of(run(model, prompts, noise, max_new_tokens=30, eos_token_ids=(2,), max_running=max_running))
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(calls.buffers) > 1
    assert_same(got, plain(model, prompts, noise, max_new_tokens=30, ends=(2,)))


def test_prompts_of_other_lengths_are_prefilled_apart_where_that_saves_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from chatlearn.modules.torch.generation import decoder

    monkeypatch.setattr(decoder, "_PREFILL_TOKENS", 24)
    model = make_model("llama")
    prompts = [[9, 8], *([[row + 3] * 12 for row in range(3)]), [7, 6, 5], [4]]
    calls = Calls(model)
    noise = uniforms(0, range(6), MAX_NEW_TOKENS)
    got = rows_of(run(model, prompts, noise))
    assert calls.prefills == [(3, 12), (3, 3)]
    assert_same(got, plain(model, prompts, noise))


def test_several_tokens_may_end_a_response_and_one_token_may_be_all() -> None:
    model = make_model("llama")
    noise = uniforms(3, range(len(PROMPTS)), MAX_NEW_TOKENS)
    got = rows_of(run(model, PROMPTS, noise, eos_token_ids=[EOS, 5, 9]))
    assert_same(got, plain(model, PROMPTS, noise, ends=(EOS, 5, 9)))
    single = rows_of(run(model, PROMPTS, noise, max_new_tokens=1))
    assert_same(single, plain(model, PROMPTS, noise, max_new_tokens=1))


def test_half_precision_gives_float32_logprobs() -> None:
    """Of the model's own logits: float32 softmax of what a bfloat16 forward gives, whose rounding is about 1e-2."""
    model = make_model("llama").to(torch.bfloat16)
    prompts = [[5, 6, 7, 8]] * 3
    responses = run(model, prompts, None, max_new_tokens=3, eos_token_ids=())
    assert responses.logprobs.dtype == torch.float32
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompts[0] + responses.tokens[0, :2].tolist()])).logits[0, 3:]
    expected = logits.float().log_softmax(-1)[torch.arange(3), responses.tokens[0]]
    torch.testing.assert_close(responses.logprobs[0], expected, atol=5e-2, rtol=5e-2)
    assert (responses.logprobs[0].bfloat16().float() != responses.logprobs[0]).any(), "not rounded to bfloat16"


def test_logits_that_are_nan_are_an_error_that_names_the_row() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(DataError, match=r"row 1 of the batch: token 0 of its response can't be drawn.*NaN"):
        run(model, [[4, 5], [7, 7]], uniforms(0, range(2), MAX_NEW_TOKENS), eos_token_ids=())
