"""Log-probabilities, entropies and values of a window's tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chatlearn.algorithms.logprobs import entropy, token_logprobs
from chatlearn.modules.torch.scoring.head import head_logprobs
from chatlearn.modules.torch.scoring.layout import Layout, packed, padded, single_line
from chatlearn.modules.torch.scoring.parts import attention_mask, head_of, way_of_packing
from chatlearn.modules.torch.scoring.window import Window


def policy_logprobs(model: Any, window: Window, temperature: float, *, packing: bool = False) -> Tensor:
    """Log-probabilities of the window's tokens under a causal language model.

    Args:
        model: a Hugging Face causal language model, with adapters of peft or without.
        window: what is scored.
        temperature: of the softmax that the tokens were drawn from.
        packing: sequences share lines instead of being padded.

    Returns:
        ``[B, window.width]`` float32 (float64 for float64 models), differentiable once; 0 outside of the responses.

    Raises:
        ConfigError: packing, and the model lets documents see each other.
    """
    return window.place(_scored(model, window, temperature, packing, with_entropy=False)[0])


def policy_logprobs_and_entropy(
    model: Any, window: Window, temperature: float, *, packing: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the window's tokens, and entropies of the distributions that they were drawn from.

    Both as :func:`policy_logprobs` has them; the entropy is in nats, over the whole vocabulary and at the same
    temperature.
    """
    logprobs, entropies = _scored(model, window, temperature, packing, with_entropy=True)
    assert entropies is not None
    return window.place(logprobs), window.place(entropies)


def state_values(model: Any, window: Window, *, packing: bool = False) -> Tensor:
    """Values ``[B, window.width]`` float32 of the states in which the window's tokens were chosen; 0 outside of the
    responses.

    Args:
        model: called with input ids, attention mask and position ids (both may be ``None``), gives ``[lines, length]``.
        window: what is judged.
        packing: as in :func:`policy_logprobs`.
    """
    backbone = getattr(model, "backbone", model)
    layout = _laid_out(model, backbone, window, packing)
    values = model(layout.input_ids, attention_mask(backbone, layout), layout.position_ids)
    return window.place(values.flatten()[layout.sources])


def _scored(
    model: Any, window: Window, temperature: float, packing: bool, *, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities ``[M]`` and, if asked for, entropies ``[M]``."""
    parts = head_of(model)
    backbone = model if parts is None else parts[0]
    layout = _laid_out(model, backbone, window, packing)
    output = _called(backbone, layout)
    if parts is not None:
        states, head = output.last_hidden_state.flatten(0, 1)[layout.sources], parts[1]
        return head_logprobs(states, head.weight, head.bias, window.targets, temperature, with_entropy=with_entropy)
    rows = output.logits.flatten(0, 1)[layout.sources].unsqueeze(0)
    logprobs = token_logprobs(rows, window.targets.unsqueeze(0), temperature=temperature).squeeze(0)
    if not with_entropy:
        return logprobs, None
    return logprobs, entropy(rows if temperature == 1 else rows / temperature).squeeze(0)


def _laid_out(model: Any, backbone: Any, window: Window, packing: bool) -> Layout:
    if not packing:
        return Layout.of(window, padded(window))

    def states(layout: Layout) -> Tensor:
        output = _called(backbone, layout)
        return output.logits if hasattr(output, "logits") else output.last_hidden_state

    way = way_of_packing(model, backbone, states, window.mask.device)
    lines = single_line(window) if way.single_line else packed(window, way.hidden_size, sharing=way.sharing)
    return Layout.of(window, lines)


def _called(model: Any, layout: Layout) -> Any:
    given: dict[str, Tensor] = {}
    if layout.position_ids is not None:
        given["position_ids"] = layout.position_ids
    if (mask := attention_mask(model, layout)) is not None:
        given["attention_mask"] = mask
    return model(input_ids=layout.input_ids, use_cache=False, **given)
