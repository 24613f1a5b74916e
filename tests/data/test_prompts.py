"""From prompts to collated batches: the data set that a module builds and both ways to write ``collate_fn``."""

from __future__ import annotations

import bdb
import collections

import datasets
import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from chatlearn import BaseModule
from chatlearn.data.collate import Samples
from chatlearn.data.prompts import PromptDataset, fetch, fetch_from, open_dataset
from chatlearn.errors import DataError


class SeedDataset(torch.utils.data.Dataset):
    """The seed document's data set, word for word."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, idx):
        return {"query": self.data[idx]}

    def collate_fn(self, samples):
        batched_data = {}
        for sample_key, sample_value in samples.items():
            batched_data[sample_key] = torch.stack(sample_value)
        return batched_data


class ListDataset(SeedDataset):
    """The same in PyTorch's way: ``collate_fn`` over a list of samples."""

    def collate_fn(self, samples):
        return {"query": torch.stack([sample["query"] for sample in samples])}


class DefaultDataset(SeedDataset):
    def __init__(self, data):
        super().__init__(data)
        self.collate_fn = None


class Plain:
    """A sequence of samples without ``collate_fn``."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


TOKENS = [torch.tensor([i, 10 * i]) for i in range(6)]


@pytest.mark.parametrize("dataset", [SeedDataset, ListDataset, DefaultDataset])
def test_both_collate_conventions_and_torchs_default_give_the_same_batch(dataset):
    batch = fetch(dataset(TOKENS), [4, 0, 4])
    assert list(batch) == ["query"]
    assert batch["query"].tolist() == [[4, 40], [0, 0], [4, 40]]


@pytest.mark.parametrize("make", [DefaultDataset, lambda data: Plain([{"query": x} for x in data])])
def test_without_collate_fn_strings_stay_lists_and_numbers_become_tensors(make):
    assert fetch(make(["a", "b", "c"]), [2, 0]) == {"query": ["c", "a"]}
    assert torch.equal(fetch(make([1, 2]), [1, 0])["query"], torch.tensor([2, 1]))
    assert torch.equal(fetch(make([np.ones(2), np.zeros(2)]), [1, 0])["query"], torch.tensor([[0, 0], [1, 1]]).double())


def test_collate_fn_gets_a_list_of_samples_in_the_order_asked_for():
    seen = []

    class Watched(SeedDataset):
        def collate_fn(self, samples):
            seen.append(samples)
            return {"query": samples["query"]}

    fetch(Watched(["a", "b"]), [1, 0, 1])
    assert seen == [[{"query": "b"}, {"query": "a"}, {"query": "b"}]]
    assert isinstance(seen[0], Samples)


def test_a_module_without_build_dataset_gets_prompts_under_the_key_prompt():
    dataset = open_dataset(BaseModule("policy"), ["a", "b", "c"], is_eval=False)
    assert len(dataset) == 3
    assert dataset[1] == {"prompt": "b"}
    assert fetch(dataset, [2, 1]) == {"prompt": ["c", "b"]}


def test_a_prompt_that_is_a_dict_is_the_sample_itself():
    dataset = open_dataset(
        BaseModule("policy"), [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}], is_eval=True
    )
    assert fetch(dataset, [1, 0]) == {"prompt": ["b", "a"], "answer": [2, 1]}


def test_build_dataset_gets_the_prompts_by_position_and_is_eval_only_where_it_has_it():
    class Seed(BaseModule):
        def build_dataset(self, train_prompts):
            return [("train", p) for p in train_prompts]

    class Evaluated(BaseModule):
        def build_dataset(self, prompts, is_eval=False):
            return [(is_eval, p) for p in prompts]

    assert open_dataset(Seed("a"), ["x"], is_eval=True) == [("train", "x")]
    assert open_dataset(Evaluated("b"), ["x"], is_eval=True) == [(True, "x")]
    assert open_dataset(Evaluated("b"), ["x"], is_eval=False) == [(False, "x")]


@pytest.mark.parametrize(
    ("built", "words"),
    [
        (None, r"policy\.build_dataset returns NoneType, which has no __getitem__"),
        (iter([1]), r"returns list_iterator, which has no __getitem__"),
        ([], r"policy\.build_dataset returns an empty data set for 2 prompts"),
    ],
)
def test_what_is_no_data_set(built, words):
    class Policy(BaseModule):
        def build_dataset(self, prompts):
            return built

    with pytest.raises(DataError, match=words):
        open_dataset(Policy("policy"), ["a", "b"], is_eval=False)


def test_a_sample_that_can_not_be_read_is_named_by_its_index():
    class Broken(SeedDataset):
        def __getitem__(self, idx):
            if idx == 4:
                raise UnicodeError("bad byte")
            return super().__getitem__(idx)

    with pytest.raises(DataError, match="sample 4 of the data set can't be read: UnicodeError: bad byte") as caught:
        fetch(Broken(TOKENS), [1, 4, 2])
    assert isinstance(caught.value.__cause__, UnicodeError)


def test_a_collation_that_fails_keeps_the_users_exception():
    with pytest.raises(DataError, match="collating fails: RuntimeError: stack expects") as caught:
        fetch(SeedDataset([torch.ones(1), torch.ones(2)]), [0, 1])
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "collate_fn" in str(caught.value)


def test_a_collation_that_gives_no_dict():
    with pytest.raises(DataError, match=r"collating gives Tensor, but a batch is a dict"):
        fetch(Plain([1, 2]), [0, 1])


@pytest.mark.parametrize("stop", [bdb.BdbQuit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["read", "collate"])
def test_leaving_the_debugger_and_ctrl_c_pass_through(stop, where):
    class Interrupted(SeedDataset):
        def __getitem__(self, idx):
            if where == "read":
                raise stop
            return super().__getitem__(idx)

        def collate_fn(self, samples):
            raise stop

    with pytest.raises(stop):
        fetch(Interrupted(TOKENS), [0])


# ------------------------------------------------------------------------------------------- several data sets


def test_samples_of_several_data_sets_in_one_batch():
    datasets = [PromptDataset(["a", "b"]), PromptDataset(["c", "d", "e"])]
    assert fetch_from(datasets, [(1, 2), (0, 0), (1, 0)]) == {"prompt": ["e", "a", "c"]}


def test_the_first_samples_data_set_collates():
    first, second = DefaultDataset([1, 2]), Plain([{"query": 3}, {"query": 4}])
    second.collate_fn = lambda samples: {"second": samples["query"]}
    assert torch.equal(fetch_from([first, second], [(0, 1), (1, 0)])["query"], torch.tensor([2, 3]))
    assert fetch_from([first, second], [(1, 1), (0, 0)]) == {"second": [4, 1]}


def test_a_sample_of_several_data_sets_is_named_with_its_own():
    with pytest.raises(DataError, match="sample 7 of data set 1 can't be read: IndexError"):
        fetch_from([Plain([1]), Plain([1])], [(0, 0), (1, 7)])


def test_prompts_with_different_keys_do_not_go_together():
    both = [PromptDataset([{"prompt": "a", "answer": 1}]), PromptDataset(["b"])]
    with pytest.raises(DataError, match=r"collating fails: the samples .* different keys: answer is not in all"):
        fetch_from(both, [(0, 0), (1, 0)])


def test_rows_of_hugging_face_are_samples():
    data = datasets.Dataset.from_list([{"prompt": "a", "n": 1}, {"prompt": "b", "n": None}])
    assert fetch(open_dataset(BaseModule("policy"), data, is_eval=False), [1, 0]) == {
        "prompt": ["b", "a"],
        "n": [None, 1],
    }


# --------------------------------------------------------------------------------- default collation, entry by entry


@pytest.mark.parametrize(
    "entries",
    [
        [[0, 10], [1, 11]],
        [[0], [1, 2, 3]],
        [(0, 10), (1, 11)],
        [None, None],
        [None, 3],
        [4, None],
        ["a", 5],
        [[], "b"],
        [b"x", b"y"],
        [[torch.ones(1)], [torch.ones(2)]],
    ],
)
def test_lists_tuples_text_and_none_stay_entries_of_a_list(entries):
    """PyTorch's own rules would turn lists and tuples by 90 degrees and refuse None."""
    batch = fetch(Plain([{"x": entry, "n": n} for n, entry in enumerate(entries)]), [0, 1])
    assert type(batch["x"]) is list
    assert [entry is given for entry, given in zip(batch["x"], entries, strict=True)] == [True, True]
    assert torch.equal(batch["n"], torch.tensor([0, 1]))


