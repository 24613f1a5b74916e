"""What a sync moves between modules of which one or both have adapters, and what the sampler computes afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lora_cases import LORA, Counting, disturb, experience, train
from tiny_models import PROMPTS, call, make_folder

from chatlearn import SyncError
from chatlearn.config.schema import RuntimeConfig
from chatlearn.modules.base import BaseModule, describe
from chatlearn.modules.torch import PolicyInference, PolicyTrainer, ValueInference, ValueTrainer
from chatlearn.modules.torch.lora import adapted_layers
from chatlearn.modules.torch.scoring import Window, policy_logprobs, state_values
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.sync.sync import ParameterSync


@pytest.fixture
def cluster() -> Iterator[Counting]:
    Counting.sent = []
    cluster = Counting(isolate=True)  # values travel as bytes, so that no memory is shared
    yield cluster
    cluster.shutdown()


def spawn(cluster: Counting, module: BaseModule, **args: Any) -> tuple[Any, Any]:
    """A replica's handle, and its module."""
    runtime = RuntimeConfig(train_micro_batch_size=1, train_global_batch_size=8)
    handle = cluster.spawn(describe(module), 0, ReplicaSettings(0, type(module).Args(**args), None, runtime))
    cluster.call(handle, "setup")
    return handle, cluster._workers[handle].module


def policies(cluster: Counting, folder: str, policy: dict[str, Any], trainer: dict[str, Any]) -> tuple[Any, ...]:
    """A sync from a trainer to a policy, the trainer and the policy."""
    source, learner = spawn(cluster, PolicyTrainer("trainer"), model_path=folder, learning_rate=0.1, **trainer)
    destination, sampler = spawn(
        cluster, PolicyInference("policy"), **{"model_path": folder, "max_new_tokens": 5, **policy}
    )
    return ParameterSync(cluster, source, [destination]), learner, sampler


