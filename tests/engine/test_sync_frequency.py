"""Parameter syncs that come every so many episodes."""

from __future__ import annotations

import pytest
from engine_cases import Follower, Learner, rows, settings

import chatlearn
from chatlearn import Engine, Environment, Trainer


def test_sync_with_a_frequency(tmp_path):
    """The learner's weight is 1, 2, 3, … after each episode; the follower has what it got before or after episode 0, 2
    and 4.
    """
    chatlearn.init(settings(tmp_path, num_episode=5))
    follower, learner = Follower("follower"), Learner("learner")
    engine = Engine(
        Environment(lambda batch: follower.forward_step(batch)), Trainer(lambda batch: learner.train_step(batch))
    )
    engine.set_parameter_sync(learner, follower, frequency=2).set_dataset(list(range(10))).learn()
    assert [row["follower/weight"] for row in rows(tmp_path)] == [0.0, 2.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resume_between_two_syncs_has_the_older_weights(tmp_path, stop):
    def run(folder, **runtime):
        config = settings(folder, num_episode=5, save_episode_interval=1, **runtime)
        chatlearn.init({**config, "models": {"learner": {"sync_frequency": 3}, "follower": {}}})
        follower, learner = Follower("follower"), Learner("learner")
        engine = Engine(
            Environment(lambda batch: follower.forward_step(batch)), Trainer(lambda batch: learner.train_step(batch))
        )
        return engine.set_parameter_sync(learner, follower).set_dataset(list(range(10)))

    run(tmp_path / "whole").learn()
    broken = run(tmp_path / "broken")

    def interrupt(info):
        if info.episode == stop:
            raise KeyboardInterrupt

    broken.add_callback("after_train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        broken.learn()
    run(tmp_path / "broken", resume="auto").learn()
    weights = [[row["follower/weight"] for row in rows(tmp_path / name)] for name in ("whole", "broken")]
    assert weights[0] == weights[1] == [0.0, 0.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("frequency", [0, -1, 1.5, "2", True])
def test_a_bad_frequency_is_refused(frequency):
    with pytest.raises(chatlearn.EngineError, match="frequency"):
        Engine().set_parameter_sync(Learner("a"), Follower("b"), frequency=frequency)
