"""Learned reward models as components. What such a model itself computes is tested with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_reward_components import batch_of, part, run
from tiny_models import EOS, PAD, build, make_tokenizer

from chatlearn import ConfigError, DataError
from chatlearn.modules.base import ModuleContext
from chatlearn.modules.torch import RewardInference
from chatlearn.modules.torch.reward_components import RewardComponentArgs


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny reward model with random weights."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    tokenizer = make_tokenizer(EOS, PAD)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.5,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def model_score(folder: str, text: str) -> float:
    """Of one text alone, by transformers itself."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(input_ids=tokens).logits.item()


def learned(folder: str, **more: Any) -> dict[str, Any]:
    return {"name": "taste", "model": {"model_path": folder, **more}}


WORDS = {"prompt": ["abc", "abc", "xyz", "xyz"], "response": ["d", "ef", "_a", "bbb"]}


def test_a_learned_reward_is_a_component_beside_others(reward_folder: str) -> None:
    module = build(RewardInference, rewards=[part("a"), {**learned(reward_folder), "weight": 0.25}])
    output = run(module, {**batch_of(4, a=[1.0, 0.0, 1.0, 0.0]), **WORDS})
    expected = [model_score(reward_folder, p + r) for p, r in zip(WORDS["prompt"], WORDS["response"], strict=True)]
    assert output["reward_components"]["taste"].tolist() == pytest.approx(expected, abs=1e-5)
    wanted = [a + 0.25 * x for a, x in zip([1, 0, 1, 0], expected, strict=True)]
    assert output["rewards"].tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_running_scale_changes_between_episodes_only_and_not_by_evaluations(reward_folder: str) -> None:
    module = build(RewardInference, rewards=[learned(reward_folder, scaling="running")])
    data = {**batch_of(4), **WORDS}
    raw = run(module, data)["rewards"]
    assert torch.equal(run(module, data)["rewards"], raw), "an episode has one scale"
    run(module, {**batch_of(4), "prompt": ["q"] * 4, "response": ["zzz"] * 4}, step="eval_step")
    module.after_episode()
    twice = torch.cat([raw, raw])
    expected = (raw - twice.mean()) / twice.std()
    torch.testing.assert_close(run(module, data)["rewards"], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(run(module, data, step="eval_step")["rewards"], raw), "an evaluation is not scaled"


def test_the_running_scale_stands_in_checkpoints(reward_folder: str) -> None:
    rewards = [learned(reward_folder, scaling="running")]
    first, second = (build(RewardInference, rewards=rewards) for _ in range(2))
    data = {**batch_of(4), **WORDS}
    run(first, data)
    first.after_episode()
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(second, data)["rewards"], run(first, data)["rewards"])
    renamed = build(RewardInference, rewards=[{**rewards[0], "name": "other"}])
    with pytest.raises(ConfigError, match="the checkpoint holds the learned rewards taste, the configuration other"):
        renamed.load_state_dict(first.state_dict())


def test_without_learned_rewards_there_is_no_state() -> None:
    module = build(RewardInference, rewards=[part("a")])
    module.after_episode()
    assert module.state_dict() == {}


def test_a_sample_that_another_component_can_not_score_does_not_count_in_the_scale(reward_folder: str) -> None:
    module = build(RewardInference, rewards=[part("a", weight=1e-9), learned(reward_folder, scaling="group")])
    output = run(module, {**batch_of(4, a=[1.0, 1.0, 1.0, None]), **WORDS}, groups=[0, 0, 0, 0])
    three = output["reward_components"]["taste"][:3]
    expected = (three - three.mean()) / three.std()
    torch.testing.assert_close(output["rewards"][:3], expected, atol=1e-4, rtol=1e-4)
    assert output["rewards"][3] == 0


def test_an_evaluation_needs_no_groups(reward_folder: str) -> None:
    module = build(RewardInference, rewards=[learned(reward_folder, scaling="group")])
    output = run(module, {**batch_of(4), **WORDS}, step="eval_step")
    assert torch.equal(output["rewards"], output["reward_components"]["taste"])


def test_several_replicas_can_not_share_a_running_scale(reward_folder: str) -> None:
    module = RewardInference("reward")
    args = RewardInference.Args(rewards=[learned(reward_folder, scaling="running")])
    section = type("Section", (), {"num_replica": 2})()
    module.__dict__["_context"] = ModuleContext(model_args=args, module_args=section)
    with pytest.raises(ConfigError, match=r"models\.reward\.num_replica is 2, but the component 'taste'"):
        module.setup()


def test_learned_models_move_with_the_module(reward_folder: str) -> None:
    module = build(RewardInference, rewards=[part("a"), learned(reward_folder)])
    batch = {**batch_of(4, a=[1.0, 1.0, 1.0, 1.0]), **WORDS}
    before = run(module, batch)["rewards"]
    module.offload(["optimizer"])
    assert torch.equal(run(module, batch)["rewards"], before)
    module.offload(["weights"])
    held = {p.untyped_storage().nbytes() for p in module._components[1].learned.model.parameters()}
    assert held == {0}
    with pytest.raises(DataError, match="its model is called while its weights are in host memory"):
        run(module, batch)
    module.onload(["weights"])
    assert torch.equal(run(module, batch)["rewards"], before)


def test_a_missing_folder_of_a_learned_reward_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="there is no folder"):
        RewardComponentArgs(name="taste", model={"model_path": str(tmp_path / "missing")})
