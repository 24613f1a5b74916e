"""Columns of a batch on their way: the keys that steps declare, padding, values of all kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from engine_cases import Learner, Source, rows, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer
from chatlearn.data.padding import Padding


@pytest.mark.parametrize("declared", [True, False])
def test_padding_by_rule(tmp_path, declared):
    """Rows of widths 1 to 6, padded on the left with -1 where batches of different widths are put together."""

    class Wide(BaseModule):
        padding = {"t": Padding(-1, "left")} if declared else {}

        def setup(self):
            if not declared:
                self.add_padding_config("t", -1, "left")

        def forward_step(self, data):
            return {"t": torch.ones(1, data["prompt"][0] + 1)}

    class Keeping(BaseModule):
        def train_step(self, data, train_info):
            toys.EVENTS.extend(("seen", *micro["t"].tolist()) for micro in data)

    chatlearn.init(settings(tmp_path, num_episode=1, generation_batch_size=1, sample_per_episode=4, data_shuffle=False))
    wide, keeping = Wide("wide"), Keeping("keeping")
    engine = Engine(Environment(lambda b: wide.forward_step(b)), Trainer(lambda b: keeping.train_step(b)))
    engine.set_dataset([0, 1, 2, 0]).learn()
    seen = [row for _, *micro in toys.events("seen") for row in micro]
    assert seen == [[-1, -1, 1], [-1, 1, 1], [1, 1, 1], [-1, -1, 1]]


def test_a_key_that_nobody_makes_is_refused_before_the_start(tmp_path):
    class Writer(Source):
        writes = frozenset({"x"})

    class Maker(Source):
        writes = frozenset({"tokens"})

    class Reader(Source):
        reads = frozenset({"tokens"})

    chatlearn.init(settings(tmp_path))
    writer, maker, reader, learner = Writer("writer"), Maker("maker"), Reader("reader"), Learner("learner")

    def flow(batch):
        late = reader.forward_step(writer.forward_step(batch))
        return maker.forward_step(late)

    engine = Engine(Environment(flow), Trainer(lambda b: learner.train_step(b))).set_dataset([1])
    with pytest.raises(chatlearn.FlowError, match=r"reader\.forward_step reads 'tokens'.*maker\.forward_step"):
        engine.learn()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("isolate", [False, True])
def test_all_kinds_of_values_survive_the_way_through(tmp_path, isolate):
    """From a step through other batch sizes, micro-batches and global batches: every row is what it was."""

    def made(i):
        nested = {"t": torch.full((2,), i, dtype=torch.bfloat16), "deep": {"a": np.array([i, -i]), "nothing": None}}
        return {"text": f"s{i}", "any": {"id": i, "x": [1, None]}, "none": None, "nested": nested, "whole": None}

    class Kinds(BaseModule):
        def forward_step(self, data):
            parts = [made(i) for i in data["prompt"]]
            return {
                "prompt": data["prompt"],
                "text": [part["text"] for part in parts],
                "any": [part["any"] for part in parts],
                "none": [None for _ in parts],
                "whole": None,
                "nested": {
                    "t": torch.stack([part["nested"]["t"] for part in parts]),
                    "deep": {"a": np.stack([part["nested"]["deep"]["a"] for part in parts]), "nothing": None},
                },
            }

    class Checking(BaseModule):
        def train_step(self, data, train_info):
            for micro in data:
                for row, i in enumerate(micro["prompt"]):
                    wanted = made(i)
                    assert {key: micro[key][row] for key in ("text", "any", "none")} == {
                        key: wanted[key] for key in ("text", "any", "none")
                    }
                    assert micro["whole"] is None
                    assert micro["nested"]["deep"]["nothing"] is None
                    assert torch.equal(micro["nested"]["t"][row], wanted["nested"]["t"])
                    assert np.array_equal(micro["nested"]["deep"]["a"][row], wanted["nested"]["deep"]["a"])
            self.log("rows", sum(len(micro["prompt"]) for micro in data), "sum")

    config = settings(tmp_path, sample_per_episode=7, num_episode=1, generation_batch_size=3)
    chatlearn.init({**config, "runtime_env": {"isolate": isolate}})
    kinds, checking = Kinds("kinds"), Checking("checking")
    engine = Engine(Environment(lambda b: kinds.forward_step(b)), Trainer(lambda b: checking.train_step(b)))
    engine.set_dataset(list(range(10))).learn()
    assert rows(tmp_path)[0]["checking/rows"] == 7
