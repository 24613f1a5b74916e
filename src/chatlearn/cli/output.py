"""Where commands write."""

from __future__ import annotations

from pathlib import Path

from chatlearn.errors import ConfigError


def write(text: str, out: Path | None) -> None:
    """Prints the text, or writes it to a file, whose folder is made if need be.

    Raises:
        ConfigError: The file can't be written.
    """
    if out is None:
        print(text)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out.absolute()} can't be written: {error.strerror}. Give another path after -o.") from None
