"""The trace that a run leaves: which calls, of which episode, on whose track."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from engine_cases import Follower, Learner, Source, build, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Evaluator
from chatlearn.observe.spans import summarize


class Judge(BaseModule):
    thread_safe = True

    def forward_step(self, data):
        return {"score": data["x"]}


class Panel(BaseModule):
    def forward_step(self, data, judge=None):
        return judge.forward_step(data)


class Agent(BaseModule):
    thread_safe = True

    def forward_step(self, data, judge):
        first = {"x": data["x"][:1]}
        judge.forward_step(first)
        return {**data, **judge.forward_step(data)}


class AskingOn(BaseModule):
    """Lends its judge to the panel that it asks."""

    def forward_step(self, data, panel, judge):
        return {**data, **panel.forward_step(data, judge=judge)}


def _events(folder):
    return json.loads((folder / "run" / "trace.json").read_text())["traceEvents"]


def _slices(folder):
    """(track, name, arguments, start, end) of each slice; times in microseconds."""
    events = _events(folder)
    tracks = {event["tid"]: event["args"]["replica"] for event in events if event["name"] == "thread_name"}
    return [
        (tracks[event["tid"]], event["name"], event["args"], event["ts"], event["ts"] + event["dur"])
        for event in events
        if event["ph"] == "X"
    ]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("loader", ["fixed", "dynamic"])
def test_slices_say_which_episode_they_belong_to(tmp_path, threads, loader):
    runtime = settings(tmp_path, eval_episode_interval=2, stream_data_loader_type=loader)
    chatlearn.init({**runtime, "runtime_env": {"local_threads": threads}})
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2])
    build(evaluator=evaluator)[0].learn()
    found = Counter((args["phase"], args["episode"]) for *_, args, _, _ in _slices(tmp_path))
    expected = {("eval", 2): 1}
    for episode in (1, 2, 3):  # four samples: two generation batches, one global batch
        expected |= {("experience", episode): 2, ("train", episode): 1}
    assert found == expected


def test_a_resumed_run_counts_on(tmp_path):
    for num_episode in (1, 2):
        chatlearn.init(settings(tmp_path, num_episode=num_episode, save_episode_interval=1, resume="auto"))
        build()[0].learn()
        (tmp_path / "run" / "result.json").unlink()  # as if it had not ended
    assert sorted({args["episode"] for *_, args, _, _ in _slices(tmp_path)}) == [1, 2]


@pytest.mark.parametrize("backend", [{}, {"isolate": True}, {"local_threads": 3}])
def test_calls_from_inside_of_steps_stand_on_the_tracks_of_those_who_answer(tmp_path, backend):
    models = {"source": {}, "agent": {}, "judge": {"num_replica": 2}}
    chatlearn.init({**settings(tmp_path, num_episode=1), "runtime_env": backend, "models": models})
    source, agent, judge = Source("source"), Agent("agent"), Judge("judge")
    Engine(Environment(lambda b: agent.forward_step(source.forward_step(b), judge))).set_dataset([1, 2, 3, 4]).learn()
    slices = _slices(tmp_path)
    found = Counter((track, name, args.get("caller"), args["batch"], args["rows"]) for track, name, args, *_ in slices)
    expected = Counter()
    for batch in (0, 1):
        expected["source[0]", "source.forward_step", None, batch, 2] += 1
        expected["agent[0]", "agent.forward_step", None, batch, 2] += 1
        for num_rows in (1, 2):
            expected[f"judge[{batch}]", "judge.forward_step", "agent[0].forward_step", batch, num_rows] += 1
    assert found == expected
    spans = {args["batch"]: (start, end) for _, name, args, start, end in slices if name == "agent.forward_step"}
    for _, name, args, start, end in slices:
        if name == "judge.forward_step":  # inside of the call that it is a part of
            assert (args["phase"], args["episode"]) == ("experience", 1)
            assert spans[args["batch"]][0] <= start <= end <= spans[args["batch"]][1]
    assert summarize(tmp_path / "run" / "trace.json")["judge[0]"].calls == 2


def test_calls_of_calls_are_there_too(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=1))
    source, agent, panel, judge = Source("source"), AskingOn("agent"), Panel("panel"), Judge("judge")
    flow = Environment(lambda b: agent.forward_step(source.forward_step(b), panel=panel, judge=judge))
    Engine(flow).set_dataset([1, 2, 3, 4]).learn()
    found = Counter((track, args.get("caller")) for track, _, args, *_ in _slices(tmp_path))
    assert found["panel[0]", "agent[0].forward_step"] == 2
    assert sum(count for (track, _), count in found.items() if track == "judge[0]") == 2


def test_syncs_evaluations_and_checkpoints_are_marked(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=4, eval_episode_interval=3, save_episode_interval=2))
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2])
    build(evaluator=evaluator)[0].learn()
    marks = [(event["name"], event["args"]) for event in _events(tmp_path) if event["ph"] == "i"]
    assert marks == [("save", {"episode": 2}), ("evaluate", {"episode": 3}), ("save", {"episode": 4})]


def test_a_sync_is_marked_with_the_version_that_it_publishes(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=4))
    follower, learner = Follower("follower"), Learner("learner")
    engine = Engine(Environment(lambda b: follower.forward_step(b)), chatlearn.Trainer(lambda b: learner.train_step(b)))
    engine.set_parameter_sync(learner, follower, frequency=2).set_dataset([1, 2, 3, 4]).learn()
    marks = [(event["name"], event["args"]) for event in _events(tmp_path) if event["ph"] == "i"]
    # before the first episode, and after the second and the fourth
    assert marks == [("sync", {"weight_version": version}) for version in (1, 2, 3)]


def test_evaluations_after_the_run_are_none_of_its_trace(tmp_path, monkeypatch):
    """They would gather in memory, and be written to a closed file in the end."""
    monkeypatch.setattr("chatlearn.observe.spans._FLUSH_AT", 2)
    chatlearn.init(settings(tmp_path, num_episode=1))
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2])
    engine, *_ = build(evaluator=evaluator)
    engine.learn()
    before = (tmp_path / "run" / "trace.json").read_bytes()
    for _ in range(3):
        assert len(engine.evaluate().results) == 1
    assert (tmp_path / "run" / "trace.json").read_bytes() == before
