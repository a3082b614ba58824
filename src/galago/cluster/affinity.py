"""Which replica has seen a picture: all requests about it go to the same one, as far as it has room."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\\-]{256,}={0,2}")
"""A picture in a body, whatever field it is in; a backslash comes before each slash that some libraries write."""
_URL = re.compile(rb'"(https?:\\?/\\?/[^"\s]{4,2000})"')


def picture_key(body: bytes) -> str | None:
    """A digest of the first picture of a request's JSON, in base64 or as a URL; None where it has none.

    It is of the picture as it was sent: encoded anew it is another one here, and is then merely seen twice.
    """
    found = _BASE64.search(body)
    data = found[0] if found else url[1] if (url := _URL.search(body)) else None
    return hashlib.sha256(data).hexdigest() if data is not None else None


def ranked(key: str, replicas: Sequence[T], name: Callable[[T], str]) -> list[T]:
    """The replicas in the order in which a picture asks for them (rendezvous hashing): the same for whoever computes
    it, and where one comes or goes, only its own pictures move."""
    return sorted(replicas, key=lambda one: hashlib.sha256(f"{key} {name(one)}".encode()).digest())
