"""Several models behind one server: which answers, loading, unloading, and what is told of them."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from guarded import endless
from pooled import SOON
from serving import ask, hosting, sdk, serving

import galago
from galago.backends.memory_estimate import memory_needed
from galago.errors import DownloadError, InvalidRequest
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

NAMES = ("scenes", "scenes-int8")
WEIGHTS = 7_678_624
QUESTION = {"question": "What is a circle?", "settings": {"max_tokens": 4}}


def pool(budget: int | None = None, **more: Any) -> ModelPool:
    return ModelPool(budget, keep_alive=None, options={"device": "cpu", **more})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two precisions of the bundled model."""
    with serving(create_app(pool(), ServerSettings(model=NAMES))) as address:
        yield address


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, timeout=60)


def answered_by(url: str, name: str | None) -> str:
    body = {"messages": ask("hello"), "max_tokens": 2, "model": name}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["model"])


def entries(url: str) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]}


def health(url: str) -> Any:
    return httpx.get(f"{url}/health").json()


def loaded(url: str) -> set[str]:
    return {model["name"] for model in health(url)["models"]}


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


# --- which model answers ---------------------------------------------------------------------


def test_a_name_selects_its_model_and_any_other_the_default(url: str) -> None:
    said = {name: answered_by(url, name) for name in ("scenes-int8", "SCENES-INT8", "scenes", "scenes-float32")}
    assert list(said.values()) == ["scenes-int8", "scenes-int8", "scenes", "scenes"]
    for name in (None, "", "gpt-4o-mini", "moondream2", "2b", "../scenes-int8", "~nobody/x", "x" * 5000, "a\0b"):
        assert answered_by(url, name) == "scenes", name
    assert loaded(url) == set(NAMES), "a request has loaded something"


def test_streams_and_fingerprints_tell_what_ran(url: str) -> None:
    client, prints = sdk(url), set()
    for name in NAMES:
        for part in client.chat.completions.create(model=name, messages=ask("hello"), max_tokens=2, stream=True):
            assert part.model == name
            prints.add(part.system_fingerprint)
    assert len(prints) == 2 and any("int8" in (one or "") for one in prints)


@pytest.mark.parametrize("stream", [False, True])
def test_a_header_tells_what_ran_in_every_dialect(url: str, stream: bool) -> None:
    chat = {"messages": ask("hello"), "max_tokens": 2}
    for path, body in (("/v1/query", QUESTION), ("/query", QUESTION), ("/v1/chat/completions", chat)):
        for asked, said in (("scenes-int8", "scenes-int8"), ("scenes", "scenes"), ("gpt-4o-mini", "scenes")):
            reply = post(url, path, **body, model=asked, stream=stream)
            assert (reply.status_code, reply.headers["x-galago-model"]) == (200, said)


def test_a_header_tells_a_name_that_no_header_can_hold(tmp_path: Path) -> None:
    name = "模型 1"
    with serving(hosting(galago.load(endless(tmp_path / name)))) as url:
        assert health(url)["model"] == name
        reply = post(url, "/v1/query", **QUESTION)
    assert unquote(reply.headers["x-galago-model"]) == name


def test_models_answer_side_by_side_as_if_alone(url: str) -> None:
    def answer(name: str) -> tuple[str, str]:
        reply = sdk(url).chat.completions.create(model=name, messages=ask("What is a circle?"), max_tokens=8)
        return reply.model, str(reply.choices[0].message.content)

    alone = {name: answer(name) for name in NAMES}
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(answer, NAMES * 8))
    assert together == [alone[name] for name in NAMES * 8]


def test_strict_names() -> None:
    with serving(create_app(pool(), ServerSettings(model=("scenes-int8",), strict_model_names=True))) as url:
        for name in ("scenes", "scenes-int4", "moondream2", "nobody"):
            reply = post(url, "/v1/query", **QUESTION, model=name)
            if name == "scenes":  # says no precision
                assert reply.status_code == 200, reply.text
            else:
                assert (reply.status_code, reply.json()["code"], reply.json()["param"]) == (
                    404,
                    "model_not_found",
                    "model",
                )
                assert "scenes-int8" in reply.json()["error"]
        assert answered_by(url, None) == "scenes-int8"
        post(url, "/v1/models/load", model="scenes-int4")
        assert answered_by(url, "scenes-int4") == "scenes-int4"


# --- loading and unloading -------------------------------------------------------------------


