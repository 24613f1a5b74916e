"""The demo's task: disjoint splits, the tokenizer's round trip, the model, the imperfect demonstrator.

What the task is for, learning it, is not tested here.
"""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatlearn.recipes.tasks.spell_backward import (
    MAX_RESPONSE_TOKENS,
    build_model,
    build_tokenizer,
    exact,
    imperfect_demonstrations,
    load_splits,
)
from chatlearn.rewards import ReasoningGymReward, score

FIRST_HELD_OUT = ["unleal", "dooley", "reedily"]
FIRST_TUNING = ["padtree", "Gemma", "Raghu"]
FIRST_TRAINING = ["unbased", "siering"]
QUESTION = "Spell this word backward (example: sun -> nus): tiger"


def words(samples):
    """The words as the questions show them."""
    return [sample["prompt"].rsplit(" ", 1)[1] for sample in samples]


@pytest.fixture(scope="module")
def splits():
    return load_splits()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("policy")
    build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["built", "saved beside a model and loaded", "saved alone and loaded"])
def any_tokenizer(request, tokenizer, saved_folder, tmp_path):
    if request.param == "built":
        return tokenizer
    if request.param == "saved alone and loaded":
        tokenizer.save_pretrained(tmp_path)
        return AutoTokenizer.from_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(saved_folder)


def test_splits_are_disjoint_by_word_in_any_case(splits):
    training, tuning, held_out = (
        {word.lower() for word in words(part)} for part in (splits.training, splits.tuning, splits.held_out)
    )
    assert not training & tuning
    assert not training & held_out
    assert not tuning & held_out
    assert len(splits.tuning) == len(tuning) == 256
    assert len(splits.held_out) == len(held_out) == 256
    assert 29_000 < len(splits.training) <= 30_000
    assert len(training) < len(splits.training)  # natural frequencies: some words come twice


def test_samples_are_the_librarys_items(splits):
    for part in (splits.training, splits.tuning, splits.held_out):
        for sample, word in zip(part, words(part), strict=True):
            assert set(sample) == {"prompt", "answer", "entry"}
            assert 3 <= len(word) <= 7
            assert sample["answer"] == "".join(reversed(word))
            assert sample["entry"]["question"] == sample["prompt"]


def test_splits_do_not_change(splits):
    """Equal between calls, so between runs of any seed; the first words pin them across versions."""
    assert load_splits() == splits
    assert words(splits.held_out)[:3] == FIRST_HELD_OUT
    assert words(splits.tuning)[:3] == FIRST_TUNING
    assert words(splits.training)[:2] == FIRST_TRAINING


def test_right_answers_and_only_these_are_exact(splits):
    reward = ReasoningGymReward("spell_backward", min_word_len=3, max_word_len=7)
    prompts = [sample["prompt"] for sample in splits.held_out]
    columns = {"entry": [sample["entry"] for sample in splits.held_out]}
    right = [word[::-1] for word in words(splits.held_out)]
    wrong = ["#" + answer[1:] for answer in right]
    assert all(exact(value) for value in score(reward, prompts, right, columns))
    assert not any(exact(value) for value in score(reward, prompts, wrong, columns))
    assert [exact(value) for value in (1.0, 0.8, 6 / 7, 0.0)] == [True, False, False, False]


def test_prompt_ids(any_tokenizer):
    tokens = any_tokenizer.convert_ids_to_tokens(any_tokenizer(QUESTION)["input_ids"])
    assert tokens == ["Spell this word backward (example: sun -> nus): ", "t", "i", "g", "e", "r", "<sep>"]


def test_answer_ids_have_nothing_added(any_tokenizer):
    ids = any_tokenizer("regit", add_special_tokens=False)["input_ids"]
    assert any_tokenizer.convert_ids_to_tokens(ids) == list("regit")


def test_decoding_gives_the_plain_text(any_tokenizer):
    eos, pad = any_tokenizer.eos_token_id, any_tokenizer.pad_token_id
    answer = any_tokenizer("Regit", add_special_tokens=False)["input_ids"]
    assert any_tokenizer.decode([*answer, eos, pad, pad], skip_special_tokens=True) == "Regit"
    assert any_tokenizer.decode([], skip_special_tokens=True) == ""
    assert any_tokenizer.decode(any_tokenizer(QUESTION)["input_ids"], skip_special_tokens=True) == QUESTION
    spaced = any_tokenizer("a , b .", add_special_tokens=False)["input_ids"]
    assert any_tokenizer.decode(spaced, skip_special_tokens=True) == "a , b ."


