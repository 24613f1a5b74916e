"""From prompts to collated batches: the data set that a module builds and both ways to write ``collate_fn``."""

from __future__ import annotations

import bdb

import datasets
import numpy as np
import pytest
import torch

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