def test_load_use_and_unload(url: str) -> None:
    assert not entries(url).get("scenes-int4", {"loaded": False})["loaded"]
    entry = post(url, "/v1/models/load", model="Scenes-int4").json()
    assert (entry["id"], entry["precision"], entry["loaded"], entry["installed"]) == (
        "scenes-int4",
        "int4",
        True,
        True,
    )
    assert entry["memory_bytes"] == memory_needed("scenes-int4", device="cpu")
    assert entries(url)["scenes-int4"] == entry == httpx.get(f"{url}/v1/models/scenes-int4").json()
    assert answered_by(url, "scenes-int4") == "scenes-int4"
    gone = post(url, "/v1/models/unload", model="scenes-int4").json()
    assert (gone["id"], gone["loaded"], gone["unloaded"]) == ("scenes-int4", False, True)
    assert post(url, "/v1/models/unload", model="scenes-int4").json()["unloaded"] is False
    assert loaded(url) == set(NAMES) and answered_by(url, "scenes-int4") == "scenes"


def test_what_the_settings_name_comes_back_when_it_is_asked_for(url: str) -> None:
    for name in NAMES:
        assert post(url, "/v1/models/unload", model=name).json()["unloaded"]
    said = health(url)
    assert (said["status"], said["model"], said["precision"], said["models"]) == ("healthy", "scenes", "float32", [])
    assert httpx.get(f"{url}/v1/stats").json()["models"] == {}
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(lambda name: answered_by(url, name), NAMES * 3)) == list(NAMES * 3)
    assert loaded(url) == set(NAMES)


