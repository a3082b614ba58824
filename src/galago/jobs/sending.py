"""Webhooks: which addresses may be called back, what is sent there, how it is signed, and one attempt to deliver it."""

import base64
import json
import os
import ssl
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, get_args

import httpx

from galago.errors import InvalidRequest, quoted, shortened
from galago.system.addresses import NoSuchHost, NotPublic, close_at, find_addresses, pin_address
from galago.version import USER_AGENT

MAX_URL = 2048
"""Characters of a callback's address."""
MAX_REPLY = 4096
"""Bytes that are read of a receiver's reply, and thrown away: so much it may write before the connection is closed."""
TIMEOUT = 30.0
"""Seconds that one attempt may take in all."""
KEY_BYTES = (24, 64)
"""Length of a secret's key, as Standard Webhooks demands."""
PLAIN_HEADERS = {"Content-Type": "application/json"}
"""The headers of a callback that is not signed."""

Event = Literal["job.queued", "job.started", "job.done", "job.failed", "job.cancelled"]
EVENTS: tuple[Event, ...] = get_args(Event)
PREFIX = "whsec_"


# --- what is sent -----------------------------------------------------------------------------


def event_body(event: Event, job_json: Mapping[str, Any], at: datetime) -> str:
    """The body that tells of an event, as Standard Webhooks recommends: type, timestamp, data.

    `at` has a time zone. The text is what `sign` signs and `send` sends: keep it as it is, to repeat a delivery.
    """
    moment = at.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    return json.dumps({"type": event, "timestamp": moment, "data": job_json}, allow_nan=False)


def check_secret(secret: str) -> None:
    """Raise InvalidRequest, in a sentence without the secret, unless `sign` can sign with it.

    It is one key or several, separated by blanks: base64 of 24 to 64 bytes each, `whsec_` before it or not.
    """
    _keys(secret)
    _signer()


