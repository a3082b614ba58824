"""The Ray cluster that work is spread over, and how a command finds it."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from galago.errors import InvalidRequest, quoted
from galago.system.signals import STOP_SIGNALS

OBJECT_STORE = 256 << 20
"""Bytes of shared memory of a cluster that is started here: paths and answers go through it, and few images."""
CONNECT_S = 10.0
_ADDRESS = re.compile(r"ray(://[^/\s:]+:\d{1,5})?")
_RANGE = re.compile(r"(\d{1,6})(?:\.\.(\d{1,6}))?")
MAX_THREADS = 4
"""Cores of a worker where nothing is said."""


@dataclass(frozen=True)
class Workers:
    """How many copies of a model there may be: `most` is None for as many as the cluster has room for."""

    least: int = 1
    most: int | None = None


def parse_workers(text: str, flag: str) -> Workers:
    """`N`, or `MIN..MAX`. Raises InvalidRequest."""
    if (found := _RANGE.fullmatch(text)) and 1 <= int(found[1]) <= int(found[2] or found[1]):
        return Workers(int(found[1]), int(found[2] or found[1]))
    raise InvalidRequest(f"--{flag} must be a number above 0, or MIN..MAX, as 1..8, not {quoted(text)}", flag)


def check_address(on: str) -> None:
    """Raise InvalidRequest for an --on that names no cluster."""
    if not _ADDRESS.fullmatch(on):
        raise InvalidRequest(f"--on must be ray or ray://HOST:PORT, as ray://head:10001, not {quoted(on)}", "on")


def import_ray() -> Any:
    """The ray package. Raises InvalidRequest, saying how to get it."""
    # It tells its makers what runs where, unless it is told not to before it is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # What its libraries in C++ say of how it works inside.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError as error:
        raise InvalidRequest("--on ray needs Ray: pip install 'galago[ray]'", "on") from error
    return ray


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to."""

    ray: Any
    """the package"""
    is_own: bool
    """whether it was started here, and ends with this process"""
    is_elsewhere: bool = False
    """whether this machine is none of the cluster's, so that Ray Data and Ray Serve cannot be used from here"""


@contextmanager
def connect(on: str) -> Iterator[Cluster]:
    """Connect to the cluster at an address; `ray` is the one that RAY_ADDRESS names or that runs on this machine, or
    else one that is started here.

    Raises InvalidRequest where nobody answers.
    """
    check_address(on)
    ray = import_ray()
    if ray.is_initialized():
        yield Cluster(ray, is_own=False)
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = on if on != "ray" else os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
    is_own = False
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        ray.init(address or "auto", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address or not isinstance(error, ConnectionError):
            raise InvalidRequest(_silent(address or "this machine", error), "on") from error
        is_own = True
        ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)  # it has put its own there
    try:
        yield Cluster(ray, is_own, is_elsewhere=on != "ray" or (address or "").startswith("ray://"))
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise InvalidRequest where nobody listens; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # a word of Ray's
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidRequest(_silent(address, error), "on") from error


def _silent(address: str, error: Exception) -> str:
    told = str(error).strip().splitlines()
    return f"no Ray cluster answers at {address}: {told[0] if told else 'it is silent'}"


def choose_threads(cluster: Cluster, threads: int | None) -> int:
    """The cores of a worker, by default MAX_THREADS or those of a smaller machine."""
    largest = max((int(machine.get("CPU", 0)) for machine in _machines(cluster)), default=0)
    return threads or max(1, min(MAX_THREADS, largest))


def check_room(cluster: Cluster, wanted: Mapping[str, float]) -> None:
    """Raise InvalidRequest where no machine has what a worker takes: Ray would wait for one without an end.

    By Ray's names of resources; memory is in bytes.
    """
    machines = list(_machines(cluster))
    if not any(all(machine.get(name, 0) >= amount for name, amount in wanted.items()) for machine in machines):
        told = ", ".join(_amount(name, amount) for name, amount in wanted.items())
        there = "; ".join(", ".join(_amount(name, machine.get(name, 0)) for name in wanted) for machine in machines[:4])
        raise InvalidRequest(f"a worker takes {told}; no machine of the cluster has as much: {there}", "on")


def _machines(cluster: Cluster) -> Iterator[Mapping[str, float]]:
    return (node["Resources"] for node in cluster.ray.nodes() if node["Alive"])


def _amount(name: str, amount: float) -> str:
    units = {"CPU": "cores", "GPU": "GPUs"}
    return f"{amount / 1e9:.1f} GB" if name == "memory" else f"{amount:g} {units[name]}"


def is_cuda(model: Mapping[str, Any]) -> bool:
    """Whether each copy of a model with these options gets a GPU. Others run on a CPU: Ray shows them no GPU."""
    return (model.get("device") or "cpu").startswith("cuda")
