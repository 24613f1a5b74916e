"""Modules that are asked from inside of the steps of others."""

from __future__ import annotations

import pytest
import torch
from engine_cases import Source, rows, trained

import chatlearn
from chatlearn import BaseModule


class Judge(BaseModule):
    def forward_step(self, data, scale=1.0):
        self.log("asked", len(data["x"]), "sum")
        return {"score": data["x"] * scale + self.uniforms(self.batch.sample_ids, 1)[:, 0] + torch.rand(())}


class SafeJudge(BaseModule):
    thread_safe = True

    def forward_step(self, data, scale=1.0):
        return {"score": data["x"] * scale + self.uniforms(self.batch.sample_ids, 1)[:, 0]}


class Agent(BaseModule):
    """Asks twice about all rows and once about some; draws before and after, from the global generator."""

    thread_safe = False

    def forward_step(self, data, judges):
        before = torch.rand(len(data["x"]))
        first = judges["main"].forward_step(data, scale=2.0)["score"]
        second = judges["main"].forward_step(data)["score"]
        some = judges["main"].forward_step({"x": data["x"][1:]}, rows=range(1, len(data["x"])))["score"]
        after = torch.rand(len(data["x"]))
        return {"x": data["x"], "a": before, "b": after, "f": first, "s": second, "m": torch.cat([second[:1], some])}


class ThreadedAgent(Agent):
    thread_safe = True

    def forward_step(self, data, judges):
        first = judges["main"].forward_step(data, scale=2.0)["score"]
        return {"x": data["x"], "f": first}


@pytest.mark.parametrize("judge_class", [Judge, SafeJudge])
@pytest.mark.parametrize("agent_class", [Agent, ThreadedAgent])
def test_a_client_answers_the_same_on_threads_and_in_turn(tmp_path, agent_class, judge_class):
    def run(threads):
        source, agent, judge = Source("source"), agent_class("agent"), judge_class("judge")
        return trained(tmp_path, lambda b: agent.forward_step(source.forward_step(b), {"main": judge}), threads=threads)

    once = run(1)
    assert run(1) == run(4) == once
    if agent_class is Agent:
        values = [v for *_, v in once]
        # another call, another noise; the caller's own draws are not repeated after the judge has drawn
        assert all(abs(v["f"] - v["x"] - v["s"]) > 1e-6 for v in values)
        assert all(v["a"] != v["b"] for v in values)


def test_a_client_that_is_asked_for_what_it_has_not_says_so(tmp_path):
    class Lost(BaseModule):
        def forward_step(self, data, judge):
            return judge.compare(data)

    source, lost, judge = Source("source"), Lost("lost"), Judge("judge")
    with pytest.raises(chatlearn.StepError, match=r"judge\.compare is no step of it; steps to call: forward_step"):
        trained(tmp_path, lambda batch: lost.forward_step(source.forward_step(batch), judge))


def test_metrics_of_a_client_are_counted(tmp_path):
    source, agent, judge = Source("source"), ThreadedAgent("agent"), Judge("judge")
    trained(tmp_path, lambda batch: agent.forward_step(source.forward_step(batch), {"main": judge}))
    assert rows(tmp_path)[0]["judge/asked"] == 6