def test_a_load_is_told_as_events(url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/models/load", json={"model": "scenes", "stream": True}) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        (last,) = [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line]
    assert last["status"] == "loaded" and last["model"]["id"] == "scenes" and last["model"]["loaded"]


@pytest.mark.parametrize("end", ["loaded", "failed", "given up"])
def test_progress_of_a_download(end: str) -> None:
    """The pool's own load is replaced, as there is nothing to download here."""
    held = galago.load("scenes", device="cpu")
    asked = threading.Event()

    def fetch(name: str, progress: Any) -> galago.Model:
        if name == "moondream2":
            for done in (0, 50, 100):
                progress(done, 100)
            assert asked.wait(60)  # until the client has seen that
            if end == "failed":
                raise DownloadError("the network is gone")
            progress(100, 100)
        return held

    pool = ModelPool(2, keep_alive=None, load=fetch, need=lambda name: 1, options={"device": "cpu"})
    with serving(create_app(pool)) as url:
        body = {"model": "2b", "stream": True}
        with httpx.stream("POST", f"{url}/v1/models/load", json=body, timeout=60) as reply:
            lines = (json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line.startswith("data"))
            steps = [next(lines) for _ in range(3)]
            assert [(s["status"], s["bytes_done"], s["bytes_total"]) for s in steps] == [
                ("loading", done, 100) for done in (0, 50, 100)
            ]
            if end == "given up":
                assert post(url, "/v1/models/unload", model="moondream2").json()["unloaded"]
            asked.set()
            (last,) = lines
        assert last["status"] == ("loaded" if end == "loaded" else "failed")
        if end == "failed":
            assert (last["error"]["code"], last["error"]["message"]) == ("download_failed", "the network is gone")
        if end == "given up":
            assert (last["error"]["code"], "given up" in last["error"]["message"]) == ("load_failed", True)
            assert not entries(url)["moondream2"]["loading"]
            assert post(url, "/v1/models/load", model="moondream2").json()["loaded"], "the next load is its own"


def test_a_model_is_given_back_when_its_client_goes(tmp_path: Path) -> None:
    with serving(hosting(galago.load(endless(tmp_path / "tiny")))) as url:
        name = health(url)["model"]
        body = {"messages": ask("hello"), "max_tokens": 90_000, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            refused = post(url, "/v1/models/unload", model=name)
            assert code(refused) == (409, "model_in_use") and name in refused.text
        end = time.monotonic() + SOON
        while httpx.get(f"{url}/v1/models/{name}").json()["in_use"]:
            assert time.monotonic() < end, "the model stays in use"
        assert post(url, "/v1/models/unload", model=name).json()["unloaded"]


def test_what_does_not_fit_is_refused_with_the_figures() -> None:
    room = memory_needed("scenes", device="cpu") + 1
    with serving(create_app(pool(room))) as url:
        for stream in (False, True):
            reply = post(url, "/v1/models/load", model="moondream2", stream=stream)
            assert code(reply) == (503, "out_of_memory")
            assert "3.5 GB" in reply.text and "the budget is" in reply.text, reply.text
        assert loaded(url) == {"scenes"}, "what is idle has not made room in vain"
        assert post(url, "/v1/models/load", model="scenes-int8").json()["loaded"]
        assert loaded(url) == {"scenes-int8"}
        assert answered_by(url, "scenes-int8") == "scenes-int8" and answered_by(url, "scenes") == "scenes"


@pytest.mark.parametrize("path", ["load", "unload"])
def test_what_cannot_be_managed(url: str, path: str) -> None:
    route = f"/v1/models/{path}"
    for name in ("nobody", "/etc/hostname", "src", "./src", "", "x" * 5000):
        assert code(post(url, route, model=name)) == (404, "model_not_found"), name
    for body in ({}, {"model": 7}, {"model": None}):
        assert code(post(url, route, **body)) == (400, "invalid_value"), body
    foreign = httpx.post(f"{url}{route}", content=b'{"model": "scenes-int8"}', headers={"Content-Type": "text/plain"})
    assert code(foreign) == (400, "invalid_value")
    assert code(httpx.get(f"{url}{route}")) == (405, "method_not_allowed")
    assert httpx.get(f"{url}{route}").headers["allow"] == "POST"


def test_the_list_has_what_can_be_loaded_and_its_other_names(url: str) -> None:
    found = entries(url)
    assert list(found)[:2] == list(NAMES)
    assert (found["moondream2"]["loaded"], found["moondream2"]["precision"]) == (False, "int8")
    assert found["2b"]["root"] == "moondream2"
    assert all(entry["memory_bytes"] > 0 for entry in found.values())


# --- before the models are there -------------------------------------------------------------


def test_while_loading_and_when_that_fails() -> None:
    held = threading.Event()

    def breaks(name: str, progress: Any) -> galago.Model:
        assert held.wait(60)
        raise DownloadError("the network is gone")

    app = create_app(ModelPool(1, load=breaks, need=lambda name: 1, options={"device": "cpu"}))
    opened, app.state.startup = app.state.startup, threading.Event()
    app.state.startup.result = lambda: None
    with serving(app) as url:
        first = httpx.get(f"{url}/health")
        assert (first.status_code, first.json()["status"], first.json()["model"]) == (503, "loading", "scenes")
        reply = post(url, "/v1/chat/completions", messages=ask("hello"))
        assert code(reply) == (503, "model_loading") and int(reply.headers["retry-after"]) >= 1
        assert post(url, "/v1/query", **QUESTION).json()["code"] == "model_loading"
        assert httpx.get(url).json()["status"] == "not loaded"
        assert httpx.get(f"{url}/v1/models").status_code == 200
        held.set()
        assert "network" in str(opened.exception(60))
        last = httpx.get(f"{url}/health")
        assert (last.status_code, last.json()["status"]) == (503, "failed") and "network" in last.json()["error"]
        assert "network" in post(url, "/v1/query", **QUESTION).json()["error"]


def test_the_settings_models_must_fit_beside_each_other() -> None:
    app = create_app(pool(memory_needed("scenes", device="cpu") + 1), ServerSettings(model=NAMES))
    with pytest.raises(galago.OutOfMemory, match="are in use"), serving(app):
        pass


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="rename"):
        create_app(pool(), ServerSettings(model=("/a/model", "/b/model")))


# --- what is told ----------------------------------------------------------------------------


def test_health_and_stats_tell_of_each_model(url: str) -> None:
    for name in NAMES:
        answered_by(url, name)
    said = {model["name"]: model for model in health(url)["models"]}
    assert set(said) == set(NAMES)
    for name, precision in zip(NAMES, ("float32", "int8"), strict=True):
        assert (said[name]["precision"], said[name]["device"]) == (precision, "cpu")
        memory = said[name]["memory"]
        assert memory["set_aside_bytes"] >= memory_needed(name, device="cpu") and said[name]["kernels"]
        assert 0 <= memory["mapped_bytes"] <= memory["weights_bytes"]
        assert memory["weights_bytes"] == pytest.approx(WEIGHTS * {"float32": 4, "int8": 1.06}[precision], rel=0.03)
        assert set(memory["cache_bytes"]) == {"kv", "prefixes", "embeddings"}
    stats = httpx.get(f"{url}/v1/stats").json()
    assert set(stats["models"]) == set(NAMES) and stats["model"] == "scenes"
    text = httpx.get(f"{url}/metrics").text
    for precision in ("float32", "int8"):
        assert f'galago_requests_waiting{{model="scenes",precision="{precision}"}} 0.0' in text
    assert stats["max_queue_size"] == sum(one["limits"]["waiting"] for one in stats["models"].values())
