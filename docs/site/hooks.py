"""What mkdocs is told beyond mkdocs.yml, so that the same pages read well on GitHub and on the site.

- A link that leads out of docs/ gets a page on the site, made from the file: ``repository/<path>``. Markdown becomes a
  page, any other text is shown as it is, and a folder lists its files.
- Comments that the checker of the pages reads (docs/check.py) become titles of their blocks, or go.
- Anchors are made as GitHub makes them.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Files outside of docs/ that the navigation has, whether a page links to them or not."""

_FENCE = re.compile(r"^(?P<indent>[ ]*)```(?P<language>\w*)[ ]*\n.*?^(?P=indent)```[ ]*$\n?", re.M | re.S)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_MARK = re.compile(r"^[ ]*<!-- (?P<name>.*?)(?:: (?P<value>.*?))? -->[ ]*\n", re.M)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash", ".json": "json"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors like GitHub's; Mermaid as the theme draws it."""
    from pymdownx.superfences import fence_code_format

    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside of docs/ that a page links to, directly or over another such page."""
    from mkdocs.structure.files import File

    pages = [DOCS / file.src_uri for file in files.documentation_pages()]
    for path in outside_files(pages):
        files.append(File.generated(config, page_uri(path), content=page_of(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page as the site shows it."""
    if page.file.src_uri == "index.md":
        page.meta.setdefault("hide", ["navigation", "toc"])  # it has nothing beside it
    if page.file.src_uri == "error-messages.md":
        markdown = markdown.replace("\n```text\n", "\n``` { .text .wrapped }\n")
    source = source_of(page.file.src_uri)
    if source.is_file() and source.suffix != ".md":
        return markdown  # a program, shown as it is
    return with_titles(with_links(markdown, page.file.src_uri, source))


def slug(title: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


def outside_files(pages: list[Path]) -> list[Path]:
    """Files and folders of the repository outside of docs/ that pages lead to, in order of path."""
    found: set[Path] = set()
    waiting = [*pages, *(ROOT / name for name in ALWAYS)]
    found.update(waiting[len(pages) :])
    while waiting:
        page = waiting.pop()
        for target in _targets(page):
            if target not in found and _is_outside(target):
                found.add(target)
                waiting.append(target)
    return sorted(found)


def page_uri(path: Path) -> str:
    """Where the site has a file of the repository, as a path below docs/."""
    if not _is_outside(path):
        return path.relative_to(DOCS).as_posix()
    name = re.sub(r"(^|/)\.", r"\1dot.", path.relative_to(ROOT).as_posix())  # mkdocs leaves hidden folders out
    if path.is_dir():
        return f"repository/{name}/index.md"
    return f"repository/{name}" if path.suffix == ".md" else f"repository/{name}.md"


def source_of(uri: str) -> Path:
    """The file or folder that a page of the site is made from."""
    if not uri.startswith("repository/"):
        return DOCS / uri
    name = re.sub(r"(^|/)dot\.", r"\1.", uri.removeprefix("repository/"))
    for path in (ROOT / name, ROOT / name.removesuffix(".md"), ROOT / name.removesuffix("/index.md")):
        if path.exists():
            return path
    raise FileNotFoundError(f"{uri} is made from no file of the repository")


def page_of(path: Path) -> str:
    """The Markdown of a file or folder outside of docs/, its links as in the file."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        files = [(each.relative_to(path), each.relative_to(path.parent)) for each in _texts(path)]
        return f"# {name}\n\n" + "".join(f"- [{text.as_posix()}]({link.as_posix()})\n" for text, link in files)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# {name}\n\n````{_LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````\n"


def with_links(markdown: str, uri: str, source: Path) -> str:
    """Has links to files of the repository lead to their pages on the site."""

    def changed(link: re.Match[str]) -> str:
        target, hash_, anchor = link["target"].partition("#")
        if not target or re.match(r"\w+:", target):
            return link[0]
        path = Path(os.path.normpath(source.parent / target))
        if not path.exists():
            return link[0]  # mkdocs warns of it
        relative = posixpath.relpath(page_uri(path), posixpath.dirname(uri) or ".")
        return f"]({relative}{hash_}{anchor})"

    return _in_prose(markdown, lambda prose: _LINK.sub(changed, prose))


def with_titles(markdown: str) -> str:
    """Turns the checker's comments into titles of the blocks that they stand before."""
    parts: list[str] = []
    raised = title = ""
    for is_block, text in _parts(markdown):
        if not is_block:
            marks = [(mark["name"], mark["value"]) for mark in _MARK.finditer(text)]
            title = _title(dict(marks))
            parts.append(_MARK.sub("", text))
            continue
        first, _, rest = text.partition("\n")
        language = first.strip().removeprefix("```")
        if not title and language == "text" and raised:
            title, raised = raised, ""
        elif language == "python":
            raised = "The error" if title.startswith("Raises") else ""
        parts.append(f'{first} title="{title}"\n{rest}' if title and language else text)
        title = ""
    return "".join(parts)


def _title(marks: dict[str, str | None]) -> str:
    if "file" in marks:
        return f"{marks['file']}"
    if "raises" in marks:
        return f"Raises {marks['raises']}"
    return "Output" if "output" in marks else "Fails" if "fails" in marks else ""


def _parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """Whether it is a fenced block, and its text; together they are the page."""
    end = 0
    for fence in _FENCE.finditer(markdown):
        yield False, markdown[end : fence.start()]
        yield True, fence[0]
        end = fence.end()
    yield False, markdown[end:]


def _in_prose(markdown: str, change: Callable[[str], str]) -> str:
    return "".join(text if is_block else change(text) for is_block, text in _parts(markdown))


def _targets(page: Path) -> Iterator[Path]:
    """What a page links to in this repository."""
    if page.is_dir():
        yield from _texts(page)
    elif page.suffix == ".md":
        links: list[Any] = []
        _in_prose(page.read_text(encoding="utf-8"), lambda prose: links.extend(_LINK.finditer(prose)) or prose)
        for link in links:
            target = link["target"].partition("#")[0]
            path = Path(os.path.normpath(page.parent / target))
            if target and not re.match(r"\w+:", target) and path.exists():
                yield path


def _texts(folder: Path) -> list[Path]:
    """Python and YAML files and pages below a folder."""
    suffixes = {*_LANGUAGES, ".md"}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes)


def _is_outside(path: Path) -> bool:
    """Whether mkdocs does not have the file by itself: it has what docs/ holds, but for programs."""
    return path.is_relative_to(ROOT) and not (path.is_relative_to(DOCS) and path.suffix != ".py")
