"""Commands that are ended in the middle of their work: what they exit with, and that nothing of it is left."""

import json
import re
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import sparse
from commands import Command, files_in
from hub_standin import WEIGHTS, Shelf, at_an_address

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
LOCKS = {"packed/.lock"}
"""Stay, since others may hold them."""
ASKED = {"model": "moondream2", "stream": True}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first load in int8 packs it for about a second."""
    return sparse.write(tmp_path_factory.mktemp("large") / "large")


def quiet(said: str) -> bool:
    return "Traceback" not in said and "terminate called" not in said


@pytest.mark.parametrize("number", [TERM, INT, HUP])
def test_serve_while_it_packs(large: Path, tmp_path: Path, number: int) -> None:
    with Command("serve", large, "--precision", "int8", "--port", 0, GALAGO_CACHE=tmp_path) as command:
        command.until("Packing large to int8")
        command.send(number)
        code, said = command.ended()
    assert code == 128 + number and quiet(said), said
    assert set(files_in(tmp_path)) <= LOCKS


def test_a_worker_while_it_packs(large: Path, tmp_path: Path) -> None:
    packed, database = tmp_path / "packed", tmp_path / "jobs.db"
    with Command("worker", large, "--precision", "int8", "--jobs-db", database, GALAGO_CACHE=packed) as command:
        command.until("Packing large to int8")
        command.send(TERM)
        code, said = command.ended()
    assert code == 128 + TERM and quiet(said) and "working" not in said, said
    assert set(files_in(packed)) <= LOCKS


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_question_while_the_model_is_packed(large: Path, photo: Path, tmp_path: Path, number: int) -> None:
    cache = tmp_path / "cache"
    with Command("caption", photo, "-m", large, "--precision", "int8", GALAGO_CACHE=cache) as command:
        command.until("Packing large to int8")
        command.send(number)
        code, said = command.ended()
    assert code == 128 + number and quiet(said), said
    assert set(files_in(cache)) <= LOCKS


def test_quantize(large: Path, tmp_path: Path) -> None:
    with Command("quantize", large, "--to", "int8", "--out", tmp_path / "new" / "small") as command:
        command.until("Packing large to int8")
        command.send(TERM)
        code, said = command.ended()
    assert code == 128 + TERM and quiet(said), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [("models", "pull", "moondream2"), ("serve", "moondream2", "--port", "0")])
@pytest.mark.parametrize("number", [TERM, INT])
def test_a_download(tmp_path: Path, args: tuple[str, ...], number: int) -> None:
    shelf = Shelf()
    shelf.hold_after = 100_000
    with at_an_address(shelf) as url:
        hub = {"HF_ENDPOINT": url, "HF_HOME": tmp_path / "hf", "GALAGO_CACHE": tmp_path / "cache"}
        with Command(*args, **hub) as command:
            assert shelf.held.wait(60)
            command.send(number)
            code, said = command.ended()
        assert code == 128 + number and quiet(said), said
        # Of the model nothing is there, and the next download has all of it.
        assert [name for name in files_in(tmp_path) if "/blobs/" in name or "/snapshots/" in name] == []
        shelf.hold_after = None
        with Command("models", "pull", "moondream2", **hub) as again:
            assert again.ended()[0] == 0
        [weights] = (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
        assert weights.read_bytes() == WEIGHTS


@pytest.mark.slow
def test_a_load_that_a_client_asked_for(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.hold_after = 100_000
    with (
        at_an_address(shelf) as url,
        Command("serve", "scenes", "--port", 0, "--grace-s", 2, HF_ENDPOINT=url, HF_HOME=tmp_path) as server,
    ):
        server.until(" with scenes")
        address = re.findall(r"http://[\d.:]+", server.said.decode())[-1]
        with httpx.stream("POST", f"{address}/v1/models/load", json=ASKED, timeout=60) as reply:
            assert shelf.held.wait(60)
            server.send(TERM)
            # A reply that has begun is cut off where the network keeps the load from telling why it ended.
            with suppress(httpx.RemoteProtocolError):
                told = reply.read().decode()
                assert reply.status_code == 503 or "shutting_down" in told
        code, said = server.ended()
    assert code == 0 and quiet(said), said
    assert [name for name in files_in(tmp_path) if "/blobs/" in name or "/snapshots/" in name] == []


def test_bench_ends_the_process_that_it_measures() -> None:
    with Command("bench", "scenes", "--no-ceilings", "--runs", 10_000, "--precision", "float32") as command:
        command.until("Measuring scenes float32 ")
        command.send(TERM)
        code, said = command.ended()
    assert code == 128 + TERM and quiet(said), said


@pytest.mark.slow
def test_eval_keeps_its_answers_and_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    asked = ("eval", "scenes", "-m", checkpoint, "--range", 1, "--out", out)
    with Command(*asked, "--count", 8) as command:
        command.until("/8")
        command.send(TERM)
        code, said = command.ended()
    assert code == 128 + TERM and quiet(said), said
    assert f"the answers so far are in {out}" in said
    settings, *answers = map(json.loads, out.read_bytes().splitlines())
    assert settings["task"] == "scenes" and answers
    assert files_in(tmp_path) == [out.name]
    with Command(*asked, "--count", 8) as again:
        code, said = again.ended()
    assert code == 0 and f"goes on after {len(answers)} answers" in said


def test_a_second_signal_ends_it_at_once(large: Path, photo: Path, tmp_path: Path) -> None:
    with Command("caption", photo, "-m", large, "--precision", "int8", GALAGO_CACHE=tmp_path / "cache") as command:
        command.until("Packing large to int8")
        for _ in range(20):  # however far the first one has come
            command.send(TERM)
        assert command.ended()[0] in (-TERM, 128 + TERM)
