"""Which replica a picture goes to."""

import base64
import gzip
import json
from collections import Counter
from typing import Any

import anyio
import pytest

from galago.cluster.affinity import picture_key, ranked
from galago.cluster.ingress import Ingress

PICTURE = base64.b64encode(bytes(range(256)) * 4).decode()
OTHER = base64.b64encode(bytes(range(1, 256)) * 4).decode()


def chat(url: str, text: str) -> bytes:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode()


BODIES = {
    "chat": lambda picture, text: chat(f"data:image/png;base64,{picture}", text),
    "moondream": lambda picture, text: json.dumps(
        {"image_url": f"data:image/png;base64,{picture}", "q": text}
    ).encode(),
    "ollama": lambda picture, text: json.dumps({"prompt": text, "images": [picture]}).encode(),
    "escaped": lambda picture, text: chat(f"data:image/png;base64,{picture}", text).replace(b"/", b"\\/"),
    "url": lambda picture, text: chat(f"https://example.org/{picture[-9:]}.png", text),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_picture_is_known_whatever_is_asked_about_it(kind: str) -> None:
    body = BODIES[kind]
    assert picture_key(body(PICTURE, "What is it?")) == picture_key(body(PICTURE, "And where?")) is not None
    assert picture_key(body(PICTURE, "What is it?")) != picture_key(body(OTHER, "What is it?"))


def test_what_has_no_picture_has_no_key() -> None:
    assert picture_key(b"") is picture_key(json.dumps({"messages": "How are you? " * 90}).encode()) is None


def test_where_a_replica_goes_only_its_pictures_move() -> None:
    four = ["a", "b", "c", "d"]
    pictures = [str(number) for number in range(400)]
    before = {key: ranked(key, four, str)[0] for key in pictures}
    after = {key: ranked(key, four[:3], str)[0] for key in pictures}
    assert {key for key in pictures if before[key] != after[key]} == {key for key in pictures if before[key] == "d"}
    assert min(Counter(before.values()).values()) > 60


class Handle:
    """In place of Ray Serve's: what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, scope: Any, body: bytes, picture: str | None) -> Any:
        self.asked.append(picture)
        return self.reply()

    async def reply(self) -> Any:
        yield {"type": "http.response.start", "status": 200, "headers": []}
        yield {"type": "http.response.body", "body": b"{}"}


async def through(ingress: Ingress, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    pieces = [body[:100], body[100:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    await ingress(scope, receive, send)


def test_a_compressed_body_is_looked_into() -> None:
    handle = Handle()
    ingress, body = Ingress(handle, 1 << 20), chat(f"data:image/png;base64,{PICTURE}", "What is it?")
    anyio.run(through, ingress, body, [])
    anyio.run(through, ingress, gzip.compress(body), [(b"content-encoding", b"gzip")])
    assert handle.asked == [picture_key(body)] * 2