def sign(secret: str, id: str, at: datetime, body: str) -> dict[str, str]:
    """The headers of a delivery in the form of Standard Webhooks, with one signature for each key of the secret.

    `id` names the delivery and stays the same when it is repeated; `at` is the time of this attempt, with a time zone:
    receivers refuse what is more than five minutes old. Raises InvalidRequest as check_secret does.
    """
    webhook = _signer()
    # The package takes whatever it is given for a time in UTC.
    moment = at.astimezone(UTC)
    signatures = [webhook(key).sign(id, moment, body) for key in _keys(secret)]
    return {
        **PLAIN_HEADERS,
        "webhook-id": id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _keys(secret: str) -> list[bytes]:
    words = secret.split()
    if not words:
        raise _bad_secret("the webhook secret is empty")
    keys = []
    for number, word in enumerate(words, 1):
        which = "the webhook secret" if len(words) == 1 else f"number {number} of the {len(words)} webhook secrets"
        text = word.removeprefix(PREFIX)
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError:
            raise _bad_secret(f"{which} is not base64") from None
        least, most = KEY_BYTES
        if not least <= len(key) <= most:
            raise _bad_secret(f"{which} has {len(key)} bytes, and {least} to {most} are allowed")
        keys.append(key)
    return keys


def _bad_secret(said: str) -> InvalidRequest:
    return InvalidRequest(f"{said}; make one by: openssl rand -base64 32", "webhook_secret")


def _signer() -> Any:
    try:
        from standardwebhooks import Webhook
    except ModuleNotFoundError:
        raise InvalidRequest(
            "webhooks are signed by standardwebhooks: pip install 'galago[jobs]'", "webhook_secret"
        ) from None
    return Webhook


# --- where it is sent -------------------------------------------------------------------------


def check_callback(url: str, allowed_hosts: Collection[str] = ()) -> None:
    """Raise InvalidRequest in one sentence unless this address may be called back.

    It is an http(s) URL without credentials, whose host has public addresses only or is in `allowed_hosts`. Nothing is
    connected to but the system's name server, and not even that for a host in `allowed_hosts`, which may not be up yet.
    It takes as long as the system takes to find a name: not for an event loop.
    """
    target = _parse_callback(url)
    if target.host not in allowed_hosts:
        try:
            find_addresses(target.host, target.port, allowed_hosts)
        except (NoSuchHost, NotPublic) as error:
            raise _refusal(target, error) from None


def host_of(url: str) -> str:
    """The host of an address that is to be called back. Raises InvalidRequest if it is none."""
    return _parse_callback(url).host


def _parse_callback(url: str) -> httpx.URL:
    if not isinstance(url, str) or len(url) > MAX_URL:
        raise _invalid(f"must be text of up to {MAX_URL} characters")
    try:
        target = httpx.URL(url.strip())
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _invalid(f"is not a URL: {quoted(url)} ({error})") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise _invalid(f"must be an http:// or https:// URL, not {quoted(url)}")
    if target.userinfo:
        # Not quoted: it would lie in logs.
        raise _invalid("must have no user name or password in it; what is sent is signed instead")
    if target.port is not None and not 0 < target.port < 2**16:
        raise _invalid(f"must have a port of 1 to 65535, not {target.port}")
    return target


def _invalid(said: str) -> InvalidRequest:
    return InvalidRequest(f"callback_url {said}", "callback_url")


def _refusal(target: httpx.URL, error: NoSuchHost | NotPublic) -> InvalidRequest:
    host = shortened(target.host)
    if isinstance(error, NoSuchHost):
        return _invalid(f"has a host that does not exist: {host}")
    return _invalid(f"may not lead to {host}: it is not a public address, nor a host that this server allows")


# --- sending it -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """What became of one attempt: the status that the receiver answered, or None; and why it failed, or None."""

    status: int | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the receiver took it: any 2xx."""
        return self.status is not None and self.error is None


def send(
    url: str,
    body: str,
    headers: Mapping[str, str] = PLAIN_HEADERS,
    *,
    allowed_hosts: Collection[str] = (),
    timeout: float = TIMEOUT,
) -> Sent:
    """POST the body, once, within `timeout` seconds in all. What the receiver or the address does wrong is returned.

    The address is checked again as by check_callback, and what was checked is connected to: its host's name is looked
    up once. TLS is verified against the name, with the certificates that httpx has or those that SSL_CERT_FILE or
    SSL_CERT_DIR name. Redirects are not followed, proxies of the environment not used.
    """
    deadline = time.monotonic() + timeout
    late = Sent(error=f"no answer within {timeout:g} seconds")
    try:
        target = _parse_callback(url)
        addresses = _find_in_time(target, allowed_hosts, timeout)
    except InvalidRequest as error:
        return Sent(error=str(error))
    except TimeoutError:
        return late
    with httpx.Client(verify=_tls(), trust_env=False) as client, close_at(deadline) as trace:
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                return late
            request = client.build_request("POST", target, content=body.encode(), headers=_all_headers(headers))
            pin_address(request, address)
            waits = httpx.Timeout(seconds, connect=seconds / left)
            request.extensions |= {"trace": trace, "timeout": waits.as_dict()}
            try:
                response = client.send(request, stream=True)
            except httpx.HTTPError as error:
                if left > 1 and isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    continue  # nothing was sent yet: the host's next address may answer
                is_late = isinstance(error, httpx.TimeoutException) or time.monotonic() >= deadline
                return late if is_late else _failure(target, error)
            _read_some(response, deadline)
            return _judge(response)
    raise AssertionError("a host that is found has an address")


def _find_in_time(target: httpx.URL, allowed_hosts: Collection[str], seconds: float) -> list[str]:
    """find_addresses, or TimeoutError: the system's own limit may be far longer, and nothing can interrupt it."""
    found: Future[list[str]] = Future()

    def find() -> None:
        try:
            found.set_result(find_addresses(target.host, target.port, allowed_hosts))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=find, daemon=True, name="galago-callback-name").start()
    try:
        return found.result(seconds)
    except (NoSuchHost, NotPublic) as error:
        raise _refusal(target, error) from None


def _all_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close", **headers}


def _read_some(response: httpx.Response, deadline: float) -> None:
    """Read a short reply, so that the receiver can finish; a longer one, or a slow one, is cut. The status is known."""
    with suppress(httpx.HTTPError):
        size = 0
        for chunk in response.iter_raw():
            size += len(chunk)
            if size >= MAX_REPLY or time.monotonic() >= deadline:
                break
    with suppress(httpx.HTTPError):
        response.close()


def _judge(response: httpx.Response) -> Sent:
    status = response.status_code
    if response.is_success:
        return Sent(status)
    more = ", and redirects are not followed" if response.has_redirect_location else ""
    return Sent(status, f"the receiver answered {status}{more}")


def _failure(target: httpx.URL, error: httpx.HTTPError) -> Sent:
    return Sent(error=shortened(f"could not deliver to {shortened(target.host)}: {error or type(error).__name__}", 300))


def _tls() -> ssl.SSLContext:
    return _tls_with(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _tls_with(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Certificates take longer to read than a callback to send."""
    return httpx.create_ssl_context()
