"""Answers taken out of texts and held against gold answers; expected values are plain arithmetic."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle

import numpy as np
import pytest
import torch

from chatlearn.data.sources import read_prompts
from chatlearn.errors import ConfigError, DataError
from chatlearn.rewards import MathReward, Questions, extract_answer, score
from chatlearn.rewards.math import gold_answer

PROBLEMS = [
    {"question": "A crate holds 6 jars. How many jars do 7 crates hold?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"},
    {"question": "A road of 1,500 m gets a lamp every 1 m. How many?", "answer": "1500 / 1 = 1500\n#### 1,500"},
    {"question": "Half of 5 apples are how many?", "answer": "5 / 2 = 2.5\n#### 2.5"},
    {"question": "What is 3 - 8?", "answer": "3 - 8 = -5\n#### -5"},
]
"""Invented, in the form of GSM8K."""


@pytest.fixture(scope="module")
def reward():
    return MathReward()


def scores(reward, completions, golds, **columns):
    return score(reward, ["?"] * len(completions), completions, {"answer": golds, **columns})


@pytest.mark.parametrize(
    ("place", "text", "answer"),
    [
        ("boxed", r"so \boxed{42}.", "42"),
        ("boxed", r"\boxed{1} no, \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        ("boxed", r"\fbox{7}", "7"),
        ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("boxed", r"\boxed{\frac{1}{2}", None),
        ("boxed", r"\boxed{}", None),
        ("boxed", "42", None),
        ("hash", "6 * 7\n#### 42", "42"),
        ("hash", "#### 1\n#### 2\nand more", "2"),
        ("hash", "42", None),
        ("hash", "42\n#### ", None),
        ("tag", "<think>1</think><answer> 42\n</answer>", "42"),
        ("tag", "<answer>1</answer> <answer>2</answer>", "2"),
        ("tag", "<answer>1", None),
        ("last_number", "3 and then 42.", "42"),
        ("last_number", "it costs $1,234.50 today", "$1,234.50"),
        ("last_number", "x = -5", "-5"),
        ("last_number", "10-3", "3"),
        ("last_number", "that is 3/4", "3/4"),
        ("last_number", "about 1e-3", "1e-3"),
        ("last_number", "the pair 1,2", "2"),
        ("last_number", "none", None),
        ("any", r"5 so \boxed{4} #### 3 <answer>2</answer> 1", "4"),
        ("any", "5 so #### 3", "3"),
        ("any", "<answer>2</answer> 1", "2"),
        ("any", "maybe 7 apples", "7"),
        ("any", "", None),
    ],
)
def test_answers_are_found_where_they_stand(place, text, answer):
    assert extract_answer(text, place) == answer


def test_an_unknown_place_is_refused():
    with pytest.raises(ConfigError, match="there is no 'box'; choose from any, boxed"):
        extract_answer("1", "box")
    with pytest.raises(ConfigError, match="there is no 'box'"):
        MathReward("box")


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ("42", "42"),
        (" $42$. ", "42"),
        ("work\n#### 1,000", "1,000"),
        (r"so \boxed{\frac12}", r"\frac12"),
        (r"\(x + 1\)", "x + 1"),
        (42, "42"),
        (0.5, "0.5"),
        (torch.tensor(42), "42"),
        (np.float64(2.5), "2.5"),
        ("", None),
        ("  ", None),
        ("cut off #### ", None),
        (r"cut off \boxed{1", None),
        (None, None),
        (float("nan"), None),
        (True, None),
        (["42"], None),
    ],
)
def test_gold_answers_are_numbers_answers_or_whole_solutions(given, gold):
    assert gold_answer(given) == gold


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("42", "42", 1),
        ("42", "42.0", 1),
        ("42", "+42", 1),
        ("42", "43", 0),
        ("1500", "1,500", 1),
        ("18", "$18.00", 1),
        ("-5", "-$5", 1),
        ("0.001", "1e-3", 1),
        ("0.5", "1/2", 1),
        ("0.5", "2/4", 1),
        ("0.1", "0.10000001", 0),
        ("1/3", "2/3", 0),
        # from here on by math-verify
        (r"\frac{1}{2}", "0.5", 1),
        (r"\frac{1}{2}", r"\frac{2}{4}", 1),
        ("x + 1", "1 + x", 1),
        ("(x+1)^2", "x^2 + 2x + 1", 1),
        ("(x+1)^2", "x^2 + 1", 0),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 1),
        (r"\{1, 2\}", r"\{2, 1\}", 1),
        ("(1, 2)", "(2, 1)", 0),
        ("5", "x = 5", 1),
        ("7", "", 0),
    ],
)
def test_equal_answers_get_one_and_others_zero(reward, gold, answer, expected):
    assert scores(reward, [f"\\boxed{{{answer}}}"], [gold]) == [float(expected)]


@pytest.mark.parametrize("gold", ["", "  ", None, r"\frac{1}{", "solution without end \\boxed{4", float("nan")])
def test_a_gold_answer_that_can_not_be_read_makes_the_sample_unscorable(reward, gold):
    assert scores(reward, [r"\boxed{4}", r"\boxed{\frac{1}{}"], [gold, gold]) == [None, None]


def test_completions_without_an_answer_or_cut_off_get_zero(reward):
    completions = ["I don't know", "", "4", "4"]
    values = scores(reward, completions, ["4"] * 4, finished=torch.tensor([True, True, True, False]))
    assert values == [0.0, 0.0, 1.0, 0.0]


def test_where_to_look_can_be_chosen():
    completions = ["\\boxed{4} 5", "4 \n#### 5"]
    assert scores(MathReward("boxed"), completions, ["4", "4"]) == [1.0, 0.0]
    assert scores(MathReward("last_number"), completions, ["5", "5"]) == [1.0, 1.0]
    assert scores(MathReward("hash"), completions, ["5", "5"]) == [0.0, 1.0]


def test_without_verifying_texts_and_numbers_are_compared_and_no_library_is_needed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reward = MathReward(verify=False)
    completions = [r"\boxed{x + 1}", r"\boxed{1+x}", r"\boxed{2.0}", r"\boxed{\frac12}"]
    assert scores(reward, completions, ["x+1", "x+1", "2", "0.5"]) == [1.0, 0.0, 1.0, 0.0]


def test_absent_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'chatlearn\[math\]'; or set `verify: false`"):
        MathReward()


def test_another_column_may_hold_the_gold_answers():
    reward = MathReward(column="solution")
    assert score(reward, ["?"], ["4"], {"solution": ["4"], "answer": ["5"]}) == [1.0]
    with pytest.raises(DataError, match=r"MathReward reads the column 'solution'.*it has 'answer'"):
        score(reward, ["?"], ["4"], {"answer": ["5"]})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
def test_copies_and_pickles(reward, duplicate):
    assert scores(reward, [r"\boxed{1+x}"], ["x+1"]) == [1.0]  # it has a process by now
    twin = duplicate(reward)
    assert scores(twin, [r"\boxed{1+x}"], ["x+1"]) == [1.0]


def test_a_file_of_questions_becomes_prompts_and_is_scored(tmp_path, reward):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    questions = Questions(read_prompts(file), "{question}\nEnd with \\boxed{{answer}}.")
    assert len(questions) == 4
    assert questions[0] == {**PROBLEMS[0], "prompt": f"{PROBLEMS[0]['question']}\nEnd with \\boxed{{answer}}."}
    assert [sample["answer"] for sample in questions[1:3]] == [PROBLEMS[1]["answer"], PROBLEMS[2]["answer"]]
    golds = [sample["answer"] for sample in questions]
    answers = ["6 times 7 is \\boxed{42}", "#### 1500", "so it is 5/2", "<answer>5</answer>"]
    assert scores(reward, answers, golds) == [1.0, 1.0, 1.0, 0.0]
    assert scores(reward, golds, golds) == [1.0] * 4, "a solution is right by itself"


def test_the_template_may_use_any_column():
    rows = [{"question": "1 + 1?", "hint": "{a} is a brace", "answer": 2}]
    assert Questions(rows, "{hint}: {question}")[0]["prompt"] == "{a} is a brace: 1 + 1?"


@pytest.mark.parametrize(
    ("rows", "template", "words"),
    [
        ([], "{question}", "there are no questions"),
        (["1 + 1?"], "{question}", "question 0: a row is a dict of columns, got '1 \\+ 1"),
        ([{"problem": "1 + 1?"}], "{question}", r"KeyError: 'question'\)\. The row has the columns problem"),
        ([{"question": "1 + 1?"}], "{question} {", r"a brace that is meant as such is written twice"),
    ],
)
def test_questions_that_do_not_fit_are_named(rows, template, words):
    with pytest.raises(DataError, match=words):
        Questions(rows, template)


def test_a_later_question_is_named_when_its_turn_comes():
    questions = Questions([{"question": "1?"}, {"query": "2?"}])
    with pytest.raises(DataError, match="question 1: the template"):
        questions[1]
    with pytest.raises(IndexError):
        questions[2]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("text", ["12:30", "yes", "50%", "blue", "(1, 2)", "3 apples", "A"])
def test_a_completion_that_is_the_gold_answer_and_no_more_is_right(text, verify):
    reward = MathReward(verify=verify)
    assert scores(reward, [text, f" {text}.\n", f"not {text}"], [text] * 3, finished=[True, True, True])[:2] == [1, 1]
    assert scores(reward, [text], [text], finished=[False]) == [0.0]


@pytest.mark.parametrize("place", ["boxed", "hash", "tag"])
def test_where_a_place_is_asked_for_the_bare_answer_is_not_enough(place):
    assert scores(MathReward(place, verify=False), ["12:30"], ["12:30"]) == [0.0]


def test_other_times_and_words_are_wrong():
    reward = MathReward(verify=False)
    assert scores(reward, ["12:31", "no", "51%"], ["12:30", "yes", "50%"]) == [0.0, 0.0, 0.0]
