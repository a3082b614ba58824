"""The command line as a function, and what it needs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_moondream import write

from galago.cli.app import main


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that knows nothing."""
    return write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((120, 90)).save(file)
    return file


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        """The one line on standard error, which says what was wrong."""
        lines = self.err.splitlines()
        assert self.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), self
        return lines[0]


@pytest.fixture
def galago(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process."""

    def run(*args: object) -> Ran:
        code = main([str(a) for a in args])
        return Ran(code, *capsys.readouterr())

    return run
