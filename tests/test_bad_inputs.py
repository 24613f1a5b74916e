"""Each bad input of the table gets an error of ours that says what is wrong, where, and how to put it right.

How a user's own exception is shown, and bad inputs in more variants than a table needs: ``tests/refusals``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input_areas.cause import Cause
from bad_input_areas.program import engine_of, module
from bad_inputs import AREAS, Area, Outcome, run

from chatlearn import ChatLearnError, ConfigError

TABLE = [pytest.param(area, cause, id=cause.sentence) for area in AREAS for cause in area.causes]

DOCS = Path(__file__).parent.parent / "docs"

LIBRARIES = re.compile(
    r"Traceback|File \"|pydantic|yaml|torch|numpy|json|csv|pyarrow|transformers|\d+ validation error"
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Area, Cause], Outcome]:
    """Runs a cause, once."""
    known: dict[str, Outcome] = {}

    def outcome_of(area: Area, cause: Cause) -> Outcome:
        if cause.sentence not in known:
            known[cause.sentence] = run(area, cause, tmp_path_factory.mktemp("user"))
        return known[cause.sentence]

    return outcome_of


@pytest.mark.parametrize(("area", "cause"), TABLE)
def test_the_error_says_what_where_and_how_to_put_it_right(
    area: Area, cause: Cause, outcome: Callable[[Area, Cause], Outcome]
) -> None:
    found = outcome(area, cause)
    assert isinstance(found.error, ChatLearnError), repr(found.error)
    assert type(found.error) is cause.kind
    assert [word for word in cause.words if word not in found.message] == [], found.message


@pytest.mark.parametrize(("area", "cause"), TABLE)
def test_the_error_does_not_begin_with_a_librarys_words(
    area: Area, cause: Cause, outcome: Callable[[Area, Cause], Outcome]
) -> None:
    found = outcome(area, cause)
    assert not LIBRARIES.match(found.message)
    if area.starts_nothing:  # and no library's traceback is printed above it
        assert found.error is not None
        assert found.error.__cause__ is None
        assert found.error.__suppress_context__ or found.error.__context__ is None


@pytest.mark.parametrize(("area", "cause"), [each for each in TABLE if each.values[0].starts_nothing])
def test_nothing_has_started_before_the_error(
    area: Area, cause: Cause, outcome: Callable[[Area, Cause], Outcome]
) -> None:
    assert outcome(area, cause).started == ()


def test_what_has_started_is_seen(tmp_path: Path) -> None:
    """The check of the test above can fail: setup runs and a folder is there before this step raises."""
    policy = module("policy", forward_step=lambda self, data: data["answer"])
    late = Cause("A step raises.", ConfigError, "", "", "", lambda: engine_of(policy).learn())
    assert run(AREAS[1], late, tmp_path).started == ("policy.setup", "runs/toy")


def test_the_table_holds_as_many_causes_as_it_must() -> None:
    assert [area.title for area in AREAS if len(area.causes) < area.minimum] == []
    assert sum(area.minimum for area in AREAS) == 130


def test_every_cause_has_words_for_what_where_and_how() -> None:
    for area in AREAS:
        for cause in area.causes:
            assert all((cause.says, cause.at, cause.fix)), cause.sentence
            assert re.fullmatch(r"[A-Z`].*[.]", cause.sentence), cause.sentence


def test_no_two_causes_give_the_same_message(outcome: Callable[[Area, Cause], Outcome]) -> None:
    sentences: dict[str, str] = {}
    for area in AREAS:
        for cause in area.causes:
            message = outcome(area, cause).message
            assert sentences.setdefault(message, cause.sentence) == cause.sentence
    assert len(set(sentences.values())) == len(TABLE)


def test_messages_are_shown_without_folders(outcome: Callable[[Area, Cause], Outcome]) -> None:
    """The same on every machine, so that the documentation can hold them."""
    for area in AREAS:
        for cause in area.causes:
            message = outcome(area, cause).message
            assert not re.search(r"(?<![\w.])/\w|0x[0-9a-f]{6}|bad_input", message), message


def test_an_outdated_page_of_messages_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the page is up to date is checked by ``docs/check.py`` itself."""
    monkeypatch.syspath_prepend(DOCS)
    messages = importlib.import_module("checking.messages")
    monkeypatch.setattr(messages, "make_page", lambda: "one\ntwo\nthree\n")
    outdated = "the messages are out of date; run: python docs/check.py --write"
    assert messages.check_messages(DOCS / "error-messages.md", "one\ntwo\nthree\n") == []
    assert messages.check_messages(DOCS / "error-messages.md", "one\n2\nthree\n") == [(2, outdated)]
    assert messages.check_messages(DOCS / "error-messages.md", "one\ntwo\n") == [(3, outdated)]
    assert messages.check_messages(DOCS / "data.md", "another page\n") == []
