"""The unit of systemd, judged by systemd, and the key that every way of serving takes from the environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest


@pytest.fixture
def unit(root: Path, tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine."""
    text = (root / "packaging" / "galago.service").read_text()
    assert text.count("ExecStart=/opt/galago/bin/galago ") == 1
    file = tmp_path / "galago.service"
    file.write_text(text.replace("ExecStart=/opt/galago/bin/galago", f"ExecStart={sys.executable}"))
    return file


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (apt install systemd)")
@pytest.mark.parametrize(
    "check",
    [["verify", "--man=no", "--recursive-errors=no"], ["security", "--offline=true", "--threshold=20", "--no-pager"]],
    ids=lambda check: check[0],
)
def test_systemd_finds_nothing_wrong_and_little_exposed(unit: Path, check: list[str]) -> None:
    ran = subprocess.run(["systemd-analyze", *check, unit], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout[-600:]


def test_a_key_from_the_environment_is_asked_for(serve_help: str) -> None:
    assert "--api-key" in serve_help
    command = [sys.executable, "-m", "galago.cli.app", "serve", "scenes", "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "GALAGO_API_KEYS": "open-sesame"}
    ) as process:
        assert process.stderr is not None
        try:
            line = next(said for said in process.stderr if said.startswith("listening on"))
            asked = httpx.Client(base_url=line.split()[2])
            assert asked.get("/v1/models").status_code == 401
            assert asked.get("/v1/models", headers={"Authorization": "Bearer open-sesame"}).status_code == 200
            assert asked.get("/health").status_code == 200
        finally:
            process.terminate()
