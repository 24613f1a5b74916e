"""Replay over several episodes: which are kept, what a user's function chooses, what a checkpoint holds."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from batch_cases import batches as any_batch
from batch_cases import episode, ids, merged, one_of_each, same
from hypothesis import given

from chatlearn.checkpoint.files import load_state, save_state
from chatlearn.data.replay import EpisodeBuffer, ReplayBuffer, Sample, batches, select
from chatlearn.errors import DataError
from chatlearn.types import SampleIds, num_rows


def test_an_episode_tells_its_ids_in_order():
    buffer = episode(2)
    assert len(buffer) == 5
    assert buffer.sample_ids == [200, 201, 202, 203, 204]
    assert buffer.group_ids == [100, 100, 101, 101, 102]
    assert buffer.weight_versions == [2] * 5
    assert [sample["text"] for sample in buffer.samples] == [f"text {n}" for n in range(200, 205)]
    assert buffer.buffer is buffer.samples
    assert buffer.episode_id == buffer.episode == 2


def test_no_samples_no_batch():
    assert list(batches([], size=3)) == []
    assert select([]) == []


def test_without_a_function_all_samples_of_all_episodes_come_the_oldest_first():
    samples = select([episode(1), episode(2)])
    assert [sample.sample_id for sample in samples] == [100, 101, 102, 103, 104, 200, 201, 202, 203, 204]
    assert [sample.episode for sample in samples] == [1] * 5 + [2] * 5


def test_a_function_chooses_repeats_and_changes_samples():
    def best_of_each(episodes):
        assert [type(e) for e in episodes] == [EpisodeBuffer] * 2
        best = [max(e.samples, key=lambda s: s["reward"].item()) for e in episodes]
        return [best[1], *[s | {"reward": s["reward"] * 2} for s in best]]

    samples = select([episode(1), episode(2)], best_of_each)
    assert [sample.sample_id for sample in samples] == [204, 104, 204]
    assert [round(sample["reward"].item(), 4) for sample in samples] == [2.04, 2.08, 4.08]


def test_the_form_of_chatlearn():
    assert len(select([episode(1), episode(2)], lambda buffers: buffers[-1].buffer)) == 5


def test_what_a_function_does_to_the_dicts_stays_in_that_call():
    def greedy(episodes):
        samples = episodes[0].samples
        for sample in samples:
            sample["reward"] = sample["reward"] * 0
        episodes.clear()
        return samples

    buffers = [episode(1)]
    assert [sample["reward"].item() for sample in select(buffers, greedy)] == [0.0] * 5
    assert [round(sample["reward"].item(), 2) for sample in select(buffers)] == [1.0, 1.01, 1.02, 1.03, 1.04]


def place_of(function):
    return f"{__file__}:{function.__code__.co_firstlineno}"


def gives(value):
    def choose(episodes):
        return value(episodes) if callable(value) else value

    return choose


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "returns NoneType. Return a list of samples of the buffers."),
        (lambda e: tuple(e[0].samples), "returns tuple. Return a list"),
        ([], "returns an empty list for <episode 1 with 5 samples>, so there is nothing to train on"),
        (lambda e: [e[0].samples[0], dict(e[0].samples[1])], "returns a list whose item 1 is a plain dict"),
        (lambda e: [{**e[0].samples[0], "reward": 1}], "Keep the sample and change columns by sample | {"),
        (lambda e: [Sample(e[0].samples[0])], "whose item 0 is a plain dict"),
        (lambda e: [e[0].samples[0], 3], "whose item 1 is int. Its items are samples of the buffers."),
        (lambda e: e, "whose item 0 is an episode. Return its samples"),
        (
            lambda e: [e[0].samples[0], e[0].samples[1] | {"weight": 1.0}],
            "different keys: 'weight' is not in all of them (item 0, sample 100 of episode 1, has reward, text; item "
            "1, sample 101 of episode 1, has reward, text, weight)",
        ),
    ],
)
def test_what_a_function_may_not_give(value, words):
    function = gives(value)
    with pytest.raises(DataError) as caught:
        select([episode(1)], function)
    assert str(caught.value).startswith("the replay sampling function gives.<locals>.choose (" + place_of(function))
    assert words in str(caught.value)


def test_a_function_that_raises_is_named_and_its_exception_is_the_cause():
    def choose(episodes):
        return episodes[7].samples

    with pytest.raises(DataError) as caught:
        select([episode(1)], choose)
    assert f"choose ({place_of(choose)}) raises IndexError: list index out of range" in str(caught.value)
    assert isinstance(caught.value.__cause__, IndexError)


def test_partial_functions_and_callable_objects_are_named_too():
    class Newest:
        def __call__(self, episodes):
            return 1

    def choose(count, episodes):
        return count

    with pytest.raises(DataError, match=rf"choose \({__file__}:\d+\) returns int"):
        select([episode(1)], functools.partial(functools.partial(choose), 3))
    with pytest.raises(DataError, match=rf"Newest \({__file__}:\d+\) returns int"):
        select([episode(1)], Newest())
    with pytest.raises(DataError, match=r"function len returns int"):
        select([episode(1)], len)


@pytest.mark.parametrize(
    ("key", "write"),
    [
        ("reward", lambda s: s["reward"].mul_(0)),
        ("parts", lambda s: s["parts"].add_(1)),
        ("nested.x", lambda s: s["nested"]["x"].zero_()),
    ],
)
def test_writing_into_a_tensor_that_later_episodes_replay(key, write):
    batch = {"reward": torch.ones(2), "parts": [torch.ones(1), torch.ones(2)], "nested": {"x": torch.ones(2, 1)}}

    def damage(episodes):
        write(episodes[0].samples[1])
        return episodes[0].samples

    with pytest.raises(DataError, match=rf"damage \(.*\) writes into '{key}' of episode 5, which later episodes"):
        select([EpisodeBuffer(5, [(batch, ids(0, 2))])], damage)


def test_arrays_can_not_be_written_to():
    sample = select([EpisodeBuffer(0, [({"a": np.ones((2, 2)), "l": [np.ones(1), np.ones(1)]}, ids(0, 2))])])[0]
    with pytest.raises(ValueError, match="read-only"):
        sample["a"][0] = 2
    with pytest.raises(ValueError, match="read-only"):
        sample["l"][0] = 2


def test_episodes_whose_samples_have_different_keys():
    buffers = [EpisodeBuffer(0, [({"x": [1]}, ids(0, 1))]), EpisodeBuffer(1, [({"x": [1], "y": [2]}, ids(1, 1))])]
    with pytest.raises(DataError, match=r"the episodes that are replayed: .* different keys: 'y' is not in all"):
        select(buffers)


def test_tensors_of_inference_mode_have_no_versions_and_pass():
    with torch.inference_mode():
        batch = {"x": torch.ones(2)}
    samples = select([EpisodeBuffer(0, [(batch, ids(0, 2))])], lambda episodes: episodes[0].samples)
    assert merged(samples)[0]["x"].tolist() == [1.0, 1.0]


def kept(buffer):
    return [e.episode for e in buffer.episodes]


@pytest.mark.parametrize(
    ("max_episodes", "offset", "expected"),
    [
        (0, 0, [[0], [1], [2], [3], [4]]),
        (1, 0, [[0], [1], [2], [3], [4]]),
        (2, 0, [[0], [0, 1], [1, 2], [2, 3], [3, 4]]),
        (3, 0, [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        (-1, 0, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        (3, 2, [[0], [1], [2], [2, 3], [2, 3, 4]]),
        (-1, 3, [[0], [1], [2], [3], [3, 4]]),
        (1, 3, [[0], [1], [2], [3], [4]]),
    ],
)
@pytest.mark.parametrize("resumed_after", [None, 0, 1, 2, 3])
def test_the_episodes_that_are_kept(max_episodes, offset, expected, resumed_after):
    """A buffer that is loaded from the state of another goes on as that one would."""
    buffer, found = ReplayBuffer(max_episodes, offset), []
    for number in range(5):
        buffer.add(episode(number))
        found.append(kept(buffer))
        if number == resumed_after:
            state, buffer = buffer.state(), ReplayBuffer(max_episodes, offset)
            buffer.load(state)
    assert found == expected


def test_a_state_holds_only_what_later_episodes_can_replay():
    for limit, expected in [(1, []), (2, [2]), (3, [1, 2]), (-1, [0, 1, 2])]:
        buffer = ReplayBuffer(limit)
        for number in range(3):
            buffer.add(episode(number))
        assert [saved["episode"] for saved in buffer.state()["episodes"]] == expected


def through_a_file(buffer, folder):
    save_state(buffer.state(), folder / "replay")
    loaded = ReplayBuffer(buffer.max_episodes, buffer.offset)
    loaded.load(load_state(folder / "replay"))
    return loaded


def test_a_buffer_comes_back_from_a_file_bit_for_bit(tmp_path):
    buffer = ReplayBuffer(-1)
    buffer.add(EpisodeBuffer(0, [(one_of_each(), SampleIds((1, 2, 3), (0, 0, 1), 4, (1, 1, 3)))]))
    buffer.add(EpisodeBuffer(1, [(one_of_each(2), ids(4, 2, 5)), (one_of_each(1), ids(2**70, 1, 5))]))
    loaded = through_a_file(buffer, tmp_path)
    assert len(loaded.episodes) == 2
    for before, after in zip(buffer.episodes, loaded.episodes, strict=True):
        assert before.episode == after.episode
        for (batch, found), (loaded_batch, loaded_ids) in zip(before.parts, after.parts, strict=True):
            assert same(loaded_batch, batch)
            assert loaded_ids == found
    assert not list(tmp_path.glob("*.pkl"))
    assert json.loads((tmp_path / "replay.json").read_text())["tree"]["episodes"][0]["episode"] == 0


@given(batch=any_batch())
def test_any_batch_comes_back_from_a_state(batch):
    buffer = ReplayBuffer(-1)
    buffer.add(EpisodeBuffer(0, [(batch, ids(0, num_rows(batch)))]))
    loaded = ReplayBuffer(-1)
    loaded.load(buffer.state())
    assert same(loaded.episodes[0].parts[0][0], batch)


def test_a_state_that_a_file_can_not_hold_names_episode_and_key():
    buffer = ReplayBuffer(-1)
    buffer.add(EpisodeBuffer(3, [({"meta": {"notes": [0, {1}]}}, ids(0, 2))]))
    with pytest.raises(DataError, match=r"^episode 3: meta\['notes'\]\[1\] is set, which a file can't hold"):
        buffer.state()


@pytest.mark.parametrize(
    ("change", "key"), [(lambda s: s | {5: 1}, "5"), (lambda s: s | {"extra": {"deep": {}} | {(1, 2): 3}}, r"\(1, 2\)")]
)
def test_keys_of_samples_are_text(change, key):
    """A dict that is a new value is an entry of a list and may hold any keys; one that is a column may not."""
    batch = {"reward": torch.ones(2), "extra": {"deep": [1, 2]}}
    buffer = EpisodeBuffer(3, [(batch, ids(30, 2))])
    words = rf"item 1 \(sample 31 of episode 3\) has the key {key}, but keys of samples are text"
    with pytest.raises(DataError, match=words):
        select([buffer], lambda episodes: [episodes[0].samples[0], change(episodes[0].samples[1])])
    new = select([buffer], lambda episodes: [sample | {"new": {5: 1}} for sample in episodes[0].samples])
    assert [sample["new"] for sample in new] == [{5: 1}, {5: 1}]
