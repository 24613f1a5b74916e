"""Log-probabilities, entropies and values against plain forward passes, row by row and without padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import KINDS, Row, lay_out, make_model, plain_logprobs, random_rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chatlearn.errors import ConfigError, DataError
from chatlearn.modules.torch.huggingface import ValueModel
from chatlearn.modules.torch.scoring import Window, head, policy_logprobs, policy_logprobs_and_entropy, state_values
from chatlearn.modules.torch.scoring.layout import Layout, packed, padded
from chatlearn.modules.torch.scoring.parts import head_of

CPU = torch.device("cpu")
VOCABULARY = 30


def grouped_rows(num_groups: int = 4, size: int = 3) -> list[Row]:
    """Several responses to each prompt, with lengths from 1 to 13, and three rows with prompts of their own."""
    rows: list[Row] = []
    for prompt, _ in random_rows(num_groups, seed=5):
        rows += [(prompt, response) for _, response in random_rows(size, seed=len(rows))]
    return rows + random_rows(3, seed=9)


def plain_entropy(model: Any, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double() / temperature
    probabilities = logits.softmax(-1)[len(prompt) - 1 : -1]
    return -(probabilities * probabilities.log()).sum(-1)


def by_row(window: Window, values: Tensor) -> list[Tensor]:
    return [value[mask] for value, mask in zip(values, window.mask.bool(), strict=True)]


def gradient(model: nn.Module) -> Tensor:
    """Of all parameters, which lose it."""
    flat = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
    model.zero_grad()
    return flat


def weights(rows: list[Tensor]) -> list[Tensor]:
    """Fixed numbers by which the tokens of rows count in a scalar."""
    return [torch.cos(7.0 * i + torch.arange(len(row))) for i, row in enumerate(rows)]


def assert_like_plain(model: Any, rows: list[Row], *, packing: bool, padding: str = "both", temperature: float = 0.7):
    """Values and gradients of log-probabilities and entropies, within 1e-5 relative to the norm."""
    plain = [plain_logprobs(model, *row, temperature) for row in rows]
    entropies = [plain_entropy(model, *row, temperature) for row in rows]
    sum(((a + 0.3 * b) * w.double()).sum() for a, b, w in zip(plain, entropies, weights(plain), strict=True)).backward()
    expected = gradient(model)
    window = Window.of(lay_out(rows, padding), CPU)
    logprobs, entropy = policy_logprobs_and_entropy(model, window, temperature, packing=packing)
    assert (logprobs.dtype, entropy.dtype) == (torch.float32, torch.float32)
    assert (logprobs[~window.mask.bool()] == 0).all()
    assert (entropy[~window.mask.bool()] == 0).all()
    got, got_entropies = by_row(window, logprobs), by_row(window, entropy)
    for ours, theirs in zip([*got, *got_entropies], [*plain, *entropies], strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=1e-5)
    sum(((a + 0.3 * b) * w).sum() for a, b, w in zip(got, got_entropies, weights(got), strict=True)).backward()
    assert (gradient(model) - expected).norm() <= 1e-5 * expected.norm()
    alone = policy_logprobs(model, window, temperature, packing=packing)
    torch.testing.assert_close(alone, logprobs, atol=0, rtol=0)


# -- models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_rows_without_padding(kind: str, attention: str, packing: bool) -> None:
    model = make_model(kind, VOCABULARY).eval()
    model.set_attn_implementation(attention)
    assert_like_plain(model, grouped_rows(), packing=packing)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("padding", ["left", "right", "wide"])
def test_scores_do_not_depend_on_the_padding_side(padding: str, packing: bool) -> None:
    model = make_model("llama-tied", VOCABULARY).eval()
    assert_like_plain(model, grouped_rows(), packing=packing, padding=padding)


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def special_model(name: str) -> Any:
    """Models that do something of their own to logits or attention."""
    import transformers as t

    torch.manual_seed(1)
    if name == "gemma2: capped":
        config = t.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=5.0, sliding_window=4)
        return t.Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    if name == "cohere: scaled":
        return t.CohereForCausalLM(t.CohereConfig(**SMALL, logit_scale=0.25)).eval()
    if name == "granite: scaled":
        return t.GraniteForCausalLM(t.GraniteConfig(**SMALL, logits_scaling=3.0)).eval()
    if name == "phi: bias":
        model = t.PhiForCausalLM(t.PhiConfig(**SMALL)).eval()
        nn.init.normal_(model.lm_head.bias)
        return model
    assert name == "mistral: window"
    return t.MistralForCausalLM(t.MistralConfig(**SMALL, sliding_window=4)).eval()


SPECIAL = ["gemma2: capped", "cohere: scaled", "granite: scaled", "phi: bias", "mistral: window"]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", SPECIAL)
def test_what_a_model_does_to_its_logits_and_attention_is_kept(name: str, packing: bool) -> None:
    assert_like_plain(special_model(name), grouped_rows(), packing=packing)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters_are_trained_as_with_their_own_logits(targets: list[str], packing: bool) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(make_model("llama-untied", VOCABULARY), config).eval()
    assert_like_plain(model, grouped_rows(), packing=packing)
    with model.disable_adapter():
        assert_without_gradients(model, grouped_rows(), packing)


def assert_without_gradients(model: Any, rows: list[Row], packing: bool) -> None:
    window = Window.of(lay_out(rows, "both"), CPU)
    with torch.no_grad():
        got = by_row(window, policy_logprobs(model, window, 1.0, packing=packing))
        for ours, row in zip(got, rows, strict=True):
            torch.testing.assert_close(ours.double(), plain_logprobs(model, *row), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_rows_without_padding(kind: str, packing: bool) -> None:
    model = ValueModel(make_model(kind, VOCABULARY).eval())
    nn.init.normal_(model.head.weight)
    rows = grouped_rows()
    window = Window.of(lay_out(rows, "both"), CPU)
    with torch.no_grad():
        got = by_row(window, state_values(model, window, packing=packing))
        for ours, (prompt, response) in zip(got, rows, strict=True):
            states = model.backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
            expected = model.head(states).squeeze(-1)[len(prompt) - 1 : -1]
            torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


# -- packing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*KINDS, *SPECIAL])
def test_no_sequence_sees_another(kind: str, attention: str) -> None:
    model = special_model(kind) if ":" in kind else make_model(kind, VOCABULARY).eval()
    if not kind.startswith("gemma2"):  # has eager attention alone, for its capped scores
        model.set_attn_implementation(attention)
    rows = grouped_rows()
    first = Window.of(lay_out(rows, "both"), CPU)
    assert any(len(line) > 1 or len(line[0].rows) > 1 for line in packed(first, 32, sharing=True))
    with torch.no_grad():
        before = policy_logprobs(model, first, 1.0, packing=True)
        for changed in (0, 4, len(rows) - 1):
            prompt, response = rows[changed]
            other = [*rows[:changed], (prompt, [29 - token % 27 for token in response]), *rows[changed + 1 :]]
            after = policy_logprobs(model, Window.of(lay_out(other, "both"), CPU), 1.0, packing=True)
            same = [row for row in range(len(rows)) if row != changed]
            torch.testing.assert_close(after[same], before[same], atol=2e-5, rtol=1e-5)
            assert (after[changed] - before[changed]).abs().max() > 0.1


def test_a_model_that_ignores_where_sequences_begin_is_refused() -> None:
    class Recurrent(nn.Module):
        """A recurrent network: what it has read stays with it."""

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(_attn_implementation="none", pad_token_id=None)
            self.embedding, self.layer = nn.Embedding(VOCABULARY, 8), nn.GRU(8, 8, batch_first=True)
            self.out = nn.Linear(8, VOCABULARY)

        def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, use_cache: bool = False) -> Any:
            return SimpleNamespace(logits=self.out(self.layer(self.embedding(input_ids))[0]))

    class Restless(Recurrent):
        def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:  # type: ignore[override]
            return super().forward(input_ids)

    window = Window.of(lay_out(grouped_rows(), "both"), CPU)
    for cls in (Recurrent, Restless):
        model = cls()
        assert policy_logprobs(model, window, 1.0).shape == window.mask.shape
        with pytest.raises(ConfigError, match=rf"packing: true, but in {cls.__name__} .*Set packing: false"):
            policy_logprobs(model, window, 1.0, packing=True)


def num_places(layout: Layout) -> int:
    return layout.input_ids.numel()


def test_uneven_sequences_share_lines() -> None:
    """Of 4 x 40 and 16 x 5 tokens, 20 lines of 40 hold 800; packed there are about 240."""
    rows = [([3], [i % 27 + 3] * 40) for i in range(4)] + [([4 + i], [5] * 5) for i in range(16)]
    window = Window.of(lay_out(rows, "both"), CPU)
    assert num_places(Layout.of(window, padded(window))) == 20 * 40
    assert 240 <= num_places(Layout.of(window, packed(window, 512, sharing=False))) <= 280


def test_rows_with_one_prompt_share_its_tokens() -> None:
    """A prompt of 20 tokens and 8 responses of 5, whose last tokens are no inputs: 20 + 8 x 4 places hold all."""
    rows = [(list(range(3, 23)), [3 + i, 4, 5, 6, 7]) for i in range(8)]
    window = Window.of(lay_out(rows, "both"), CPU)
    assert num_places(Layout.of(window, packed(window, 512, sharing=True))) == 52
    assert num_places(Layout.of(window, packed(window, 512, sharing=False))) == 8 * 24


def test_sequences_of_one_length_keep_lines_of_their_own_in_narrow_models() -> None:
    rows = [([3 + i], [4] * 12) for i in range(16)]
    window = Window.of(lay_out(rows, "both"), CPU)
    assert packed(window, 16, sharing=True) == padded(window)


# -- edges of the window -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_rows_without_responses_cost_nothing_and_get_zeros(packing: bool) -> None:
    rows = grouped_rows()
    batch = lay_out(rows, "both")
    batch["response_mask"][[1, 5]] = 0
    window = Window.of(batch, CPU)
    assert window.lengths[[1, 5]].tolist() == [0, 0]
    model = make_model("llama-tied", VOCABULARY).eval()
    logprobs = policy_logprobs(model, window, 1.0, packing=packing)
    assert (logprobs[[1, 5]] == 0).all()
    torch.testing.assert_close(
        logprobs[2][window.mask[2].bool()].double(), plain_logprobs(model, *rows[2]), atol=2e-5, rtol=1e-5
    )
    batch["response_mask"][:] = 0
    nothing = policy_logprobs(model, Window.of(batch, CPU), 1.0, packing=packing)
    assert (nothing == 0).all()
    nothing.sum().backward()
    assert not gradient(model).any()


def test_a_response_without_a_token_before_it_is_named() -> None:
    batch = lay_out([([3, 4], [5, 6]), ([7], [8, 9])], "left")
    batch["response_mask"][1, 1:] = 1
    with pytest.raises(DataError, match=r"row 1 of a micro-batch of 2: its first response token has no token before"):
        Window.of(batch, CPU)


def test_tokens_between_responses_are_read_but_not_scored() -> None:
    """As with tools, whose answers stand in the middle of a response."""
    model = make_model("llama-tied", VOCABULARY).eval()
    batch = lay_out([([3, 4], [5, 6, 7, 8, 9])], "both")
    batch["response_mask"][0, 4:6] = 0
    window = Window.of(batch, CPU)
    logprobs = policy_logprobs(model, window, 1.0)[0]
    expected = plain_logprobs(model, [3, 4], [5, 6, 7, 8, 9])
    torch.testing.assert_close(logprobs[[0, 1, 4]].double(), expected[[0, 1, 4]], atol=2e-5, rtol=1e-5)
    assert logprobs[2:4].tolist() == [0, 0]


# -- the output layer in chunks ------------------------------------------------------------------------------


def make_layer(dtype: torch.dtype, bias: bool, rows: int = 23) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(17, 6, generator=generator, dtype=torch.float64)
    shift = torch.randn(17, generator=generator, dtype=torch.float64) if bias else None
    tokens = torch.randint(0, 17, (rows,), generator=generator)
    inputs = (value if value is None else value.to(dtype).requires_grad_() for value in (states, weight, shift))
    return (*inputs, tokens)


@contextmanager
def chunk_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(head, "CHUNK_ELEMENTS", {"cpu": 0})
        patch.setattr(head, "MIN_ROWS", rows)
        yield


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_layer_in_chunks_is_the_layer_at_once(
    monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool, temperature: float
) -> None:
    states, weight, shift, tokens = make_layer(torch.float64, bias)
    inputs = [value for value in (states, weight, shift) if value is not None]
    all_logprobs = torch.log_softmax(torch.nn.functional.linear(states, weight, shift) / temperature, -1)
    expected = all_logprobs[torch.arange(23), tokens], -(all_logprobs.exp() * all_logprobs).sum(-1)
    factors = torch.cos(torch.arange(23.0, dtype=torch.float64)), torch.sin(torch.arange(23.0, dtype=torch.float64))
    with chunk_rows(monkeypatch, rows):
        got = head.head_logprobs(states, weight, shift, tokens, temperature, with_entropy=True)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
        for used in ((0,), (1,), (0, 1)):
            grads = [
                torch.autograd.grad(sum((outputs[i] * factors[i]).sum() for i in used), inputs, retain_graph=True)
                for outputs in (got, expected)
            ]
            for ours, theirs in zip(*grads, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("rows", [4, 100])
def test_the_layer_passes_gradcheck(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    states, weight, shift, tokens = make_layer(torch.float64, bias=True)
    with chunk_rows(monkeypatch, rows):
        assert torch.autograd.gradcheck(
            lambda *inputs: head.head_logprobs(*inputs, tokens, 0.8, with_entropy=True), (states, weight, shift)
        )


def test_gradients_of_half_precision_weights_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in bfloat16 would round once for each of 400 chunks, and stop growing where one adds too little."""
    states, weight, _, tokens = make_layer(torch.bfloat16, bias=False, rows=400)
    exact = [value.detach().double().requires_grad_() for value in (states, weight)]
    logits = (states.detach() @ weight.detach().t()).double()  # as the layer rounds them
    with chunk_rows(monkeypatch, 1):
        logprobs, _ = head.head_logprobs(states, weight, None, tokens, 1.0)
        assert logprobs.dtype == torch.float32
        expected = torch.log_softmax(logits, -1)[torch.arange(400), tokens]
        torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=1e-5)
        logprobs.sum().backward()
    torch.log_softmax(exact[0] @ exact[1].t(), -1)[torch.arange(400), tokens].sum().backward()
    assert weight.grad.dtype == torch.bfloat16
    assert (weight.grad.double() - exact[1].grad).norm() < 0.005 * exact[1].grad.norm()


