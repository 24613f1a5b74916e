"""PPO whose reward is learned: warm start, preference pairs, reward model, and PPO with six models."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from chatlearn.config.active import init
from chatlearn.config.schema import Config
from chatlearn.engine.engine import Engine
from chatlearn.guards import is_list, is_mapping
from chatlearn.recipes import warm_start
from chatlearn.recipes.demo import claim_until_measured
from chatlearn.recipes.ppo.recipe import DEMO
from chatlearn.recipes.ppo_learned_reward import reward_model
from chatlearn.recipes.ppo_learned_reward.preferences import sampling_engine
from chatlearn.recipes.ppo_learned_reward.reward_model import reward_model_engine, run_reward_model
from chatlearn.recipes.warm_start import configured_task, run_warm_start, settled, warm_start_engine


def run(config: Config) -> None:
    """All stages; each that is finished is passed by, and one that was interrupted goes on."""
    folder = claim_until_measured(config.runtime)
    if folder.finished:
        print(folder.note)
        return
    print(folder.note, flush=True)
    (folder.path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")  # a run from here on, to resume
    splits = configured_task(config).load_splits()
    policy = _own_model(config) or str(run_warm_start(config, folder.path, splits.training))
    reward = str(run_reward_model(config, folder.path, policy, splits)) if _components_without_model(config) else ""
    DEMO.run(_with_models(config, policy, reward, resume=str(folder.checkpoint or folder.path)))


def check(config: Config) -> str:
    """Checks configuration and flows of all stages without starting anything; returns the flows as text."""
    splits = configured_task(config).load_splits()
    with tempfile.TemporaryDirectory() as name:
        texts: list[str] = []
        warm_config, engine = warm_start_engine(config, Path(name), splits.training)
        model = _own_model(config)
        if model is None:
            init(warm_config)
            texts.append(engine.check())
            model = str(Path(name) / warm_start.NAME / "initial")
        if _components_without_model(config):
            sampling_config, sampling = sampling_engine(config, model, seed=0)
            init(sampling_config)
            texts.append(sampling.set_dataset(splits.held_out).check())
            pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
            reward_config, training = reward_model_engine(config, Path(name), model, pairs, pairs)
            init(reward_config)
            texts.append(training.check())
        return "\n\n".join([*texts, DEMO.check(_with_models(config, model, model, resume=config.runtime.resume))])


def rebuild(config: Config, folder: Path) -> Engine:
    """The engine of a run that lies in a folder, over the models that the stages before have left there."""
    policy, reward = (str(folder / name / "policy") for name in (warm_start.NAME, reward_model.NAME))
    return DEMO.rebuild(_with_models(config, _own_model(config) or policy, reward, config.runtime.resume), folder)


def _own_model(config: Config) -> str | None:
    """The policy's ``model_path``, if the configuration names one; then there is no warm start."""
    return config.model("policy").args.get("model_path")


def _components_without_model(config: Config) -> list[int]:
    """Numbers of the reward's components whose score is that of the reward model of this run."""
    components: Any = config.model("reward").args.get("rewards")
    models: list[Any] = [c.get("model") if is_mapping(c) else None for c in components] if is_list(components) else []
    return [number for number, model in enumerate(models) if is_mapping(model) and "model_path" not in model]


def _with_models(config: Config, policy: str, reward: str, resume: str) -> Config:
    """The configuration of PPO: the warm start's model and the reward model stand where no other is named."""
    settings: dict[str, Any] = {"runtime.resume": resume, "models.policy.args.model_path": policy}
    if without := _components_without_model(config):
        components: list[dict[str, Any]] = [dict(component) for component in config.model("reward").args["rewards"]]
        for number in without:
            components[number]["model"] = {**components[number]["model"], "model_path": reward}
        settings["models.reward.args.rewards"] = components
    return settled(config, settings, list(config.models))
