"""A stand-in for the hub on a loopback port, with the files of one model, and others that are published there."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from galago.store.catalog import Hosted, find

ENTRY = find("moondream2")
WEIGHTS, TOKENIZER = bytes(range(256)) * 1200, b'{"version": "1.0"}'


class Shelf:
    """What the stand-in has, how it misbehaves, and what was asked of it."""

    def __init__(self) -> None:
        assert isinstance(ENTRY.source, Hosted)
        contents = [WEIGHTS] * len(ENTRY.source.weights) + [TOKENIZER]
        self.files = {
            f"/{r.repo}/resolve/{r.revision}/{r.file}": c for r, c in zip(ENTRY.source.files, contents, strict=True)
        }
        self.error: tuple[int, str] | None = None
        """status and X-Error-Code of every answer"""
        self.break_after: int | None = None
        """bytes of the first body after which the connection ends"""
        self.hold_after: int | None = None
        """bytes of a body after which nothing more comes"""
        self.held, self.let_go = threading.Event(), threading.Event()
        self.damaged = False
        self.asked: list[str] = []
        """method, path and range"""

    def publish(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Make files the newest commit of a branch; the commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        listing = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        for revision in (branch, commit):
            self.files[f"/api/models/{repo}/revision/{revision}"] = json.dumps(listing).encode()
        self.files |= {f"/{repo}/resolve/{commit}/{name}": body for name, body in files.items()}
        return commit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf: Shelf

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        shelf, path = self.shelf, unquote(self.path.partition("?")[0])
        asked = self.headers.get("Range", "")
        shelf.asked.append(f"{self.command} {path} {asked}".strip())
        body = shelf.files.get(path)
        if shelf.error or body is None:
            branches = path.rpartition("/")[0] + "/"
            lacks = "RevisionNotFound" if any(there.startswith(branches) for there in shelf.files) else "RepoNotFound"
            status, code = shelf.error or (404, lacks if path.startswith("/api/") else "EntryNotFound")
            self.head(status, 0, {"X-Error-Code": code})
            return
        # As the hub: git's hash for small files, SHA-256 for large ones.
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        etag = hashlib.sha256(body).hexdigest() if len(body) > 1000 else git
        revision = path.rpartition("/resolve/")[2].split("/")[0]
        commit = revision if len(revision) == 40 else hashlib.sha1(revision.encode()).hexdigest()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), min(int(last or len(body)) + 1, len(body))
        extra = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if asked:
            extra["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        self.head(206 if asked else 200, stop - start, extra)
        if self.command == "HEAD":
            return
        if shelf.damaged and "/resolve/" in path:
            body = bytes(len(body))
        if shelf.break_after is not None:
            body, shelf.break_after, self.close_connection = body[: shelf.break_after], None, True
        if shelf.hold_after is not None:
            self.wfile.write(body[start : shelf.hold_after])
            shelf.held.set()
            shelf.let_go.wait()
            self.close_connection = True
            return
        self.wfile.write(body[start:stop])

    def head(self, status: int, length: int, extra: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **extra}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def at_an_address(shelf: Shelf) -> Iterator[str]:
    """The stand-in's URL."""
    handler = type("Bound", (Handler,), {"shelf": shelf})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            shelf.let_go.set()
            server.shutdown()
            thread.join()
