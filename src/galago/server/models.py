"""The models of a server: which of them a client means, loading them, and what is told of them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from galago.catalog import Entry, entries, find, with_precision
from galago.errors import EngineBusy, GalagoError, InvalidRequest, LoadFailed, ModelNotFound
from galago.hub import installed
from galago.needs import one_name
from galago.nn.device import pick_device
from galago.pool import Loaded, ModelPool
from galago.precision import pick_precision
from galago.server.errors import Refused

if TYPE_CHECKING:
    from galago.model import Model

WAITING = 256
"""Requests that may wait for a model to be loaded; they are in no engine's queue yet."""
LONGEST_NAME = 200

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Facts:
    """What a model said of itself when it was last loaded. `id` is what clients call it."""

    id: str
    revision: str
    precision: str
    device: str
    kernels: str
    fallbacks: list[str]


@dataclass(frozen=True)
class Row:
    """A model that is in memory or can be loaded. `bytes` is what it needs, if that is known."""

    id: str
    key: str
    precision: str | None
    bytes: int | None
    installed: bool
    entry: Entry | None
    facts: Facts | None
    loaded: Loaded | None


class Models:
    """The models that a pool holds for a server. A key is a model's name in the pool, an id what clients call it.

    `names` are those of the settings, the default one first: any request may have them loaded. Others of the
    catalogue answer once they were loaded by load(), so that no stranger's request starts a download.
    """

    def __init__(self, pool: ModelPool, names: Sequence[str], strict: bool = False) -> None:
        if not names:
            raise InvalidRequest("a server needs at least one model", "model")
        self.pool = pool
        self.strict = strict
        self.own = tuple(dict.fromkeys(one_name(name, **pool.choice) for name in names))
        self.started = int(time.time())
        self.opened: Future[None] = Future()
        """done when the models of the settings are loaded, or with the error of the one that is not"""
        self._facts: dict[str, Facts] = {}
        self._seen: WeakValueDictionary[str, Model] = WeakValueDictionary()
        self._waiting = threading.BoundedSemaphore(WAITING)
        ids = [id_of(key) for key in self.own]
        if twice := next((name for name in ids if ids.count(name) > 1), None):
            raise InvalidRequest(f"two of the models would be called {twice!r}; rename one's folder", "model")

    @property
    def default(self) -> str:
        return self.own[0]

    def open(self) -> None:
        """Load the models of the settings, which must fit beside each other; how it went is in `opened`."""
        try:
            with ExitStack() as stack:
                for key in self.own:
                    stack.enter_context(self.use(key))
        except BaseException as error:
            self.opened.set_exception(error)
        else:
            self.opened.set_result(None)

    def check_ready(self) -> None:
        """Raise Refused while the models of the settings are being loaded, LoadFailed where that failed."""
        if not self.opened.done():
            raise Refused("model_loading", "the model is still being loaded; try again soon")
        if error := self.opened.exception():
            raise LoadFailed(f"the model could not be loaded: {error}")

    @contextmanager
    def use(self, key: str, progress: Progress | None = None) -> "Iterator[tuple[Facts, Model]]":
        """A model of the pool, loaded first if it is not there; see ModelPool.use."""
        with ExitStack() as stack:
            # The model is in no variable of this frame, which lives until its memory is to be free.
            yield self._met(key, self._entered(key, progress, stack))

    def meant(self, name: str | None) -> str:
        """The key of the model that a request names: one of the settings or in memory, or else the default.

        Raises Refused for any other name where names are strict.
        """
        key = None if name is None else self._answering(name)
        if key is None and name is not None and self.strict:
            ids = ", ".join(map(id_of, self._here()))
            raise Refused("model_not_found", f"no model {name[:LONGEST_NAME]!r} here; there is {ids}", "model")
        return key or self.default

    def known(self, name: str) -> str:
        """The key of a model that can be loaded. Raises Refused; paths, which strangers may send, are none."""
        key = self._exact(name)
        if key is None:
            ids = ", ".join(dict.fromkeys([*map(id_of, self._here()), *(entry.id for entry in entries())]))
            raise Refused("model_not_found", f"no model {name[:LONGEST_NAME]!r}; there are {ids}", "model")
        return key

    def at_hand(self, key: str) -> bool:
        """Whether using it need not wait for a load, as things stand."""
        return any(row.name == key and not row.loading for row in self.pool.loaded())

    def facts(self, key: str) -> Facts | None:
        """None before its first load."""
        return self._facts.get(key)

    def rows(self) -> list[Row]:
        """The models of the settings, then others in memory, then the rest of the catalogue. Looks at files."""
        here, kept = {row.name: row for row in self.pool.loaded()}, installed()
        keys = dict.fromkeys([*self.own, *here, *(one_name(e.id, **self.pool.choice) for e in entries())])
        return [self._row(key, here.get(key), kept) for key in keys]

    def row(self, key: str) -> Row:
        """One model, whatever its precision. Looks at files."""
        here = {row.name: row for row in self.pool.loaded()}
        return self._row(key, here.get(key), installed())

    def loaded(self) -> list[tuple[Facts, Loaded]]:
        """The models in memory, oldest first."""
        rows = [(self._facts.get(row.name), row) for row in self.pool.loaded() if not row.loading]
        return [(facts, row) for facts, row in rows if facts]

    def stats(self) -> dict[str, dict[str, Any]]:
        """Model.stats() by id, of those in memory. Asking is no use of them, and keeps none."""
        found = {facts.id: self._seen.get(row.name) for facts, row in self.loaded()}
        return {name: model.stats() for name, model in found.items() if model}

    def _entered(self, key: str, progress: Progress | None, stack: ExitStack) -> "Model":
        if not self._waiting.acquire(blocking=False):
            raise EngineBusy(f"{WAITING} requests wait for their models to be loaded; try again later")
        try:
            return stack.enter_context(self.pool.use(key, progress))
        finally:
            self._waiting.release()

    def _met(self, key: str, model: "Model") -> "tuple[Facts, Model]":
        if self._seen.get(key) is not model:
            self._seen[key] = model
            self._facts[key] = Facts(
                id_of(key), model.revision, model.precision, model.device, model.kernels, model.fallbacks
            )
        return self._facts[key], model

    def _here(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.own, *(row.name for row in self.pool.loaded())]))

    def _exact(self, name: str) -> str | None:
        if len(name) > LONGEST_NAME:
            return None
        for key in self._here():
            if id_of(key).lower() == name.lower():
                return key
        return one_name(name, **self.pool.choice) if entry_of(name) else None

    def _answering(self, name: str) -> str | None:
        """A name that says no precision means the first of that model in whatever precision."""
        here, key = self._here(), self._exact(name)
        if key is None or key in here:
            return key
        entry = None if with_precision(name)[1] else entry_of(name)
        return next((other for other in here if entry and entry_of(other) is entry), None)

    def _row(self, key: str, loaded: Loaded | None, kept: dict[str, int]) -> Row:
        facts, entry, need = self._facts.get(key), entry_of(key), None
        precision = facts.precision if facts else None
        if entry and not facts:
            choice = self.pool.choice
            named = choice.get("precision") or with_precision(key)[1]
            precision = pick_precision(named, pick_device(choice.get("device")), choice.get("profile")).name
        # A folder may have gone since.
        with suppress(GalagoError):
            need = loaded.bytes if loaded else self.pool.need(key)
        return Row(id_of(key), key, precision, need, entry is None or entry.id in kept, entry, facts, loaded)


def id_of(key: str) -> str:
    """What clients call a model: as in the catalogue, or a folder's or file's own name without what leads there."""
    if entry_of(key):
        return key
    path = Path(key)
    return path.name if path.is_dir() else path.stem


def entry_of(name: str) -> Entry | None:
    try:
        return find(name)
    except ModelNotFound:
        return None
