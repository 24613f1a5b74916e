"""What an engine draws its samples from: several data sets, samplers, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import toys
from engine_cases import Learner, Source, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, Evaluator, Trainer


def drawn(tmp_path, engine_part, **runtime):
    """Prompts of one run of two episodes, in the order of training."""
    chatlearn.init(settings(tmp_path, num_episode=2, sample_per_episode=6, data_shuffle=False, **runtime))
    source, learner = Source("source"), Learner("learner")
    engine = Engine(Environment(lambda b: source.forward_step(b)), Trainer(lambda b: learner.train_step(b)))
    engine_part(engine).learn()
    engine.stop()
    return [int(x) for _, _, x in toys.events("seen")]


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


@pytest.mark.parametrize(
    "ratio", [[1], [1, 0], [1, -1], [1, math.inf], [1, "2"], 5, {"a": 1, "b": 2}, np.array([1, 0]), "12"]
)
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
    toys.EVENTS.clear()
    assert drawn(tmp_path, lambda e: e, data_path=str(path)) == list(range(12))


def test_samples_that_were_consumed_elsewhere_are_left_out(tmp_path):
    assert drawn(tmp_path, lambda e: e.set_dataset(list(range(20))), consumed_samples=5) == list(range(5, 17))


@pytest.mark.parametrize("ratio", [np.array([2, 1]), torch.tensor([2.0, 1.0]), (np.float32(2), np.int8(1))])
def test_shares_may_be_numbers_of_other_libraries(tmp_path, ratio):
    prompts = drawn(tmp_path, lambda e: e.set_multiple_datasets([[1] * 9, [2] * 9], ratio))
    assert (prompts.count(1), prompts.count(2)) == (8, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [("questions.jsonl", "'questions.jsonl'"), (5, "5"), (np.ones(2), "ndarray"), (None, "NoneType")],
)
def test_several_data_sets_are_a_list_or_a_dict(given, words):
    with pytest.raises(chatlearn.EngineError, match=rf"takes a list of data sets, .*, got {words}\..*set_dataset"):
        Engine().set_multiple_datasets(given)


def test_the_one_of_several_data_sets_that_is_none_is_named():
    with pytest.raises(chatlearn.DataError, match=r"data set hard: there is no file '.*gone\.jsonl'"):
        Engine().set_multiple_datasets({"easy": [1], "hard": "gone.jsonl"})
    with pytest.raises(chatlearn.DataError, match=r"data set 1: the prompts are an int"):
        Engine().set_multiple_datasets([[1], 5])


# ------------------------------------------------------------------------------------------------ the configuration


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "data_path: gone.jsonl",
            r"runtime\.data_path: there is no file '.*gone\.jsonl'\..* relative path begins where",
        ),
        ("data_path: []", r"runtime\.data_path names no files\. .*set_dataset"),
        ("data_path: bad.jsonl", r"runtime\.data_path: .*bad\.jsonl:1: bad JSON"),
        ("data_path: [two.txt, gone.txt]", r"runtime\.data_path: there is no file '.*gone\.txt'"),
    ],
)
def test_files_of_the_configuration_are_named_with_key_and_line(tmp_path, monkeypatch, lines, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "two.txt").write_text("1\n2\n")
    (tmp_path / "my.yaml").write_text(f"runtime:\n  num_episode: 1\n  {lines}\n")
    chatlearn.init("my.yaml")
    source = Source("source")
    with pytest.raises(chatlearn.DataError, match=rf"my\.yaml:3  {words}") as caught:
        Engine(Environment(lambda b: source.forward_step(b))).check()
    assert "given as a list" not in str(caught.value)


def test_shares_of_the_configuration_are_named_with_key_and_line(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("runtime:\n  data_ratio: [1, 2]\n")
    chatlearn.init(path)
    source = Source("source")
    engine = Engine(Environment(lambda b: source.forward_step(b))).set_dataset([1])
    with pytest.raises(chatlearn.EngineError, match=r"my\.yaml:2  runtime\.data_ratio is \[1.*, 2.*\].* 1 data sets"):
        engine.check()


@pytest.mark.parametrize("consumed", [2**46 + 1, 2**70])
def test_a_position_beyond_all_ids_is_refused(tmp_path, consumed):
    with pytest.raises(chatlearn.ConfigError, match=r"runtime\.consumed_samples: is more than 70368744177664"):
        drawn(tmp_path, lambda e: e.set_dataset([1, 2]), consumed_samples=consumed)


def test_the_furthest_position_works(tmp_path):
    """Position 2**46 of 3 prompts in order: 2**46 is 1 modulo 3, since 4 is."""
    prompts = drawn(tmp_path, lambda e: e.set_dataset([10, 11, 12]), consumed_samples=2**46)
    assert prompts == [11, 12, 10] * 4


# ----------------------------------------------------------------------------------------- prompts that can't be read


class Broken:
    """Three prompts; one raises."""

    def __init__(self, index):
        self.index = index

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == self.index:
            raise KeyError("boom")
        return {"prompt": index}


class WithoutLength(Broken):
    def __len__(self):
        return "3"


def parts(kind, dataset):
    """An engine of some kind over one data set, and the name of the flow that reads it."""
    source, learner = Source("source"), Learner("learner")

    def make(batch):
        return source.forward_step(batch)

    def measure(batch):
        return source.eval_step(batch)

    def train(batch):
        learner.train_step(batch)

    if kind == "environment":
        return Engine(Environment(make)).set_dataset(dataset), "make"
    if kind == "trainer":
        return Engine(None, Trainer(train)).set_dataset(dataset), "train"
    if kind == "evaluator":
        return Engine(Environment(make), None, Evaluator(measure).set_dataset(dataset)).set_dataset([1]), "measure"
    return EvalEngine(measure).set_dataset(dataset), "measure"


@pytest.mark.parametrize("kind", ["environment", "trainer", "evaluator", "eval engine"])
@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_first_prompt_that_raises_is_named(tmp_path, kind, verb):
    chatlearn.init(settings(tmp_path))
    engine, flow = parts(kind, Broken(0))
    act = engine.check if verb == "check" else engine.evaluate if kind == "eval engine" else engine.learn
    with pytest.raises(
        chatlearn.DataError, match=rf"sample 0 of the data set of {flow} can't be read: KeyError: 'boom'"
    ):
        act()
    engine, flow = parts(kind, WithoutLength(1))
    act = engine.check if verb == "check" else engine.evaluate if kind == "eval engine" else engine.learn
    with pytest.raises(chatlearn.DataError, match=rf"the data set of {flow} has no length: TypeError: 'str'.*__len__"):
        act()


def test_the_data_set_of_a_first_prompt_that_raises_is_named(tmp_path):
    chatlearn.init(settings(tmp_path))
    source = Source("source")

    def make(batch):
        return source.forward_step(batch)

    engine = Engine(Environment(make)).set_multiple_datasets([[1], Broken(0)])
    with pytest.raises(chatlearn.DataError, match="sample 0 of data set 1 of make can't be read: KeyError"):
        engine.check()
    evaluator = Evaluator(make).set_multiple_datasets({"easy": [1], "hard": Broken(0)})
    with pytest.raises(chatlearn.DataError, match="sample 0 of data set 'hard' of make can't be read: KeyError"):
        Engine(None, None, evaluator).check()


def test_the_one_of_several_data_sets_that_can_not_be_built_is_named(tmp_path):
    class Reading(Source):
        def build_dataset(self, prompts):
            return [] if len(prompts) == 1 else [{"prompt": prompt} for prompt in prompts]

    chatlearn.init(settings(tmp_path))
    source = Reading("source")
    engine = Engine(Environment(lambda b: source.forward_step(b))).set_multiple_datasets([[1, 2], [3]])
    with pytest.raises(chatlearn.DataError, match=r"data set 1: source\.build_dataset returns an empty data set"):
        engine.learn()


def test_the_collate_fn_of_a_data_set_that_was_given_is_used(tmp_path):
    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return index

        def collate_fn(self, samples):
            return {"prompt": [sample**2 for sample in samples]}

    assert drawn(tmp_path, lambda e: e.set_dataset(Squares())) == [n**2 for n in range(12)]


# -------------------------------------------------------------------------------------------------- padding rules


@pytest.mark.parametrize("method", ["forward_step", "before_episode", "build_dataset"])
def test_a_padding_rule_after_setup_is_refused(tmp_path, method):
    """The rules of all modules are put together once, so that this one would have no effect."""

    def late(self, *args):
        self.add_padding_config("x", -1)

    policy = type("Policy", (Source,), {method: late})("policy")
    chatlearn.init(settings(tmp_path))
    engine = Engine(Environment(lambda b: policy.forward_step(b))).set_dataset([1, 2])
    with pytest.raises(chatlearn.ChatLearnError, match=r"policy\.add_padding_config\('x', …\) is called after setup"):
        engine.learn()


def test_padding_is_a_dict_of_rules():
    with pytest.raises(chatlearn.ChatLearnError, match=r"Wide\.padding is list, .* Give a dict from keys to rules"):
        type("Wide", (BaseModule,), {"padding": [("x", 0)]})
    with pytest.raises(chatlearn.ChatLearnError, match=r"wide\.padding is str, .*rename the attribute"):
        BaseModule("wide").padding = "left"
    with pytest.raises(chatlearn.ChatLearnError, match=r"wide\.add_padding_config: the key is a string, got 5"):
        BaseModule("wide").add_padding_config(5, 0)
