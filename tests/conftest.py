"""What holds for all tests."""

import shutil
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from isolation import HOME, noting, own_environment

# How long an example takes says how busy the machine is.
settings.register_profile("galago", deadline=None)
settings.load_profile("galago")

_numbers = count()


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and caches for each test and the processes that it starts; it fails if it changes anything else."""
    home = HOME / f"home-{next(_numbers)}"
    home.mkdir()
    for name, value in own_environment(home).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    if constants := sys.modules.get("huggingface_hub.constants"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / ".cache" / "huggingface" / "hub"))
    with noting() as outside:
        yield home
    assert not outside, "a test changes only what is in its temporary folders"
    shutil.rmtree(home, ignore_errors=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """What a failed test left may be looked at."""
    shutil.rmtree(HOME, ignore_errors=True)
