"""What the layers around the app do together: which refusal comes first, and what every reply and log line has."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_moondream as tiny
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.testclient import TestClient

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.guard.stopping import InFlight
from galago.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
ORIGIN = {"Origin": "http://localhost:3000"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "POST"}
ELSEWHERE = {"Origin": "http://evil.example"}


class Opened:
    """An app with some routes of the tests beside its own, and a client of it without sockets."""

    def __init__(self, app: FastAPI, in_flight: InFlight, http: TestClient) -> None:
        self.app, self.in_flight, self.http = app, in_flight, http


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[Opened]:
    model, in_flight = tiny.open_model(folder), InFlight()
    pool = ModelPool(1, keep_alive=None, load=lambda name, progress: model, need=lambda name: 1)
    app = create_app(pool, ServerSettings(model=(model.name,), **settings), in_flight)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a detail for the log")

    @app.get("/half")
    async def half() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("too late")

        return StreamingResponse(parts())

    @app.get("/count")
    async def count() -> int:
        return len(in_flight)

    @app.get("/health/{more}")
    async def below_health(more: str) -> int:
        return len(in_flight)

    @app.get("/varied")
    async def varied() -> Response:
        return Response("x", headers={"Vary": "Accept"})

    @app.get("/endless")
    async def endless(http: Request) -> None:
        in_flight.cancel()
        await asyncio.Event().wait()

    with TestClient(app, base_url="http://localhost") as client:
        app.state.startup.result()
        yield Opened(app, in_flight, client)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("layers") / "tiny")


@pytest.fixture
def plain(folder: Path) -> Iterator[Opened]:
    with opened(folder, host="localhost") as it:
        yield it


@pytest.fixture
def keyed(folder: Path) -> Iterator[Opened]:
    with opened(folder, api_keys=("key",)) as it:
        yield it


def code_of(reply: httpx.Response) -> str:
    return str(reply.json()["error"]["code"])


def test_the_first_of_several_refusals_is_told(plain: Opened, keyed: Opened) -> None:
    plain.in_flight.stopping = keyed.in_flight.stopping = True
    key = {"Authorization": "Bearer key"}
    strange = {"Host": "evil.example"}
    for at, headers, status, code in (
        (plain, {**strange, **ELSEWHERE, "Origin": "http://other.example"}, 421, "host_not_allowed"),
        (plain, ELSEWHERE, 403, "origin_not_allowed"),
        (plain, {}, 503, "shutting_down"),
        (keyed, ELSEWHERE, 403, "origin_not_allowed"),
        (keyed, {}, 401, "invalid_api_key"),
        (keyed, key, 503, "shutting_down"),
    ):
        reply = at.http.post(CHAT, json={}, headers=headers)
        assert (reply.status_code, code_of(reply)) == (status, code), headers


def test_a_preflight_needs_no_key_but_a_host_that_is_known(plain: Opened, keyed: Opened) -> None:
    for at in (plain, keyed):
        assert at.http.options(CHAT, headers=PREFLIGHT).status_code == 200
        at.in_flight.stopping = True
        assert at.http.options(CHAT, headers=PREFLIGHT).status_code == 200
    assert plain.http.options(CHAT, headers={**PREFLIGHT, "Host": "evil.example"}).status_code == 421
    # Without Origin it is a request as any, which only lacks a key.
    assert keyed.http.options(CHAT, headers={"Access-Control-Request-Method": "POST"}).status_code == 503
    keyed.in_flight.stopping = False
    assert keyed.http.options(CHAT).status_code == 405


def test_every_reply_to_a_page_of_this_machine_can_be_read_by_it(keyed: Opened) -> None:
    for path, headers, status in (
        ("/v1/models", {}, 401),
        ("/health", {}, 200),
        ("/broken", {"X-Moondream-Auth": "key"}, 500),
        ("/endless", {"X-Moondream-Auth": "key"}, 503),
        ("/none", {"X-Moondream-Auth": "key"}, 404),
    ):
        reply = keyed.http.get(path, headers={**ORIGIN, **headers})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, ORIGIN["Origin"])
        assert "X-Request-Id" in reply.headers["access-control-expose-headers"]
    keyed.in_flight.stopping = True
    reply = keyed.http.get("/v1/models", headers={**ORIGIN, "X-Moondream-Auth": "key"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (503, ORIGIN["Origin"])


def test_a_reply_may_be_kept_for_one_origin_alone(plain: Opened) -> None:
    for headers in ({}, ORIGIN, ELSEWHERE):
        reply = plain.http.get("/varied", headers=headers)
        assert reply.headers.get_list("vary") == ["Accept, Origin"]
        assert ("access-control-allow-origin" in reply.headers) == (headers == ORIGIN)
        assert ("access-control-expose-headers" in reply.headers) == bool(headers)


def test_what_is_refused_has_an_id_and_a_line_with_the_path_in_its_usual_form(
    plain: Opened, keyed: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "galago.server.guard")
    for at, method, path, headers, status in (
        (plain, "POST", "//v1//query/", {"Host": "evil.example"}, 421),
        (plain, "POST", "//v1//query/", ELSEWHERE, 403),
        (keyed, "GET", "//v1//models/tiny/", {}, 401),
        (plain, "OPTIONS", "//v1//query/", PREFLIGHT, 200),
    ):
        caplog.clear()
        reply = at.http.request(method, f"http://localhost{path}", headers={**headers, "X-Request-Id": "mine"})
        assert (reply.status_code, reply.headers["x-request-id"]) == (status, "mine")
        (line,) = [getattr(record, "galago.fields") for record in caplog.records if record.message == "request"]
        assert (line["method"], line["status"], line["gone"]) == (method, status, False)
        assert line["path"] == path.replace("//", "/").rstrip("/")
        assert line["bytes_out"] == len(reply.content)


def test_only_health_itself_is_not_under_way(keyed: Opened) -> None:
    key = {"X-Moondream-Auth": "key"}
    assert keyed.http.get("/count", headers=key).json() == 1
    assert keyed.http.get("/health/more", headers=key).json() == 1
    assert keyed.http.get("/health/more").status_code == 401
    assert len(keyed.in_flight) == 0
    keyed.in_flight.stopping = True
    for path in ("/health", "//readyz/"):
        reply = keyed.http.get(f"http://localhost{path}")
        assert (reply.status_code, reply.json()["status"]) == (503, "stopping")
        assert "connection" not in reply.headers
    reply = keyed.http.get("/count", headers=key)
    assert (reply.status_code, reply.headers["connection"]) == (503, "close")
    assert len(keyed.in_flight) == 0


def test_one_that_is_cancelled_is_told_so(plain: Opened) -> None:
    reply = plain.http.get("/endless")
    assert (reply.status_code, code_of(reply)) == (503, "shutting_down")
    assert "shut down before" in reply.json()["error"]["message"] and len(plain.in_flight) == 0


def test_a_failure_after_the_reply_has_begun_is_raised(plain: Opened, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "galago.server.guard")
    with pytest.raises(RuntimeError, match="too late"):
        plain.http.get("/half")
    (line,) = [getattr(record, "galago.fields") for record in caplog.records if record.message == "request"]
    assert (line["status"], line["path"], line["bytes_out"]) == (200, "/half", 4)
    assert len(plain.in_flight) == 0
