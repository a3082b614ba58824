"""One server for all tests that need nothing special of theirs."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from moondream_wire import QUESTION
from serving import GOLDEN, data_url, hosting, load, sdk, serving

import galago


@pytest.fixture(scope="session")
def model() -> galago.Model:
    return load("small")


@pytest.fixture(scope="session")
def url(model: galago.Model) -> Iterator[str]:
    with serving(hosting(model)) as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str) -> openai.OpenAI:
    return sdk(url)


@pytest.fixture(scope="session")
def bundled() -> Iterator[openai.OpenAI]:
    """A client of a server with the bundled model, whose answers mean something."""
    with serving(hosting(galago.load())) as address:
        yield sdk(address)


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """The golden cases by their id."""
    with open(GOLDEN / "small" / "expected.json", encoding="utf-8") as file:
        return {case["id"]: case for case in json.load(file)["cases"]}


@pytest.fixture(scope="session")
def photo() -> str:
    """A data: URL of one of the golden images."""
    return data_url("im_500x120.png")


@pytest.fixture
def body(photo: str) -> dict[str, Any]:
    """A body of Moondream's API with enough for every skill."""
    return {"image_url": photo, "question": QUESTION, "object": "person", "eye": [0.5, 0.5], "settings": {}}
