"""Reward training: the loss by hand, gradients against a plain loop, and folders that load elsewhere."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_folders import EOS_ID, KINDS, TEMPLATE, ids_of, make_reward_folder, plain_score
from tiny_models import build, call, logged, make_model, make_tokenizer

import chatlearn
from chatlearn import ConfigError, DataError, Engine, Evaluator, Trainer
from chatlearn.data.collate import select
from chatlearn.data.prompts import fetch
from chatlearn.modules.torch import LearnedReward, LearnedRewardArgs, RewardTrainer
from chatlearn.modules.torch.reward_trainer import bradley_terry_loss

RATE = 0.5
"""Of plain gradient descent, which makes the gradient of an update readable: (before - after) / RATE."""
PAIRS: list[dict[str, Any]] = [
    {"prompt": "ab", "chosen": "cde", "rejected": "f"},
    {"prompt": "hello_you", "chosen": "i", "rejected": "there_is_more", "margin": 0.5},
    {"prompt": "x", "chosen": "yz", "rejected": "zy", "margin": 2},
    {"prompt": "the_end", "chosen": "of_it", "rejected": "off"},
    {"prompt": "q", "chosen": "r", "rejected": "s"},
]
TALK = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module", params=KINDS)
def reward_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reward_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reward_folder(tmp_path_factory.mktemp("simple"))


def batch_of(trainer: RewardTrainer, pairs: list[dict[str, Any]]) -> Any:
    return fetch(trainer.build_dataset(pairs), range(len(pairs)))


def cut(batch: Any, *sizes: int) -> list[Any]:
    """Micro-batches of these sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [select(batch, range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


# -- the loss --------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_lost_game() -> None:
    """A difference of ln 3 wins with probability 3/4; with a margin as large, with 1/2."""
    three = torch.tensor([math.log(3), math.log(3), -math.log(3)])
    loss = bradley_terry_loss(three, torch.zeros(3), torch.tensor([0.0, math.log(3), 0.0]))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)])


def test_without_margin_the_loss_is_binary_cross_entropy_of_the_difference() -> None:
    chosen, rejected = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, torch.ones(20), reduction="none")
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected), expected)


def test_centering_adds_the_squared_sum_of_both_scores() -> None:
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([1.0, -1.0])
    extra = bradley_terry_loss(chosen, rejected, centering=0.1) - bradley_terry_loss(chosen, rejected)
    assert extra.tolist() == pytest.approx([0.9, 0.0])


@pytest.mark.parametrize("centering", [0.0, 0.3])
def test_gradients_of_the_loss_are_right(centering: float) -> None:
    generator = torch.Generator().manual_seed(1)
    chosen, rejected, margin = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda c, r: bradley_terry_loss(c, r, margin, centering=centering),
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


def test_large_differences_stay_finite() -> None:
    loss = bradley_terry_loss(torch.tensor([500.0, -500.0]), torch.tensor([-500.0, 500.0]))
    assert loss.tolist() == [0.0, 1000.0]


# -- updates ---------------------------------------------------------------------------------------------


def plain_gradients(folder: str, pairs: list[dict[str, Any]], centering: float) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss, each text scored alone and without padding."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    total = torch.zeros(())
    for pair in pairs:
        chosen, rejected = (
            model(input_ids=torch.tensor([ids_of(pair["prompt"] + pair[key])])).logits[0, 0]
            for key in ("chosen", "rejected")
        )
        total = total + torch.log1p(torch.exp(-(chosen - rejected - pair.get("margin", 0))))
        total = total + centering * (chosen + rejected) ** 2
    (total / len(pairs)).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 1, 1, 2)])
def test_an_update_follows_the_gradient_of_all_pairs(reward_folder: str, sizes: tuple[int, ...]) -> None:
    trainer: Any = build(RewardTrainer, model_path=reward_folder, learning_rate=RATE, max_grad_norm=1e9, centering=0.01)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=RATE)
    before = parameters(trainer)
    trainer.train_step(cut(batch_of(trainer, PAIRS), *sizes), {"iteration": 0})
    expected = plain_gradients(reward_folder, PAIRS, 0.01)
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-3
    for name, value in parameters(trainer).items():
        got = (before[name] - value) / RATE
        torch.testing.assert_close(got, expected.get(name, torch.zeros_like(got)), atol=2e-5 * max(scale, 1), rtol=1e-3)