def sampled_and_scored(sampler: Any, learner: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a rollout's tokens, by the sampler and by the trainer's model."""
    batch = call(sampler, "forward_step", {"prompt": PROMPTS})
    window = Window.of(batch, torch.device("cpu"))
    with torch.no_grad():
        scored = policy_logprobs(learner.model, window, 1.0)
    mask = window.mask.bool()
    return window.cut(batch["logprobs"])[mask], scored[mask]


@pytest.mark.parametrize("policy", [{"lora": LORA}, {}], ids=["adapters", "merged"])
def test_the_sampler_says_what_the_trainer_says_after_updates(
    cluster: Counting, folder: str, policy: dict[str, Any]
) -> None:
    sync, learner, sampler = policies(cluster, folder, policy, {"lora": {**LORA, "seed": 7}})
    sync.sync(1)
    for version in (2, 3):
        weights = {name: value.clone() for name, value in learner.model.state_dict().items()}
        before, _ = sampled_and_scored(sampler, learner)
        train(learner, steps=3)
        moved = {n for n, value in learner.model.state_dict().items() if not torch.equal(value, weights[n])}
        assert moved
        assert all("lora_" in name for name in moved)
        trained = {name: value.clone() for name, value in learner.model.state_dict().items()}
        sync.sync(version)
        assert all(torch.equal(value, trained[name]) for name, value in learner.model.state_dict().items())
        sampled, scored = sampled_and_scored(sampler, learner)
        torch.testing.assert_close(sampled, scored, atol=1e-5, rtol=0)
        assert len(sampled) != len(before) or float((sampled - before).abs().max()) > 1e-2  # the updates show


def test_adapters_alone_travel_between_equal_bases(cluster: Counting, llama: str) -> None:
    sync, learner, sampler = policies(cluster, llama, {"lora": LORA}, {"lora": {**LORA, "seed": 7}})
    for version in (1, 2):
        train(learner)
        sync.sync(version)
    names = {name for name in learner.model.state_dict() if "lora_" in name}
    assert [sent.keys() for sent in Counting.sent] == [names, names]
    assert len(names) == 28  # 7 linear layers in each of 2, A and B
    assert all(torch.equal(sampler.model.state_dict()[n], learner.model.state_dict()[n]) for n in names)


def test_layers_trained_whole_travel_too(cluster: Counting, llama: str) -> None:
    lora = {"lora": {**LORA, "target_modules": ["q_proj"], "modules_to_save": ["norm"]}}
    sync, learner, _ = policies(cluster, llama, lora, lora)
    train(learner)
    sync.sync(1)
    names = {f"model.layers.{i}.self_attn.q_proj.lora_{side}.default.weight" for i in (0, 1) for side in "AB"}
    assert Counting.sent[0].keys() == {*names, "model.norm.modules_to_save.default.weight"}


def test_merged_weights_travel_after_a_first_sync_of_all(cluster: Counting, llama: str) -> None:
    """The sampler has another base at first, which the trainer's replaces."""
    sync, learner, sampler = policies(cluster, llama, {}, {"lora": {**LORA, "target_modules": ["q_proj", "v_proj"]}})
    with torch.no_grad():
        sampler.model.model.norm.weight.zero_()
    for version in (1, 2):
        train(learner)
        sync.sync(version)
    adapted = {f"{name}.weight" for name, _ in adapted_layers(learner.model)}
    assert Counting.sent[0].keys() == sampler.model.state_dict().keys()
    assert Counting.sent[1].keys() == adapted
    sampled, scored = sampled_and_scored(sampler, learner)
    torch.testing.assert_close(sampled, scored, atol=1e-5, rtol=0)


def test_a_sampler_of_another_dtype_gets_the_base_once(cluster: Counting, llama: str) -> None:
    sync, learner, sampler = policies(cluster, llama, {"lora": LORA, "dtype": "bfloat16"}, {"lora": LORA})
    with torch.no_grad():
        sampler.model.model.norm.weight.zero_()
    for version in (1, 2):
        train(learner)
        sync.sync(version)
    state = sampler.model.state_dict()
    assert Counting.sent[0].keys() == state.keys()
    assert Counting.sent[1].keys() == {name for name in state if "lora_" in name}
    assert all(torch.equal(value.to(state[n].dtype), state[n]) for n, value in learner.model.state_dict().items())


@pytest.mark.parametrize("inference", [{"lora": LORA}, {}], ids=["adapters", "merged"])
def test_values_follow_their_trainer(cluster: Counting, llama: str, inference: dict[str, Any]) -> None:
    source, learner = spawn(cluster, ValueTrainer("trainer"), model_path=llama, learning_rate=0.1, lora=LORA)
    destination, judge = spawn(cluster, ValueInference("value"), model_path=llama, **inference)
    sync = ParameterSync(cluster, source, [destination])
    sync.sync(1)
    train(learner, steps=4)
    sync.sync(2)
    batch = experience(9)
    window = Window.of(batch, torch.device("cpu"))
    with torch.no_grad():
        expected = window.spread(state_values(learner.model, window), batch["tokens"].shape[1])
    values = call(judge, "forward_step", batch)["values"]
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    assert float(values.abs().max()) > 0.05
    assert {"head.weight", "head.bias"} < Counting.sent[1].keys()


@pytest.mark.parametrize(
    ("policy", "trainer", "words"),
    [
        ({"lora": LORA}, {}, r"policy has adapters, but trainer has none .*Set models\.trainer\.args\.lora"),
        (
            {"lora": {"r": 4, "alpha": 4}},
            {"lora": LORA},
            r"multiplied by 2 in trainer and by 1 in policy \(alpha / r, of model\.layers\.0\.self_attn\.q_proj\)",
        ),
        (
            {"lora": {**LORA, "target_modules": ["q_proj"]}},
            {"lora": {**LORA, "target_modules": ["q_proj", "v_proj"]}},
            r"2 layers have an adapter on one side only, such as model\.layers\.0\.self_attn\.v_proj in trainer\. Make "
            r"models\.trainer\.args\.lora and models\.policy\.args\.lora the same",
        ),
        (
            {"lora": {**LORA, "modules_to_save": ["norm"]}},
            {"lora": LORA},
            r"model\.norm is trained whole \(modules_to_save\) in policy only\. Make models\.trainer\.args\.lora and "
            r"models\.policy\.args\.lora the same",
        ),
        (
            {"lora": {"r": 2, "alpha": 4}},
            {"lora": LORA},
            r"lora_A\.default\.weight is \[4, 32\] in trainer and \[2, 32\] in policy",
        ),
    ],
)
def test_adapters_that_differ_are_refused(
    cluster: Counting, llama: str, policy: dict[str, Any], trainer: dict[str, Any], words: str
) -> None:
    with pytest.raises(SyncError, match=rf"(?s)trainer.*policy.*{words}"):
        policies(cluster, llama, policy, trainer)


def test_adapters_on_different_bases_are_refused(cluster: Counting, llama: str, tmp_path: Any) -> None:
    make_folder(tmp_path, "llama-tied")
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SyncError, match=r"trainer -> policy: .* different base models.*models\.policy\.args\.model_path"
    ):
        policies(cluster, llama, {"lora": LORA, "model_path": str(tmp_path)}, {"lora": LORA})


def test_a_users_own_frozen_layers_travel_with_every_sync(cluster: Counting) -> None:
    """Only of adapters it is known that nothing else changes what is frozen."""
    from chatlearn import TorchModule

    class Frozen(TorchModule):
        def setup(self) -> None:
            self.model = torch.nn.Linear(2, 1).requires_grad_(False)
            disturb(self.model)

    handles = [cluster.spawn(describe(Frozen(name)), 0, ReplicaSettings(0, {}, None, None)) for name in ("a", "b")]
    for handle in handles:
        cluster.call(handle, "setup")
    sync = ParameterSync(cluster, handles[0], handles[1:])
    sync.sync(1)
    sync.sync(2)
    assert [set(sent) for sent in Counting.sent] == [{"weight", "bias"}] * 2
