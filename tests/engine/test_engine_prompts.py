"""What an engine draws its samples from: several data sets, samplers, files."""

from __future__ import annotations

import math

import pytest
import toys
from engine_cases import Learner, Source, settings

import chatlearn
from chatlearn import Engine, Environment, Trainer


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
    toys.EVENTS.clear()
    assert drawn(tmp_path, lambda e: e, data_path=str(path)) == list(range(12))


def test_samples_that_were_consumed_elsewhere_are_left_out(tmp_path):
    assert drawn(tmp_path, lambda e: e.set_dataset(list(range(20))), consumed_samples=5) == list(range(5, 17))