def test_dicts_in_samples_become_dicts_of_columns():
    samples = [{"a": {"n": n, "t": {"l": [n, n + 10]}}} for n in (1, 2)]
    batch = fetch(Plain(samples), [1, 0])
    assert torch.equal(batch["a"]["n"], torch.tensor([2, 1]))
    assert batch["a"]["t"] == {"l": [[2, 12], [1, 11]]}


def test_a_mapping_is_a_sample():
    rows = [collections.UserDict(q="a", n=1), collections.UserDict(q="b", n=2)]
    batch = fetch(Plain(rows), [1, 0])
    assert (batch["q"], batch["n"].tolist()) == (["b", "a"], [2, 1])
    assert fetch(PromptDataset(rows), [1, 0]) == {"q": ["b", "a"], "n": [2, 1]}


@pytest.mark.parametrize("more", ["first", "second"])
@pytest.mark.parametrize("collate", [None, lambda samples: dict(samples.items())])
def test_samples_with_different_keys_are_named_by_index(more, collate):
    samples = [{"a": 1}, {"a": 1, "b": 2}] if more == "second" else [{"a": 1, "b": 2}, {"a": 1}]
    dataset = Plain([None] * 7 + samples)
    dataset.collate_fn = collate
    has = {7: "a, b", 8: "a"} if more == "first" else {7: "a", 8: "a, b"}
    words = rf"different keys: b is not in all of them \(sample number 7 has {has[7]}; sample number 8 has {has[8]}\)"
    with pytest.raises(DataError, match=words):
        fetch(dataset, [7, 8])
    with pytest.raises(DataError, match=r"sample number 8 of data set 0 has .*; sample number 0 of data set 1 has c\)"):
        fetch_from([dataset, Plain([{"c": 1}])], [(0, 8), (1, 0)])


