"""Texts as batches of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import rows_of

from chatlearn import DataError
from chatlearn.data.prompts import fetch, fetch_from
from chatlearn.modules.torch.huggingface import ModelArgs, load_tokenizer
from chatlearn.modules.torch.prompts import Demonstrations, TokenizedPrompts, tokenize_batch


@pytest.fixture(params=[0, 50_000], ids=["one by one", "ahead"], autouse=True)
def _when_tokenized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When prompts are tokenized makes no difference."""
    monkeypatch.setattr("chatlearn.modules.torch.prompts.MAX_TOKENIZED_AHEAD", request.param)


@pytest.fixture
def tokenizer(llama: str) -> Any:
    return load_tokenizer(ModelArgs(model_path=llama))


def test_prompts_are_padded_on_the_left(tokenizer: Any) -> None:
    dataset = TokenizedPrompts(["abc", "d", "ef"], tokenizer)
    assert len(dataset) == 3
    batch = fetch(dataset, [1, 0])
    assert batch["prompt"] == ["d", "abc"]
    assert batch["prompt_tokens"].tolist() == [[0, 0, 6], [3, 4, 5]]
    assert batch["prompt_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["prompt_tokens"].dtype == batch["prompt_mask"].dtype == torch.int64


def test_the_columns_of_a_dict_stay_with_it(tokenizer: Any) -> None:
    samples = [{"prompt": "abc", "answer": 1, "entry": {"a": 2}}, {"prompt": "d", "answer": 3, "entry": {}}]
    batch = fetch(TokenizedPrompts(samples, tokenizer), [1, 0])
    assert batch["answer"] == [3, 1]
    assert batch["entry"] == [{}, {"a": 2}]


@pytest.mark.parametrize("prompt", [7, {"question": "abc"}, {"prompt": 7}, None])
def test_what_is_no_prompt_is_named(tokenizer: Any, prompt: Any) -> None:
    with pytest.raises(DataError, match="a prompt is a str, or a dict"):
        fetch(TokenizedPrompts(["abc", prompt], tokenizer), [0, 1])


def test_a_prompt_without_tokens_is_named(tokenizer: Any) -> None:
    """A language model has no distribution for a first token without a context."""
    with pytest.raises(DataError, match=r"prompt 1: the prompt '' gives no tokens"):
        fetch(TokenizedPrompts(["abc", ""], tokenizer), [0, 1])
    with pytest.raises(DataError, match=r"prompt 2 of the batch: the prompt '' gives no tokens"):
        tokenize_batch(tokenizer, {"prompt": ["abc", "d", ""]})


def test_demonstrations_end_with_the_end_token(tokenizer: Any) -> None:
    pairs = [{"prompt": "abc", "response": "x"}, {"prompt": "d", "response": "yz"}]
    batch = fetch(Demonstrations(pairs, tokenizer), [0, 1])
    assert rows_of(batch) == [([3, 4, 5], [26, 1]), ([6], [27, 28, 1])]
    assert batch["tokens"].tolist() == [[3, 4, 5, 26, 1, 0], [0, 0, 6, 27, 28, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert batch["response_mask"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert batch["response_mask"].dtype == torch.float32
    assert batch["tokens"].dtype == batch["attention_mask"].dtype == torch.int64
    assert batch["prompt"] == ["abc", "d"]
    assert batch["response"] == ["x", "yz"]


def test_an_empty_demonstration_teaches_to_end(tokenizer: Any) -> None:
    batch = fetch(Demonstrations([{"prompt": "a", "response": ""}], tokenizer), [0])
    assert rows_of(batch) == [([3], [1])]
    assert batch["tokens"].dtype == torch.int64


def test_a_demonstration_needs_a_prompt_of_tokens(tokenizer: Any) -> None:
    pairs = [{"prompt": "a", "response": "a"}, {"prompt": "", "response": "a"}]
    with pytest.raises(DataError, match="sample number 1: the prompt '' gives no tokens"):
        fetch(Demonstrations(pairs, tokenizer), [0, 1])


def test_a_prompt_that_can_not_be_read_is_named_where_the_data_set_is_built(tokenizer: Any) -> None:
    class Broken(list[str]):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index) if index < 2 else {}["boom"]

    with pytest.raises(DataError, match=r"prompt 2 can't be read: KeyError: 'boom'"):
        fetch(TokenizedPrompts(Broken("abc"), tokenizer), [2])[0]


@pytest.mark.parametrize("pair", ["abc", {"prompt": "a"}, {"prompt": "a", "response": 3}])
def test_what_is_no_demonstration_is_named(tokenizer: Any, pair: Any) -> None:
    with pytest.raises(DataError, match=r"(?s)sample 0 .*a demonstration is a dict"):
        fetch(Demonstrations([pair], tokenizer), [0])


# ------------------------------------------------------------------------------------------------ conversations

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ m.role[0] }}{{ m.content }}_{% endfor %}{% if add_generation_prompt %}a{% endif %}"
)
HELLO = [{"role": "system", "content": "b"}, {"role": "user", "content": "hi"}]
RENDERED = "sb_uhi_a"