def test_batches_are_padded_on_the_left(any_tokenizer):
    batch = any_tokenizer([QUESTION, QUESTION.replace("tiger", "ox")], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].tolist() == [[1] * 7, [0] * 3 + [1] * 4]
    assert batch["input_ids"][1, :3].tolist() == [any_tokenizer.pad_token_id] * 3
    assert (any_tokenizer.pad_token, any_tokenizer.eos_token) == ("<pad>", "<eos>")
    assert any_tokenizer.pad_token_id != any_tokenizer.eos_token_id


def test_every_sample_is_encoded_without_loss(splits, tokenizer):
    samples = splits.training + splits.tuning + splits.held_out
    prompts = tokenizer([sample["prompt"] for sample in samples])["input_ids"]
    answers = tokenizer([sample["answer"] for sample in samples], add_special_tokens=False)["input_ids"]
    assert max(map(len, prompts)) == 1 + 7 + 1
    assert max(map(len, answers)) + 1 == MAX_RESPONSE_TOKENS
    assert not any(tokenizer.unk_token_id in ids for ids in prompts + answers)


def test_model_size_and_seed(tokenizer):
    """The parameters by hand: tied embeddings, per layer 4 attention and 3 feed-forward matrices, norms."""
    before = torch.get_rng_state()
    model = build_model(tokenizer, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(weight.numel() for weight in model.parameters()) == (
        len(tokenizer) * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
    )
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    same, other = build_model(tokenizer, seed=0), build_model(tokenizer, seed=1)
    embeddings = [m.get_input_embeddings().weight for m in (model, same, other)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])


def test_plain_generate_is_greedy_and_stops(saved_folder):
    """Compared with a loop of full forward passes that takes the largest logit."""
    model = AutoModelForCausalLM.from_pretrained(saved_folder)
    tokenizer = AutoTokenizer.from_pretrained(saved_folder)
    assert model.dtype == torch.float32
    inputs = tokenizer(QUESTION, return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(10):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert tokenizer.eos_token_id not in ids  # so that the length limit is what stops it
    assert torch.equal(model.generate(**inputs), ids)

    with torch.no_grad():
        # Whichever token it would say first, becomes the end: generation must stop right there.
        model.generation_config.eos_token_id = int(ids[0, 7])
        assert model.generate(**inputs).shape == (1, 8)
    config = json.loads((saved_folder / "generation_config.json").read_text())
    assert (config["do_sample"], config["eos_token_id"]) == (False, tokenizer.eos_token_id)


def test_demonstrator_errs_on_long_words_only(splits):
    shown = imperfect_demonstrations(splits.training, seed=0)
    assert len(shown) == 700 * 128
    assert set(shown[0]) == {"prompt", "response"}
    pairs = list(zip(words(shown), (sample["response"] for sample in shown), strict=True))
    assert all(said == word[::-1] for word, said in pairs if len(word) <= 5)
    long = [(word, said) for word, said in pairs if len(word) > 5 and word != word[::-1]]
    assert all(said in (word, word[::-1]) for word, said in long)
    share = sum(said == word[::-1] for word, said in long) / len(long)
    # four standard errors of a share of .35 among the ~64,000 long words
    assert share == pytest.approx(0.35, abs=4 * (0.35 * 0.65 / len(long)) ** 0.5)


def test_demonstrator_tosses_its_coin_at_every_draw(splits):
    """Both answers are seen for most words that come often: the coin belongs to the draw, not to the word."""
    said: dict[str, set[str]] = {}
    for sample in imperfect_demonstrations(splits.training[:100], seed=0, num_samples=10_000):
        said.setdefault(sample["prompt"], set()).add(sample["response"])
    long = [prompt for prompt in said if len(prompt.rsplit(" ", 1)[1]) > 5]
    assert long
    assert all(len(said[prompt]) == 2 for prompt in long)


def test_demonstrations_follow_their_seed(splits):
    first = imperfect_demonstrations(splits.training, seed=3, num_samples=500)
    assert first == imperfect_demonstrations(splits.training, seed=3, num_samples=500)
    assert first != imperfect_demonstrations(splits.training, seed=4, num_samples=500)