def test_what_is_logged_are_means_over_pairs(simple: str) -> None:
    trainer = build(RewardTrainer, model_path=simple, learning_rate=0.01, warmup_steps=4)
    chosen, rejected = (
        [plain_score(simple, ids_of(pair["prompt"] + pair[key])) for pair in PAIRS] for key in ("chosen", "rejected")
    )
    differences = [c - r for c, r in zip(chosen, rejected, strict=True)]
    losses = [math.log1p(math.exp(-(d - pair.get("margin", 0)))) for d, pair in zip(differences, PAIRS, strict=True)]
    trainer.train_step(cut(batch_of(trainer, PAIRS), 2, 3), {"iteration": 0})
    values = logged(trainer)
    assert values.pop("grad_norm")[0] > 0
    assert values.pop("learning_rate") == [pytest.approx(0.0025)]
    assert values == {
        "loss": [pytest.approx(sum(losses) / 5, abs=1e-5)],
        "accuracy": [pytest.approx(sum(d > 0 for d in differences) / 5)],
        "margin": [pytest.approx(sum(differences) / 5, abs=1e-5)],
        "chosen_reward": [pytest.approx(sum(chosen) / 5, abs=1e-5)],
        "rejected_reward": [pytest.approx(sum(rejected) / 5, abs=1e-5)],
    }


def test_eval_step_scores_pairs_and_learns_nothing(simple: str) -> None:
    trainer = build(RewardTrainer, model_path=simple, learning_rate=0.01)
    before = parameters(trainer)
    output = call(trainer, "eval_step", batch_of(trainer, PAIRS))
    for key in ("chosen", "rejected"):
        expected = [plain_score(simple, ids_of(pair["prompt"] + pair[key])) for pair in PAIRS]
        assert output[f"{key}_reward"].tolist() == pytest.approx(expected, abs=1e-5)
    share = (output["chosen_reward"] > output["rejected_reward"]).float().mean()
    assert logged(trainer)["accuracy"] == [pytest.approx(float(share))]
    assert all(torch.equal(value, before[name]) for name, value in parameters(trainer).items())