def test_a_frozen_layer_gets_no_gradient() -> None:
    states, weight, _, tokens = make_layer(torch.float32, bias=False)
    weight.requires_grad_(False)
    head.head_logprobs(states, weight, None, tokens, 1.0)[0].sum().backward()
    assert weight.grad is None
    assert states.grad.abs().sum() > 0


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.size = max(self.size, value.numel())
        return result


def test_logits_of_all_tokens_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """23 rows x 17 tokens of vocabulary are 391 logits; in chunks of 4 rows there are 68, less than a weight has."""
    states, weight, _, tokens = make_layer(torch.float32, bias=False)
    with chunk_rows(monkeypatch, 4), Largest() as largest:
        logprobs, entropy = head.head_logprobs(states, weight, None, tokens, 0.9, with_entropy=True)
        (logprobs + entropy).sum().backward()
    assert largest.size == states.numel() == 138


@pytest.mark.parametrize(
    ("name", "is_linear"), [("phi: bias", True), ("mistral: window", True), ("gemma2: capped", False)]
)
def test_the_output_layer_is_used_where_it_makes_the_logits(name: str, is_linear: bool) -> None:
    model = special_model(name)
    found = head_of(model)
    assert (found == (model.model, model.lm_head)) if is_linear else (found is None)


def test_the_output_layer_of_a_model_with_adapters_is_found_below_them() -> None:
    from peft import LoraConfig, get_peft_model

    for targets, is_linear in ((["q_proj"], True), (["lm_head"], False)):
        inner = make_model("llama-untied", VOCABULARY)
        model = get_peft_model(inner, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")).eval()
        assert (head_of(model) == (inner.model, inner.lm_head)) if is_linear else (head_of(model) is None)
