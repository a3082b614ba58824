"""A backend that answers with the size of the picture: all that one needs, for tests."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from galago.backends.backend import Backend, Facts
from galago.request import Caption, Chat, Done, Event, Query, Request, TextDelta, Timings, Usage

ENTRY = {
    "backend": "toy",
    "url": "toy:",
    "description": "Tells the size of a picture",
    "license": "Apache-2.0",
    "precisions": ["float32"],
    "parameters": 0,
    "memory": {"float32": 1_000_000},
}
"""A table of the catalogue."""


class Ready:
    """A run whose events are all there."""

    ended = True

    def __init__(self, events: Iterable[Event]) -> None:
        self._left = iter(events)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._left)

    def poll(self) -> Event | None:
        return next(self._left, None)

    def watch(self, told: Callable[[], None]) -> None:
        told()

    def cancel(self) -> None: ...


class Toy(Backend):
    def __init__(self, name: str) -> None:
        self.facts = Facts(name, f"{name}@1", "1", "float32", "cpu", "Python", frozenset({Caption, Query, Chat}))

    def submit(self, request: Request) -> Ready:
        sizes = ["x".join(map(str, shown.size)) for shown in request.shown]  # type: ignore[union-attr]
        pieces = [TextDelta(size) for size in sizes or ["nothing"]]
        return Ready([*pieces, Done("stop", Usage(completion_tokens=len(pieces)), Timings())])


def load(name: str, **options: Any) -> Toy:
    return Toy(name)


def kernels(precision: str, device: str | None) -> tuple[str, list[str]]:
    return "Python", []
