"""Both databases for each test, and a clock that is moved by hand."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from job_clock import Clock, Open
from postgres import new_database, serving_postgres

from galago.jobs import open_store
from galago.jobs.store import JobStore


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server that need not survive a power cut."""
    with serving_postgres("fsync=off") as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database of each kind is."""
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(location: str, clock: Clock) -> Iterator[Open]:
    """Opens the database, with the hand-moved clock unless another is given."""
    with ExitStack() as stack:

        def open_it(**options: Any) -> JobStore:
            store = open_store(location, **{"clock": clock, **options})
            stack.callback(store.close)
            return store

        yield open_it


@pytest.fixture
def store(opened: Open) -> JobStore:
    return opened()
