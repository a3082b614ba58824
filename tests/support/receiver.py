"""A stand-in for what gets callbacks: it remembers each, and fails as often and in such ways as it is told."""

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Literal

from websites import hosted

Way = Literal["status", "close", "slow"]
WAYS: tuple[Way, ...] = ("status", "close", "slow")


@dataclass(frozen=True)
class Received:
    path: str
    headers: Mapping[str, str]
    """by names in small letters"""
    body: bytes
    failed: Way | None
    """how it was answered, or None for 200"""


@dataclass
class Receiver:
    """Its address, and all that came, in order: also what was then answered by a failure."""

    url: str
    received: list[Received] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def taken(self) -> list[Received]:
        """What was answered by 200."""
        return [one for one in self.received if one.failed is None]

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Received]:
        """What was taken, once it is that many; fails where they do not come in time."""
        with self.changed:
            came = self.changed.wait_for(lambda: len(self.taken) >= count, seconds)
        assert came, f"{len(self.taken)} of {count} callbacks came in {seconds:g} seconds"
        return self.taken


@contextmanager
def receiving(
    share: float = 0.0, ways: Sequence[Way] = WAYS, status: int = 503, slow: float = 60.0, seed: int = 0
) -> Iterator[Receiver]:
    """Run a receiver that answers 200, but for a share (0..1) of the requests, which it fails in one of the ways.

    It answers `status`, closes without a word, or answers 200 after `slow` seconds (or at its end, if that is sooner).
    Which requests fail, and how, is drawn by the seed.
    """
    draw, over, drawing = random.Random(seed), threading.Event(), threading.Lock()

    class Site(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            body = self.rfile.read(length)
            if len(body) < length:  # whoever sent it was killed in the midst: it came to nothing
                self.close_connection = True
                return
            with drawing:
                failed = draw.choice(ways) if draw.random() < share else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            with receiver.changed:
                receiver.received.append(Received(self.path, headers, body, failed))
                receiver.changed.notify_all()
            if failed == "close":
                self.close_connection = True
                return
            if failed == "slow":
                over.wait(slow)
            with suppress(OSError):
                self.send_response(status if failed == "status" else 200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            pass

    with hosted(Site) as url:
        receiver = Receiver(url)
        try:
            yield receiver
        finally:
            over.set()