@pytest.mark.parametrize(
    ("option", "tolerance"), [({"gradient_checkpointing": True}, 1e-6), ({"autocast": "bfloat16"}, 0.05)]
)
def test_options_of_the_shared_updates_hold_here_too(simple: str, option: dict[str, Any], tolerance: float) -> None:
    losses = []
    for more in ({}, option):
        trainer = build(RewardTrainer, model_path=simple, learning_rate=1e-4, **more)
        batch = batch_of(trainer, PAIRS)
        for i in range(2):
            trainer.train_step([batch], {"iteration": i})
        losses.append(logged(trainer)["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert (losses[1] != losses[0]) == ("autocast" in option)


def test_several_minibatches_are_several_updates(simple: str) -> None:
    trainer = build(RewardTrainer, model_path=simple, learning_rate=0.01, num_minibatches=2)
    trainer.train_step(cut(batch_of(trainer, PAIRS), 2, 3), {"iteration": 0})
    assert len(logged(trainer)["loss"]) == 2


def test_a_preference_is_learned(llama: str) -> None:
    """The better completion ends with a, whatever stands before."""
    generator = random.Random(0)
    words = ["".join(generator.choices("cdefghijklm", k=generator.randint(1, 6))) for _ in range(180)]
    pairs = [
        {"prompt": first, "chosen": second + "a", "rejected": second + "b"}
        for first, second in zip(words[::2], words[1::2], strict=True)
    ]
    trainer = build(RewardTrainer, model_path=llama, learning_rate=0.01, new_head=True)
    batch = batch_of(trainer, pairs[:60])
    for i in range(20):
        trainer.train_step([batch], {"iteration": i})
    losses = logged(trainer)["loss"]
    assert losses[-1] < 0.2 < losses[0]
    output = call(trainer, "eval_step", batch_of(trainer, pairs[60:]))
    assert (output["chosen_reward"] > output["rejected_reward"]).sum() >= 28


def test_a_resumed_trainer_goes_on_exactly(simple: str) -> None:
    args: dict[str, Any] = {"model_path": simple, "learning_rate": 0.01}
    straight = build(RewardTrainer, **args)
    batches = [[batch_of(straight, PAIRS[i : i + 3])] for i in range(3)]
    straight.train_step(batches[0], {"iteration": 0})
    state = copy.deepcopy(straight.state_dict())
    resumed = build(RewardTrainer, **args)
    resumed.load_state_dict(state)
    for trainer in (straight, resumed):
        logged(trainer)
        for i in (1, 2):
            trainer.train_step(batches[i], {"iteration": i})
    assert logged(resumed) == logged(straight)
    assert all(torch.equal(value, parameters(resumed)[name]) for name, value in parameters(straight).items())


# -- heads and folders -----------------------------------------------------------------------------------


def test_a_new_head_is_small_and_the_seeds(folder: str) -> None:
    """The configurations draw weights with a deviation of 0.3."""
    first, again = (build(RewardTrainer, model_path=folder, learning_rate=0.01, new_head=True) for _ in range(2))
    assert torch.equal(first.model.score.weight, again.model.score.weight)
    assert first.model.score.weight.shape == (1, 32)
    assert 0.1 < float(first.model.score.weight.detach().std()) < 0.6


def test_an_exported_reward_loads_everywhere(folder: str, tmp_path: Path) -> None:
    trainer = build(RewardTrainer, model_path=folder, learning_rate=0.01, new_head=True)
    batch = batch_of(trainer, PAIRS)
    trainer.train_step([batch], {"iteration": 0})
    expected = call(trainer, "eval_step", batch)["chosen_reward"].tolist()
    trainer.export(str(tmp_path))
    texts = [pair["prompt"] + pair["chosen"] for pair in PAIRS]
    assert [plain_score(str(tmp_path), ids_of(text)) for text in texts] == pytest.approx(expected, abs=1e-5)
    reward = LearnedReward(LearnedRewardArgs(model_path=str(tmp_path)), torch.device("cpu"))
    prompts, completions = ([pair[key] for pair in PAIRS] for key in ("prompt", "chosen"))
    assert reward.scores(prompts, completions, {}, [0] * 5).tolist() == pytest.approx(expected, abs=1e-5)
    config = reward.model.config
    assert (config.num_labels, config.pad_token_id) == (1, 0)


def test_a_language_model_without_padding_token_gets_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pad="z")
    model = make_model("llama-tied", len(tokenizer))
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    trainer = build(RewardTrainer, model_path=str(tmp_path), learning_rate=0.01, new_head=True)
    trainer.export(str(tmp_path / "reward"))
    reward = LearnedReward(LearnedRewardArgs(model_path=str(tmp_path / "reward")), torch.device("cpu"))
    assert [reward.model.config.pad_token_id] == ids_of("z")


def test_a_language_model_needs_to_be_told_that_its_head_is_new(llama: str) -> None:
    with pytest.raises(ConfigError, match=r"lack 1 parameters .*score\.weight.*language model"):
        build(RewardTrainer, model_path=llama, learning_rate=0.01)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_a_trained_head_is_not_dropped(tmp_path: Path, num_labels: int) -> None:
    folder = make_reward_folder(tmp_path, num_labels=num_labels)
    with pytest.raises(ConfigError, match="has a classification head already"):
        build(RewardTrainer, model_path=folder, learning_rate=0.01, new_head=True)


def test_several_outputs_are_no_reward(tmp_path: Path) -> None:
    folder = make_reward_folder(tmp_path, num_labels=2)
    with pytest.raises(ConfigError, match=r"models\.module\.args\.model_path .* has 2 outputs.*new_head: true"):
        build(RewardTrainer, model_path=folder, learning_rate=0.01)


@pytest.mark.parametrize("args", [{"packing": True}, {"max_tokens_per_micro_batch": 100}])
def test_layouts_that_pairs_cannot_have_are_refused(simple: str, args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"leave (it|packing) out"):
        RewardTrainer.Args(model_path=simple, learning_rate=0.1, **args)


# -- pairs -----------------------------------------------------------------------------------------------


def tokens_of(batch: Any, key: str) -> list[list[int]]:
    return [row[mask.bool()].tolist() for row, mask in zip(batch[f"{key}_tokens"], batch[f"{key}_mask"], strict=True)]


def test_pairs_of_text_are_prompt_and_completion(simple: str) -> None:
    batch = batch_of(build(RewardTrainer, model_path=simple, learning_rate=0.1, append_eos=True), PAIRS[:2])
    assert tokens_of(batch, "chosen") == [[*ids_of("abcde"), EOS_ID], [*ids_of("hello_youi"), EOS_ID]]
    assert tokens_of(batch, "rejected") == [[*ids_of("abf"), EOS_ID], [*ids_of("hello_youthere_is_more"), EOS_ID]]
    assert batch["margin"].tolist() == [0.0, 0.5]
    assert batch["chosen"] == ["cde", "i"]


def test_prompts_are_cut_on_the_left(simple: str) -> None:
    batch = batch_of(build(RewardTrainer, model_path=simple, learning_rate=0.1, max_tokens=4), PAIRS[:1])
    assert tokens_of(batch, "chosen") == [ids_of("bcde")]
    assert tokens_of(batch, "rejected") == [ids_of("abf")]


def test_pairs_of_messages_are_rendered(tmp_path: Path) -> None:
    folder = make_reward_folder(tmp_path, template=TEMPLATE)
    tool = [{"role": "tool", "content": "t"}, {"role": "assistant", "content": "no"}]
    pairs = [{"prompt": TALK, "chosen": "you", "rejected": tool}]
    batch = batch_of(build(RewardTrainer, model_path=folder, learning_rate=0.1), pairs)
    assert tokens_of(batch, "chosen") == [ids_of("u_hi_a_you_")]
    assert tokens_of(batch, "rejected") == [ids_of("u_hi_t_t_a_no_")]


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("ab", "pair 1 is 'ab'. A pair is a dict"),
        ({"prompt": "a", "chosen": "b"}, "pair 1 has no rejected; it has prompt, chosen"),
        ({"question": "a"}, "pair 1 has no prompt and no chosen and no rejected; it has question"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "pair 1: chosen and rejected are equal ('b')"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "1"}, "pair 1: margin is '1'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": math.nan}, "pair 1: margin is nan"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "pair 1, chosen: the prompt is 'a' and the completion 3"),
        ({"prompt": TALK, "chosen": "b", "rejected": "c"}, "pair 1, chosen: the prompt is a conversation, but"),
    ],
)
def test_a_malformed_pair_is_named(simple: str, pair: Any, words: str) -> None:
    trainer = build(RewardTrainer, model_path=simple, learning_rate=0.1)
    with pytest.raises(DataError) as caught:
        trainer.build_dataset([PAIRS[0], pair])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ({"prompt": TALK, "chosen": "b", "rejected": TALK}, "pair 0, rejected: the completion is"),
        ({"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}, "pair 0, chosen: message 0 is"),
    ],
)
def test_malformed_messages_are_named(tmp_path: Path, pair: Any, words: str) -> None:
    folder = make_reward_folder(tmp_path, template=TEMPLATE)
    with pytest.raises(DataError) as caught:
        build(RewardTrainer, model_path=folder, learning_rate=0.1).build_dataset([pair])
    assert words in str(caught.value)


