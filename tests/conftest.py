"""What holds for all tests."""

import os
import shutil
import sys
from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from isolation import HOME, allow, noting, own_environment

# How long an example takes says how busy the machine is.
settings.register_profile("galago", deadline=None)
settings.load_profile("galago")

OUTSIDE = "a test changes nothing outside its temporary folders, and starts no process with another home"
_numbers = count()

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # Workers share the cores out, with all threads and programs that their tests start: threads that wait for each
    # other, as those of products do, are slow where others want the same cores.
    _worker, _workers = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, _cores[_worker % len(_cores) :: _workers])


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures change that are older than the test."""
    allow(tmp_path_factory.getbasetemp())
    with noting() as outside:
        yield
    assert not outside, OUTSIDE


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
    # It reads its folders once, when it is imported.
    if constants := sys.modules.get("huggingface_hub.constants"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / ".cache" / "huggingface" / "hub"))
    with noting() as outside:
        yield home
    assert not outside, OUTSIDE
    shutil.rmtree(home, ignore_errors=True)


def pytest_sessionfinish(exitstatus: int) -> None:
    """What a failed test left may be looked at."""
    if exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(HOME, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged is sent between processes, as text without halves of surrogate pairs."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
