"""galago config, and servers that are set by a file."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "galago.toml"
    file.write_text('port = 9000\napi_keys = ["a-long-secret", "short"]\nmax_queue = 7\n')
    file.chmod(0o600)
    return file


def test_json_tells_values_and_sources(galago: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAGO_MAX_QUEUE", "5")
    ran = galago("config", "scenes-int8", "--config", file, "--no-remote-images", "--json")
    [told] = ran.json
    assert ran.err == ""
    assert told["port"] == {"value": 9000, "from": "galago.toml: port"}
    assert told["max_queue"] == {"value": 5, "from": "GALAGO_MAX_QUEUE"}
    assert told["remote_images"] == {"value": False, "from": "--no-remote-images"}
    assert told["model"] == {"value": ["scenes-int8"], "from": "--model"}
    assert told["api_keys"] == {"value": ["…cret", "…"], "from": "galago.toml: api_keys"}
    assert told["timeout"] == {"value": None, "from": "default"}


def test_the_table_has_a_line_for_each(galago: Any, file: Path) -> None:
    lines = [line.split() for line in galago("config", "--config", file).out.splitlines()]
    assert ["port", "9000", "galago.toml:", "port"] in lines and ["host", "127.0.0.1", "default"] in lines
    assert ["api_keys", "…cret,", "…", "galago.toml:", "api_keys"] in lines
    [told] = galago("config", "--config", file, "--json").json
    assert [line[0] for line in lines] == list(told)


def test_warnings_and_errors(galago: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAGO_PROT", "1")
    ran = galago("config")
    assert ran.code == 0 and ran.err == "warning: GALAGO_PROT is not a setting; did you mean GALAGO_PORT?\n"
    monkeypatch.delenv("GALAGO_PROT")
    for command in ("config", "serve"):
        assert "--port must be a whole number in 0..65535, not 70000" in galago(command, "--port", 70000).error
        assert "none.toml" in galago(command, "--config", "none.toml").error


@pytest.mark.parametrize("command", [("galago.cli.app", "serve"), ("galago.server",)])
def test_a_server_that_is_set_by_everything(tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "served.toml"
    file.write_text(
        'model = "scenes-int8"\nport = 0\nmax_queue = 7\nbody_limit_mb = 0.001\nstrict_model_names = true\n'
    )
    arguments = [sys.executable, "-m", *command, "--config", str(file), "--max-queue", "9", "--device", "cpu"]
    environment = os.environ | {"GALAGO_MAX_QUEUE": "8", "GALAGO_TIMEOUT": "33"}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        # Where there are no kernels, warnings come first.
        line = next((said for said in process.stderr if said.startswith("listening")), "")
        try:
            with httpx.Client(base_url=line.split()[2]) as http:
                stats = http.get("/v1/stats").json()
                health = http.get("/health").json()
                other = http.post("/v1/query", json={"question": "hello", "model": "other"})
                large = http.post("/v1/query", content=b" " * 1100)
        finally:
            process.send_signal(signal.SIGTERM)
    assert (stats["max_queue_size"], stats["default_timeout"]) == (9, 33)
    assert (health["model"], health["precision"]) == ("scenes-int8", "int8")
    assert (other.status_code, large.status_code) == (404, 413)
