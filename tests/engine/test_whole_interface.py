"""What an engine offers beside the loop: callbacks, evaluators, checkpoints on demand, shared values, reshaping steps,
clients, order without data.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, Evaluator, Trainer
from chatlearn.engine.callbacks import POINTS


class Source(BaseModule):
    def forward_step(self, data):
        return {**data, "x": torch.tensor(data["prompt"], dtype=torch.float32)}

    eval_step = forward_step


class Learner(BaseModule):
    def setup(self):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.seen = []

    def train_step(self, data, train_info):
        with torch.no_grad():
            self.model.weight += 1
        self.log("loss", [5.0, 3.0, 1.0, 2.0, 4.0][train_info["episode"]])
        for micro, ids in zip(data, train_info["sample_ids"], strict=True):
            self.seen += zip(ids, micro["x"].tolist(), strict=True)


class Follower(Source):
    def setup(self):
        self.model = torch.nn.Linear(1, 1, bias=False)

    def after_episode(self):
        self.log("weight", self.model.weight.item())


def settings(tmp_path, **runtime):
    base = {
        "num_episode": 3,
        "sample_per_episode": 4,
        "generation_batch_size": 2,
        "train_micro_batch_size": 2,
        "train_global_batch_size": 4,
        "output_dir": str(tmp_path),
        "exp_name": "run",
    }
    return {"runtime": {**base, **runtime}}


def build(**parts):
    source, learner = Source("source"), Learner("learner")
    environment = Environment(lambda batch: source.forward_step(batch))
    trainer = Trainer(lambda batch: learner.train_step(batch))
    return Engine(environment, trainer, **parts).set_dataset(list(range(10))), source, learner


def rows(tmp_path, run="run"):
    return [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]


def test_callbacks_run_at_their_points_in_order(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=2, eval_episode_interval=1, save_episode_interval=2))
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2])
    engine, *_ = build(evaluator=evaluator)
    seen = []
    for point in POINTS:
        engine.add_callback(point, lambda info, point=point: seen.append((info.episode, point)))
    engine.add_callback("after_episode", lambda info: info.metrics.update({"mine": 10.0 * info.episode}))
    engine.learn()
    in_an_episode = [point for point in POINTS if point != "after_save"]
    assert seen == [(0, point) for point in in_an_episode] + [(1, point) for point in POINTS]
    assert [row["mine"] for row in rows(tmp_path)] == [0.0, 10.0]


def test_an_unknown_point_is_refused_with_the_known_ones():
    with pytest.raises(chatlearn.EngineError, match=r"after_trian.*after_train"):
        Engine().add_callback("after_trian", print)


def test_stop_and_save_in_a_callback_wait_for_the_end_of_the_episode(tmp_path, capsys):
    chatlearn.init(settings(tmp_path, num_episode=5))
    engine, *_ = build()

    def in_second(info):
        if info.episode == 1:
            info.engine.save_checkpoint()
            info.engine.stop()
            assert not (tmp_path / "run" / "checkpoints").exists()

    engine.add_callback("after_experience", in_second)
    engine.learn()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["episodes"], result["ended_early"]) == (
        "finished",
        2,
        "engine.stop() was called",
    )
    assert (tmp_path / "run" / "checkpoints" / "episode-000002" / "run.json").exists()
    assert "ends after 2 episodes" in capsys.readouterr().out


def test_save_and_summary_before_a_run_are_refused():
    with pytest.raises(chatlearn.EngineError, match="nothing to save"):
        Engine().save_checkpoint()
    with pytest.raises(chatlearn.EngineError, match="nothing to sum up"):
        Engine().logging_summary()


def test_a_summary_names_the_metrics(tmp_path, capsys):
    chatlearn.init(settings(tmp_path))
    engine, *_ = build()
    engine.learn()
    assert "learner/loss" in engine.logging_summary()
    assert "learner/loss" in capsys.readouterr().out


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


def test_the_best_checkpoint_and_early_stopping(tmp_path):
    """Losses 5, 3, 1, 2, 4: the third episode is the best, and two worse ones end the run."""
    best = {"best_metric": "learner/loss", "best_metric_mode": "min", "early_stop_patience": 2}
    chatlearn.init(settings(tmp_path, num_episode=50, max_data_ckpt_nums=1, **best))
    engine, *_ = build()
    engine.learn()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["episodes"], result["best_episode"], result["best_metric"]) == (5, 3, 1.0)
    assert "early_stop_patience" in result["ended_early"]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "best").read_text().strip() == "episode-000003"
    assert [path.name for path in checkpoints.glob("episode-*")] == ["episode-000003"]


def test_a_threshold_ends_the_run(tmp_path):
    best = {"best_metric": "learner/loss", "best_metric_mode": "min", "early_stop_threshold": 3.0}
    chatlearn.init(settings(tmp_path, num_episode=50, **best))
    engine, *_ = build()
    engine.learn()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["episodes"] == 2


def test_a_best_metric_that_never_came_is_told(tmp_path, capsys):
    chatlearn.init(settings(tmp_path, best_metric="learner/los", early_stop_patience=1))
    build()[0].learn()
    assert "'learner/los', but no episode had that metric; the last one had learner/loss" in capsys.readouterr().out


def test_old_checkpoints_are_deleted(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=5, save_episode_interval=1, max_data_ckpt_nums=2))
    build()[0].learn()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("episode-*"))
    assert names == ["episode-000004", "episode-000005"]


def test_an_evaluation_before_training_is_row_0(tmp_path):
    chatlearn.init(settings(tmp_path, enable_eval_before_training=True, eval_episode_interval=3))
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2, 3])
    evaluator.set_post_process_func(lambda results, info: {"sum": sum(float(r["x"].sum()) for r in results), **info})
    engine, *_ = build(evaluator=evaluator)
    evaluation = engine.learn()
    found = rows(tmp_path)
    assert [row["episode"] for row in found] == [0, 1, 2, 3]
    assert [row.get("eval/sum") for row in found] == [6.0, None, None, 6.0]
    assert evaluation.results == {"sum": 6.0, "episode": 3, "train_iteration": 3, "dataset": ""}


def test_an_evaluator_over_several_data_sets(tmp_path):
    chatlearn.init(settings(tmp_path))

    class Logging(Source):
        def eval_step(self, data):
            out = self.forward_step(data)
            self.log("mean", out["x"].mean())
            return out

    class Summing(Evaluator):
        def post_process(self, results, info):
            return {"count": sum(len(batch["x"]) for batch in results), "what": info["dataset"]}

    reader = Logging("reader")
    flow = Summing(lambda batch: reader.eval_step(batch))
    engine = EvalEngine(evaluator=flow.set_multiple_datasets({"low": [1, 2, 3], "high": [10, 20]}))
    evaluation = engine.eval()
    assert evaluation.metrics == {
        "eval/low/reader/mean": 2.0,
        "eval/low/count": 3,
        "eval/high/reader/mean": 15.0,
        "eval/high/count": 2,
    }
    assert evaluation.results["high"] == {"count": 2, "what": "high"}
    engine.stop()


def test_eval_engine_takes_a_flow_or_an_evaluator(tmp_path):
    chatlearn.init(settings(tmp_path))
    reader = Source("reader")
    engine = EvalEngine(lambda batch: reader.eval_step(batch)).set_dataset([1, 2, 3])
    assert [batch["prompt"] for batch in engine.evaluate().results] == [[1, 2], [3]]
    engine.stop()
    with pytest.raises(chatlearn.EngineError, match="takes a flow, or an evaluator"):
        EvalEngine()
    with pytest.raises(chatlearn.EngineError, match="no data set"):
        EvalEngine(lambda batch: reader.eval_step(batch)).eval()


def test_a_second_init_closes_the_engines_of_the_first(tmp_path):
    chatlearn.init(settings(tmp_path))
    engine, source, _ = build()
    engine.learn()
    assert engine.call(source.forward_step, {"prompt": [1]})["x"].tolist() == [1.0]
    chatlearn.init(settings(tmp_path))
    for use in (engine.learn, engine.evaluate, lambda: engine.call(source.forward_step, {"prompt": [1]})):
        with pytest.raises(chatlearn.EngineError, match=r"init\(\) was called again|has no evaluator"):
            use()
    again, *_ = build()
    again.learn()
    assert again.run.path.name == "run-2"


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


def trained(tmp_path, flow, *, threads=1, micro=2):
    config = settings(tmp_path, num_episode=1, data_shuffle=False, train_micro_batch_size=micro, sample_per_episode=6)
    chatlearn.init({**config, "runtime_env": {"local_threads": threads}})
    learner = Recorder("learner")
    engine = Engine(Environment(flow), Trainer(lambda batch: learner.train_step(batch))).set_dataset(list(range(10)))
    engine.learn()
    found = engine._deployed.apply_first("learner", lambda module: module.seen)
    engine.stop()
    return found


class Recorder(BaseModule):
    def setup(self):
        self.seen = []

    def train_step(self, data, train_info):
        for micro, ids, groups in zip(data, train_info["sample_ids"], train_info["group_ids"], strict=True):
            columns = {key: [round(float(v), 3) for v in micro[key]] for key in micro}
            self.seen += [
                (i, g, {key: column[row] for key, column in columns.items()})
                for row, (i, g) in enumerate(zip(ids, groups, strict=True))
            ]


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
    assert seen == expected


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


def test_a_reshaping_step_does_not_belong_into_a_trainer():
    reshaping, learner = Reshaping("reshaping"), Learner("learner")
    with pytest.raises(chatlearn.FlowError, match="Environment"):
        Trainer(lambda batch: learner.train_step(reshaping.even(batch)))


@pytest.mark.parametrize("options", [{"expands": 0}, {"expands": "3"}, {"expands": 2, "filters": True}])
def test_a_wrong_mark_is_refused(options):
    with pytest.raises(chatlearn.ModuleError, match="@step"):
        chatlearn.step(**options)


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


def test_steps_wait_for_what_comes_before_without_reading_it(tmp_path):
    import time

    ended = []

    class Slow(BaseModule):
        thread_safe = True

        def forward_step(self, data):
            time.sleep(0.02)
            ended.append(self.name)
            return {"x": torch.tensor(data["prompt"])}

    class Quick(Slow):
        def forward_step(self, data):
            ended.append(self.name)
            return {"x": torch.tensor(data["prompt"])}

    slow, quick = Slow("slow"), Quick("quick")

    def flow(batch):
        first = slow.forward_step(batch)
        with chatlearn.after(first):
            return quick.forward_step(batch)

    trained(tmp_path, flow, threads=4, micro=4)
    assert ended.index("slow") < ended.index("quick")
    assert [ended[: i + 1].count("quick") <= ended[: i + 1].count("slow") for i in range(len(ended))] == [True] * 6
    assert chatlearn.ControlDependencies is chatlearn.after


def test_the_trace_of_a_run_is_json_with_every_call(tmp_path):
    chatlearn.init(settings(tmp_path))
    build()[0].learn()
    text = json.loads(Path(tmp_path / "run" / "trace.json").read_text())
    events = text["traceEvents"] if isinstance(text, dict) else text
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert names.count("source.forward_step") == 3 * 2
    assert names.count("learner.train_step") == 3
    assert all(math.isfinite(event["ts"]) for event in events if event.get("ph") == "X")


def drawn(tmp_path, engine_part, **runtime):
    """Prompts of one run of two episodes, in the order of training."""
    chatlearn.init(settings(tmp_path, num_episode=2, sample_per_episode=6, data_shuffle=False, **runtime))
    source, learner = Source("source"), Learner("learner")
    engine = Engine(Environment(lambda b: source.forward_step(b)), Trainer(lambda b: learner.train_step(b)))
    engine_part(engine).learn()
    seen = engine._deployed.apply_first("learner", lambda module: module.seen)
    engine.stop()
    return [int(x) for _, x in seen]


def test_several_data_sets_in_a_ratio(tmp_path):
    """Two of the first for one of the second; each in its own order, over the episodes."""
    prompts = drawn(
        tmp_path, lambda e: e.set_multiple_datasets([[1, 2, 3, 4, 5, 6, 7, 8], [100, 200, 300, 400]], [2, 1])
    )
    assert [x for x in prompts if x < 100] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [x for x in prompts if x >= 100] == [100, 200, 300, 400]
    assert sum(x >= 100 for x in prompts[:6]) == 2


def test_the_ratio_may_stand_in_the_configuration(tmp_path):
    prompts = drawn(tmp_path, lambda e: e.set_multiple_datasets({"a": [1] * 50, "b": [2] * 50}), data_ratio=[1, 3])
    assert prompts.count(2) == 9


@pytest.mark.parametrize("ratio", [[1], [1, 0], [1, -1], [1, math.inf], [1, "2"]])
def test_a_wrong_ratio_is_refused(ratio):
    with pytest.raises(chatlearn.EngineError, match="data_ratio"):
        Engine().set_multiple_datasets([[1], [2]], ratio)


def test_no_data_sets_are_refused():
    with pytest.raises(chatlearn.EngineError, match="no data sets"):
        Engine().set_multiple_datasets([])


def test_a_sampler_of_ones_own(tmp_path):
    prompts = drawn(
        tmp_path, lambda e: e.set_dataset([10, 20, 30]).set_sampler(lambda group, length, seed: -group % length)
    )
    assert prompts == [10, 30, 20] * 4
    with pytest.raises(chatlearn.EngineError, match="set_sampler"):
        Engine().set_sampler(3)
    with pytest.raises(chatlearn.DataError, match=r"gives 7 for group 0.*3 prompts"):
        drawn(tmp_path, lambda e: e.set_dataset([10, 20, 30]).set_sampler(lambda group, length, seed: 7))


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": {i}}}\n' for i in range(12)))
    assert drawn(tmp_path, lambda e: e.set_dataset(path)) == list(range(12))
    assert drawn(tmp_path, lambda e: e, data_path=str(path)) == list(range(12))


def test_samples_that_were_consumed_elsewhere_are_left_out(tmp_path):
    assert drawn(tmp_path, lambda e: e.set_dataset(list(range(20))), consumed_samples=5) == list(range(5, 17))


@pytest.mark.parametrize("declared", [True, False])
def test_padding_by_rule(tmp_path, declared):
    """Rows of widths 1 to 6, padded on the left with -1 where batches of different widths are put together."""
    from chatlearn.data.padding import Padding

    class Wide(BaseModule):
        padding = {"t": Padding(-1, "left")} if declared else {}

        def setup(self):
            if not declared:
                self.add_padding_config("t", -1, "left")

        def forward_step(self, data):
            return {"t": torch.ones(1, data["prompt"][0] + 1)}

    class Keeping(BaseModule):
        def setup(self):
            self.seen = []

        def train_step(self, data, train_info):
            self.seen += [micro["t"].tolist() for micro in data]

    chatlearn.init(settings(tmp_path, num_episode=1, generation_batch_size=1, sample_per_episode=4, data_shuffle=False))
    wide, keeping = Wide("wide"), Keeping("keeping")
    engine = Engine(Environment(lambda b: wide.forward_step(b)), Trainer(lambda b: keeping.train_step(b)))
    engine.set_dataset([0, 1, 2, 0]).learn()
    seen = engine._deployed.apply_first("keeping", lambda module: module.seen)
    rows_of = [row for micro in seen for row in micro]
    assert rows_of == [[-1, -1, 1], [-1, 1, 1], [1, 1, 1], [-1, -1, 1]]


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
