"""CPU-seconds per GRPO step: through the engine, by TRL's GRPOTrainer, and by the hand-written loop.

All train the same model on the same prompts on one thread, in this process, in turn: the same number of prompts a step,
responses to each, updates, one schedule, optimizer and reward. The engine and TRL write metrics once a step, to
TensorBoard and a log; samples, evaluation, checkpoints, start-up and the first step are left out everywhere. Tokens
that were sampled and trained on and updates are counted where they happen; the program ends with an error if a side
did more or less work than the others. Sides differ in how they do it: the engine and the hand-written loop take the
sampler's log-probabilities, TRL computes them anew; the engine packs sequences (``packing: true``), so that responses
share the states of their prompt.

    python benchmarks/grpo_vs_trl.py [--model FOLDER]     # the demo's model, from a warm start or random weights
    python benchmarks/grpo_vs_trl.py --large              # 10 million parameters, responses of 8 to 256 tokens
    python benchmarks/grpo_vs_trl.py --learning --model FOLDER    # held-out accuracy after 160 steps, over seeds

A warm start's folder: `chatlearn run ppo runtime.num_episode=1` leaves it in `runs/ppo/warm_start/policy`.
Needs `pip install 'chatlearn[bench]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from grpo_workloads import Workload, demo, large
from handwritten import Llama, Questions, demo_questions, load, scheduled
from handwritten_grpo import Learner, Settings

from chatlearn import GRPOEngine, init
from chatlearn.modules.torch import PolicyInference, PolicyTrainer, RewardInference
from chatlearn.types import Batch

try:
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.utils.logging import disable_progress_bar
except ImportError as error:
    raise SystemExit(
        f"This benchmark compares with TRL, which can't be imported ({error}). Install it: "
        "pip install 'chatlearn[bench]'"
    ) from error

SHARED = Settings()
TOLERANCE = 0.05
"""Sides may differ in tokens by this share, the noise of sampling."""


@dataclass
class Meter:
    """Counts what one side does, from the end of its first step to the end of its last."""

    sampled: int = 0
    trained: int = 0
    updates: int = 0
    marks: list[tuple[float, int, int, int]] = field(default_factory=list)

    def end_step(self) -> None:
        """Notes what there is at the end of a step."""
        self.marks.append((time.process_time(), self.sampled, self.trained, self.updates))

    def count_update(self, *_: Any) -> None:
        """A hook of optimizers."""
        self.updates += 1

    @property
    def per_step(self) -> Cost:
        """Averages over all steps but the first."""
        return Cost(*((b - a) / (len(self.marks) - 1) for a, b in zip(self.marks[0], self.marks[-1], strict=True)))


@dataclass(frozen=True)
class Cost:
    """Of a step: CPU-seconds, tokens sampled, tokens trained on, optimizer updates."""

    seconds: float
    sampled: float
    trained: float
    updates: float


meter = Meter()
"""Of the side that is running."""


class MeteredPolicy(PolicyInference):
    """The policy, which notes when an episode ends."""

    def after_episode(self) -> None:
        meter.end_step()


class MeteredTrainer(PolicyTrainer):
    """The trainer, which counts its updates and the tokens that it gets to train on."""

    def setup(self) -> None:
        super().setup()
        self.optimizer.register_step_post_hook(meter.count_update)

    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        meter.trained += int(sum(batch["response_mask"].sum() for batch in data))
        super().train_step(data, train_info)


def run_engine(workload: Workload, num_steps: int, seed: int, folder: Path) -> None:
    """Ours. Leaves the trained model in ``folder / "grpo" / "policy"``."""
    num_responses = workload.num_responses
    model = {"model_path": str(workload.folder)}
    trainer = {
        "learning_rate": workload.learning_rate,
        "warmup_steps": SHARED.warmup_steps,
        "schedule": "linear",
        "min_learning_rate_ratio": SHARED.final_lr_share,
        "num_minibatches": workload.num_updates,
        "clip_low": SHARED.clip,
        "clip_high": SHARED.clip,
        "max_grad_norm": SHARED.max_grad_norm,
        "whiten_advantages": False,
    }
    config = {
        "models": {
            "policy": {"args": model | {"max_new_tokens": workload.max_new_tokens}},
            "reward": {},
            "ppo_policy": {"trainable": True, "args": model | trainer | workload.trainer_args},
        },
        "runtime": {
            "exp_name": "grpo",
            "output_dir": str(folder),
            "seed": seed,
            "num_episode": num_steps,
            "num_inference_per_prompt": workload.group_size,
            "sample_per_episode": num_responses,
            "generation_batch_size": num_responses,
            "train_global_batch_size": num_responses,
            "train_micro_batch_size": num_responses // workload.num_updates,
            "data_shuffle": workload.shuffle,
            "log_samples": 0,
            "export": ["ppo_policy"],
        },
    }
    init(config)

    def reward(
        prompts: list[str], completions: list[str], response_mask: torch.Tensor, **columns: Any
    ) -> list[float | None]:
        meter.sampled += int(response_mask.sum())
        return workload.reward(prompts, completions, **{name: columns[name] for name in workload.columns})

    engine = GRPOEngine(
        MeteredPolicy("policy"), None, RewardInference("reward", reward=reward), MeteredTrainer("ppo_policy")
    )
    engine.set_dataset(list(workload.samples))
    engine.learn()
    engine.stop()


class MeteredGRPO(trl.GRPOTrainer):
    """TRL's trainer, which counts the tokens that it gets to train on."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        meter.trained += int(inputs["completion_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)


