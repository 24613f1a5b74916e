"""What a step changes in place in what it was handed reaches nobody else: not other steps, not the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment

SEEN: list[Any] = []


class Changing(BaseModule):
    def forward_step(self, data: dict[str, Any], offset: Any = None) -> dict[str, Any]:
        for ids, message, pair in zip(data["ids"], data["messages"], data["pair"], strict=True):
            ids.append(9)
            message[0]["content"] += "!"
            message.append({"role": "assistant", "content": "yes"})
            pair[1].append(9)
        if offset is not None:
            offset += 1
            SEEN.append(("offset", float(offset[0])))
        return {}

    def before_episode(self) -> None:
        counter = self.get("counter", {"n": 0, "t": torch.zeros(1)})
        counter["n"] += 1
        counter["t"] += 1
        SEEN.append(("counter", counter["n"], float(counter["t"])))
        if counter["n"] == 1:
            self.put("counter", {"n": 0, "t": torch.zeros(1)})


class Reading(BaseModule):
    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        SEEN.append((data["ids"], data["messages"], data["pair"]))
        return data


def record(i: int) -> dict[str, Any]:
    return {"ids": [i], "messages": [{"role": "user", "content": f"q{i}"}], "pair": (i, [i])}


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("constant", [None, torch.zeros(1), np.zeros(1)], ids=["none", "tensor", "array"])
def test_entries_constants_and_shared_values_are_a_steps_own(isolate: bool, constant: Any, tmp_path: Path) -> None:
    SEEN.clear()
    sizes = {"num_episode": 2, "sample_per_episode": 4, "num_inference_per_prompt": 2, "data_shuffle": False}
    chatlearn.init({**settings(tmp_path, **sizes), "runtime_env": {"isolate": isolate}})
    changing, reading = Changing("changing"), Reading("reading")
    prompts = [record(0), record(1)]

    def flow(batch: Any) -> Any:
        with chatlearn.after(changing.forward_step(batch, offset=constant)):
            return reading.forward_step(batch)

    Engine(Environment(flow)).set_dataset(prompts).learn()
    assert prompts == [record(0), record(1)]
    read = [seen for seen in SEEN if not isinstance(seen[0], str)]
    expected = [tuple([record(i)[key]] * 2 for key in ("ids", "messages", "pair")) for i in (0, 1)] * 2
    assert read == expected
    assert [seen[1] for seen in SEEN if seen[0] == "offset"] == ([] if constant is None else [1.0] * 4)
    assert [seen[1:] for seen in SEEN if seen[0] == "counter"] == [(1, 1.0)] * 2


def test_an_array_that_a_step_fills_again_has_travelled_as_it_was(tmp_path: Path) -> None:
    class Refilling(BaseModule):
        def setup(self) -> None:
            self.array, self.count = np.zeros(2), 0
            self.memory = np.zeros(64)

        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            self.count += 1
            self.array[:] = self.count
            self.memory[:2] = self.count
            return {"array": self.array, "tensor": torch.from_numpy(self.memory)[:2]}

    SEEN.clear()

    class Recording(BaseModule):
        def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
            SEEN.append([(batch["array"].tolist(), batch["tensor"].tolist()) for batch in data])

    chatlearn.init(settings(tmp_path, num_episode=1))
    refilling, recording = Refilling("refilling"), Recording("recording")
    trainer = chatlearn.Trainer(lambda batch: recording.train_step(batch))
    Engine(Environment(lambda batch: refilling.forward_step(batch)), trainer).set_dataset([1, 2]).learn()
    assert SEEN == [[([1.0, 1.0], [1.0, 1.0]), ([2.0, 2.0], [2.0, 2.0])]]


def test_rows_of_a_larger_memory_may_be_returned_while_other_rows_change(tmp_path: Path) -> None:
    class Table(BaseModule):
        def setup(self) -> None:
            self.table = torch.zeros(100)

        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            self.table[50] += 1
            return {"z": self.table[:2]}

    chatlearn.init(settings(tmp_path, num_episode=2))
    table = Table("table")
    Engine(Environment(lambda batch: table.forward_step(batch))).set_dataset([1, 2]).learn()


class Borrowing(BaseModule):
    @chatlearn.step(borrows=True)
    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        SEEN.append(data)
        return {}


class Overriding(Borrowing):
    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        SEEN.append(data)
        return {}


def test_a_step_that_borrows_gets_entries_as_they_are_and_one_that_overrides_it_copies(tmp_path: Path) -> None:
    SEEN.clear()
    chatlearn.init(settings(tmp_path, num_episode=1, sample_per_episode=1, data_shuffle=False))
    source, lent, copied = Reading("source"), Borrowing("lent"), Overriding("copied")

    def flow(batch: Any) -> Any:
        records = source.forward_step(batch)
        return records, lent.forward_step(records), copied.forward_step(records)

    engine = Engine(Environment(flow)).set_dataset([record(0)])
    engine.learn()
    engine.stop()
    (ids, messages, _), lent_data, copied_data = SEEN
    assert lent_data["ids"] is not ids, "the list of a column is its own"
    assert lent_data["ids"][0] is ids[0]
    assert lent_data["messages"][0] is messages[0]
    assert copied_data["ids"][0] is not ids[0]
    assert copied_data["messages"] == messages
