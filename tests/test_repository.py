"""The repository stands alone: a clone of it has all that its files speak of."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = {
    "__pycache__",
    ".git",
    ".venv",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "build",
    "dist",
    "runs",
}
CLIMBS = re.compile(r"(?<![\w./])(?:\.\./)+[\w.-]+")
PARENTS = re.compile(r"__file__\)(?:\.resolve\(\)|\.absolute\(\))?\.parents\[(\d+)\]((?:\.parent)*)")
BEYOND = re.compile(r"\b(?:REPO|ROOT)\.parent\b")


def texts() -> Iterator[tuple[Path, str]]:
    """Every file of ours that is text, and what it says."""
    for file in ROOT.rglob("*"):
        path = file.relative_to(ROOT)
        if MADE.isdisjoint(path.parts) and file.is_file() and file != Path(__file__):
            try:
                yield path, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def outside(path: Path, text: str) -> Iterator[str]:
    """What a file refers to that lies outside the repository."""
    depth = len(path.parts) - 1
    for found in CLIMBS.finditer(text):
        # What tries to climb out, in tests of what must not let it, names the system's files.
        if found[0].count("../") > depth and "etc" not in found[0]:
            yield found[0]
    yield from (found[0] for found in PARENTS.finditer(text) if int(found[1]) + found[2].count(".parent") > depth)
    yield from (found[0] for found in BEYOND.finditer(text))


def test_no_file_refers_to_a_folder_outside() -> None:
    assert {(str(path), ref) for path, text in texts() for ref in outside(path, text)} == set()


def test_what_refers_outside_is_seen() -> None:
    beyond = ".".join(("REPO", "parent"))
    assert [*outside(Path("CONTRIBUTING.md"), "default `../elsewhere/golden`")] == ["../elsewhere"]
    assert [*outside(Path("tests/x/a.py"), 'Path(__file__).parents[3] / "elsewhere"')] == ["__file__).parents[3]"]
    assert [*outside(Path("tests/x/a.py"), 'Path(__file__).parents[2] / "examples"; "../support"')] == []
    assert [*outside(Path("tests/x/a.py"), f"{beyond} / 'elsewhere'")] == [beyond]


def test_what_goes_into_a_source_archive_is_named_from_the_root() -> None:
    """A pattern without its slash takes what is called so anywhere, the tests' golden vectors among it."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    named = build["targets"]["sdist"]["include"]
    assert all(path.startswith("/") and not path.startswith("/tests") for path in named), named
