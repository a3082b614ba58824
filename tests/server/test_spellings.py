"""Requests as strangers' programs spell them: targets, HEAD, compressed bodies, byte-order marks, no JSON at all."""

import codecs
import gzip
import http.client
import json
import zlib
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving import GOLDEN, hosting, load, serving

import galago

HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"
PICTURE = (GOLDEN / "small" / "images" / "im_40x40.png").read_bytes()


def raw(url: str, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
    """The status of an answer to this very target, and its JSON."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
    connection.putrequest(method, target, skip_host="host" in headers)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read() or b"{}")


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/models", "/stats", "/v1/stats", "/metrics", "/docs"])
def test_head_of_what_can_be_got(http: httpx.Client, path: str) -> None:
    got, asked = http.get(path), http.head(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]
    assert http.head("/none").status_code == 404 and http.head(CHAT).status_code == 405


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "//v1//chat/completions//", "/chat/completions/"])
def test_slashes_do_not_count(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=HELLO).status_code == 200
    assert http.get("/v1/models/").json()["object"] == "list"


def test_models_without_the_prefix(http: httpx.Client, model: galago.Model) -> None:
    assert http.get("/models").json() == http.get("/v1/models").json()
    assert http.get(f"/models/{model.name}").json()["id"] == model.name
    for path in ("/models/load", "/models/unload"):
        assert http.get(path).status_code == 405
        assert http.post(path, json={"model": "nobody"}).status_code == 404


def test_a_target_in_absolute_form(url: str) -> None:
    body = json.dumps(HELLO).encode()
    assert raw(url, "POST", f"{url}{CHAT}", body)[0] == 200
    assert raw(url, "GET", f"{url}/v1/models?a=b")[0] == 200
    assert raw(url, "GET", url)[0] == 200
    # The name in it is the one that counts (RFC 9112), also for who may ask.
    status, said = raw(url, "POST", f"http://evil.example{CHAT}", body, host="localhost")
    assert (status, said["error"]["code"]) == (421, "host_not_allowed")
    assert raw(url, "POST", f"http://localhost{CHAT}", body, host="evil.example")[0] == 200


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("Deflate", zlib.compress)]
)
def test_a_compressed_body(http: httpx.Client, coding: str, pack: Any) -> None:
    body = json.dumps(HELLO).encode()
    for path, sent in ((CHAT, body), ("/v1/query", b'{"question": "hi", "settings": {"max_tokens": 1}}')):
        assert http.post(path, content=pack(sent), headers={"Content-Encoding": coding}).status_code == 200
    twice = {"Content-Encoding": f"gzip, {coding}"}
    assert http.post(CHAT, content=pack(gzip.compress(body)), headers=twice).status_code == 200
    assert http.post(CHAT, content=body, headers={"Content-Encoding": "identity"}).status_code == 200


def test_a_body_that_cannot_be_unpacked(http: httpx.Client) -> None:
    body = json.dumps(HELLO).encode()
    for coding, sent, status, code in (
        ("br", body, 415, "unsupported_encoding"),
        ("gzip", body, 400, "invalid_json"),
        ("gzip", gzip.compress(body)[:-4], 400, "invalid_json"),
        ("gzip", gzip.compress(body) * 2, 400, "invalid_json"),
    ):
        reply = http.post(CHAT, content=sent, headers={"Content-Encoding": coding})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text


def test_unpacking_ends_at_the_limit_of_bodies() -> None:
    with serving(hosting(load("small"), body_limit_mb=1 / 1024)) as url:
        bomb = gzip.compress(b"[" + bytes(1 << 20))
        assert len(bomb) < 1 << 12
        reply = httpx.post(url + CHAT, content=bomb[:1000], headers={"Content-Encoding": "gzip"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "body",
    [
        codecs.BOM_UTF8 + json.dumps(HELLO).encode(),
        codecs.BOM_UTF16_LE + json.dumps(HELLO).encode("utf-16-le"),
        codecs.BOM_UTF16_BE + json.dumps(HELLO).encode("utf-16-be"),
        codecs.BOM_UTF32_LE + json.dumps(HELLO).encode("utf-32-le"),
    ],
)
def test_json_as_programs_on_windows_write_it(http: httpx.Client, body: bytes) -> None:
    assert http.post(CHAT, content=body).status_code == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/caption", "/v1/query"])
def test_what_is_no_json_is_called_what_it_is(http: httpx.Client, path: str) -> None:
    form = {"data": {"question": "What?"}}
    for sent, kind in (
        ({"files": {"image": PICTURE}, **form}, "multipart/form-data"),
        ({"content": PICTURE}, "a picture or a video itself"),
        (form, "a form"),
        ({"content": b""}, "empty"),
    ):
        reply = http.post(path, **sent)  # type: ignore[arg-type]
        assert reply.status_code == 400
        assert kind in reply.text and "JSON object" in reply.text and "data: URLs" in reply.text