class EndOfStep(TrainerCallback):
    """Notes when the updates on one step's responses are done."""

    def __init__(self, num_updates: int) -> None:
        self.num_updates = num_updates

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.num_updates == 0:
            meter.end_step()


def run_trl(workload: Workload, num_steps: int, seed: int, folder: Path) -> None:
    """TRL. Leaves the trained model in ``folder / "grpo" / "policy"``."""
    model, tokenizer = load(workload.folder, seed)
    rows = _rows(workload, num_steps, seed)

    def reward(completions: list[str], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float | None]:
        meter.sampled += sum(map(len, completion_ids))
        samples = [workload.samples[index] for index in row]
        columns = {name: [sample[name] for sample in samples] for name in samples[0]}
        finished = [tokenizer.eos_token_id in tokens for tokens in completion_ids]
        return workload.reward(columns.pop("prompt"), completions, finished=finished, **columns)

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=workload.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    optimizer.register_step_post_hook(meter.count_update)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda update: scheduled(
            1.0, update // workload.num_updates, num_steps, SHARED.warmup_steps, SHARED.final_lr_share
        ),
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    config = trl.GRPOConfig(
        output_dir=str(folder),
        seed=seed,
        # The same work: prompts, responses, updates, loss.
        per_device_train_batch_size=workload.num_responses // workload.num_updates,
        steps_per_generation=workload.num_updates,
        gradient_accumulation_steps=1,
        num_generations=workload.group_size,
        max_completion_length=workload.max_new_tokens,
        max_steps=num_steps * workload.num_updates,
        shuffle_dataset=False,  # the rows are drawn above
        temperature=1.0,
        num_iterations=1,
        beta=0.0,
        epsilon=SHARED.clip,
        loss_type="dapo",
        scale_rewards="group",
        max_grad_norm=SHARED.max_grad_norm,
        # The same logging: metrics once a step, to TensorBoard and a log.
        logging_steps=workload.num_updates,
        report_to="tensorboard",
        save_strategy="no",
        disable_tqdm=True,
        # The fastest way on one thread in float32.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
    )
    trainer = MeteredGRPO(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": workload.samples[row]["prompt"], "row": row} for row in rows]),
        processing_class=tokenizer,
        callbacks=[EndOfStep(workload.num_updates)],
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    model.save_pretrained(folder / "grpo" / "policy")
    tokenizer.save_pretrained(folder / "grpo" / "policy")


def run_handwritten(workload: Workload, num_steps: int, seed: int, folder: Path) -> None:
    """The hand-written loop. Leaves the trained model in ``folder / "grpo" / "policy"``."""
    model, tokenizer = load(workload.folder, seed)
    questions = Questions(
        workload.samples, tokenizer, workload.reward, workload.max_new_tokens, separator=workload.separator
    )
    settings = Settings(
        num_prompts=workload.num_prompts,
        group_size=workload.group_size,
        num_minibatches=workload.num_updates,
        learning_rate=workload.learning_rate,
    )
    learner = Learner(model, settings, num_steps, seed)
    learner.optimizer.register_step_post_hook(meter.count_update)
    rows = _rows(workload, num_steps, seed)
    for index in range(num_steps):
        step = learner.step_on(questions, rows[index * workload.num_prompts :][: workload.num_prompts], index)
        meter.sampled += step.num_tokens
        meter.trained += step.num_tokens
        meter.end_step()
    model.save_pretrained(folder / "grpo" / "policy")
    tokenizer.save_pretrained(folder / "grpo" / "policy")


SIDES: dict[str, Callable[[Workload, int, int, Path], None]] = {
    "engine": run_engine,
    "TRL": run_trl,
    "hand-written": run_handwritten,
}


def run_side(side: str, workload: Workload, num_steps: int, seed: int, folder: Path) -> Cost:
    """One run of one side, without what it prints."""
    global meter
    gc.collect()
    meter = Meter()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SIDES[side](workload, num_steps, seed, folder)
    return meter.per_step


def compare_cost(workload: Workload, sides: list[str], alternations: int, num_steps: int) -> None:
    """Alternates the sides; prints CPU-seconds of each run, medians, ratios to TRL and the work that was done.

    Raises:
        SystemExit: the sides did not do the same work.
    """
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    print(f"{workload}. CPU-seconds per step, one thread, TRL {trl.__version__}")
    print(_line("", *sides))
    for number in range(alternations):
        for side in sides:
            with tempfile.TemporaryDirectory() as folder:
                costs[side].append(run_side(side, workload, num_steps + 1, number, Path(folder)))
        print(_line(str(number + 1), *(f"{costs[side][-1].seconds:.4f}" for side in sides)), flush=True)
    print(_line("median", *(f"{statistics.median(cost.seconds for cost in costs[side]):.4f}" for side in sides)))
    if "TRL" in sides:
        ratios = {
            side: [ours.seconds / theirs.seconds for ours, theirs in zip(costs[side], costs["TRL"], strict=True)]
            for side in sides
        }
        print(_line("÷ TRL", *(f"{statistics.median(ratios[side]):.3f}" for side in sides)))
        print(_line("", *(f"{min(ratios[side]):.3f}-{max(ratios[side]):.3f}" for side in sides)))
    print("\nWork per step")
    unequal = False
    for name in ("sampled", "trained", "updates"):
        means = [statistics.mean(getattr(cost, name) for cost in costs[side]) for side in sides]
        unequal |= max(means) > min(means) * (1 if name == "updates" else 1 + TOLERANCE)
        print(_line(name if name == "updates" else f"tokens {name}", *(f"{mean:,.1f}" for mean in means)))
    if unequal:
        raise SystemExit("The sides did not do the same work.")


def compare_learning(workload: Workload, sides: list[str], seeds: list[int], num_steps: int) -> None:
    """Trains with each side and seed; prints accuracy on the held-out questions, answered greedily."""

    def accuracy(folder: Path) -> float:
        model, tokenizer = load(folder, 0)
        return demo_questions(tokenizer)[1].accuracy(Llama(model))

    print(f"{workload}. Held-out accuracy, {num_steps} steps")
    print(_line("seed", *sides))
    print(_line("start", *[f"{accuracy(workload.folder):.3f}"] * len(sides)))
    for seed in seeds:
        reached = []
        for side in sides:
            with tempfile.TemporaryDirectory() as folder:
                run_side(side, workload, num_steps, seed, Path(folder))
                reached.append(f"{accuracy(Path(folder) / 'grpo' / 'policy'):.3f}")
        print(_line(str(seed), *reached), flush=True)


def _rows(workload: Workload, num_steps: int, seed: int) -> list[int]:
    """Prompts of a run, for the sides that have no sampler of their own."""
    num_rows, num_samples = num_steps * workload.num_prompts, len(workload.samples)
    if not workload.shuffle:
        return [row % num_samples for row in range(num_rows)]
    order = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(num_samples, generator=order) for _ in range(-(-num_rows // num_samples))]
    return torch.cat(passes)[:num_rows].tolist()


def _line(first: str, *cells: str) -> str:
    return f"{first:>15}" + "".join(f"{cell:>14}" for cell in cells)


def main() -> None:
    """Compares costs, or with ``--learning`` what is learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="10 million parameters, uneven responses")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="warm start of the demo; else random weights")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--steps", type=int, help="timed (20; with --large 2), or to learn (160)")
    parser.add_argument("--learning", action="store_true", help="compare held-out accuracy, not cost")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --learning")
    given = parser.parse_args()
    if given.learning and (given.model is None or given.large):
        parser.error("--learning needs the demo's warm start: --model FOLDER, without --large")
    torch.set_num_threads(1)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        workload = large(scratch) if given.large else demo(given.model or scratch, scratch)
        if given.learning:
            compare_learning(workload, given.sides, given.seeds, given.steps or 160)
        else:
            compare_cost(workload, given.sides, given.alternations, given.steps or (2 if given.large else 20))


if __name__ == "__main__":
    main()
