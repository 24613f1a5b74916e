"""The reward by reasoning-gym: scores as the library documents them, copies, and what bad arguments get."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import reasoning_gym

from chatlearn.errors import DataError
from chatlearn.rewards import ReasoningGymReward, score

PROMPT = "Spell this word backward (example: sun -> nus): tiger"
ENTRY = {"question": PROMPT, "answer": "regit", "metadata": {"word": "tiger", "word_len": 5}}


@pytest.fixture(scope="module")
def reward():
    return ReasoningGymReward("spell_backward", min_word_len=3, max_word_len=7)


def scores(reward, answers, **columns):
    columns = {"entry": [ENTRY] * len(answers), **columns}
    return score(reward, [PROMPT] * len(answers), answers, columns)


def test_scores_are_shares_of_right_positions(reward):
    """By hand: tiger reversed is regit; 'regxx' has 3 of 5 places right, 'tiger' one (the g), '' none."""
    assert scores(reward, ["regit", "regxx", "tiger", ""]) == pytest.approx([1.0, 0.6, 0.2, 0.0])


def test_unfinished_answers_get_nothing(reward):
    assert scores(reward, ["regit", "regit"], finished=[True, False]) == [1.0, 0.0]


def test_the_entry_is_needed(reward):
    with pytest.raises(DataError, match="no column 'entry'"):
        score(reward, [PROMPT], ["regit"], {"answer": ["regit"]})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
def test_copies_and_pickles(reward, duplicate):
    twin = duplicate(reward)
    assert (twin.dataset, twin.config) == ("spell_backward", {"min_word_len": 3, "max_word_len": 7})
    assert scores(twin, ["regit", "regxx"]) == scores(reward, ["regit", "regxx"])
    assert len(pickle.dumps(reward)) < 500  # the arguments, not the data set's words


def test_repr(reward):
    assert repr(reward) == "ReasoningGymReward('spell_backward', min_word_len=3, max_word_len=7)"


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'spell_backward'"):
        ReasoningGymReward("spell_backwards")


def test_a_bad_config_names_the_fields():
    with pytest.raises(DataError, match=r"max_len.*Its fields: .*max_word_len"):
        ReasoningGymReward("spell_backward", max_len=3)


def test_absent_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"pip install 'chatlearn\[demo\]'"):
        ReasoningGymReward("spell_backward")


def test_binary_counts_exact_answers_only(reward):
    binary = ReasoningGymReward("spell_backward", binary=True, min_word_len=3, max_word_len=7)
    assert scores(binary, ["regit", "regix", "tiger"]) == [1.0, 0.0, 0.0]
    assert scores(reward, ["regix"]) == pytest.approx([0.8])


def test_binary_survives_copies():
    binary = ReasoningGymReward("spell_backward", binary=True)
    assert scores(pickle.loads(pickle.dumps(binary)), ["regix"]) == [0.0]
    assert repr(binary) == "ReasoningGymReward('spell_backward', binary=True)"


def test_palindromes_get_partial_scores_unless_they_are_binary():
    """The letters a, a and b have one palindrome, aba; the library gives 0.01 to anything that is none."""
    entry = {"question": "?", "answer": "aba", "metadata": {"letters": ["a", "a", "b"], "generated_palindrome": "aba"}}
    columns = {"entry": [entry] * 2}
    raw = ReasoningGymReward("palindrome_generation", min_length=3, max_length=6)
    exact = ReasoningGymReward("palindrome_generation", min_length=3, max_length=6, binary=True)
    partial = score(raw, ["?"] * 2, ["aba", "aab"], columns)
    assert partial[0] == 1.0
    assert 0 < partial[1] < 1
    assert score(exact, ["?"] * 2, ["aba", "aab"], columns) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("dataset", "completion"), [("prime_factorization", "two times three"), ("boxnet", "42"), ("boxnet", "[[1]]")]
)
def test_an_answer_that_the_librarys_scorer_raises_for_gets_nothing(dataset, completion):
    data = reasoning_gym.create_dataset(dataset, seed=3, size=1)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        data.score_answer(completion, data[0])
    for binary in (False, True):
        reward = ReasoningGymReward(dataset, binary=binary)
        assert score(reward, ["?"], [completion], {"entry": [data[0]]}) == [0.0]


def test_a_right_answer_beside_one_that_raises_keeps_its_score():
    data = reasoning_gym.create_dataset("prime_factorization", seed=3, size=1)
    reward = ReasoningGymReward("prime_factorization")
    columns = {"entry": [data[0]] * 3}
    assert score(reward, ["?"] * 3, [data[0]["answer"], "none", data[0]["answer"]], columns) == [1.0, 0.0, 1.0]


def test_an_item_that_can_not_be_scored_at_all_is_no_answers_fault():
    reward = ReasoningGymReward("prime_factorization")
    with pytest.raises(KeyError, match="answer"):
        score(reward, ["?"], ["2 × 3"], {"entry": [{"question": "?", "metadata": {}}]})


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_no_answer_is_to_blame_for_is_raised(reward, monkeypatch, error):
    def out_of_it(answer, entry):
        raise error

    monkeypatch.setattr(reward._scorer, "score_answer", out_of_it)
    with pytest.raises(error):
        scores(reward, ["regit"])
