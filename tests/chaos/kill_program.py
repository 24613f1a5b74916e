"""The small PPO program that is killed and started again.

    python tests/chaos/kill_program.py '{"folder": "/tmp/run", "resume": "auto"}'

Takes :class:`Settings` as JSON. It writes to ``<folder>/run``, and to ``<folder>/marks/places`` what it is doing, a
line for each step of an episode: the monotonic clock, and the place in words.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from kill_modules import NUM_PROMPTS, Actor, Critic, Echo, Judge, OtherActor, Policy

import chatlearn
from chatlearn import Engine, Environment, Evaluator, Trainer
from chatlearn.config.runtime import RuntimeConfig

NAME = "run"
NUM_EPISODE = 8
HAS_ASYNC_SAVE = "async_save" in RuntimeConfig.model_fields

PARTS = {
    "before_episode": "experience",
    "after_experience": "training",
    "after_train": "sync",
    "after_sync": "hooks",
    "after_episode": "evaluation and record",
    "after_log": "checkpoint",
    "after_save": "end",
}
"""Point of an episode -> what comes after it."""

CHANGES = ("width", "class", "module", "prompts")
"""Another size of the critic, another class of the actor, one module more, other prompts."""


@dataclass
class Settings:
    """One start of the program.

    Attributes:
        folder: for everything that it writes.
        backend: ``local`` or ``ray``.
        address: of the Ray to join; ``None`` starts one.
        resume: ``runtime.resume``.
        async_save: ``runtime.async_save``, where there is such a key.
        faults: what is to go wrong, see :mod:`disk_faults`.
        runtime: further keys of the section ``runtime``.
        changed: what is otherwise than in the small PPO program, of :data:`CHANGES`.
    """

    folder: str
    backend: str = "local"
    address: str | None = None
    resume: str = "auto"
    async_save: bool = False
    faults: dict[str, Any] = field(default_factory=dict[str, Any])
    runtime: dict[str, Any] = field(default_factory=dict[str, Any])
    changed: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.folder, NAME)

    @property
    def places(self) -> Path:
        """File with a line for each thing that was begun."""
        return Path(self.folder, "marks", "places")

    def to_json(self) -> str:
        """What the program takes."""
        return json.dumps(asdict(self))


def make_engine(settings: Settings) -> Engine:
    """The engine; its runs take about a second."""
    runtime: dict[str, Any] = {
        "num_episode": NUM_EPISODE,
        "sample_per_episode": 24,
        "generation_batch_size": 8,
        "train_micro_batch_size": 4,
        "train_global_batch_size": 12,
        "num_training_epoch": 2,
        "max_replay_episode": 3,
        "eval_episode_interval": 2,
        "best_metric": "eval/judge/right",
        "best_metric_mode": "min",  # so that the best one is none of the last
        "save_episode_interval": 1,
        "max_data_ckpt_nums": 2,
        "output_dir": settings.folder,
        "exp_name": NAME,
        "resume": settings.resume,
        "sinks": ["jsonl", "tensorboard"],
        "log_samples": "all",
        "export": ["actor", "critic"],
    }
    if HAS_ASYNC_SAVE:
        runtime["async_save"] = settings.async_save
    marks = {"marks": str(settings.places.parent)} if settings.backend == "ray" else {}
    models = {name: {"args": dict(marks)} for name in ("policy", "judge", "actor", "critic")}
    if "module" in settings.changed:
        models["echo"] = {}
    if "width" in settings.changed:
        models["critic"]["args"]["width"] = 16
    environment = {"backend": settings.backend, "address": settings.address}
    chatlearn.init({"runtime_env": environment, "models": models, "runtime": runtime | settings.runtime})
    policy, judge, echo = Policy("policy"), Judge("judge"), Echo("echo")
    actor, critic = (OtherActor if "class" in settings.changed else Actor)("actor"), Critic("critic")

    def experience(batch: Any) -> Any:
        sampled = policy.forward_step(batch)
        valued = critic.forward_step(sampled)
        judged = judge.forward_step(sampled, valued)
        return (sampled, valued, judged, *((echo.forward_step(judged),) if "module" in settings.changed else ()))

    def training(batch: Any) -> None:
        actor.train_step(batch)
        critic.train_step(batch)

    evaluator = Evaluator(lambda batch: judge.eval_step(policy.eval_step(batch))).set_dataset(list(range(16)))
    engine = Engine(Environment(experience), Trainer(training), evaluator)
    prompts = [prompt for prompt in range(NUM_PROMPTS) if prompt != 7 or "prompts" not in settings.changed]
    engine.set_parameter_sync(actor, policy, frequency=2).set_dataset(prompts)
    return engine.set_replay_sample_fn(the_new_and_some_old)


def the_new_and_some_old(episodes: list[Any]) -> list[Any]:
    """The current samples, and twelve of earlier episodes, drawn from the global generators."""
    *before, current = episodes
    old = [sample for episode in before for sample in episode.samples]
    chosen = random.sample(range(len(old)), min(6, len(old))) + torch.randperm(len(old)).tolist()[:6]
    return [*current.samples, *(old[index] for index in chosen)]


class Places:
    """Tells in a file what the program is doing.

    Args:
        path: of the file, which is made with its folder, or gone on with.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def mark(self, place: str) -> None:
        """From here on it does this."""
        os.write(self._file, f"{time.monotonic()} {place}\n".encode())


def places_in(path: Path) -> list[tuple[float, str]]:
    """What a program has told: seconds of the monotonic clock, and what it began then."""
    lines = [line.partition(" ") for line in path.read_text().splitlines()] if path.exists() else []
    return [(float(seconds), place) for seconds, _, place in lines]


def run(settings: Settings) -> None:
    """Runs the program in this process."""
    from disk_faults import inject

    places = Places(settings.places)
    places.mark("begin")
    if settings.faults:
        inject(settings.faults, settings.run / "checkpoints")
    engine = make_engine(settings)
    for point, part in PARTS.items():
        engine.add_callback(point, lambda info, part=part: places.mark(f"episode {info.episode + 1}, {part}"))
    engine.learn()
    places.mark("over")
    engine.stop()


def main() -> int:
    """Entry point."""
    run(Settings(**json.loads(sys.argv[1])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
