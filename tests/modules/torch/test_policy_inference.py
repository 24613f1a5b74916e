"""Sampling: what a sample gets is its own, with the log-probabilities of the distribution it was drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    LETTERS,
    PROMPTS,
    build,
    call,
    logged,
    make_model,
    make_tokenizer,
    plain_logprobs,
    plain_model,
    plain_tokenizer,
    response_values,
    rows_of,
)

import chatlearn
from chatlearn import BaseModule, DataError, Engine, Environment
from chatlearn.data.collate import Samples
from chatlearn.modules.torch import PolicyInference


def make_batch(policy: PolicyInference, prompts: list[str]) -> dict[str, Any]:
    from chatlearn.data.prompts import fetch

    return fetch(policy.build_dataset(prompts), range(len(prompts)))


def sample(policy: PolicyInference, prompts: list[str], ids: list[int], step: str = "forward_step") -> dict[str, Any]:
    return call(policy, step, make_batch(policy, prompts), ids)


def test_a_sample_in_a_batch_is_the_sample_alone(folder: str) -> None:
    policy = build(PolicyInference, model_path=folder, max_new_tokens=12)
    prompts, ids = PROMPTS * 8, [(i * 37) % 101 for i in range(32)]
    together = sample(policy, prompts, ids)
    lengths = {len(response) for _, response in rows_of(together)}
    assert len(lengths) > 1, "the case should have responses of different lengths"
    for i, (prompt, sample_id) in enumerate(zip(prompts, ids, strict=True)):
        alone = sample(policy, [prompt], [sample_id])
        assert rows_of(alone)[0] == rows_of(together)[i]
        assert alone["response"][0] == together["response"][i]
        assert alone["finished"][0] == together["finished"][i]
        torch.testing.assert_close(
            response_values(alone, "logprobs")[0], response_values(together, "logprobs")[i], atol=1e-5, rtol=1e-5
        )


def test_a_sample_depends_on_its_id_and_the_seed_alone(llama: str) -> None:
    policy = build(PolicyInference, model_path=llama, max_new_tokens=8)
    first = rows_of(sample(policy, ["abc"] * 4, [3, 5, 3, 8]))
    assert first[0] == first[2]
    assert first[0] != first[1]
    assert rows_of(sample(policy, ["abc"] * 4, [8, 3, 9, 5]))[1] == first[0]
    other_seed = build(PolicyInference, model_path=llama, max_new_tokens=8, seed=1)
    assert rows_of(sample(other_seed, ["abc"] * 4, [3, 5, 3, 8])) != first


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_a_plain_forward(folder: str, temperature: float) -> None:
    policy = build(PolicyInference, model_path=folder, max_new_tokens=12, temperature=temperature)
    output = sample(policy, PROMPTS, [11, 4, 7, 2])
    model = plain_model(folder)
    for (prompt, response), got in zip(rows_of(output), response_values(output, "logprobs"), strict=True):
        with torch.no_grad():
            expected = plain_logprobs(model, prompt, response, temperature)
        torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)


def test_greedy_is_what_transformers_generates(folder: str) -> None:
    prompts = PROMPTS + list(LETTERS.strip())
    policy = build(PolicyInference, model_path=folder, max_new_tokens=10)
    output = sample(policy, prompts, list(range(len(prompts))), "eval_step")
    tokenizer, model = plain_tokenizer(folder), plain_model(folder)
    for prompt, (_, response), text in zip(prompts, rows_of(output), output["response"], strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=10)[0, inputs["input_ids"].shape[1] :]
        assert response == generated.tolist()
        assert text == tokenizer.decode(generated, skip_special_tokens=True)


def test_fields_follow_the_conventions(folder: str) -> None:
    prompts, max_new_tokens = [*PROMPTS] * 16, 12
    policy = build(PolicyInference, model_path=folder, max_new_tokens=max_new_tokens)
    tokenizer = plain_tokenizer(folder)
    output = sample(policy, prompts, list(range(len(prompts))))
    tokens, attention, mask = output["tokens"], output["attention_mask"], output["response_mask"]
    assert (tokens.dtype, attention.dtype, mask.dtype, output["finished"].dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
        torch.bool,
    )
    width = max(len(prompt) for prompt in prompts)
    assert tokens.shape == attention.shape == mask.shape
    assert tokens.shape[1] == width + int(mask.sum(1).max()), "no column is padding in every row"
    assert (mask[:, :width] == 0).all()
    assert (tokens[attention == 0] == tokenizer.pad_token_id).all()
    assert (response_lengths := mask.sum(1)).min() >= 1
    for i, (prompt, response) in enumerate(rows_of(output)):
        assert tokenizer.decode(prompt) == prompts[i] == output["prompt"][i]
        assert attention[i, width - len(prompt) : width].all(), "the prompt stands next to the response"
        assert mask[i, width : width + len(response)].all(), "the response has no gaps"
        assert tokenizer.eos_token_id not in response[:-1]
        assert bool(output["finished"][i]) == (response[-1] == tokenizer.eos_token_id)
        assert output["finished"][i] or len(response) == max_new_tokens
        assert output["response"][i] == tokenizer.decode(response, skip_special_tokens=True)
    assert 0 < output["finished"].sum() < len(prompts), "the case should have responses of both kinds"
    metrics = logged(policy)
    assert metrics["response_length"] == [pytest.approx(float(response_lengths.mean()))]
    entropy = -torch.cat(response_values(output, "logprobs")).mean()
    assert metrics["entropy"] == [pytest.approx(float(entropy), rel=1e-5)]


def test_other_columns_pass_through(llama: str) -> None:
    policy = build(PolicyInference, model_path=llama, max_new_tokens=3)
    output = sample(policy, [{"prompt": "ab", "answer": "x"}, {"prompt": "c", "answer": "y"}], [0, 1])
    assert output["answer"] == ["x", "y"]
    assert output["prompt"] == ["ab", "c"]
    assert set(output) - {"prompt", "answer"} == PolicyInference.writes


def test_padding_may_be_the_end_of_sequence_token(llama: str, tmp_path: Any) -> None:
    """Many models have no padding token. The sampled end counts and is attended to, the padding after it is not."""
    tokenizer = make_tokenizer(pad=None)
    make_model("llama-tied", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    usual = build(PolicyInference, model_path=llama, max_new_tokens=12)
    policy = build(PolicyInference, model_path=str(tmp_path), max_new_tokens=12)
    ids = list(range(32))
    output = sample(policy, PROMPTS * 8, ids)
    assert rows_of(output) == rows_of(sample(usual, PROMPTS * 8, ids))
    assert output["finished"].any()


def test_every_end_token_of_the_model_ends_a_response(llama: str, tmp_path: Any) -> None:
    model = plain_model(llama)
    model.generation_config.eos_token_id = [1, 5, 9]
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    policy = build(PolicyInference, model_path=str(tmp_path), max_new_tokens=12)
    output = sample(policy, PROMPTS * 8, list(range(32)))
    ends = {response[-1] for (_, response), ended in zip(rows_of(output), output["finished"], strict=True) if ended}
    assert ends == {1, 5, 9}
    assert all(not {1, 5, 9} & set(response[:-1]) for _, response in rows_of(output))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_probabilities(llama: str, temperature: float) -> None:
    """First tokens of 6000 samples against the softmax, and second tokens after the most frequent first one."""
    count = 6000
    policy = build(PolicyInference, model_path=llama, max_new_tokens=2, temperature=temperature)
    one = make_batch(policy, ["ab"])
    batch = {"prompt": ["ab"] * count, **{key: one[key].repeat(count, 1) for key in ("prompt_tokens", "prompt_mask")}}
    output = call(policy, "forward_step", batch, range(count))
    prompt = one["prompt_tokens"][0].tolist()
    first = output["tokens"][:, len(prompt)]
    favourite = int(first.bincount().argsort(descending=True)[0])
    if favourite == 1:
        favourite = int(first.bincount().argsort(descending=True)[1])
    second = output["tokens"][first == favourite, len(prompt) + 1]
    model = plain_model(llama)
    for drawn, context in ((first, prompt), (second, [*prompt, favourite])):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context])).logits[0, -1]
        expected = torch.softmax(logits.double() / temperature, -1) * len(drawn)
        observed = drawn.bincount(minlength=len(expected)).double()
        frequent = expected >= 5
        observed = torch.cat([observed[frequent], observed[~frequent].sum()[None]])
        expected = torch.cat([expected[frequent], expected[~frequent].sum()[None]])
        statistic = ((observed - expected).square() / expected.clamp(min=1e-9)).sum()
        degrees = len(expected) - 1
        assert degrees >= 4
        # mean and variance of chi-square are its degrees of freedom and twice these; five deviations
        assert statistic < degrees + 5 * (2 * degrees) ** 0.5


def test_raw_prompts_are_tokenized_on_the_way(llama: str) -> None:
    """A batch that another module's data set made has text only; it gives what the policy's own data set gives."""
    module = build(PolicyInference, model_path=llama, max_new_tokens=4)
    own = module.build_dataset(["a b", "c"])
    prepared = own.collate_fn(Samples([own[0], own[1]]))
    ours, theirs = (call(module, "forward_step", data) for data in ({"prompt": ["a b", "c"]}, prepared))
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["tokens"], theirs["tokens"])
    assert torch.equal(ours["logprobs"], theirs["logprobs"])


class Passing(BaseModule):
    """Hands on what it gets, and keeps it."""

    def forward_step(self, data: Any) -> Any:
        SEEN.setdefault(self.name, []).append(data)
        return data


SEEN: dict[str, list[Any]] = {}


def test_conversations_may_come_from_another_modules_data_set(llama: str, tmp_path: Path) -> None:
    """The policy renders and tokenizes them: a run over them samples what a run over the rendered texts does."""
    tokenizer = plain_tokenizer(llama)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    )
    plain_model(llama).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found: list[Any] = []
    for prompts in ([{"messages": [{"role": "user", "content": "hi"}]}] * 2, ["hia"] * 2):
        SEEN.clear()
        args = {"model_path": str(tmp_path / "model"), "max_new_tokens": 6}
        runtime = {"num_episode": 1, "sample_per_episode": 2, "output_dir": str(tmp_path), "sinks": ["jsonl"]}
        chatlearn.init({"models": {"first": {}, "policy": {"args": args}, "last": {}}, "runtime": runtime})
        modules = Passing("first"), PolicyInference("policy"), Passing("last")
        Engine(Environment(chain(*modules))).set_dataset(prompts).learn()
        found.append([(data["prompt"], data["tokens"].tolist()) for data in SEEN["last"]])
    assert list(SEEN["first"][0]) == ["prompt"]
    assert found[0] == found[1]
    assert found[0][0][0] == ["hia", "hia"]


def chain(*modules: BaseModule) -> Any:
    """A flow of their forward steps, one after another."""

    def flow(batch: Any) -> Any:
        for module in modules:
            batch = module.forward_step(batch)
        return batch

    return flow


def test_a_policy_says_what_it_needs(llama: str) -> None:
    module = build(PolicyInference, model_path=llama, max_new_tokens=4)
    with pytest.raises(DataError, match=r"the batch has no prompts: .*'prompt'.*'messages'\. It has 'question'"):
        call(module, "forward_step", {"question": ["a"]})


def test_the_arguments_of_sampling_reach_the_sampler(llama: str) -> None:
    """Each by what it makes of responses: none of them is left at its default."""
    prompts = PROMPTS * 16

    def run(**args: Any) -> list[tuple[list[int], list[int]]]:
        policy = build(PolicyInference, model_path=llama, max_new_tokens=12, **args)
        return rows_of(sample(policy, prompts, list(range(64))))

    greedy = build(PolicyInference, model_path=llama, max_new_tokens=12)
    expected = rows_of(sample(greedy, prompts, list(range(64)), "eval_step"))
    free = run()
    assert free != expected
    for one_token in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert run(**one_token) == expected
    assert min(len(response) for _, response in free) < 9
    assert min(len(response) for _, response in run(min_new_tokens=8)) == 9
    assert all(len(set(response)) == len(response) for _, response in run(repetition_penalty=1e6, temperature=1e-3))
    assert not any(5 in response for _, response in run(bad_words=["c"]))
    assert any(5 in response for _, response in free)


def test_a_policy_may_run_a_few_sequences_at_once(llama: str) -> None:
    prompts, ids = PROMPTS * 8, [(i * 37) % 101 for i in range(32)]
    together, few = (
        sample(build(PolicyInference, model_path=llama, max_new_tokens=12, max_running=most), prompts, ids)
        for most in (None, 5)
    )
    assert rows_of(few) == rows_of(together)
    assert few["response"] == together["response"]
    assert torch.equal(few["finished"], together["finished"])
    torch.testing.assert_close(few["logprobs"], together["logprobs"], atol=1e-5, rtol=1e-5)
