"""README.md and docs/: what they link to is there, flags that they name exist, and the plot is that of the results."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from plot_peers import plot, read_figures

from galago.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)]*)\)")
OTHERS = {"--help", "--no-deps", "--preload", "--head", "--address"}
"""Flags of no command of ours, or of all."""


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can name, as GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path) -> Iterator[str]:
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page: Path) -> None:
    assert [*broken(page)] == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Here it is\n\n[a](#here-it-is) [b](#there) [c](none.md) [d](page.md#here) [e](https://e.org)")
    assert [*broken(page)] == ["#there", "none.md", "page.md#here"]


def test_each_page_is_linked_from_the_readme() -> None:
    links = LINK.findall(prose(PAGES[0]))
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(links)


def flags(command: Any) -> set[str]:
    own = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    return own.union(*map(flags, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
    assert named - flags(typer.main.get_command(app)) - OTHERS == set()


def test_the_plot_is_that_of_the_results() -> None:
    assert (ROOT / "docs" / "speed.svg").read_text(encoding="utf-8") == plot(read_figures())
