"""A Ray cluster of this machine, for all tests that need one."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import members
from isolation import HOME

from galago.lab.eval import tasks

NEEDS_RAY = "needs Ray (pip install 'galago[ray]')"


@pytest.fixture(scope="session")
def ports() -> tuple[int, int]:
    """Of the cluster, for its own machines and for those elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="session")
def cluster(ports: tuple[int, int]) -> Iterator[str]:
    """The address of a cluster of three cores, of which workers of the tests take two."""
    if find_spec("ray") is None:
        pytest.skip(NEEDS_RAY)
    # Sockets lie in its folder, whose paths must be short.
    # Each test has a home of its own, and would look there for a key to the cluster.
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    words = [
        "start", "--head", "--block", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--num-cpus=3",
        "--include-dashboard=false",
        "--object-store-memory=200000000", f"--temp-dir={HOME / 'ray'}",
    ]  # fmt: skip
    command = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())", *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if re.search(r"Ray runtime started", line):
                break
        else:
            pytest.fail("Ray did not start")
        yield f"127.0.0.1:{ports[0]}"
    finally:
        for one in members(process.pid):
            os.kill(one, signal.SIGKILL)
        process.wait()


@pytest.fixture(autouse=True)
def at_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests with the cluster find it as a person's commands do."""
    if "cluster" in request.fixturenames:
        monkeypatch.setenv("RAY_ADDRESS", request.getfixturevalue("cluster"))
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 drawn scenes."""
    folder = tmp_path_factory.mktemp("drawn")
    for case in tasks.load_task("scenes").cases(Path(), 80, 7):
        if not (path := folder / f"scene-{case.place:05}.png").exists() and len(list(folder.iterdir())) < 40:
            case.media.save(path)  # type: ignore[union-attr]
    return folder
