"""The commands of docs/multi-node.md do what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from chatlearn.cli import main
from chatlearn.launch.command import WAYS

PAGE = (Path(__file__).parents[2] / "docs" / "multi-node.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.M | re.S)
    for command in block.replace("\\\n", " ").splitlines()
    if command.startswith("chatlearn launch")
]


def test_the_page_shows_every_way() -> None:
    assert {words[2] for words in COMMANDS} == set(WAYS)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[2])
def test_a_command_of_the_page(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (hosts,) = re.findall(r"^```text\n(# hosts\.txt\n.*?)^```", PAGE, flags=re.M | re.S)
    (tmp_path / "hosts.txt").write_text(hosts)
    if words[2] == "hosts":
        words = [*words[:3], "--dry-run", *words[3:]]
    assert main(words[1:]) == 0
    output = capsys.readouterr().out
    if words[2] == "hosts":
        assert re.findall(r"^# (.*):", output, flags=re.M) == ["node-1", "me@node-2", "node-3", "node-1"]
    else:
        assert Path(output.split()[-1]).stat().st_size > 0


def test_every_option_of_the_page_exists() -> None:
    known = {flag for way in WAYS.values() for flags, _ in way.options for flag in flags}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", PAGE))
    assert named - known <= {"--resume", "--cluster", "--generate", "--head"}
