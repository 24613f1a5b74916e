"""Steps that make more rows of a row, or fewer; ids and earlier values go along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_cases import Learner, Source, trained

import chatlearn
from chatlearn import BaseModule, Trainer


class Reshaping(BaseModule):
    @chatlearn.step(expands=3)
    def expand(self, data):
        return {"y": torch.repeat_interleave(data["x"], 3) + torch.tensor([0.1, 0.2, 0.3]).repeat(len(data["x"]))}

    @chatlearn.step(expands=True)
    def upto(self, data):
        source = [row for row, x in enumerate(data["x"].tolist()) for _ in range(int(x))]
        return {"y": data["x"][source], "source_rows": source}

    @chatlearn.step(filters=True)
    def even(self, data):
        kept = np.flatnonzero(data["x"].numpy() % 2 == 0)
        return {"even": data["x"][kept], "source_rows": kept}

    @chatlearn.step(filters=True)
    def lost(self, data):
        return {"x": data["x"]}

    @chatlearn.step(expands=True)
    def wrong(self, data):
        return {"x": data["x"], "source_rows": [99] * len(data["x"])}


@pytest.mark.parametrize("threads", [1, 3])
def test_expanding_and_filtering_carry_ids_and_earlier_values_along(tmp_path, threads):
    source, reshaping = Source("source"), Reshaping("reshaping")

    def flow(batch):
        x = source.forward_step(batch)
        kept = reshaping.even(x)
        return reshaping.expand(kept, x), x

    seen = trained(tmp_path, flow, threads=threads)
    # prompts 0..5 in order; 0, 2 and 4 stay; three rows of each
    expected = [
        ((x << 16) + j, x, {"y": round(x + 0.1 * (j + 1), 3), "prompt": float(x), "x": float(x)})
        for x in (0, 2, 4)
        for j in range(3)
    ]
    assert [(i, g, {key: round(v, 3) for key, v in values.items()}) for i, g, values in seen] == expected


def test_a_step_may_make_any_number_of_rows_also_none(tmp_path):
    source, reshaping = Source("source"), Reshaping("reshaping")
    seen = trained(tmp_path, lambda batch: reshaping.upto(source.forward_step(batch)))
    assert [(group, values["y"]) for _, group, values in seen] == [(x, float(x)) for x in range(6) for _ in range(x)]
    assert len({sample for sample, *_ in seen}) == 15


@pytest.mark.parametrize(("step", "words"), [("lost", "source_rows"), ("wrong", "has the rows 0 to 1")])
def test_wrong_source_rows_are_refused(tmp_path, step, words):
    source, reshaping = Source("source"), Reshaping("reshaping")
    with pytest.raises(chatlearn.StepError, match=words):
        trained(tmp_path, lambda batch: getattr(reshaping, step)(source.forward_step(batch)))


class Grouping(BaseModule):
    """Notes the groups of each of its batches."""

    def setup(self):
        GROUPS.clear()

    def forward_step(self, data):
        GROUPS.append(list(self.batch.group_ids))
        return {}


GROUPS = []


@pytest.mark.parametrize(("size", "expected"), [(2, 1), (4, 1), (7, 2)])
def test_rows_that_were_made_of_one_row_stay_in_one_batch(tmp_path, size, expected):
    source, reshaping, grouping = Source("source"), Reshaping("reshaping"), Grouping("grouping")

    def flow(batch):
        rows = reshaping.expand(source.forward_step(batch))
        return rows, grouping.forward_step(rows)

    models = {"source": {"generation_batch_size": 6}, "grouping": {"generation_batch_size": size}}
    trained(tmp_path, flow, models={**models, "reshaping": {}})
    assert [group for groups in GROUPS for group in groups] == [x for x in range(6) for _ in range(3)]
    assert [len(groups) for groups in GROUPS] == [3 * expected] * (6 // expected)


def test_a_reshaping_step_does_not_belong_into_a_trainer():
    reshaping, learner = Reshaping("reshaping"), Learner("learner")
    with pytest.raises(chatlearn.FlowError, match="Environment"):
        Trainer(lambda batch: learner.train_step(reshaping.even(batch)))


@pytest.mark.parametrize("options", [{"expands": 0}, {"expands": "3"}, {"expands": 2, "filters": True}])
def test_a_wrong_mark_is_refused(options):
    with pytest.raises(chatlearn.ModuleError, match="@step"):
        chatlearn.step(**options)
