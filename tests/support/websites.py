"""Sites to fetch from, on this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def hosted(site: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a site that answers so."""
    with ThreadingHTTPServer(("127.0.0.1", 0), site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def served(file: bytes) -> Iterator[str]:
    """The address of a site that has this file everywhere but at /none."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if self.path == "/none" else 200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(file)

        def log_message(self, *args: object) -> None:
            pass

    with hosted(Site) as url:
        yield url
