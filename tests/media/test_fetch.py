"""Fetching from a server on this machine: bounds, redirects, and what is not public."""

import contextlib
import gzip
import io
import re
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image
from websites import hosted

from galago.errors import InvalidImage
from galago.media.fetch import fetch
from galago.media.image import load_image

BODY = io.BytesIO()
GONE = threading.Event()
Image.new("RGB", (5, 4), "red").save(BODY, "PNG")


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        routes: dict[str, Callable[[], None]] = {
            "/image": lambda: self.answer(200, BODY.getvalue()),
            "/moved": lambda: self.answer(302, b"", location="/image"),
            "/to-localhost": lambda: self.answer(
                302, b"", location=f"http://localhost:{self.server.server_port}/image"
            ),
            "/host": lambda: self.answer(200, self.headers["host"].encode()),
            "/loop": lambda: self.answer(302, b"", location="/loop"),
            "/to-file": lambda: self.answer(302, b"", location="file:///etc/passwd"),
            "/large": lambda: self.answer(200, bytes(5000)),
            "/endless": self.go_on,
            "/slow": self.dawdle,
            "/packed": lambda: self.answer(200, gzip.compress(bytes(1 << 20)), **{"content-encoding": "gzip"}),
            "/deflated": lambda: self.answer(200, zlib.compress(BODY.getvalue()), **{"content-encoding": "deflate"}),
            "/damaged": lambda: self.answer(200, gzip.compress(b"x")[:-3], **{"content-encoding": "x-gzip"}),
            "/unknown": lambda: self.answer(200, b"x", **{"content-encoding": "br"}),
            "/accepted": lambda: self.answer(200, self.headers["accept-encoding"].encode()),
            "/who": lambda: self.answer(200, self.headers["user-agent"].encode()),
        }
        routes.get(self.path, lambda: self.answer(404, b"no"))()

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), "content-type": "text/html", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def go_on(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 16))

    def dawdle(self) -> None:
        """Never to the end of the head, and never so long without a byte that one wait is too long."""
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not GONE.wait(0.01):
                self.wfile.write(b"x-a: b\r\n")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with hosted(Site) as url:
        yield url
        GONE.set()


def test_the_bytes_decide_and_redirects_are_followed(site):
    assert load_image(f"{site}/image").size == (5, 4)
    assert fetch(f"{site}/moved") == BODY.getvalue()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/none", "answered 404"),
        ("/loop", "more than 5 redirects"),
        ("/to-file", "only http"),
        ("/large", "larger than"),
    ],
)
def test_what_is_not_fetched(site, path, said):
    with pytest.raises(InvalidImage, match=said):
        fetch(site + path, max_bytes=4000)


def test_a_time_limit_over_the_whole_body(site):
    with pytest.raises(InvalidImage, match="too long"):
        fetch(f"{site}/endless", max_seconds=0.1, max_bytes=1 << 40)


def test_a_time_limit_over_the_head(site):
    with pytest.raises(InvalidImage, match="too long"):
        fetch(f"{site}/slow", max_seconds=0.2)


def test_what_is_compressed_without_being_asked_is_unpacked_within_the_bound(site):
    assert fetch(f"{site}/accepted") == b"identity"
    assert load_image(f"{site}/deflated").size == (5, 4)
    assert fetch(f"{site}/packed", max_bytes=1 << 20) == bytes(1 << 20)
    for path, said in (("/packed", "larger than"), ("/damaged", "ends early"), ("/unknown", "compressed as 'br'")):
        with pytest.raises(InvalidImage, match=said):
            fetch(site + path, max_bytes=(1 << 20) - 1)


def test_sites_are_told_who_asks(site):
    """Some turn away what calls itself by the name of a library."""
    assert re.match(rb"Galago/\d\S* \(.+\)$", fetch(f"{site}/who"))


def test_blanks_around_a_url(site):
    for url in (f"{site}/image\n", f" {site}/image\r\n", f"\t{site}/image "):
        assert fetch(url) == BODY.getvalue()


@pytest.mark.parametrize("url", ["http://", "file:///etc/passwd", "http://[broken", "http://no-such-host.invalid/a"])
def test_urls_that_lead_nowhere(url):
    with pytest.raises(InvalidImage):
        fetch(url)


def test_every_redirect_is_judged(site):
    with pytest.raises(InvalidImage, match="images are not fetched from localhost"):
        fetch(f"{site}/to-localhost", public_only=True, allowed_hosts={"127.0.0.1"})
    assert fetch(f"{site}/to-localhost", public_only=True, allowed_hosts={"127.0.0.1", "localhost"}) == BODY.getvalue()


def test_a_name_is_looked_up_once_for_judgement_and_connection(site, monkeypatch):
    """The second answer of a name server that changes its mind would lead to another address."""
    answers = iter(["127.0.0.1", "127.0.0.2"])
    port = int(site.rpartition(":")[2])
    info = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
    real = socket.getaddrinfo

    def changing(host, *args, **kwargs):
        return [(*info, (next(answers), port))] if host == "changing.test" else real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    url = f"http://changing.test:{port}/host"
    assert fetch(url, public_only=True, allowed_hosts={"changing.test"}) == f"changing.test:{port}".encode()
    assert next(answers) == "127.0.0.2"
    answers = iter(["10.0.0.1"])
    with pytest.raises(InvalidImage, match="not a public address"):
        fetch(url, public_only=True)


def test_only_public_addresses_when_asked(site):
    with pytest.raises(InvalidImage, match="not a public address"):
        fetch(f"{site}/image", public_only=True)
    with pytest.raises(InvalidImage, match="not a public address"):
        fetch(f"{site}/image".replace("127.0.0.1", "localhost"), public_only=True)
    assert fetch(f"{site}/image", public_only=True, allowed_hosts={"127.0.0.1"}) == BODY.getvalue()
