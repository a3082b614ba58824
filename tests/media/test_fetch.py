"""Fetching from a server on this machine: bounds, redirects, and what is not public."""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from galago.errors import InvalidImage
from galago.media.fetch import _is_public, fetch
from galago.media.image import load_image

BODY = io.BytesIO()
Image.new("RGB", (5, 4), "red").save(BODY, "PNG")


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        routes: dict[str, Callable[[], None]] = {
            "/image": lambda: self.answer(200, BODY.getvalue()),
            "/moved": lambda: self.answer(302, b"", location="/image"),
            "/loop": lambda: self.answer(302, b"", location="/loop"),
            "/to-file": lambda: self.answer(302, b"", location="file:///etc/passwd"),
            "/large": lambda: self.answer(200, bytes(5000)),
            "/endless": self.go_on,
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

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


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


@pytest.mark.parametrize("url", ["http://", "file:///etc/passwd", "http://[broken", "http://no-such-host.invalid/a"])
def test_urls_that_lead_nowhere(url):
    with pytest.raises(InvalidImage):
        fetch(url)


def test_only_public_addresses_when_asked(site):
    with pytest.raises(InvalidImage, match="not a public address"):
        fetch(f"{site}/image", public_only=True)
    with pytest.raises(InvalidImage, match="not a public address"):
        fetch(f"{site}/image".replace("127.0.0.1", "localhost"), public_only=True)
    assert fetch(f"{site}/image", public_only=True, allowed_hosts={"127.0.0.1"}) == BODY.getvalue()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert _is_public(address) == public
