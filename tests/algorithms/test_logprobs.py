"""Token log-probabilities and entropies against ``torch.distributions.Categorical`` and hand calculations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical

from chatlearn.algorithms import logprobs as module
from chatlearn.algorithms.logprobs import entropy, token_logprobs

INF = float("inf")


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


def random_tokens(*shape: int, vocabulary: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1 << 24, 21, 7, 1], ids=lambda size: f"blocks-of-{size}")
def block_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, several tokens, one token at a time (V = 7 below), less than a token."""
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", request.param)


def test_logits_at_t_belong_to_token_t() -> None:
    """Probabilities 1/4 and 3/4, then 1/5 and 4/5."""
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(2), math.log(8)]]], dtype=torch.float64)
    actual = token_logprobs(logits, torch.tensor([[1, 0]]))
    assert actual.tolist() == [pytest.approx([math.log(3 / 4), math.log(1 / 5)], abs=1e-12)]


def test_temperature_by_hand() -> None:
    """Logits 0 and 2 log 3 at temperature 2 are 0 and log 3."""
    logits = torch.tensor([[[0.0, 2 * math.log(3)]]], dtype=torch.float64)
    assert token_logprobs(logits, torch.tensor([[1]]), temperature=2.0).item() == pytest.approx(math.log(3 / 4))


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_matches_categorical(temperature: float) -> None:
    logits, tokens = random_logits(3, 5, 7), random_tokens(3, 5, vocabulary=7)
    expected = Categorical(logits=logits / temperature).log_prob(tokens)
    torch.testing.assert_close(token_logprobs(logits, tokens, temperature=temperature), expected)


@pytest.mark.usefixtures("block_elements")
def test_entropy_matches_categorical() -> None:
    logits = random_logits(3, 5, 7)
    torch.testing.assert_close(entropy(logits), Categorical(logits=logits).entropy())


@pytest.mark.usefixtures("block_elements")
def test_gradients_match_finite_differences() -> None:
    logits, tokens = random_logits(2, 3, 7).requires_grad_(), random_tokens(2, 3, vocabulary=7)
    for temperature in (1.0, 0.7):
        assert torch.autograd.gradcheck(lambda x, t=temperature: token_logprobs(x, tokens, temperature=t), logits)
    assert torch.autograd.gradcheck(entropy, logits)


@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_adding_a_constant_to_all_logits_changes_nothing(seed: int, shift: float) -> None:
    logits, tokens = random_logits(2, 3, 5, seed=seed), random_tokens(2, 3, vocabulary=5, seed=seed)
    torch.testing.assert_close(token_logprobs(logits + shift, tokens), token_logprobs(logits, tokens))
    torch.testing.assert_close(entropy(logits + shift), entropy(logits))


@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_renaming_the_vocabulary_changes_nothing(seed: int, order: list[int]) -> None:
    logits, tokens = random_logits(2, 3, 5, seed=seed), random_tokens(2, 3, vocabulary=5, seed=seed)
    renamed = torch.tensor(order).argsort()[tokens]
    torch.testing.assert_close(token_logprobs(logits[..., order], renamed), token_logprobs(logits, tokens))
    torch.testing.assert_close(entropy(logits[..., order]), entropy(logits))


def test_probabilities_of_the_vocabulary_add_up_to_one() -> None:
    logits = random_logits(1, 1, 11)
    total = sum(token_logprobs(logits, torch.tensor([[token]])).exp().item() for token in range(11))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_shifted_views_are_taken_as_they_are() -> None:
    """The usual call: a non-contiguous view of the logits, and its gradient lands in the right positions."""
    logits, tokens = random_logits(2, 4, 6).requires_grad_(), random_tokens(2, 4, vocabulary=6)
    actual = token_logprobs(logits[:, :-1], tokens[:, 1:])
    expected = Categorical(logits=logits[:, :-1]).log_prob(tokens[:, 1:])
    torch.testing.assert_close(actual, expected)
    for result in (actual, expected):
        result.square().sum().backward(inputs=logits, retain_graph=True)
    both = logits.grad.clone()
    (alone,) = torch.autograd.grad(expected.square().sum(), logits)
    torch.testing.assert_close(both, 2 * alone)
    assert (both[:, -1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype, temperature: float) -> None:
    logits = random_logits(2, 3, 50, dtype=dtype).requires_grad_()
    tokens = random_tokens(2, 3, vocabulary=50)
    actual = token_logprobs(logits, tokens, temperature=temperature)
    exact = Categorical(logits=logits.detach().double() / temperature)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact.log_prob(tokens), rtol=1e-5, atol=1e-5)
    assert entropy(logits).dtype == torch.float32
    expected_entropy = Categorical(logits=logits.detach().double()).entropy()
    torch.testing.assert_close(entropy(logits).double(), expected_entropy, rtol=1e-5, atol=1e-5)
    actual.sum().backward()
    assert logits.grad.dtype == dtype
    onehot = torch.nn.functional.one_hot(tokens, 50)
    torch.testing.assert_close(logits.grad.double(), (onehot - exact.probs) / temperature, rtol=1e-2, atol=1e-4)