def test_a_pair_longer_than_the_models_positions_is_named(simple: str) -> None:
    trainer = build(RewardTrainer, model_path=simple, learning_rate=0.1)
    with pytest.raises(DataError, match=r"pair 0, rejected: .* 66 tokens, but .* `max_tokens: 64`"):
        batch_of(trainer, [{"prompt": "a", "chosen": "b", "rejected": "c" * 65}])


# -- in an engine ----------------------------------------------------------------------------------------


def test_the_data_set_feeds_the_trainer(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chatlearn.init(
        {
            "models": {
                "scorer": {"trainable": True, "args": {"model_path": llama, "new_head": True, "learning_rate": 0.01}}
            },
            "runtime": {
                "num_episode": 3,
                "sample_per_episode": 4,
                "train_micro_batch_size": 2,
                "train_global_batch_size": 4,
                "generation_batch_size": 2,
                "export": ["scorer"],
            },
        }
    )
    scorer = RewardTrainer("scorer")
    engine = Engine(None, Trainer(lambda batch: scorer.train_step(batch))).set_dataset(PAIRS)
    held_out = Evaluator(lambda batch: scorer.eval_step(batch)).set_dataset(PAIRS)
    engine.learn()
    measured = engine.evaluate(held_out)
    assert engine.run is not None
    folder = str(engine.run.path / "policy")
    engine.stop()
    got = [value for batch in measured.results for value in batch["chosen_reward"].tolist()]
    expected = [plain_score(folder, ids_of(pair["prompt"] + pair["chosen"])) for pair in PAIRS]
    assert got == pytest.approx(expected, abs=1e-5)
    assert 0 <= measured.metrics["eval/scorer/accuracy"] <= 1
