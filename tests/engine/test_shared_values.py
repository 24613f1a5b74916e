"""What modules put for others to get."""

from __future__ import annotations

import pytest
import toys
from engine_cases import Learner, Source, rows, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer


class Teller(Source):
    def setup(self):
        self.put("scale", 1.0)

    def forward_step(self, data):
        self.put("scale", self.get("scale") + 1)
        return super().forward_step(data)


class Listener(Learner):
    def train_step(self, data, train_info):
        super().train_step(data, train_info)
        self.log("heard", self.get("scale"))
        assert self.get("nothing", 7) == 7


@pytest.mark.parametrize("stop", [None, 2])
def test_what_is_put_is_there_from_the_next_episode_on(tmp_path, stop):
    """Both batches of an episode see the same value, so it grows by one an episode, also over an interruption."""

    def make(**runtime):
        chatlearn.init(settings(tmp_path, num_episode=4, save_episode_interval=1, **runtime))
        teller, listener = Teller("teller"), Listener("listener")
        environment = Environment(lambda batch: teller.forward_step(batch))
        return Engine(environment, Trainer(lambda batch: listener.train_step(batch))).set_dataset(list(range(10)))

    engine = make()
    if stop is not None:

        def interrupt(info):
            if info.episode == stop:
                raise KeyboardInterrupt

        engine.add_callback("after_train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.learn()
        engine = make(resume="auto")
    engine.learn()
    assert [row["listener/heard"] for row in rows(tmp_path)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("loader", ["fixed", "dynamic"])
def test_of_one_key_that_is_put_in_both_phases_training_has_the_last_word(tmp_path, loader):
    class Putting(Source):
        def forward_step(self, data):
            self.put("who", "experience")
            return super().forward_step(data)

        def before_episode(self):
            toys.EVENTS.append(("got", self.get("who")))

    class Training(BaseModule):
        def train_step(self, data, train_info):
            self.put("who", "training")

    chatlearn.init(settings(tmp_path, stream_data_loader_type=loader, sample_per_episode=8))
    source, trainer = Putting("source"), Training("trainer")
    engine = Engine(Environment(lambda b: source.forward_step(b)), Trainer(lambda b: trainer.train_step(b)))
    engine.set_dataset([1, 2, 3]).learn()
    assert toys.events("got") == [("got", None), ("got", "training"), ("got", "training")]
