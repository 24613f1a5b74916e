"""Learned rewards: scores as transformers gives them one by one, scaling by hand, and folders that don't do."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from reward_folders import EOS_ID, KINDS, TEMPLATE, ids_of, make_reward_folder, plain_score
from tiny_models import make_tokenizer
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from chatlearn.checkpoint.files import load_state, save_state
from chatlearn.errors import ConfigError, DataError
from chatlearn.modules.torch import LearnedReward, LearnedRewardArgs
from chatlearn.modules.torch.exchanges import Exchange, encode, num_positions

CPU = torch.device("cpu")
PROMPTS = ["a", "hello_you", "the_end_of_it", "xyz"]
COMPLETIONS = ["bcd", "i", "there_is_more_of_this", "w"]
SMALL: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
TALK = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module", params=KINDS)
def reward_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reward_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reward_folder(tmp_path_factory.mktemp("simple"))


def load(folder: str, **args: Any) -> LearnedReward:
    return LearnedReward(LearnedRewardArgs(model_path=folder, **args), CPU)


def score(reward: LearnedReward, prompts: list[str], completions: list[str], **columns: Any) -> torch.Tensor:
    return reward.scores(prompts, completions, columns, list(range(len(prompts))))


def edited(folder: str, copy: Path, **config: Any) -> str:
    """A copy of a folder with other entries in its config.json; ``None`` takes one away."""
    shutil.copytree(folder, copy)
    entries = {**json.loads((copy / "config.json").read_text()), **config}
    (copy / "config.json").write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))
    return str(copy)


# -- scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_are_those_of_the_model_text_by_text(reward_folder: str, batch_size: int) -> None:
    expected = [plain_score(reward_folder, ids_of(p + c)) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert max(expected) - min(expected) > 0.1, "the case should tell texts apart"
    got = score(load(reward_folder, batch_size=batch_size), PROMPTS, COMPLETIONS)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


def test_scores_are_float32_whatever_the_model_is(simple: str) -> None:
    got = score(load(simple, dtype="bfloat16"), PROMPTS, COMPLETIONS)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(score(load(simple), PROMPTS, COMPLETIONS).tolist(), abs=0.2)


def test_the_models_own_padding_token_counts(simple: str, tmp_path: Path) -> None:
    """The tokenizer pads with another token, which the model would take for the end of the text."""
    folder = edited(simple, tmp_path / "copy")
    make_tokenizer(pad="z").save_pretrained(folder)
    expected = [plain_score(simple, ids_of(p + c)) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert score(load(folder), PROMPTS, COMPLETIONS).tolist() == pytest.approx(expected, abs=1e-5)


def test_no_samples_have_no_scores(simple: str) -> None:
    assert score(load(simple), [], []).shape == (0,)


def test_label_chooses_among_several_outputs(tmp_path: Path) -> None:
    folder = make_reward_folder(tmp_path, num_labels=3)
    expected = [plain_score(folder, ids_of("abc"), label) for label in range(3)]
    assert len(set(expected)) == 3
    assert [float(score(load(folder, label=k), ["ab"], ["c"])) for k in range(3)] == pytest.approx(expected, abs=1e-5)


def test_completions_that_have_ended_get_the_end_token_if_asked_for(simple: str) -> None:
    got = score(load(simple, append_eos=True), ["ab", "ab"], ["c", "c"], finished=torch.tensor([True, False]))
    expected = [plain_score(simple, [*ids_of("abc"), EOS_ID]), plain_score(simple, ids_of("abc"))]
    assert got.tolist() == pytest.approx(expected, abs=1e-5)
    assert score(load(simple), ["ab"], ["c"], finished=torch.tensor([True])).tolist() == [
        pytest.approx(expected[1], abs=1e-5)
    ]


def test_conversations_are_rendered_and_texts_beside_them_are_not(tmp_path: Path) -> None:
    folder = make_reward_folder(tmp_path, template=TEMPLATE)
    got = score(load(folder), ["rendered_elsewhere", "ab"], ["you", "c"], messages=[TALK, None])
    expected = [plain_score(folder, ids_of("u_hi_a_you_")), plain_score(folder, ids_of("abc"))]
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


def test_without_a_template_the_prompts_text_is_read(simple: str) -> None:
    got = score(load(simple), ["u_hi_a_"], ["you"], messages=[TALK])
    assert got.tolist() == pytest.approx([plain_score(simple, ids_of("u_hi_a_you"))], abs=1e-5)


# -- the length cap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_tokens", "kept"),
    [(None, "abcdefgh"), (8, "abcdefgh"), (6, "cdefgh"), (4, "efgh"), (3, "fgh"), (1, "h")],
)
def test_a_long_prompt_loses_its_beginning(max_tokens: int | None, kept: str) -> None:
    assert encode(make_tokenizer(), [Exchange("abcd", "efgh")], max_tokens, False) == [ids_of(kept)]


def test_the_end_token_counts_and_stays() -> None:
    assert encode(make_tokenizer(), [Exchange("abcd", "ef")], 4, True) == [[*ids_of("def"), EOS_ID]]


def test_a_token_that_begins_every_text_stays() -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "z"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="z $A", special_tokens=[("z", ids_of("z")[0])]
    )
    assert encode(tokenizer, [Exchange("abcd", "ef")], None, False) == [ids_of("zabcdef")]
    assert encode(tokenizer, [Exchange("abcd", "ef")], 4, False) == [ids_of("zdef")]


def test_the_cap_is_the_args(simple: str) -> None:
    got = score(load(simple, max_tokens=3), ["abcd"], ["ef"])
    assert got.tolist() == pytest.approx([plain_score(simple, ids_of("def"))], abs=1e-5)


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_positions_that_padding_takes_are_none_for_tokens(padding: int) -> None:
    """RoBERTa counts from behind the position of padding: transformers itself fails with one token more."""
    model = RobertaForSequenceClassification(RobertaConfig(**SMALL, pad_token_id=padding)).eval()
    limit = int(num_positions(model))
    assert limit == 64 - padding - 1
    assert model(input_ids=torch.full((1, limit), 7)).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 7))


def test_a_text_for_which_roberta_has_no_position_is_named(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    RobertaForSequenceClassification(RobertaConfig(**SMALL, pad_token_id=0, num_labels=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = load(str(tmp_path))
    assert score(reward, ["a" * 62], ["b"]).isfinite().all()
    with pytest.raises(DataError, match=r"sample 0: .* 64 tokens, but .* 63\. Set `max_tokens: 63`"):
        score(reward, ["a" * 63], ["b"])


def test_a_model_without_absolute_positions_takes_any_length() -> None:
    """XLNet says -1."""
    model = XLNetForSequenceClassification(XLNetConfig(vocab_size=30, d_model=32, n_layer=1, n_head=2, d_inner=32))
    assert num_positions(model) == math.inf


def test_a_text_longer_than_the_models_positions_is_named(simple: str) -> None:
    with pytest.raises(DataError, match=r"sample 1: .* 65 tokens, but .* 64\. Set `max_tokens: 64`"):
        score(load(simple), ["a", "a" * 60], ["b", "b" * 5])


# -- scaling ---------------------------------------------------------------------------------------------


def test_unscaled_scores_stay_as_they_are(simple: str) -> None:
    raw = torch.tensor([5.0, -7.0, math.nan])
    assert load(simple).scaled(raw, [0, 1, 2])[:2].tolist() == [5.0, -7.0]
    assert load(simple, clip=6.0).scaled(raw, [0, 1, 2])[:2].tolist() == [5.0, -6.0]


def test_running_scaling_uses_earlier_episodes_only(simple: str) -> None:
    """Scores 1, 2, 3, 6 have mean 3 and sample variance 14 / 3."""
    reward = load(simple, scaling="running")
    assert reward.scaled(torch.tensor([1.0, 2.0]), [0, 1]).tolist() == [1.0, 2.0], "nothing is known yet"
    assert reward.scaled(torch.tensor([3.0, 6.0]), [2, 3]).tolist() == [3.0, 6.0], "the episode is not over"
    reward.end_episode()
    expected = [(x - 3) / math.sqrt(14 / 3) for x in (3.0, 9.0)]
    assert reward.scaled(torch.tensor([3.0, 9.0]), [4, 5]).tolist() == pytest.approx(expected)
    assert reward.scaled(torch.tensor([3.0, 9.0]), [4, 5]).tolist() == pytest.approx(expected)


def test_running_moments_are_those_of_all_scores_however_they_came(simple: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = 1000 + torch.randn(60, generator=generator)
    reward = load(simple, scaling="running")
    for part in values.split([1, 7, 0, 30, 22]):
        reward.scaled(part, list(range(len(part))))
        reward.end_episode()
    numbers = [float(value) for value in values]
    expected = (1001 - statistics.fmean(numbers)) / statistics.stdev(numbers)
    assert float(reward.scaled(torch.tensor([1001.0]), [0])) == pytest.approx(expected, rel=1e-4)


def test_equal_scores_and_too_few_of_them_divide_by_no_zero(simple: str) -> None:
    reward = load(simple, scaling="running")
    reward.scaled(torch.tensor([2.0]), [0])
    reward.end_episode()
    assert reward.scaled(torch.tensor([5.0]), [0], remember=False).tolist() == [5.0], "one score has no deviation"
    reward.scaled(torch.tensor([2.0]), [0])
    reward.end_episode()
    assert reward.scaled(torch.tensor([2.0]), [0]).tolist() == [0.0]


def test_evaluations_and_unscorable_samples_leave_no_trace(simple: str) -> None:
    reward = load(simple, scaling="running")
    reward.scaled(torch.tensor([1.0, math.nan, 3.0]), [0, 1, 2])
    reward.scaled(torch.tensor([100.0]), [0], remember=False)
    reward.end_episode()
    scaled = reward.scaled(torch.tensor([2.0, math.nan, 4.0]), [0, 1, 2])
    assert scaled.isnan().tolist() == [False, True, False]
    assert scaled[[0, 2]].tolist() == pytest.approx([0.0, math.sqrt(2)])


def test_running_scaling_goes_on_after_a_resume(simple: str, tmp_path: Path) -> None:
    straight = load(simple, scaling="running")
    straight.scaled(torch.tensor([0.1, 0.7, 0.3]), [0, 1, 2])
    straight.end_episode()
    straight.scaled(torch.tensor([4.0]), [0])
    save_state(straight.state_dict(), tmp_path / "state")
    resumed = load(simple, scaling="running")
    resumed.load_state_dict(load_state(tmp_path / "state"))
    results = []
    for reward in (straight, resumed):
        reward.end_episode()
        results.append(reward.scaled(torch.tensor([0.5, 9.0]), [0, 1]).tolist())
    assert results[0] == results[1]
    assert results[0] != [0.5, 9.0]


def test_group_scaling_compares_responses_to_one_prompt(simple: str) -> None:
    """1 and 3 lie one half of their deviation sqrt(2) from their mean 2, each times two; equal scores are worth 0."""
    raw = torch.tensor([1.0, 5.0, 3.0, 5.0, math.nan])
    scaled = load(simple, scaling="group").scaled(raw, [7, 8, 7, 8, 7])
    assert scaled[:4].tolist() == pytest.approx([-(0.5**0.5), 0.0, 0.5**0.5, 0.0], abs=1e-5)
    assert scaled[4].isnan()


def test_clipping_comes_after_scaling(simple: str) -> None:
    raw = torch.tensor([1.0, 3.0])
    scaled = load(simple, scaling="group", clip=0.5).scaled(raw, [0, 0])
    assert scaled.tolist() == [-0.5, 0.5]


def test_group_scaling_without_groups_is_refused(simple: str) -> None:
    with pytest.raises(DataError, match=r"(?s)scaling: group.*3 samples.*num_inference_per_prompt"):
        load(simple, scaling="group").scaled(torch.zeros(3), [0, 1, 2])


# -- what is refused -------------------------------------------------------------------------------------


def test_a_language_model_is_no_reward_model(llama: str) -> None:
    with pytest.raises(ConfigError, match=r"lack 1 parameters of a LlamaForSequenceClassification: score\.weight"):
        load(llama)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ValidationError, match=r"model_path\n.*there is no folder .*/no/such"):
        LearnedRewardArgs(model_path="/no/such")


def test_a_folder_without_tokenizer_is_named(simple: str, tmp_path: Path) -> None:
    shutil.copytree(simple, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*token*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"copy'?: the tokenizer can't be loaded"):
        load(str(tmp_path / "copy"))


def test_several_outputs_need_a_label(tmp_path: Path) -> None:
    folder = make_reward_folder(tmp_path, num_labels=2)
    with pytest.raises(ConfigError, match=r"has 2 outputs \(0 LABEL_0, 1 LABEL_1\).*`label: 1`"):
        load(folder)
    with pytest.raises(ConfigError, match=r"label is 2, but .* has 2 outputs: choose from 0 to 1"):
        load(folder, label=2)


def test_a_model_without_padding_token_is_refused(simple: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json has no pad_token_id.*Set pad_token_id in .*copy/config\.json"):
        load(edited(simple, tmp_path / "copy", pad_token_id=None))


def test_a_padding_token_without_embedding_is_refused(simple: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pad_token_id is 30, but .* 0 to 29"):
        load(edited(simple, tmp_path / "copy", pad_token_id=30))


def test_no_end_token_to_append_is_refused(simple: str, tmp_path: Path) -> None:
    folder = edited(simple, tmp_path / "copy")
    make_tokenizer(eos=None).save_pretrained(folder)
    load(folder)
    with pytest.raises(ConfigError, match=r"append_eos: the tokenizer of .*copy has no end-of-sequence token"):
        load(folder, append_eos=True)


@pytest.mark.parametrize(
    "args", [{"batch_size": 0}, {"max_tokens": 0}, {"clip": 0.0}, {"scaling": "whiten"}, {"label": -1}, {"scale": 1}]
)
def test_senseless_args_are_refused(simple: str, args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(args))):
        LearnedRewardArgs(model_path=simple, **args)


def test_a_sample_without_tokens_is_named(simple: str) -> None:
    with pytest.raises(DataError, match="sample 1: prompt and completion give no tokens"):
        score(load(simple), ["a", ""], ["b", ""])


def test_a_malformed_conversation_is_named(tmp_path: Path) -> None:
    folder = make_reward_folder(tmp_path, template=TEMPLATE)
    with pytest.raises(DataError, match=r"sample 1: message 0 is \{'role': 'user'\}"):
        score(load(folder), ["a", "b"], ["b", "c"], messages=[None, [{"role": "user"}]])


def test_a_score_that_is_not_finite_is_named(simple: str) -> None:
    reward = load(simple)
    with torch.no_grad():
        reward.model.get_input_embeddings().weight[ids_of("q")[0]] = math.nan
    with pytest.raises(DataError, match=r"sample 2: the reward model .* gives nan for the completion 'qq'"):
        score(reward, ["a", "b", "c"], ["x", "y", "qq"])
