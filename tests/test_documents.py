"""The documents say what is so: links, sections, commands, options, layouts and messages."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
from options_page import PAGE, options_page

from globe_stream.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = sorted(
    path
    for folder in ("globe_stream", "benchmarks", "tests", "pipelines")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".toml", ".j2"}
    and path.name not in ("test_documents.py", "structure.py")
)
OUTSIDE = re.compile(
    r"\b(?:method|contract|architecture|field-notes|checkpoint-layouts)\.md\b|warm-start guidelines"
    r"|bank workflow|am-loop|training-focus|field notes|method notes|seeds' Route"
)
CITATION = re.compile(r"docs/design\.md, sections? ([^.;)]*)")


@cache
def headings(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE))


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def prose(path: Path) -> str:
    """The text of `path` on one line, comment signs dropped."""
    return re.sub(r"\s*\n\s*(?:# )?", " ", path.read_text())


def test_nothing_outside_the_repository_is_cited():
    found = {
        str(path.relative_to(ROOT)): OUTSIDE.findall(prose(path))
        for path in [*SOURCES, *PAGES]
        if OUTSIDE.search(prose(path))
    }
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_cited_sections_exist(path):
    for cited in CITATION.findall(prose(path)):
        for name in re.split(r", | and ", cited.replace('"', "")):
            known = any(name.startswith(h) for h in headings(ROOT / "docs/design.md"))
            assert known or not name[:1].isupper(), f"docs/design.md has no section {name!r}"


def test_cited_pages_exist():
    for path in SOURCES:
        for page in re.findall(r"docs/[\w-]+\.md", prose(path)):
            assert (ROOT / page).exists(), f"{path}: {page}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{page.name}: {target}"
        if part:
            assert part in map(anchor, headings(other)), f"{page.name}: {target}"


def commands_in(text: str) -> list[list[str]]:
    """Every `globe-stream ...` in code, as words."""
    code = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in code for line in block.splitlines()]
    lines += [
        re.sub(r"\s+", " ", span)
        for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]
    found = [line[at:] for line in lines for at in [line.find("globe-stream ")] if at >= 0]
    return [shlex.split(line.replace("\\|", "|"), comments=True)[1:] for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page):
    for words in commands_in(page.read_text()):
        if not words[0].islower():
            continue  # COMMAND, and the like
        assert words[0] in cli.commands, f"{page.name}: {words}"
        options = {
            name
            for option in cli.commands[words[0]].params
            if isinstance(option, click.Option)
            for name in (*option.opts, "--help")
        }
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"{page.name}: {words}"


def test_the_options_page_is_the_command_line():
    hint = "run `python tests/helpers/options_page.py`"
    assert PAGE.read_text() == options_page(), hint


def test_messages_in_troubleshooting_exist():
    texts = {
        node.value
        for path in (ROOT / "globe_stream").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    page = (ROOT / "docs/troubleshooting.md").read_text()
    first = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| ")]
    for message in (text for cell in first for text in re.findall(r"`([^`]+)`", cell)):
        assert any(message in text for text in texts) or message.startswith("--"), message


def test_the_readme_is_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
