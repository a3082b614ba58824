"""What the files of packaging/ say, and the server that recipes are tried on."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser
from PIL import Image
from serving import hosting, serving

import galago

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions and their values of each of the Dockerfile's stages, those of the stages below it included."""
    found: dict[str, list[tuple[str, str]]] = {}
    with (ROOT / "packaging" / "Dockerfile").open("rb") as file:
        structure: list[dict[str, Any]] = DockerfileParser(fileobj=file).structure
    for line in structure:
        if line["instruction"] == "COMMENT":
            continue
        if line["instruction"] == "FROM":
            base, _, name = line["value"].split()
            current = found[name] = list(found.get(base, []))
        current.append((line["instruction"], line["value"]))
    return found


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a server with the bundled model."""
    with serving(hosting(galago.load("scenes"))) as address:
        yield address


@pytest.fixture(scope="session")
def picture() -> dict[str, Any]:
    """The `image_url` of a message's part."""
    file = BytesIO()
    Image.open(ROOT / "examples" / "scene.png").convert("RGB").save(file, "JPEG", quality=95)
    return {"url": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"}


@pytest.fixture(scope="session")
def serve_help() -> str:
    command = [sys.executable, "-m", "galago.cli.app", "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