def test_nested_dicts_with_different_keys_are_named_by_index_and_key():
    with pytest.raises(DataError, match=r"'a' of sample number 1 has n; 'a' of sample number 0 has m"):
        fetch(Plain([{"a": {"m": 1}}, {"a": {"n": 2}}]), [1, 0])


def test_one_sample_that_is_no_dict_is_named():
    with pytest.raises(DataError, match="samples of a batch are dicts, but sample number 1 is str"):
        fetch(Plain([{"a": 1}, "a"]), [0, 1])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"k": 1}, torch.ones(1)], "'x' is a dict in sample number 0, but not in sample number 1"),
        ([2, torch.tensor(3.5)], "'x' is a tensor or an array in sample number 1, but not in sample number 0"),
        ([np.ones(2), 1.0], "'x' is a tensor or an array in sample number 0, but not in sample number 1"),
    ],
)
def test_entries_of_different_kinds_are_named(entries, words):
    """PyTorch looks at the first alone: of 2 and tensor(3.5) it makes 2 and 3."""
    with pytest.raises(DataError, match=words):
        fetch(Plain([{"x": entry} for entry in entries]), [0, 1])


# ----------------------------------------------------------------------------------------- mappings, data sets given


@pytest.mark.parametrize("kind", [BatchEncoding, collections.UserDict, collections.OrderedDict, dict])
def test_a_collate_fn_may_return_any_mapping(kind):
    dataset = Plain([{"t": torch.tensor([n])} for n in range(3)])
    dataset.collate_fn = lambda samples: kind({"t": torch.stack(samples["t"]), "in": kind({"n": [1, 2]})})
    batch = fetch(dataset, [2, 0])
    assert (type(batch), type(batch["in"])) == (dict, dict)
    assert (batch["t"].tolist(), batch["in"]) == ([[2], [0]], {"n": [1, 2]})


def test_what_a_collate_fn_returned_instead_of_a_dict():
    dataset = Plain([{"t": 1}])
    dataset.collate_fn = lambda samples: [1]
    with pytest.raises(DataError, match=r"collating gives list, but a batch is a dict. Let collate_fn return a dict"):
        fetch(dataset, [0])


def test_prompts_with_a_collate_fn_are_the_data_set_of_a_module_without_one():
    given = SeedDataset(TOKENS)
    assert open_dataset(BaseModule("policy"), given, is_eval=False) is given
    assert fetch(given, [4, 1])["query"].tolist() == [[4, 40], [1, 10]]
    assert type(open_dataset(BaseModule("policy"), DefaultDataset(TOKENS), is_eval=False)) is PromptDataset


def test_the_collate_fn_of_prompts_gives_way_to_build_dataset():
    class Own(BaseModule):
        def build_dataset(self, prompts):
            return PromptDataset([int(row["query"][0]) for row in map(prompts.__getitem__, range(len(prompts)))])

    assert fetch(open_dataset(Own("own"), SeedDataset(TOKENS), is_eval=False), [3, 1]) == {"prompt": [3, 1]}


@pytest.mark.parametrize(
    ("length", "words"),
    [("3", "TypeError: 'str' object cannot be interpreted"), (-1, "ValueError: __len__"), (1.5, "TypeError")],
)
def test_a_length_of_a_wrong_type(length, words):
    class Odd(Plain):
        def __len__(self):
            return length

    class Policy(BaseModule):
        def build_dataset(self, prompts):
            return Odd(prompts)

    with pytest.raises(DataError, match=rf"data set that policy.build_dataset returns has no length: {words}.* from 0"):
        open_dataset(Policy("policy"), [1], is_eval=False)
