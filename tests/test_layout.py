"""Which part of the package may import which, and that CONTRIBUTING.md knows them all."""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("errors", "version"),
    ("values", "choices"),
    ("system",),
    ("media",),
    ("request",),
    ("kernels",),
    ("precision",),
    ("nn",),
    ("checkpoint",),
    ("engine",),
    ("families",),
    ("store",),
    ("backends",),
    ("answers", "arguments", "messages"),
    ("batch",),
    ("model", "aio"),
    ("fleet",),
    ("jobs",),
    ("",),  # galago itself: the public face
    ("lab",),
    ("server",),
    ("cluster",),
    ("ray",),
    ("cli",),
)
"""Folders and files of src/galago, the lowest first: each imports from its own floor and from those below."""
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
PROGRAMS = {"galago.server.__main__"}
"""What is run and never imported, by whatever name suits a person."""


def package() -> dict[str, str]:
    """The sources of all modules by name."""
    files = (ROOT / "src" / "galago").rglob("*.py")
    names = {file: ".".join(file.relative_to(ROOT / "src").with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file.read_text() for file, name in names.items()}


def imports(source: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules of the package that one imports: at once, later, or for types alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from inside & modules.keys()
            if not inside <= modules.keys():
                yield node.module


def room(module: str) -> str:
    return (*module.split("."), "")[1]


def upward(modules: Mapping[str, str]) -> list[str]:
    """What imports from a higher floor."""
    pairs = ((m, i) for m, source in modules.items() if m not in PROGRAMS for i in imports(source, modules))
    return sorted({f"{m} imports {i}" for m, i in pairs if LEVEL[room(i)] > LEVEL[room(m)]})


def circle(modules: Mapping[str, str]) -> list[str]:
    """Modules each of which imports the next, and the last the first."""
    try:
        TopologicalSorter({m: set(imports(source, modules)) for m, source in modules.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_nothing_imports_from_a_higher_floor() -> None:
    assert {room(module) for module in package()} == LEVEL.keys()
    assert upward(package()) == []


def test_no_modules_import_each_other() -> None:
    assert circle(package()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import galago.cli.b",
        "from galago.cli import b",
        "from galago.cli.b import x",
        "def f():\n  import galago.cli.b",
    ],
)
def test_an_import_is_seen_wherever_it_is(line: str) -> None:
    made = {"galago.cli": "", "galago.cli.b": "from galago.nn.a import y", "galago.nn.a": line}
    assert upward(made) == ["galago.nn.a imports galago.cli.b"]
    assert set(circle(made)) == {"galago.nn.a", "galago.cli.b"}


def test_every_folder_and_file_at_the_top_has_a_line() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listing = re.findall(r"^      (\w+(?:\.py|/))", text, re.M)
    there = {f"{room(m)}{'/' if (ROOT / 'src' / 'galago' / room(m)).is_dir() else '.py'}" for m in package()} - {"/"}
    assert set(listing) - {"__init__.py", "assets/"} == there
