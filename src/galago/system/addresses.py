"""Requests to addresses that strangers name: which may be connected to, and when a connection is cut."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


class NoSuchHost(ValueError):
    """The name leads to no address."""


class NotPublic(ValueError):
    """The host has an address that is not public, and it is not one of those allowed by name."""


def find_addresses(host: str, port: int | None, allowed_hosts: Collection[str] = ()) -> list[str]:
    """Look the host up once and give its addresses, each once; connect to these, never to the name again.

    Unless the host is in `allowed_hosts` all of them are public: not loopback, private, link-local or cloud metadata.
    Raises NoSuchHost or NotPublic. Takes as long as the system takes to find a name.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NoSuchHost(host) from error
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if host not in allowed_hosts and not all(map(is_public, addresses)):
        raise NotPublic(host)
    return addresses


def pin_address(request: "httpx.Request", address: str) -> None:
    """Send the request to this address; TLS and headers keep the host's name."""
    # The Host header was set when the request was built.
    request.extensions["sni_hostname"] = request.url.host
    request.url = request.url.copy_with(host=address)


@contextmanager
def close_at(deadline: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Yield a trace for requests of httpx that shuts their connections down at the deadline, even in mid-read.

    The deadline is on the clock of time.monotonic(). Limits of the client's are for each wait, so a server that sends
    a byte now and then would go on for days.
    """
    opened: list[socket.socket] = []
    passed = threading.Event()

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            opened.append(info["return_value"].get_extra_info("socket"))
            if passed.is_set():
                end()

    def end() -> None:
        passed.set()
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


# Azure's service for its virtual machines answers at a public address.
_METADATA = ipaddress.ip_address("168.63.129.16")
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
# What ipaddress takes for public: addresses for protocols (a cloud's metadata among them), the old relays of 6to4, and
# translation inside a network.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48")))


def is_public(address: str) -> bool:
    """Whether an IP address leads into the public internet, whatever it is wrapped in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that carry an IPv4 one lead wherever that leads.
        if ip.ipv4_mapped or ip in _TRANSLATED:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if any(inner and not is_public(str(inner)) for inner in (ip.sixtofour, *(ip.teredo or ()))):
            return False
        if ip.is_site_local:
            return False
    special = ip.is_multicast or ip.is_reserved or ip == _METADATA or any(ip in network for network in _NOT_PUBLIC)
    return ip.is_global and not special
