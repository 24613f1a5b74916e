"""Putting an engine together: what its parts may be, which prompts count, and what an evaluation leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from engine_cases import Learner, Source, build, rows, settings

import chatlearn
from chatlearn import BaseModule, Engine, EngineError, Environment, EvalEngine, Evaluator, TorchModule, Trainer

SEEN: list[Any] = []


@pytest.fixture(autouse=True)
def _empty() -> None:
    SEEN.clear()


class Watching(BaseModule):
    """Notes what it is given, and logs how much that was."""

    def forward_step(self, data: dict[str, Any], iteration: int = 0, greedy: bool = False) -> dict[str, Any]:
        SEEN.append((iteration, list(data["prompt"]), greedy, float(torch.rand(1))))
        self.log("size", float(len(data["prompt"])), "sum")
        return data

    eval_step = forward_step

    @chatlearn.step(filters=True)
    def even(self, data: dict[str, Any]) -> dict[str, Any]:
        kept = [row for row, prompt in enumerate(data["prompt"]) if prompt % 2 == 0]
        return {"source_rows": kept}

    @chatlearn.step(expands=True)
    def twice(self, data: dict[str, Any]) -> dict[str, Any]:
        count = len(data["prompt"])
        return {"copy": [0] * count + [1] * count, "source_rows": [*range(count), *range(count)]}


class Groups(BaseModule):
    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        groups = [group for part in train_info["group_ids"] for group in part]
        SEEN.append((groups, [copy for part in data for copy in part["copy"]], [p for d in data for p in d["prompt"]]))


# -- what an engine may be made of


def test_parts_in_the_wrong_place_are_refused_with_the_right_way() -> None:
    source, learner = Source("source"), Learner("learner")
    environment, trainer = Environment(lambda b: source.forward_step(b)), Trainer(lambda b: learner.train_step(b))
    evaluator = Evaluator(lambda b: source.eval_step(b))
    for make, words in (
        (lambda: Engine(trainer), "environment of an engine has the type Environment, got Trainer. Write Engine"),
        (lambda: Engine(environment, evaluator), "trainer of an engine has the type Trainer, got Evaluator"),
        (lambda: Engine(lambda b: source.forward_step(b)), r"Wrap the flow: Environment\(flow\)"),
        (lambda: Engine().set_trainer("x"), "trainer of an engine has the type Trainer, got str"),
        (lambda: Engine().set_evaluator(source), "evaluator of an engine has the type Evaluator, got Source"),
        (lambda: Engine(environment, trainer).set_parameter_sync("a", "b"), "takes two modules, got"),
    ):
        with pytest.raises(EngineError, match=words):
            make()


def test_a_sampler_of_the_engine_goes_with_the_data_set_of_its_environment(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path, num_episode=1))
    watching = Watching("watching")
    environment = Environment(lambda batch: watching.forward_step(batch)).set_dataset([10, 20, 30])
    Engine(environment).set_sampler(lambda group, length, seed: (2 * group) % length).learn()
    assert [prompt for _, prompts, *_ in SEEN for prompt in prompts] == [10, 30, 20, 10]


def test_an_environment_keeps_nothing_of_the_configuration_of_an_earlier_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    watching = Watching("watching")
    environment = Environment(lambda batch: watching.forward_step(batch))
    for name in ("a", "b"):
        chatlearn.init(settings(tmp_path, num_episode=1, data_path=str(tmp_path / f"{name}.jsonl")))
        Engine(environment).learn()
    assert [set(prompts) for _, prompts, *_ in SEEN] == [{"a"}, {"a"}, {"b"}, {"b"}]
    chatlearn.init(settings(tmp_path, num_episode=1))
    with pytest.raises(EngineError, match="no data set"):
        Engine(environment).learn()


def test_an_evaluation_engine_takes_several_data_sets_and_another_evaluator(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path))
    watching = Watching("watching")
    engine = EvalEngine(lambda batch: watching.eval_step(batch)).set_multiple_datasets({"one": [1], "two": [2, 3]})
    assert engine.eval().metrics == {"eval/one/watching/size": 1.0, "eval/two/watching/size": 2.0}
    engine.set_evaluator(Evaluator(lambda batch: watching.eval_step(batch))).set_dataset([1, 2, 3])
    assert engine.eval().metrics == {"eval/watching/size": 3.0}
    with pytest.raises(EngineError, match="leave data_ratio out"):
        engine.set_multiple_datasets([[1], [2]], [1, 2])


def test_a_flow_over_other_modules_gets_replicas_before_learning_and_is_refused_afterwards(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path, num_episode=1))
    source, learner = Source("source"), Learner("learner")
    engine = Engine(Environment(lambda batch: source.forward_step(batch))).set_dataset([1, 2, 3, 4])
    engine.set_evaluator(Evaluator(lambda batch: source.eval_step(batch)).set_dataset([1]))
    engine.evaluate()
    engine.set_trainer(Trainer(lambda batch: learner.train_step(batch)))
    engine.learn()
    assert len(toys.events("seen")) == 4
    other = Source("other")
    engine.set_evaluator(Evaluator(lambda batch: other.eval_step(batch)).set_dataset([1]))
    with pytest.raises(EngineError, match="needs an engine of its own"):
        engine.evaluate()


# -- calls


def test_a_call_takes_constants_as_a_flow_does(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path))
    watching = Watching("watching")
    engine = Engine(Environment(lambda batch: watching.forward_step(batch))).set_dataset([1])
    engine.call(watching.forward_step, {"prompt": [7]}, greedy=True)
    assert [event[1:3] for event in SEEN] == [([7], True)]
    with pytest.raises(EngineError, match=r"one or more batches \(dicts\)"):
        engine.call(watching.forward_step, [1, 2])


def test_after_a_second_init_the_first_engine_saves_nothing_more(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path))
    engine, *_ = build()
    engine.learn()
    chatlearn.init(settings(tmp_path))
    with pytest.raises(EngineError, match="called again"):
        engine.save_checkpoint()


# -- evaluations


def test_an_evaluation_in_a_callback_takes_no_metric_of_the_episode(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path, num_episode=2))
    engine, source, _ = build()
    watching = Watching("watching")
    evaluator = Evaluator(lambda batch: (source.eval_step(batch), watching.eval_step(batch))).set_dataset([1, 2, 3])
    found = []
    engine.set_evaluator(evaluator).add_callback("after_train", lambda info: found.append(info.engine.evaluate()))
    engine.learn()
    assert [evaluation.metrics for evaluation in found] == [{"eval/watching/size": 3.0}] * 2
    assert [row["learner/loss"] for row in rows(tmp_path)] == [5.0, 3.0]
    assert not any(key.startswith("eval/") for row in rows(tmp_path) for key in row)


def test_an_evaluation_that_fails_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    class Failing(Watching):
        def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
            self.log("size", float(len(data["prompt"])), "sum")
            if "bad" in data["prompt"]:
                raise ValueError("bad")
            return data

    chatlearn.init(settings(tmp_path))
    failing = Failing("failing")
    prompts = [1, 2, "bad"]
    engine = EvalEngine(lambda batch: failing.eval_step(batch)).set_dataset(prompts)
    with pytest.raises(chatlearn.StepError):
        engine.eval()
    prompts[2] = 3
    assert engine.eval().metrics == {"eval/failing/size": 3.0}


def test_an_evaluator_over_other_objects_of_the_same_names_is_refused(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path))
    engine, *_ = build()
    stranger = Source("source")
    with pytest.raises(EngineError, match="uses source, which no flow of the engine calls"):
        engine.evaluate(Evaluator(lambda batch: stranger.eval_step(batch)).set_dataset([1]))


def test_an_empty_data_set_of_an_evaluator_that_is_passed_is_an_error(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path))
    engine, source, _ = build()
    with pytest.raises(chatlearn.DataError, match="is empty"):
        engine.evaluate(Evaluator(lambda batch: source.eval_step(batch)).set_dataset([]))


def test_post_processing_draws_the_same_whatever_ran_before(tmp_path: Path) -> None:
    drawn = []
    for threads in (1, 3):
        chatlearn.init({**settings(tmp_path), "runtime_env": {"local_threads": threads}})
        watching = Watching("watching")
        engine = EvalEngine(lambda batch, watching=watching: watching.eval_step(batch)).set_dataset([1, 2, 3])
        engine.evaluator.set_post_process_func(lambda results, info: {"drawn": float(torch.rand(1))})
        torch.rand(threads)
        drawn.append(engine.eval().results["drawn"])
    assert drawn[0] == drawn[1]


def test_what_is_offloaded_for_an_evaluation_comes_back_for_training_on_arrival(tmp_path: Path) -> None:
    class Heavy(TorchModule):
        resident = True

        def offload(self, tags: Any) -> None:
            self.resident = False

        def onload(self, tags: Any) -> None:
            self.resident = True

        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            assert self.resident
            return data

        eval_step = forward_step

        def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
            assert self.resident
            SEEN.append(train_info["iteration"])

    models = {name: {"free_memory": True} for name in ("policy", "judge", "learner")}
    chatlearn.init({**settings(tmp_path, stream_data_loader_type="dynamic"), "models": models})
    policy, judge, learner = Heavy("policy"), Heavy("judge"), Heavy("learner")
    engine = Engine(Environment(lambda b: policy.forward_step(b)), Trainer(lambda b: learner.train_step(b)))
    engine.set_evaluator(Evaluator(lambda b: judge.eval_step(b)).set_dataset([1])).set_dataset([1, 2, 3])
    engine.add_callback("after_experience", lambda info: info.engine.evaluate()).learn()
    assert SEEN == [0, 1, 2]


# -- the best metric


def test_another_best_metric_on_resume_begins_anew(tmp_path: Path) -> None:
    class Two(Learner):
        def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
            self.log("loss", 10.0 - train_info["episode"])
            self.log("acc", 0.5 + 0.01 * train_info["episode"])

    def learn(**runtime: Any) -> Engine:
        chatlearn.init(settings(tmp_path, save_episode_interval=1, early_stop_patience=2, **runtime))
        source, learner = Source("source"), Two("learner")
        engine = Engine(Environment(lambda b: source.forward_step(b)), Trainer(lambda b: learner.train_step(b)))
        engine.set_dataset([1, 2]).learn()
        return engine

    learn(num_episode=2, best_metric="learner/acc")
    checkpoint = str(tmp_path / "run" / "checkpoints" / "episode-000002")
    engine = learn(num_episode=6, best_metric="learner/loss", best_metric_mode="min", resume=checkpoint)
    result = json.loads((engine.run.path / "result.json").read_text())
    assert (result["episodes"], result["best_metric"], result["best_episode"]) == (6, 5.0, 6)


def test_the_best_metric_may_be_any_number_of_the_row(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path, best_metric="num_samples"))
    engine, *_ = build()
    engine.learn()
    assert json.loads((engine.run.path / "result.json").read_text())["best_metric"] == 4


# -- counting and groups


def test_batches_are_counted_on_behind_a_filter(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path, num_episode=1, sample_per_episode=8, data_shuffle=False))
    watching = Watching("watching")

    def flow(batch: Any) -> Any:
        first = watching.forward_step(batch)
        return watching.forward_step(watching.even(first), first)

    models = {"watching": {"generation_batch_size": 2}, "wide": {"generation_batch_size": 4}}
    wide = Source("wide")
    chatlearn.init({**settings(tmp_path, num_episode=1, sample_per_episode=8, data_shuffle=False), "models": models})
    Engine(Environment(lambda batch: flow(wide.forward_step(batch)))).set_dataset(list(range(8))).learn()
    # two batches of four: two calls of two on all rows, then one on the two even ones
    assert [(iteration, prompts) for iteration, prompts, *_ in SEEN] == [
        (0, [0, 1]),
        (1, [2, 3]),
        (0, [0, 2]),
        (2, [4, 5]),
        (3, [6, 7]),
        (2, [4, 6]),
    ]
    assert len({drawn for *_, drawn in SEEN}) == 6


def test_rows_of_a_group_that_a_step_scatters_are_brought_together(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path, num_episode=1, sample_per_episode=4, generation_batch_size=4, data_shuffle=False))
    watching, groups = Watching("watching"), Groups("groups")

    def flow(batch: Any) -> Any:
        return batch, watching.twice(batch)

    Engine(Environment(flow), Trainer(lambda b: groups.train_step(b))).set_dataset([5, 6, 7, 8]).learn()
    assert SEEN == [
        ([0, 0, 1, 1], [0, 1, 0, 1], [5, 5, 6, 6]),
        ([2, 2, 3, 3], [0, 1, 0, 1], [7, 7, 8, 8]),
    ]


def test_one_number_as_ratio_is_an_equal_share_for_each_data_set(tmp_path: Path) -> None:
    chatlearn.init(settings(tmp_path, num_episode=1, sample_per_episode=8, data_ratio=1))
    watching = Watching("watching")
    environment = Environment(lambda batch: watching.forward_step(batch))
    Engine(environment).set_multiple_datasets([[1] * 30, [2]]).learn()
    prompts = [prompt for _, given, *_ in SEEN for prompt in given]
    assert sorted(prompts) == [1] * 4 + [2] * 4


def test_a_checkpoint_of_a_module_that_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    def learn(name: str, **runtime: Any) -> None:
        chatlearn.init(settings(tmp_path, save_episode_interval=1, **runtime))
        source, learner = Source("source"), Learner(name)
        engine = Engine(Environment(lambda b: source.forward_step(b)), Trainer(lambda b: learner.train_step(b)))
        engine.set_dataset([1, 2]).learn()

    learn("learner", num_episode=1)
    checkpoint = str(tmp_path / "run" / "checkpoints" / "episode-000001")
    with pytest.raises(chatlearn.CheckpointError, match="holds the state of learner, but no flow uses such a module"):
        learn("student", num_episode=2, resume=checkpoint)


def test_post_processing_that_can_not_be_called_is_refused() -> None:
    source = Source("source")
    with pytest.raises(EngineError, match="set_post_process_func takes a function"):
        Evaluator(lambda batch: source.eval_step(batch)).set_post_process_func(3)  # type: ignore[arg-type]
