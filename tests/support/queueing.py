"""A server whose requests wait for one that goes on until a test ends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_moondream as tiny
from guarded import endless
from serving import hosting, serving

import galago
from galago.backends.backend import Run
from galago.backends.native import Native
from galago.engine.limits import Limits
from galago.request import Chat, Message, Request, Sampling
from galago.server.streaming import Silence


@dataclass(frozen=True)
class Queue:
    url: str
    model: galago.Model
    first: Run
    """what all others wait for"""


@contextmanager
def queueing(folder: Path, silence: Silence, **settings: Any) -> Iterator[Queue]:
    """A server whose model takes one request at a time, and has begun one that takes long."""
    model = galago.Model(Native(tiny.load(endless(folder)), Limits(running=1)))
    with serving(hosting(model, silence, **settings)) as url:
        first = model.submit(Request(Chat((Message("user", "hello"),)), None, Sampling(max_tokens=90_000)))
        next(first)
        yield Queue(url, model, first)
        first.cancel()