def test_float32_and_float64_keep_their_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        logits = random_logits(1, 2, 3, dtype=dtype)
        assert token_logprobs(logits, torch.zeros(1, 2, dtype=torch.int64)).dtype == dtype
        assert entropy(logits).dtype == dtype


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4]]], requires_grad=True)
    assert token_logprobs(logits, torch.tensor([[0]])).item() == 0
    assert token_logprobs(logits, torch.tensor([[2]])).item() == -2e4
    assert entropy(logits).item() == 0
    (token_logprobs(logits, torch.tensor([[2]])) + entropy(logits)).sum().backward()
    assert logits.grad.tolist() == [[[-1, 0, 1]]]


def test_forbidden_tokens_have_probability_zero_and_no_gradient() -> None:
    logits = torch.tensor([[[0.0, -INF, 0.0]]], requires_grad=True)
    logprobs, entropies = token_logprobs(logits, torch.tensor([[0]])), entropy(logits)
    assert logprobs.item() == pytest.approx(math.log(0.5))
    assert entropies.item() == pytest.approx(math.log(2))
    assert token_logprobs(logits, torch.tensor([[1]])).item() == -INF
    (logprobs + entropies).sum().backward()
    assert logits.grad.flatten().tolist() == pytest.approx([0.5, 0, -0.5], abs=1e-6)


def test_entropy_by_hand() -> None:
    assert entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.zeros(1, 1, 1)).item() == 0


def test_nan_logits_spoil_their_own_token_only() -> None:
    logits = random_logits(1, 3, 4)
    logits[0, 1, 2] = float("nan")
    for result in (token_logprobs(logits, torch.zeros(1, 3, dtype=torch.int64)), entropy(logits)):
        assert result.isnan().tolist() == [[False, True, False]]


def test_inputs_are_not_changed() -> None:
    logits, tokens = random_logits(2, 3, 4).requires_grad_(), random_tokens(2, 3, vocabulary=4)
    before = logits.detach().clone()
    (token_logprobs(logits, tokens, temperature=0.5) + entropy(logits)).sum().backward()
    assert torch.equal(logits.detach(), before)
    assert logits._version == tokens._version == 0


def test_nothing_of_the_logits_size_is_kept_for_the_backward_pass() -> None:
    logits, tokens = random_logits(2, 3, 50).requires_grad_(), random_tokens(2, 3, vocabulary=50)
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(logits, tokens, temperature=0.5)
        entropy(logits)
    assert {x.data_ptr() for x in saved if x.numel() >= logits.numel()} == {logits.data_ptr()}


def test_empty_batches_are_fine() -> None:
    assert token_logprobs(torch.zeros(0, 3, 4), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)
    assert token_logprobs(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0)
    assert entropy(torch.zeros(2, 0, 4)).shape == (2, 0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, INF, float("nan")])
def test_illegal_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be a finite number above 0, got {temperature}"):
        token_logprobs(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), temperature=temperature)


@pytest.mark.parametrize(("logits_shape", "tokens_shape"), [((1, 2, 3), (1, 3)), ((2, 3), (2,)), ((1, 2, 3), (2,))])
def test_shapes_that_do_not_fit_are_refused(logits_shape: tuple, tokens_shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"logits_BTV has shape .* but tokens_BT has shape .*") as error:
        token_logprobs(torch.zeros(logits_shape), torch.zeros(tokens_shape, dtype=torch.int64))
    assert str(list(logits_shape)) in str(error.value)
    assert str(list(tokens_shape)) in str(error.value)


def test_entropy_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"logits_BTV has shape \[2, 3\]; expected \[B, T, V\]"):
        entropy(torch.zeros(2, 3))
