"""Fetching an image by URL, within bounds of bytes and time, and of where it may lie."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from galago.errors import InvalidImage, quoted, shortened
from galago.system.inflate import CODINGS, TooLarge, inflate, parse_codings
from galago.version import USER_AGENT

MAX_BYTES = 32 * 2**20
MAX_SECONDS = 20.0
MAX_REDIRECTS = 5


def fetch(
    url: str,
    *,
    public_only: bool = False,
    allowed_hosts: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
) -> bytes:
    """The bytes behind an http(s) URL, redirects followed; whatever the server calls them.

    Blanks around the URL do not count. All of it together takes `max_seconds` at the most, but for what the system
    spends on finding a name. What was sent compressed is unpacked, to `max_bytes` too.

    For URLs of strangers set `public_only`: then every host on the way must have public addresses only
    (no loopback, private network, link-local or cloud metadata) unless it is in `allowed_hosts`, and the
    address that was judged is the one connected to. Raises InvalidImage with the reason.
    """
    deadline = time.monotonic() + max_seconds
    url = url.strip()
    target = _parse_url(url)
    try:
        # A proxy would resolve names anew, out of reach of the judgement.
        with httpx.Client(trust_env=not public_only) as client, _close_at(deadline) as trace:
            for _ in range(MAX_REDIRECTS + 1):
                # Pictures do not shrink any further.
                headers = {"accept-encoding": "identity", "accept": "image/*, video/*, */*;q=0.8"}
                request = client.build_request("GET", target, headers={**headers, "user-agent": USER_AGENT})
                if public_only:
                    _pin_address(request, allowed_hosts)
                request.extensions["trace"] = trace
                request.extensions["timeout"] = httpx.Timeout(_seconds_left(target, deadline)).as_dict()
                response = client.send(request, stream=True)
                try:
                    if response.has_redirect_location:
                        target = _parse_url(str(target.join(response.headers["location"])))
                        continue
                    return _read_body(response, target, max_bytes, deadline)
                finally:
                    response.close()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _seconds_left(target, deadline)
        raise InvalidImage(f"could not fetch {shortened(url)}: {error or type(error).__name__}") from error
    raise InvalidImage(f"could not fetch {shortened(url)}: more than {MAX_REDIRECTS} redirects")


def _parse_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidImage(f"not a URL: {shortened(url)} ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidImage(f"cannot fetch {shortened(url)}; only http:// and https:// URLs are fetched")
    return parsed


def _seconds_left(target: httpx.URL, deadline: float) -> float:
    """Seconds until the deadline. Raises InvalidImage when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise InvalidImage(f"{shortened(str(target))} took too long to arrive")
    return left


@contextmanager
def _close_at(deadline: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Yield a trace for requests that shuts their connections down at the deadline, even in the middle of a read.

    Limits of the client's are for each wait, so a server that sends a byte now and then would go on for days.
    """
    opened: list[socket.socket] = []

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            opened.append(info["return_value"].get_extra_info("socket"))

    def end() -> None:
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline - time.monotonic(), 0), end)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()


def _read_body(response: httpx.Response, target: httpx.URL, max_bytes: int, deadline: float) -> bytes:
    if response.status_code != 200:
        raise InvalidImage(f"could not fetch {shortened(str(target))}: the server answered {response.status_code}")
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise InvalidImage(f"{shortened(str(target))} is larger than {max_bytes / 2**20:g} MiB")
        _seconds_left(target, deadline)
    _seconds_left(target, deadline)
    return _decompress(bytes(body), response, target, max_bytes)


def _decompress(body: bytes, response: httpx.Response, target: httpx.URL, max_bytes: int) -> bytes:
    """The decompressed body of a server that compresses without being asked."""
    for coding in reversed(parse_codings(response.headers.get("content-encoding", ""))):
        if coding not in CODINGS:
            raise InvalidImage(f"{shortened(str(target))} came compressed as {quoted(coding)}, which was not asked for")
        try:
            body = inflate(body, max_bytes)
        except TooLarge:
            raise InvalidImage(f"{shortened(str(target))} is larger than {max_bytes / 2**20:g} MiB") from None
        except ValueError as error:
            raise InvalidImage(f"{shortened(str(target))} cannot be unpacked as {coding}: {error}") from None
    return body


def _pin_address(request: httpx.Request, allowed_hosts: Collection[str]) -> None:
    """Send the request to an address of its host that was checked; TLS and headers keep the host's name."""
    host = request.url.host
    try:
        found = socket.getaddrinfo(host, request.url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InvalidImage(f"could not fetch an image: no such host {shortened(host)}") from None
    addresses = [str(info[4][0]) for info in found]
    if host not in allowed_hosts and not all(map(_is_public, addresses)):
        raise InvalidImage(f"images are not fetched from {shortened(host)}: it is not a public address")
    # The Host header was set when the request was built.
    request.extensions["sni_hostname"] = host
    request.url = request.url.copy_with(host=addresses[0])


# Azure's service for its virtual machines answers at a public address.
_METADATA = ipaddress.ip_address("168.63.129.16")
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that carry an IPv4 one lead wherever that leads.
        if ip.ipv4_mapped or ip in _TRANSLATED:
            return _is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if any(inner and not _is_public(str(inner)) for inner in (ip.sixtofour, *(ip.teredo or ()))):
            return False
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip != _METADATA