@pytest.fixture
def chat_tokenizer(tokenizer: Any) -> Any:
    """Begins every text with <unk>, unless it is told to add no special tokens."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    return tokenizer


@pytest.mark.parametrize("form", [HELLO, {"messages": HELLO}, {"prompt": HELLO}])
def test_messages_are_rendered_by_the_template(chat_tokenizer: Any, form: Any) -> None:
    batch = fetch(TokenizedPrompts([form, form], chat_tokenizer), [0, 1])
    assert batch["prompt"] == [RENDERED] * 2
    assert batch["messages"] == [HELLO] * 2
    expected = chat_tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]
    assert len(expected) == len(RENDERED)
    assert batch["prompt_tokens"].tolist() == [expected] * 2


def test_columns_stay_beside_messages(chat_tokenizer: Any) -> None:
    batch = fetch(TokenizedPrompts([{"messages": HELLO, "answer": 4}], chat_tokenizer), [0])
    assert (batch["answer"], batch["prompt"]) == ([4], [RENDERED])


def test_a_text_beside_messages_is_the_prompt(chat_tokenizer: Any) -> None:
    """As in data sets whose messages hold the answer too."""
    whole = [*HELLO, {"role": "assistant", "content": "yes"}]
    batch = fetch(TokenizedPrompts([{"prompt": "hi", "messages": whole}], chat_tokenizer), [0])
    assert batch["prompt"] == ["hi"]
    assert batch["prompt_tokens"].tolist() == [chat_tokenizer("hi")["input_ids"]]
    assert batch["prompt_tokens"][0, 0] == 2


def test_texts_and_conversations_are_tokenized_each_in_its_way(chat_tokenizer: Any) -> None:
    dataset = TokenizedPrompts(["hi", HELLO], chat_tokenizer)
    assert fetch(dataset, [0])["prompt_tokens"].tolist() == [chat_tokenizer("hi")["input_ids"]]
    assert fetch(dataset, [1])["prompt_tokens"].shape == (1, len(RENDERED))


@pytest.mark.parametrize("form", [HELLO, {"messages": HELLO}, {"prompt": HELLO}, {"prompt": None, "messages": HELLO}])
def test_texts_and_conversations_go_into_one_batch(chat_tokenizer: Any, form: Any) -> None:
    text = {"prompt": "hi", "messages": None} if isinstance(form, dict) and len(form) == 2 else "hi"
    batch = fetch(TokenizedPrompts([text, form], chat_tokenizer), [1, 0, 1])
    assert batch["prompt"] == [RENDERED, "hi", RENDERED]
    assert batch["messages"] == [HELLO, None, HELLO]
    plain, rendered = (
        chat_tokenizer("hi")["input_ids"],
        chat_tokenizer(RENDERED, add_special_tokens=False)["input_ids"],
    )
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_tokens"], batch["prompt_mask"], strict=True)]
    assert rows == [rendered, plain, rendered]


def test_batches_of_texts_and_of_conversations_have_the_same_columns(chat_tokenizer: Any) -> None:
    """Also of several data sets; otherwise they could not be merged."""
    texts, chats = TokenizedPrompts(["hi", "ho"], chat_tokenizer), TokenizedPrompts([HELLO], chat_tokenizer)
    assert fetch(texts, [0]).keys() == fetch(chats, [0]).keys()
    assert fetch(texts, [0, 1])["messages"] == [None, None]
    assert fetch_from([texts, chats], [(0, 1), (1, 0)])["prompt"] == ["ho", RENDERED]


def test_texts_alone_need_no_messages(tokenizer: Any) -> None:
    assert list(fetch(TokenizedPrompts(["hi"], tokenizer), [0])) == ["prompt", "prompt_tokens", "prompt_mask"]


def test_a_raw_batch_of_texts_and_conversations(chat_tokenizer: Any) -> None:
    for data in ({"prompt": ["hi", HELLO]}, {"prompt": ["hi", None], "messages": [None, HELLO]}):
        batch = tokenize_batch(chat_tokenizer, data)
        assert (batch["prompt"], batch["messages"]) == (["hi", RENDERED], [None, HELLO])
        assert batch["prompt_mask"].sum(1).tolist() == [3, len(RENDERED)], "<unk> before the text only"


def test_a_raw_batch_without_prompts(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"the batch has no prompts: .*'messages'\. It has 'x', 'prompt'\."):
        tokenize_batch(tokenizer, {"x": [1], "prompt": None})


@pytest.mark.parametrize(
    ("data", "rendered"),
    [
        ({"prompt": [HELLO]}, True),
        ({"messages": [HELLO]}, True),
        ({"prompt": [RENDERED], "messages": [HELLO]}, True),
        ({"prompt": ["hi"], "messages": [HELLO]}, False),
        ({"prompt": ["hi"], "messages": [[*HELLO, {"role": "assistant", "content": "x"}]]}, False),
    ],
)
def test_a_batch_of_raw_prompts(chat_tokenizer: Any, data: Any, rendered: bool) -> None:
    """Text that another module has rendered gets no second beginning."""
    batch = tokenize_batch(chat_tokenizer, {**data, "other": [1]})
    text = RENDERED if rendered else "hi"
    assert (batch["prompt"], batch["other"]) == ([text], [1])
    assert batch["prompt_tokens"].tolist() == [chat_tokenizer(text, add_special_tokens=not rendered)["input_ids"]]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([*HELLO, {"role": "assistant", "content": "x"}], "prompt 0: the last message is the assistant's"),
        ([{"role": "user"}], r"prompt 0: message 0 is \{'role': 'user'\}; a message is a dict"),
        ([*HELLO, {"role": "user", "content": None}], "prompt 0: message 2 is"),
        ([{"role": "tool", "content": "x"}], "prompt 0: .*template refuses the conversation: no tools here"),
        ([], "prompt 0: a prompt is a str, or a dict"),
    ],
)
def test_conversations_that_are_wrong(chat_tokenizer: Any, messages: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fetch(TokenizedPrompts([{"messages": messages}], chat_tokenizer), [0])


def test_a_tokenizer_without_template_is_named(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"prompt 0 is a conversation, but the tokenizer of '.+' has no chat template"):
        fetch(TokenizedPrompts([HELLO], tokenizer), [0])


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": HELLO, "response": "yes"},
        {"messages": [*HELLO, {"role": "assistant", "content": "yes"}]},
        [*HELLO, {"role": "assistant", "content": "yes"}],
    ],
)
def test_conversations_as_demonstrations(chat_tokenizer: Any, pair: Any) -> None:
    batch = fetch(Demonstrations([pair], chat_tokenizer), [0])
    prompt = chat_tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    response = chat_tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert rows_of(batch) == [(prompt, [*response, 1])]
    assert (batch["prompt"], batch["response"]) == ([RENDERED], ["yes"])


@pytest.mark.parametrize("messages", [HELLO, [{"role": "assistant", "content": "x"}]])
def test_a_demonstration_ends_with_the_answer(chat_tokenizer: Any, messages: Any) -> None:
    with pytest.raises(DataError, match=r"demonstration 0: .* ends with the assistant's message"):
        fetch(Demonstrations([{"messages": messages}], chat_tokenizer), [0])


# ----------------------------------------------------------------------------------------------------- lengths

TEXTS = ["abc", "defgh", "i", "jklmno"]


@pytest.mark.parametrize(("overflow", "kept"), [("truncate_left", ["gh", "no"]), ("truncate_right", ["de", "jk"])])
def test_longer_prompts_are_cut(tokenizer: Any, overflow: Any, kept: list[str]) -> None:
    batch = fetch(TokenizedPrompts(TEXTS, tokenizer, 2, overflow), [1, 2, 3])
    assert [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["prompt_tokens"], batch["prompt_mask"], strict=True)
    ] == [kept[0], "i", kept[1]]
    assert batch["prompt"] == ["defgh", "i", "jklmno"], "the text stays whole"


def test_longer_prompts_are_dropped_and_counted(tokenizer: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"2 of 4 prompts have more than max_prompt_tokens = 3 tokens and are left out"
    ):
        dataset = TokenizedPrompts(TEXTS, tokenizer, 3, "drop")
    assert len(dataset) == 2
    assert fetch(dataset, [1, 0])["prompt"] == ["i", "abc"]


def test_nothing_is_said_where_nothing_is_dropped(tokenizer: Any, recwarn: pytest.WarningsRecorder) -> None:
    assert len(TokenizedPrompts(TEXTS, tokenizer, 6, "drop")) == 4
    assert not recwarn.list


def test_all_prompts_are_too_long(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"all 2 prompts have more than max_prompt_tokens = 2 tokens \(from 3 to 5\)"):
        TokenizedPrompts(TEXTS[:2], tokenizer, 2, "drop")


def test_a_longer_prompt_is_named(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"more tokens than max_prompt_tokens = 3: prompt 1 has 5"):
        fetch(TokenizedPrompts(TEXTS, tokenizer, 3), [0, 1])


@pytest.mark.parametrize(
    ("overflow", "advice"),
    [
        ("error", r"to truncate_left, truncate_right or drop \(which"),
        ("drop", r"to truncate_left or truncate_right \(`drop` .* come from another module\)"),
    ],
)
def test_a_batch_can_not_leave_rows_out(tokenizer: Any, overflow: Any, advice: str) -> None:
    with pytest.raises(DataError, match=rf"2 of 4 prompts .*: prompt 1 has 5, prompt 3 has 6\. Raise it.* {advice}"):
        tokenize_batch(tokenizer, {"prompt": TEXTS}, 3, overflow)
