"""Stands beside a program in the place of the example's ``models.py``: the same models, which write down what they do.

Each inference model marks its rows with the sample ids and the weight version that it was told; each trainer writes
down what it was given. Steps visit ``Watch.room`` while they run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import example_models as own
import torch
from watching import Watch

CALLS: list[Call] = []
"""All calls of ``train_step``; those of one trainer are in order."""

REPLICAS: list[Any] = []
"""Every replica that was set up."""


class Call(NamedTuple):
    """A call of ``train_step``.

    Attributes:
        name: of the trainer.
        info: its ``train_info``.
        marks: of each micro-batch: ``seen_by_<model>`` and ``version_of_<model>`` -> one number per row.
        sizes: rows of each micro-batch.
    """

    name: str
    info: dict[str, Any]
    marks: list[dict[str, list[int]]]
    sizes: list[int]


class Replica:
    def setup(self):
        if (setup := getattr(super(), "setup", None)) is not None:
            setup()
        REPLICAS.append(self)

    @property
    def label(self):
        return f"{self.name}[{self.replica_id}]"


class Inference(Replica):
    def forward_step(self, data, iteration=0):
        with Watch.room.visit(self.label):
            ids, version = self.batch.sample_ids, self.batch.weight_version
            marks = {
                f"seen_by_{self.name}": torch.tensor(ids),
                f"version_of_{self.name}": torch.full((len(ids),), version),
            }
            query = {"query_seen": data["query"]} if "query_seen" not in data else {}
            return {**super().forward_step(data, iteration), **query, **marks}


class Training(Replica):
    def train_step(self, data, train_info):
        with Watch.room.visit(self.label):
            for batch in data:
                assert torch.equal(batch["query"], batch["query_seen"]), "columns of other samples side by side"
            marks = [
                {key: batch[key].tolist() for key in sorted(batch) if key.startswith(("seen_by_", "version_of_"))}
                for batch in data
            ]
            CALLS.append(Call(self.name, train_info, marks, [len(batch["query"]) for batch in data]))
            super().train_step(data, train_info)


class PolicyInference(Inference, own.PolicyInference):
    pass


class PolicyReference(Inference, own.PolicyReference):
    pass


class ValueInference(Inference, own.ValueInference):
    pass


class RewardInference(Inference, own.RewardInference):
    pass


class PolicyTrainer(Training, own.PolicyTrainer):
    pass


class ValueTrainer(Training, own.ValueTrainer):
    pass
