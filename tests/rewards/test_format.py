"""Rewards for the form of a completion, by examples worked out by hand."""

from __future__ import annotations

import pytest
import torch

from chatlearn.algorithms.lengths import overlong_penalty
from chatlearn.errors import ConfigError, DataError
from chatlearn.rewards import Contains, ExactMatch, LengthPenalty, OverlongPenalty, RegexFormat, score


def scores(reward, completions, **columns):
    return score(reward, ["?"] * len(completions), completions, columns)


@pytest.mark.parametrize(
    ("options", "completion", "expected"),
    [
        ({}, " Paris\n", 1.0),
        ({}, "paris", 0.0),
        ({}, "Par is", 0.0),
        ({"ignore_case": True}, "PARIS", 1.0),
        ({"whitespace": "keep"}, "Paris ", 0.0),
        ({"whitespace": "remove"}, "P a\tr i s", 1.0),
        ({"whitespace": "collapse"}, "P a r i s", 0.0),
    ],
)
def test_exact_match(options, completion, expected):
    assert scores(ExactMatch(**options), [completion], answer=["Paris"]) == [expected]


def test_collapsed_whitespace_keeps_words_apart():
    reward = ExactMatch(whitespace="collapse")
    assert scores(reward, ["New\n  York ", "NewYork"], answer=["New York"] * 2) == [1.0, 0.0]


def test_any_of_several_answers_will_do_and_none_is_unscorable():
    answers = [["one", "1"], ["one", "1"], None, [], 7]
    assert scores(ExactMatch(), ["1", "2", "3", "4", "7"], answer=answers) == [1.0, 0.0, None, None, 1.0]


def test_another_column_may_hold_the_answers():
    assert scores(ExactMatch(column="target"), ["a"], answer=["b"], target=["a"]) == [1.0]
    with pytest.raises(DataError, match=r"ExactMatch reads the column 'target'.*it has 'answer'"):
        scores(ExactMatch(column="target"), ["a"], answer=["b"])


def test_contains_is_the_share_of_wanted_texts():
    assert scores(Contains(["red", "Blue"]), ["red and Blue", "red", "blue", ""]) == [1.0, 0.5, 0.0, 0.0]
    assert scores(Contains("blue", ignore_case=True), ["BLUE", "red"]) == [1.0, 0.0]


def test_contains_reads_a_column_where_no_texts_are_given():
    wanted = ["cat", ["cat", "dog"], None]
    assert scores(Contains(), ["a cat"] * 3, answer=wanted) == [1.0, 0.5, None]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a\nb</think><answer>4</answer>", 1.0),
        ("  <think></think>\n\n<answer>4</answer>\n", 1.0),
        ("<think>a</think><answer>4</answer> and more", 0.0),
        ("<answer>4</answer><think>a</think>", 0.0),
        ("<think>a<think>b</think><answer>4</answer>", 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("4", 0.0),
    ],
)
def test_the_default_format_has_each_tag_once_and_nothing_else(completion, expected):
    assert scores(RegexFormat(), [completion]) == [expected]


def test_a_pattern_of_ones_own_holds_for_the_whole_completion_unless_it_may_stand_anywhere():
    completions = ["42", "it is 42", "forty"]
    assert scores(RegexFormat(r"\d+"), completions) == [1.0, 0.0, 0.0]
    assert scores(RegexFormat(r"\d+", anywhere=True), completions) == [1.0, 1.0, 0.0]


def test_a_long_text_with_open_tags_does_not_hang_the_default_format():
    """2,000 open tags; a pattern that tries all ways to split them would not end."""
    assert scores(RegexFormat(), ["<think>" * 2000 + "<answer>" * 2000]) == [0.0]


def test_length_penalty_in_each_unit():
    mask = torch.tensor([[0.0, 1, 1, 1, 1], [0, 1, 0, 0, 0]])
    completions = ["one two three", "one"]
    # by hand: 4 and 1 tokens, 3 and 1 words, 13 and 3 characters
    assert scores(LengthPenalty(0.1, free=2), completions, response_mask=mask) == pytest.approx([-0.2, 0.0])
    assert scores(LengthPenalty(0.1, unit="words"), completions) == pytest.approx([-0.3, -0.1])
    assert scores(LengthPenalty(0.1, free=3, unit="characters"), completions) == pytest.approx([-1.0, 0.0])
    assert scores(LengthPenalty(0.1, unit="characters", floor=-0.5), completions) == pytest.approx([-0.5, -0.3])
    assert scores(LengthPenalty(0.1, unit="characters", floor=None), completions) == pytest.approx([-1.3, -0.3])


def test_tokens_can_not_be_counted_without_their_mask():
    with pytest.raises(DataError, match="LengthPenalty reads the column 'response_mask'"):
        scores(LengthPenalty(0.1), ["one"])


@pytest.mark.parametrize("as_lists", [False, True])
def test_the_overlong_penalty_is_that_of_the_algorithms(as_lists):
    """Lengths 0 to 12 at a limit of 10 with a slope of 4: by hand 0 up to 6, then -1/4, -1/2, -3/4, -1, and -1."""
    lengths = torch.arange(13)
    mask = (torch.arange(12) < lengths.unsqueeze(1)).float()
    given = mask.tolist() if as_lists else mask
    values = scores(OverlongPenalty(max_length=10, buffer=4), ["?"] * 13, response_mask=given)
    assert values == [0.0] * 7 + [-0.25, -0.5, -0.75, -1.0, -1.0, -1.0]
    assert values == overlong_penalty(lengths, max_length=10, buffer=4).tolist()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ExactMatch(whitespace="all"), "whitespace: there is no 'all'; choose from keep, strip"),
        (lambda: Contains([]), "texts is empty"),
        (lambda: RegexFormat("(a"), r"pattern '\(a' is no regular expression"),
        (lambda: LengthPenalty(-1), "per_unit must be at least 0"),
        (lambda: LengthPenalty(1, unit="lines"), "unit: there is no 'lines'"),
        (lambda: OverlongPenalty(10, 0), r"buffer must lie in 1 \.\. max_length"),
        (lambda: OverlongPenalty(10, 11), "got buffer 11 and max_length 10"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
