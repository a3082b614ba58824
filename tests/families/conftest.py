"""Tiny random models that many tests share."""

from collections.abc import Iterator

import pytest
from tiny_moondream import open_model, write

from galago.model import Model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with open_model(write(tmp_path_factory.mktemp("tiny"))) as made:
        yield made


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with open_model(write(tmp_path_factory.mktemp("legacy"), "legacy")) as made:
        yield made
