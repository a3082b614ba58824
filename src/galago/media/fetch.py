"""Fetching an image by URL, within bounds of bytes and time, and of where it may lie."""

import time
from collections.abc import Collection

import httpx

from galago.errors import InvalidImage, quoted, shortened
from galago.system.addresses import NoSuchHost, NotPublic, close_at, find_addresses, pin_address
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
        with httpx.Client(trust_env=not public_only) as client, close_at(deadline) as trace:
            for _ in range(MAX_REDIRECTS + 1):
                # Pictures do not shrink any further.
                headers = {"accept-encoding": "identity", "accept": "image/*, video/*, */*;q=0.8"}
                request = client.build_request("GET", target, headers={**headers, "user-agent": USER_AGENT})
                if public_only:
                    pin_address(request, _find_address(target, allowed_hosts))
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


def _find_address(target: httpx.URL, allowed_hosts: Collection[str]) -> str:
    """The address to fetch from. Raises InvalidImage where there is none, or none that is allowed."""
    host = target.host
    try:
        return find_addresses(host, target.port, allowed_hosts)[0]
    except NoSuchHost:
        raise InvalidImage(f"could not fetch an image: no such host {shortened(host)}") from None
    except NotPublic:
        raise InvalidImage(f"images are not fetched from {shortened(host)}: it is not a public address") from None


def _seconds_left(target: httpx.URL, deadline: float) -> float:
    """Seconds until the deadline. Raises InvalidImage when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise InvalidImage(f"{shortened(str(target))} took too long to arrive")
    return left


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
