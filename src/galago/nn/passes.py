"""Long work in pieces, so that other work can run between them."""

from collections.abc import Generator, Iterator
from typing import TypeVar, cast

T = TypeVar("T")
Passes = Generator[None, None, T]
"""Yields between pieces and returns the result."""


def finish(passes: Passes[T]) -> T:
    """Run all pieces now; the result."""
    while True:
        try:
            next(passes)
        except StopIteration as stop:
            return cast(T, stop.value)


def pieces(n: int, size: int) -> Iterator[range]:
    """0..n-1 in ranges of at most `size`."""
    return (range(i, min(i + size, n)) for i in range(0, n, max(size, 1)))
