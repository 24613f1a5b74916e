"""GRPO with adapters, dynamic sampling and a learned reward on a running scale: a run that is killed and resumed ends
with the bits of one that nobody disturbed, and so do its evaluations and the best checkpoint that is kept.

Kills at random moments, kills while a checkpoint is written, and Ray are the subject of ``tests/chaos/kills.py``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from chaos.kill_records import differences, record_of
from lora_cases import LORA
from reward_folders import make_reward_folder
from safetensors.torch import load_file
from tiny_models import LETTERS

import chatlearn
from chatlearn import Evaluator, GRPOEngine
from chatlearn.modules.advantage_estimator import AdvantageEstimator
from chatlearn.modules.torch import PolicyInference, PolicyTrainer, RewardInference

KILLS = {"rollout": ("forward_step", 3), "train_step": ("train_step", 3)}
"""Where a process is killed -> a step, and the number of its last call in the third episode. Two generation batches are
the first round of an episode, two global batches its first epoch.
"""

PRELOADED = ["torch", "transformers", "peft", "chatlearn.modules.torch"]
"""Forked processes need not import these themselves."""


@dataclass(frozen=True)
class Program:
    """What a process does: begins the run, or goes on with it.

    Attributes:
        folder: for all that it writes.
        policy: folder of the base model.
        reward: folder of the reward model.
        async_save: ``runtime.async_save``.
        kill: where the process is killed, of :data:`KILLS`; empty: nowhere.
    """

    folder: Path
    policy: str
    reward: str
    async_save: bool = False
    kill: str = ""

    @property
    def run(self) -> Path:
        return self.folder / "toy"


class Killer:
    """Kills this process in the third episode, at the end of a call."""

    call: tuple[str, int] | None

    def begin(self, info: Any) -> None:
        """A callback: an episode begins."""
        self.episode, self.calls = info.episode + 1, Counter[str]()

    def see(self, step: str) -> None:
        """A call of a step has ended."""
        self.calls[step] += 1
        if self.episode == 3 and self.call == (step, self.calls[step]):
            os.kill(os.getpid(), signal.SIGKILL)


KILLER = Killer()


class Policy(PolicyInference):
    def forward_step(self, data: Any, greedy: bool = False) -> Any:
        output = super().forward_step(data, greedy)
        KILLER.see("forward_step")
        return output


class Trainer(PolicyTrainer):
    def train_step(self, data: Any, train_info: Any) -> None:
        super().train_step(data, train_info)
        KILLER.see("train_step")


def settings(program: Program) -> dict[str, Any]:
    """The configuration. Rewards are cut off at 0.3 deviations, so some groups are without signal, and which ones
    depends on the scale; with this seed the second episode is the best one, and the third has a further round.
    """
    common = {"model_path": program.policy, "temperature": 0.7}
    taste = {"model_path": program.reward, "append_eos": True, "scaling": "running", "clip": 0.3}
    kl = {"kl_target": 0.05, "kl_horizon": 100.0}
    training = {"learning_rate": 0.02, "schedule": "cosine", "warmup_steps": 3, "num_minibatches": 2}
    adapters = {"lora": {**LORA, "dropout": 0.2, "export": "adapter"}}
    models = {
        "policy": {**common, "max_new_tokens": 3, "lora": LORA},
        "reward": {"rewards": [{"name": "taste", "model": taste}]},
        "advantages": {"kl_coef": 0.02, **kl},
        "trainer": {**common, **training, **adapters, "kl_loss_coef": 0.02, **kl},
    }
    sizes = {"num_episode": 5, "sample_per_episode": 16, "num_inference_per_prompt": 4, "num_training_epoch": 2}
    refill = {"max_refill_rounds": 4, "refill_round_size": 8}
    best = {"eval_episode_interval": 1, "best_metric": "eval/reward/reward"}
    saved = {"save_episode_interval": 1, "max_data_ckpt_nums": 1, "async_save": program.async_save, "resume": "auto"}
    record = {"log_samples": "all", "sinks": ["jsonl"], "export": ["policy", "trainer"]}
    settings = toys.settings(program.folder, seed=5, **sizes, **refill, **best, **saved, **record)
    return {**settings, "models": {name: {"args": args} for name, args in models.items()}}


def learn(program: Program) -> None:
    """The program itself, which has a process of its own and speaks to ``<folder>/output``."""
    program.folder.mkdir(exist_ok=True)
    output = os.open(program.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    torch.set_num_threads(1)
    KILLER.call = KILLS.get(program.kill)
    chatlearn.init(settings(program))
    policy, reward = Policy("policy"), RewardInference("reward")
    trainer, advantages = Trainer("trainer"), AdvantageEstimator("advantages")
    engine = GRPOEngine(policy, policy, reward, trainer, advantages=advantages, drop_silent_groups=True)
    evaluator = Evaluator(lambda batch: reward.eval_step(policy.eval_step(batch)))
    engine.set_evaluator(evaluator.set_dataset(list("bdfhjlnp")))
    engine.set_dataset([first + second for first in LETTERS[:6] for second in LETTERS[6:10]])
    engine.add_callback("before_episode", KILLER.begin)
    with toys.quick_runs():
        engine.learn()
    engine.stop()


def exit_code(program: Program, start: str = "forkserver") -> int | None:
    """Runs the program to its end, whatever that is; ``None``: it hangs."""
    context: Any = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=learn, args=(program,), daemon=True)
    process.start()
    process.join(timeout=120)
    code = process.exitcode
    process.kill()
    return code


@pytest.fixture(scope="module")
def undisturbed(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A run that nothing happens to, in an interpreter of its own: sets have another order there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    program = Program(folder / "whole", llama, make_reward_folder(folder / "reward"))
    assert exit_code(program, "spawn") == 0, (program.folder / "output").read_text()
    return program


def test_the_undisturbed_run_has_all_that_could_be_lost(undisturbed: Program) -> None:
    record = record_of(undisturbed.run)
    rows = record["metrics"]
    assert [row["episode"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[2]["refill/rounds"] > 0, "the third generation batch is one of a further round"
    assert sum(row["refill/dropped_samples"] for row in rows) > 0
    assert len({row["trainer/learning_rate"] for row in rows}) == 5
    values = [row["eval/reward/reward"] for row in rows]
    assert values.index(max(values)) == 1, "the best one moves before the kill, and is not the last one"
    assert (record["result"]["best_episode"], record["result"]["best_metric"]) == (2, max(values))
    names = {"best": "episode-000002\n", "latest": "episode-000005\n", "complete": ["episode-000002", "episode-000005"]}
    assert record["checkpoints"] == names
    assert set(record["exported"]) == {"policy/model.safetensors", "trainer/adapter_model.safetensors"}
    newest = undisturbed.run / "checkpoints" / "episode-000005"
    scale = json.loads((newest / "reward.state.json").read_text())["tree"]["learned"]["taste"]["past"]
    num_drawn = sum(16 + 8 * row["refill/rounds"] for row in rows)
    assert scale["count"] == num_drawn, "all scores count, also those of groups that are left out"
    weights = [name for path in newest.glob("*.safetensors") for name in load_file(path) if name.startswith("model.")]
    assert {"lora_" in name for name in weights} == {True}, "the base is not saved"


@pytest.mark.parametrize("async_save", [False, True], ids=["blocking", "async_save"])
@pytest.mark.parametrize("kill", KILLS)
def test_a_run_that_is_killed_and_resumed_ends_as_an_undisturbed_one(
    kill: str, async_save: bool, undisturbed: Program, tmp_path: Path
) -> None:
    program = replace(undisturbed, folder=tmp_path, async_save=async_save)
    assert exit_code(replace(program, kill=kill)) == -signal.SIGKILL, (tmp_path / "output").read_text()
    left = (program.run / "metrics.jsonl").read_text().splitlines()
    num_saved = int((program.run / "checkpoints" / "latest").read_text().strip().removeprefix("episode-"))
    assert len(left) == 2
    assert num_saved in ({1, 2} if async_save else {2})
    assert exit_code(program) == 0, (tmp_path / "output").read_text()
    ended = (program.run / "metrics.jsonl").read_text().splitlines()
    assert ended[:num_saved] == left[:num_saved], "it goes on, and does not begin anew: times are the same too"
    assert differences(record_of(undisturbed.run), record_of(program.run)) == []
