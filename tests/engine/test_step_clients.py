"""Modules that are asked from inside of the steps of others."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest
import torch
import toys
from engine_cases import Recorder, Source, rows, settings, trained

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer


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


class Noisy(BaseModule):
    """Noise from both of its own sources: the sample's, and the generator of the call."""

    thread_safe = True

    def forward_step(self, data):
        toys.EVENTS.append(("asked", data["x"].tolist(), self.batch.sample_ids))
        drawn = torch.rand(len(data["x"]), generator=self.generator)
        return {"own": self.uniforms(self.batch.sample_ids, 1)[:, 0], "drawn": drawn}


class Passing(BaseModule):
    """Adds what its judge says."""

    thread_safe = True

    def forward_step(self, data, judge):
        return {**data, **judge.forward_step(data)}


@pytest.mark.parametrize(("callers", "judges", "threads"), [(1, 3, 1), (2, 1, 1), (3, 2, 4)])
def test_noise_of_a_client_depends_on_no_number_of_replicas(tmp_path, callers, judges, threads):
    def run(folder, callers, judges, threads):
        source, agent, judge = Source("source"), Passing("agent"), Noisy("judge")
        models = {"source": {}, "agent": {"num_replica": callers}, "judge": {"num_replica": judges}}
        return trained(
            folder, lambda b: agent.forward_step(source.forward_step(b), judge), threads=threads, models=models
        )

    once = run(tmp_path / "once", 1, 1, 1)
    assert len({values["drawn"] for *_, values in once}) == 6
    assert run(tmp_path / "again", callers, judges, threads) == once


class Scoring(BaseModule):
    """In a trainer's flow: asks about all of its rows, and about its second one."""

    def forward_step(self, data, judge):
        answer = judge.forward_step(data)
        judge.forward_step({"x": data["x"][1:2]}, rows=[1])
        return answer


def trained_in_micro_batches(folder, size):
    """What the judge was asked, and (id, values) of each row."""
    toys.EVENTS.clear()
    sizes = {"num_episode": 1, "train_micro_batch_size": size, "data_shuffle": False}
    chatlearn.init(settings(folder, **sizes))
    source, scoring, judge, learner = Source("source"), Scoring("scoring"), Noisy("judge"), Recorder("learner")
    environment = Environment(lambda batch: source.forward_step(batch))
    trainer = Trainer(lambda batch: learner.train_step(batch, scoring.forward_step(batch, judge)))
    Engine(environment, trainer).set_dataset(list(range(10))).learn()
    return [event[1:] for event in toys.events("asked")], [(e[1], e[3]) for e in toys.events("row")]


def test_a_client_is_told_the_rows_of_the_micro_batch(tmp_path):
    asked, pairs = trained_in_micro_batches(tmp_path / "pairs", 2)
    assert asked == [([0, 1], (0, 1)), ([1], (1,)), ([2, 3], (2, 3)), ([3], (3,))]
    assert len({values["drawn"] for _, values in pairs}) == 4  # another micro-batch, other draws
    asked, whole = trained_in_micro_batches(tmp_path / "whole", 4)
    assert asked == [([0, 1, 2, 3], (0, 1, 2, 3)), ([1], (1,))]
    assert [(i, values["own"]) for i, values in pairs] == [(i, values["own"]) for i, values in whole]


class Numbering(BaseModule):
    """Numbers its calls."""

    stateful = True

    def setup(self):
        self.calls = 0

    def forward_step(self, data):
        self.calls += 1
        return {"number": torch.full((len(data["x"]),), float(self.calls))}


class SafeNumbering(Numbering):
    thread_safe = True


class Slow(BaseModule):
    """Gives the call after it every chance to ask first."""

    thread_safe = True

    def forward_step(self, data, counter):
        first = float(data["x"][0])
        if first % 4 == 0:
            assert not ASKED[first + 2].wait(0.2), "the next call has asked"
        answer = counter.forward_step(data)
        ASKED[first].set()
        return {**data, **answer}


ASKED: defaultdict[float, threading.Event] = defaultdict(threading.Event)


