"""Reference and value model: position t belongs to token t, whatever the padding."""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    PROMPTS,
    build,
    call,
    lay_out,
    plain_logprobs,
    plain_model,
    random_rows,
    response_values,
    rows_of,
)

from chatlearn.modules.torch import PolicyInference, PolicyReference, ValueInference

PADDINGS = ("both", "left", "right", "wide")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_reference_scores_as_a_plain_forward(folder: str, padding: str, temperature: float) -> None:
    rows = random_rows(6)
    reference = build(PolicyReference, model_path=folder, temperature=temperature)
    batch = {**lay_out(rows, padding), "response": ["…"] * 6}
    output = call(reference, "forward_step", batch)
    assert output.keys() == batch.keys() | {"ref_logprobs"}
    model = plain_model(folder)
    for (prompt, response), got in zip(rows, response_values(output, "ref_logprobs"), strict=True):
        with torch.no_grad():
            expected = plain_logprobs(model, prompt, response, temperature)
        torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


def test_reference_of_the_policy_itself_agrees_with_it(folder: str) -> None:
    policy = build(PolicyInference, model_path=folder, max_new_tokens=10, temperature=0.8)
    reference = build(PolicyReference, model_path=folder, temperature=0.8)
    data = policy.build_dataset(PROMPTS)
    sampled = call(policy, "forward_step", data.collate_fn(samples_of(data)))
    scored = call(reference, "forward_step", sampled)
    torch.testing.assert_close(scored["ref_logprobs"], sampled["logprobs"], atol=1e-5, rtol=1e-5)


def samples_of(dataset):
    from chatlearn.data.collate import Samples

    return Samples(dataset[i] for i in range(len(dataset)))


def test_values_are_zero_at_the_start(folder: str) -> None:
    value = build(ValueInference, model_path=folder)
    output = call(value, "forward_step", lay_out(random_rows(4), "both"))
    assert (output["values"] == 0).all()
    assert output["values"].dtype == torch.float32


@pytest.mark.parametrize("padding", PADDINGS)
def test_value_is_that_of_the_state_before_the_token(folder: str, padding: str) -> None:
    rows = random_rows(6, seed=1)
    value = build(ValueInference, model_path=folder)
    with torch.no_grad():
        value.model.head.weight.normal_()
        value.model.head.bias.normal_()
    output = call(value, "forward_step", lay_out(rows, padding))
    model = plain_model(folder)
    for (prompt, response), got in zip(rows, response_values(output, "values"), strict=True):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[-1][0]
        # the state in which token t was chosen is the one after token t - 1: the last token has no part in it
        expected = states[len(prompt) - 1 : -1] @ value.model.head.weight[0] + value.model.head.bias
        torch.testing.assert_close(got, expected.detach(), atol=1e-4, rtol=1e-4)


def test_a_value_does_not_see_its_own_token(llama: str) -> None:
    value = build(ValueInference, model_path=llama)
    with torch.no_grad():
        value.model.head.weight.normal_()
    first = call(value, "forward_step", lay_out([([3, 4], [5, 6, 7])], "both"))
    other = call(value, "forward_step", lay_out([([3, 4], [5, 6, 20])], "both"))
    torch.testing.assert_close(first["values"], other["values"])


@pytest.mark.parametrize("module_class", [PolicyReference, ValueInference])
def test_a_batch_without_response_tokens_gives_zeros(llama: str, module_class: type) -> None:
    """What a reward function could not score has an empty response mask."""
    module = build(module_class, model_path=llama)
    batch = lay_out(random_rows(3), "both")
    batch["response_mask"] = torch.zeros_like(batch["response_mask"])
    output = call(module, "forward_step", batch)
    assert (output["ref_logprobs" if module_class is PolicyReference else "values"] == 0).all()


def test_inputs_stay_as_they_are(llama: str) -> None:
    batch = lay_out(random_rows(3), "both")
    copies = {key: value.clone() for key, value in batch.items()}
    for module_class in (PolicyReference, ValueInference):
        call(build(module_class, model_path=llama), "forward_step", batch)
    assert all(torch.equal(batch[key], copies[key]) for key in copies)
    assert rows_of(batch) == random_rows(3)
