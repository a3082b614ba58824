"""More connections than there may be: those are told so, and those that were there notice nothing."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any
from urllib.error import HTTPError

import httpx
import openai
import pytest
import tiny_moondream as tiny
from guarded import PATIENCE, Process, Wire
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import NO_CLIENT, ask, sdk

MOST = 8
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
LARGE = Image.effect_noise((2000, 1500), 90).convert("RGB")
"""A photo that no socket's buffer holds."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tiny.write(tmp_path_factory.mktemp("connections") / "tiny")
    with Process("--model", folder, "--max-connections", str(MOST), "--grace-s", "0") as process:
        yield process


@pytest.fixture
def kept(server: Process) -> Iterator[Wire]:
    """One of the connections of a server that has all that it may have."""
    until(lambda: metric(httpx.get(f"{server.url}/metrics").content, "galago_connections") == 1)
    with ExitStack() as stack:
        wires = [stack.enter_context(closing(Wire(("127.0.0.1", server.port)))) for _ in range(MOST)]
        for wire in wires[1:]:
            wire.send(HALF)
        yield wires[0]


def got(wire: Wire, path: bytes) -> tuple[int, bytes]:
    wire.send(GET % path)
    status, _, body = wire.reply()
    return status, body


def metric(text: bytes, name: str) -> float | None:
    """None where the server has not answered, for want of room."""
    if text.startswith(b"{"):
        return None
    families = text_string_to_metric_families(text.decode())
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end


def test_one_too_many_is_told_before_it_says_anything(server: Process, kept: Wire) -> None:
    with closing(Wire(("127.0.0.1", server.port))) as wire:
        status, headers, body = wire.reply()
        assert (status, headers["connection"], headers["content-type"]) == (503, "close", "application/json")
        error = json.loads(body)["error"]
        assert (error["code"], error["type"]) == ("too_many_connections", "server_error")
        assert str(MOST) in error["message"] and int(headers["retry-after"]) >= 1
        assert wire.rest() == b""
    assert json.loads(got(kept, b"/health")[1])["status"] == "healthy"


def test_clients_understand_it(server: Process, kept: Wire) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        sdk(server.url).chat.completions.create(model="any", messages=ask("hello"))
    assert (raised.value.status_code, raised.value.code) == (503, "too_many_connections")
    md = pytest.importorskip("moondream", reason=NO_CLIENT)
    with pytest.raises(HTTPError) as refused:
        md.vl(endpoint=f"{server.url}/v1").caption(LARGE)
    with refused.value as reply:
        assert reply.code == 503 and b"too_many_connections" in reply.read()
    assert got(kept, b"/health")[0] == 200


def test_they_are_counted(server: Process, kept: Wire) -> None:
    name = "galago_connections_refused_total"
    before = got(kept, b"/metrics")[1]
    refused, there = metric(before, name), metric(before, "galago_connections")
    assert refused is not None and there is not None and there >= MOST
    for _ in range(3):
        with closing(Wire(("127.0.0.1", server.port))) as wire:
            assert wire.reply()[0] == 503
    assert metric(got(kept, b"/metrics")[1], name) == refused + 3


def test_a_flood_goes_by(server: Process, kept: Wire) -> None:
    """Connections by the hundred, none of which closes: most get no answer, and all are gone by themselves."""
    with ExitStack() as stack:
        wires = [stack.enter_context(closing(Wire(("127.0.0.1", server.port)))) for _ in range(300)]
        replies = [wire.rest() for wire in wires]
        assert got(kept, b"/health")[0] == 200
    assert all(reply == b"" or reply.startswith(b"HTTP/1.1 503 ") for reply in replies)
    assert any(replies)


def test_a_place_that_is_free_is_taken(server: Process) -> None:
    until(lambda: httpx.get(f"{server.url}/health").status_code == 200)


@pytest.mark.parametrize(
    ("options", "given", "status", "code"),
    [
        (["--api-key", "right"], {"api_key": "wrong"}, 401, "invalid_api_key"),
        (["--body-limit-mb", "0.01"], {}, 413, "request_too_large"),
    ],
)
def test_a_refusal_reaches_who_is_still_sending(
    tmp_path_factory: pytest.TempPathFactory, options: list[str], given: dict[str, Any], status: int, code: str
) -> None:
    """Moondream's client asks for the connection to be closed, and sends all before it reads."""
    md = pytest.importorskip("moondream", reason=NO_CLIENT)
    folder = tiny.write(tmp_path_factory.mktemp("early") / "tiny")
    with Process("--model", folder, *options) as server:
        for _ in range(5):
            with pytest.raises(HTTPError) as refused:
                md.vl(endpoint=f"{server.url}/v1", **given).caption(LARGE)
            with refused.value as reply:
                assert reply.code == status and code.encode() in reply.read()
        server.stop()
        assert server.ended() == 0