@pytest.mark.parametrize("kind", [Numbering, SafeNumbering])
@pytest.mark.parametrize(("threads", "replicas"), [(1, 1), (4, 1), (4, 3)])
def test_a_stateful_client_is_asked_in_the_order_of_the_flow(tmp_path, kind, threads, replicas):
    ASKED.clear()
    source, first, second, counter = Source("source"), Slow("first"), Passing("second"), kind("counter")

    def flow(batch):
        made = source.forward_step(batch)
        one, two = first.forward_step(made, counter=counter), second.forward_step(made, judge=counter)
        return one, {"second": two}["second"]

    models = {"source": {}, "first": {"num_replica": replicas}, "second": {"num_replica": replicas}, "counter": {}}
    record = trained(tmp_path, flow, threads=threads, models=models)
    # three batches of two rows, each asked about by first and then by second, whose answer is merged over the other
    assert [values["number"] for *_, values in record] == [2, 2, 4, 4, 6, 6]


class Comparing(BaseModule):
    @chatlearn.step
    def all_of(self, *batches):
        return {"sum": sum(batch["x"] for batch in batches)}

    @chatlearn.step
    def first_of(self, first, *others):
        return {"sum": first["x"] - sum(other["x"] for other in others)}

    @chatlearn.step
    def two(self, first, second):
        return {"sum": first["x"] - second["x"]}


def asked_with(folder, ask):
    class Relay(BaseModule):
        def forward_step(self, data, judge):
            return {**data, **ask(judge, data)}

    source, relay, judge = Source("source"), Relay("relay"), Comparing("judge")
    return [v["sum"] for *_, v in trained(folder, lambda b: relay.forward_step(source.forward_step(b), judge))]


@pytest.mark.parametrize(
    ("ask", "factor"),
    [
        (lambda judge, data: judge.all_of(data), 1),
        (lambda judge, data: judge.all_of(data, data, data), 3),
        (lambda judge, data: judge.first_of(data), 1),
        (lambda judge, data: judge.first_of(data, data, data), -1),
        (lambda judge, data: judge.two(data, {"x": 3 * data["x"]}), -2),
    ],
)
def test_a_client_takes_as_many_batches_as_its_signature(tmp_path, ask, factor):
    assert asked_with(tmp_path, ask) == [factor * x for x in range(6)]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (
            lambda judge, data: judge.two(data),
            r"judge\.two takes first, second, got 1 batches \(.*called by relay\[0\]",
        ),
        (lambda judge, data: judge.two(data, data, data), r"takes first, second, got 3 batches"),
        (lambda judge, data: judge.all_of(), r"judge\.all_of is asked without data"),
    ],
)
def test_another_number_of_batches_is_refused(tmp_path, ask, words):
    with pytest.raises(chatlearn.StepError, match=words):
        asked_with(tmp_path, ask)


class Sieve(BaseModule):
    @chatlearn.step(filters=True)
    def odd(self, data):
        rows = [row for row, x in enumerate(data["x"].tolist()) if x % 2]
        return {"x": data["x"][rows], "source_rows": torch.tensor(rows)}

    @chatlearn.step(expands=2)
    def twice(self, data):
        return {"x": data["x"].repeat_interleave(2)}


def test_a_client_that_filters_or_expands_says_which_rows_its_own_were_made_of(tmp_path):
    class Sifting(BaseModule):
        @chatlearn.step(filters=True)
        def forward_step(self, data, sieve):
            toys.EVENTS.append(("twice", sieve.twice(data)["source_rows"]))
            kept = sieve.odd(data)
            toys.EVENTS.append(("odd", kept["source_rows"]))
            return kept

    source, sifting, sieve = Source("source"), Sifting("sifting"), Sieve("sieve")
    found = trained(tmp_path, lambda b: sifting.forward_step(source.forward_step(b), sieve))
    assert toys.events("twice") == [("twice", [0, 0, 1, 1])] * 3
    assert toys.events("odd") == [("odd", [1])] * 3
    assert [(i, values) for i, _, values in found] == [(1, {"x": 1}), (3, {"x": 3}), (5, {"x": 5})]
