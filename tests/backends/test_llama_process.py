"""The life of a llama-server: tied to Galago's, and begun anew when it dies. A stand-in is run as one."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gguf", reason="needs gguf (pip install gguf)")

import tiny_gguf
from program import PATIENCE

import galago
from galago.backends.llama_server.binary import VARIABLE
from galago.cli.app import main

STANDIN = Path(__file__).parents[1] / "support" / "llama_standin.py"
IMAGE = Image.new("RGB", (60, 40), "red")
ENDLESS = galago.Sampling(max_tokens=1000)
"""The stand-in goes no further than 64 tokens, and waits for its client to leave."""


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(STANDIN))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny")


@pytest.fixture
def model(folder: Path) -> Iterator[galago.Model]:
    with galago.load(folder, limits=galago.Limits(waiting=1)) as model:
        yield model


def ask(question: str = "what?", **settings: Any) -> galago.Request:
    return galago.Request(galago.Query(question), IMAGE, **settings)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_it_ends_with_a_process_that_is_killed(folder: Path) -> None:
    script = "import galago, sys; m = galago.load(sys.argv[1]); print(m.backend._model.server._process.pid, flush=True)"
    script += "; sys.stdin.read()"
    ours = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert ours.stdin and ours.stdout
    with ours, os.fdopen(os.pidfd_open(int(ours.stdout.readline())), "rb") as child:
        ours.kill()
        assert select.select([child], [], [], PATIENCE)[0], "llama-server goes on"


def test_what_waits_is_answered_by_the_next(model: galago.Model) -> None:
    running = [model.submit(ask(sampling=ENDLESS)) for _ in range(2)]
    for run in running:
        assert isinstance(next(iter(run)), galago.TextDelta)
    waiting = model.submit(ask(sampling=galago.Sampling(max_tokens=3)))
    with pytest.raises(galago.EngineBusy):
        model.submit(ask())
    os.kill(model.backend._model.server._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    for run in running:
        with pytest.raises(galago.GenerationFailed, match="ended in the middle of the answer; it is started anew"):
            list(run)
    assert isinstance(list(waiting)[-1], galago.Done)


def test_a_request_that_kills_it_fails_alone_and_not_for_ever(model: galago.Model) -> None:
    for _ in range(4):
        with pytest.raises(galago.GenerationFailed):
            list(model.submit(ask("fall over")))
        assert model.query(IMAGE, "what?", settings={"max_tokens": 2})["answer"]
    with pytest.raises(galago.EngineFailed, match="llama-server ended with code 3, 5 times without an answer"):
        for _ in range(6):
            with pytest.raises(galago.GenerationFailed):
                list(model.submit(ask("fall over")))
    assert isinstance(model.ended, galago.EngineFailed)


def test_where_its_cache_fails_it_is_asked_again_without(model: galago.Model) -> None:
    assert model.query(IMAGE, "break the cache", settings={"max_tokens": 2})["answer"]


def test_a_request_whose_time_is_over(model: galago.Model) -> None:
    with pytest.raises(galago.DeadlineExceeded):
        list(model.submit(ask(sampling=ENDLESS, timeout=0.3)))
    assert model.query(IMAGE, "what?", settings={"max_tokens": 2})["answer"]


def test_a_model_that_is_closed_ends_what_runs(folder: Path) -> None:
    with galago.load(folder) as model:
        run = model.submit(ask(sampling=ENDLESS))
        next(iter(run))
        process = model.backend._model.server._process  # type: ignore[attr-defined]
    with pytest.raises(galago.EngineClosed):
        list(run)
    assert process.poll() is not None


def test_a_prompt_that_is_too_long_and_what_is_not_there(model: galago.Model) -> None:
    with pytest.raises(galago.ContextLengthExceeded, match="the prompt has 3010 tokens, 2048 fit"):
        list(model.submit(ask("word " * 3000)))
    for request in (ask(variant="lora"), galago.Request(galago.Query("q", reasoning=True), IMAGE)):
        with pytest.raises(galago.UnsupportedTask):
            model.submit(request)
    with pytest.raises(galago.InvalidRequest, match=r"logit_bias has the token 320; this model's are 0\.\.319"):
        model.submit(ask(sampling=galago.Sampling(logit_bias={320: 1.0})))


def test_show_tells_version_flags_and_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "llama-server 0 (stand-in): --parallel 2 --ctx-size 16384 --threads" in said and "float16" in said


def test_nothing_is_fetched_for_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    for name in ("someone/model-GGUF:Q4_K_M", "smolvlm-500m-gguf"):  # there is no hub: a look at it is another error
        with pytest.raises(galago.CheckpointError, match=f"{VARIABLE} is .*/none, which is no program"):
            galago.load(name)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_bench_counts_the_memory_of_both(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_STANDIN_HELD", "600000000")
    assert main(["bench", str(folder), "--no-ceilings", "--runs", "1", "--tokens", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens_made"] == 3 and told["kernels"].startswith("llama-server 0 (stand-in)")
    assert told["peak_rss_bytes"]["best"] > 700_000_000 <= told["peak_of_all_bytes"]["best"]
