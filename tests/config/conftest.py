from collections.abc import Callable
from pathlib import Path

import pytest

from chatlearn.config import load_config
from chatlearn.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that places read "ppo.yaml:3"."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[[str], str]:
    """Writes ppo.yaml and returns its name."""

    def write_file(text: str) -> str:
        (folder / "ppo.yaml").write_text(text, encoding="utf-8")
        return "ppo.yaml"

    return write_file


@pytest.fixture
def problems(write: Callable[[str], str]) -> Callable[..., str]:
    """The text of the error that a YAML text with overrides gives."""

    def text_of_error(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(write(text), overrides)
        # pydantic's own words and its error must not come through.
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert "pydantic" not in str(caught.value)
        assert "Input should" not in str(caught.value)
        return str(caught.value)

    return text_of_error
