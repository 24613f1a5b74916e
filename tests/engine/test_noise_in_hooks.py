"""``self.uniforms`` outside of steps: keyed by the run's seed and the place of the function, not by what ran before."""

from __future__ import annotations

import pytest
from engine_cases import settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Evaluator

SEEN = []


class Noisy(BaseModule):
    def _draw(self, place):
        SEEN.append((place, self.uniforms([1], 1).item()))

    def setup(self):
        self._draw("setup")

    def build_dataset(self, prompts, is_eval=False):
        self._draw(f"build {is_eval}")
        return [{"prompt": prompt} for prompt in prompts]

    def before_episode(self):
        self._draw("before")

    def after_episode(self):
        self._draw("after")

    def forward_step(self, data):
        self._draw("step")
        return data

    def eval_step(self, data):
        return data


def run(folder, stop=None, evaluate=False, **runtime):
    SEEN.clear()
    chatlearn.init(settings(folder, generation_batch_size=4, save_episode_interval=1, **runtime))
    noisy = Noisy("noisy")
    evaluator = Evaluator(lambda batch: noisy.eval_step(batch)).set_dataset([7])
    engine = Engine(Environment(lambda batch: noisy.forward_step(batch)), None, evaluator).set_dataset(list(range(10)))

    def interrupt(info):
        if info.episode == stop:
            raise KeyboardInterrupt

    engine.add_callback("after_experience", interrupt)
    if evaluate:
        engine.add_callback("after_experience", lambda info: info.engine.evaluate())
    if stop is None:
        engine.learn()
    else:
        with pytest.raises(KeyboardInterrupt):
            engine.learn()
    return list(SEEN)


def test_each_place_has_noise_of_its_own(tmp_path):
    """A step's noise belongs to the sample and is the same in any batch; the rest is drawn once per place."""
    seen = run(tmp_path / "a")
    places = ["setup", "before", "build False", "step", "after", "before", "step", "after", "before", "step", "after"]
    assert [place for place, _ in seen] == places
    others = [noise for place, noise in seen if place != "step"]
    assert len(set(others)) == len(others)
    steps = {noise for place, noise in seen if place == "step"}
    assert len(steps) == 1
    assert not steps & set(others)


def test_noise_follows_the_seed_of_the_run_alone(tmp_path):
    seen = run(tmp_path / "a")
    assert run(tmp_path / "b") == seen
    other = run(tmp_path / "c", seed=1)
    assert all(noise != again for (_, noise), (_, again) in zip(seen, other, strict=True))


def test_evaluations_in_between_change_no_noise(tmp_path):
    seen = run(tmp_path / "a")
    with_evaluations = run(tmp_path / "b", evaluate=True)
    assert ("build True", pytest.approx(0.5, abs=0.5)) in with_evaluations
    assert [entry for entry in with_evaluations if entry[0] != "build True"] == seen


def test_a_resumed_run_goes_on_with_the_same_noise(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "broken", stop=1)
    resumed = run(tmp_path / "broken", resume="auto")
    assert resumed == [whole[0], whole[5], whole[2], *whole[6:]]
