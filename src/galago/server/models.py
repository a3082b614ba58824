"""The models of a server: which of them a client means, loading them, and what is told of them."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from galago.backends.backend import Facts
from galago.backends.memory_estimate import canonical_name, precision_of
from galago.errors import EngineBusy, EngineClosed, GalagoError, InvalidRequest, LoadFailed, quoted
from galago.fleet.pool import ModelPool
from galago.fleet.routing import Lane, Plan, alone, plans
from galago.fleet.slots import Loaded
from galago.server.errors import Refused
from galago.server.interruptible import Interrupted, InterruptibleWork
from galago.store.catalog import Route, entries, entry_of, lookup, with_precision
from galago.store.hub import discard_partial, installed
from galago.system.progress import Progress

if TYPE_CHECKING:
    from galago.model import Model

WAITING = 256
"""Requests that may wait for a model to be loaded; they are in no engine's queue yet."""
LONGEST_NAME = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A model that is in memory or can be loaded; or a route, of which is told what its models have together.

    `bytes` is what it needs, if that is known.
    """

    id: str
    precision: str | None
    bytes: int | None
    installed: bool
    loaded: bool
    loading: bool = False
    in_use: int = 0
    description: str = ""
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    facts: Facts | None = None
    lanes: tuple[Lane, ...] = ()
    """of a route"""


class Models:
    """The models that a pool holds for a server. A key is a model's name in the pool, an id what clients call it.

    `names` are those of the settings, models and routes, the default one first: any request may have what answers to
    them loaded. Other models of the catalogue answer once they were loaded by load(), so that no stranger's request
    starts a download.
    """

    def __init__(self, pool: ModelPool, names: Sequence[str], strict: bool = False) -> None:
        if not names:
            raise InvalidRequest("a server needs at least one model", "model")
        self.pool = pool
        self.strict = strict
        self.plans = plans(names, pool)
        self.own = tuple(dict.fromkeys(key for plan in self.plans.values() for key in plan.models))
        self.started = int(time.time())
        self.opened: Future[None] = Future()
        """done when the models of the settings are loaded, or with the error of the one that is not"""
        self._facts: dict[str, Facts] = {}
        """what each said of itself when it was last loaded, by the name that clients call it"""
        self._seen: WeakValueDictionary[str, Model] = WeakValueDictionary()
        self._trouble: dict[str, Exception] = {}
        """what befell models of the settings, until they are loaded anew"""
        self._waiting = threading.BoundedSemaphore(WAITING)
        self._loads = InterruptibleWork()
        ids = [id_of(name) for name in dict.fromkeys([*self.plans, *self.own])]
        if twice := next((name for name in ids if ids.count(name) > 1), None):
            raise InvalidRequest(f"two of the models would be called {quoted(twice)}; rename one's folder", "model")
        # What is wrong with a name is told before anything is loaded.
        self._needs = {key: pool.need(key) for key in self.own}

    @property
    def default(self) -> str:
        """The name of a model or a route."""
        return next(iter(self.plans))

    @property
    def routes(self) -> tuple[Plan, ...]:
        return tuple(plan for plan in self.plans.values() if isinstance(lookup(plan.name), Route))

    def open(self) -> None:
        """Load the models of the settings, which must fit beside each other; how it went is in `opened`."""
        try:
            self.load(self.own)
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

    def load(self, keys: Sequence[str], progress: Progress | None = None) -> None:
        """Load models, which must fit beside each other; raises as `use` does."""
        with ExitStack() as stack:
            for key in keys:
                stack.enter_context(self.use(key, progress))

    def end_loads(self) -> None:
        """Give up what is being loaded, and wait a while until that is cleared away."""
        self._loads.interrupt()
        discard_partial()

    @contextmanager
    def use(self, key: str, progress: Progress | None = None) -> "Iterator[tuple[Facts, Model]]":
        """A model of the pool, loaded first if it is not there; see ModelPool.use."""
        with ExitStack() as stack:
            # The model is in no variable of this frame, which lives until its memory is to be free.
            yield self._met(key, self._entered(key, progress, stack))

    def meant(self, name: str | None, medium: str) -> str:
        """The key of the model that a request means which shows this (see routing.MEDIA).

        It names a model or route, one of the settings or in memory, or else the default is meant. Raises Refused for
        any other name where names are strict, and InvalidRequest for what a route does not take.
        """
        found = None if name is None else self._answering(name)
        if found is None and name is not None and self.strict:
            ids = ", ".join(map(id_of, self._here()))
            raise Refused("model_not_found", f"no model {quoted(name)} here; there is {ids}", "model")
        return self._plan(found or self.default).model_for(medium)

    def known(self, name: str) -> Plan:
        """What can be loaded by this name: a model, or a route of the settings.

        Raises Refused; paths, which strangers may send, are none.
        """
        found = self._exact(name)
        if found is None:
            ids = ", ".join(dict.fromkeys([*map(id_of, self._here()), *(entry.id for entry in entries())]))
            raise Refused("model_not_found", f"no model {quoted(name)}; there are {ids}", "model")
        return self._plan(found)

    def at_hand(self, key: str) -> bool:
        """Whether using it need not wait for a load, as things stand."""
        return any(row.name == key and not row.loading and not row.ended for row in self.pool.loaded())

    def trouble(self) -> Exception | None:
        """Why a model of the settings that was loaded does not answer, if one does not.

        Whoever asks first has it loaded anew, in a thread; until then, and where that fails, it is in trouble.
        """
        for key in self._note_ended():
            threading.Thread(target=self._mend, args=[key], name="galago-load", daemon=True).start()
        return next(iter(list(self._trouble.values())), None)

    def check_queue(self, key: str) -> None:
        """Raise EngineBusy if a model that is in memory could take no further request now."""
        if (model := self._seen.get(key)) and not model.ended:  # one that has is loaded anew
            model.backend.check_queue()

    def facts(self, name: str) -> Facts | None:
        """Of a model, or of a route's first; None before its first load."""
        return self._facts.get(self._plan(name).models[0])

    def told(self) -> list[str]:
        """The names of the settings, once their models are loaded, each with its precision: moondream2 (int8)."""
        precisions = {name: [self._facts[key].precision for key in plan.models] for name, plan in self.plans.items()}
        commits = {name: self._facts[plan.models[0]].commit for name, plan in self.plans.items()}
        pinned = {name: f"@{commit[:12]}" if commit and "/" in id_of(name) else "" for name, commit in commits.items()}
        return [f"{id_of(name)}{pinned[name]} ({', '.join(dict.fromkeys(of))})" for name, of in precisions.items()]

    def rows(self) -> list[Row]:
        """What the settings name, then others in memory, then the rest of the catalogue. Looks at files."""
        models = [canonical_name(entry.id, **self.pool.choice) for entry in entries()]
        return self._rows(list(dict.fromkeys([*self._here(), *models])))

    def row(self, name: str) -> Row:
        """A model, whatever its precision, or a route. Looks at files."""
        return self._rows([name])[0]

    def loaded(self) -> list[tuple[Facts, Loaded]]:
        """The models in memory, oldest first."""
        rows = [(self._facts.get(row.name), row) for row in self.pool.loaded() if not row.loading]
        return [(facts, row) for facts, row in rows if facts]

    def memory(self) -> dict[str, dict[str, Any]]:
        """Model.memory() by id, of those in memory; asks as stats() does."""
        found = {facts.name: self._seen.get(row.name) for facts, row in self.loaded()}
        return {name: model.memory() for name, model in found.items() if model}

    def stats(self) -> dict[str, dict[str, Any]]:
        """Model.stats() by id, of those in memory. Asking is no use of them, and keeps none."""
        found = {facts.name: self._seen.get(row.name) for facts, row in self.loaded()}
        return {name: model.stats() for name, model in found.items() if model}

    def _note_ended(self) -> list[str]:
        """Models of the settings that have ended and that nobody has seen to yet: whoever asks does."""
        ended = {row.name: row.ended for row in self.pool.loaded() if row.ended and row.name in self.own}
        new = [key for key in ended if key not in self._trouble]
        self._trouble |= {key: ended[key] for key in new}
        return new

    def _mend(self, key: str) -> None:
        try:
            self.load([key])
        except Exception as error:
            log.error("%s could not be loaded anew: %s", key, error)

    def _entered(self, key: str, progress: Progress | None, stack: ExitStack) -> "Model":
        if not self._waiting.acquire(blocking=False):
            raise EngineBusy(f"{WAITING} requests wait for their models to be loaded; try again later")
        self._note_ended()
        try:
            with self._loads.run():
                return stack.enter_context(self.pool.use(key, progress))
        except Interrupted:
            raise EngineClosed("the server was shut down while the model was loading") from None
        except Exception as error:
            if key in self._trouble:
                self._trouble[key] = error
            raise
        finally:
            self._waiting.release()

    def _met(self, key: str, model: "Model") -> "tuple[Facts, Model]":
        self._trouble.pop(key, None)
        if self._seen.get(key) is not model:
            self._seen[key] = model
            self._facts[key] = replace(model.backend.facts, name=id_of(key))
        return self._facts[key], model

    def _plan(self, name: str) -> Plan:
        return self.plans.get(name) or alone(name)

    def _here(self) -> tuple[str, ...]:
        """Names of routes, and keys."""
        return tuple(dict.fromkeys([*self.plans, *self.own, *(row.name for row in self.pool.loaded())]))

    def _exact(self, name: str) -> str | None:
        if len(name) > LONGEST_NAME:
            return None
        for other in self._here():
            if id_of(other).lower() == name.lower():
                return other
        return canonical_name(name, **self.pool.choice) if entry_of(name) else None

    def _answering(self, name: str) -> str | None:
        """A name that says no precision means the first of that model or route in whatever precision."""
        here, exact = self._here(), self._exact(name)
        if exact in here:
            return exact
        known = None if len(name) > LONGEST_NAME or with_precision(name)[1] else lookup(name)
        return next((other for other in here if known and lookup(other) is known), None)

    def _rows(self, names: Sequence[str]) -> list[Row]:
        here, kept = {row.name: row for row in self.pool.loaded()}, installed()
        plans = [self._plan(name) for name in names]
        return [_row_of(plan, [self._row(key, here.get(key), kept) for key in plan.models]) for plan in plans]

    def _row(self, key: str, loaded: Loaded | None, kept: dict[str, int]) -> Row:
        facts, entry, need = self._facts.get(key), entry_of(key), None
        precision = facts.precision if facts else None
        if entry and not facts:
            precision = precision_of(key, **self.pool.choice)
        # A folder may have gone since.
        with suppress(GalagoError):
            need = self._needs.get(key) or self.pool.need(key)
        return Row(
            id=id_of(key),
            precision=precision,
            bytes=need,
            installed=entry is None or entry.id in kept,
            loaded=loaded is not None and not loaded.loading,
            loading=loaded is not None and loaded.loading,
            in_use=loaded.in_use if loaded else 0,
            description=entry.description if entry else "",
            revision=facts.revision if facts else entry.revision if entry else None,
            aliases=entry.aliases if entry and entry.id == key else (),
            facts=facts,
        )


def _row_of(plan: Plan, rows: Sequence[Row]) -> Row:
    """What answers to a name, from the rows of its models."""
    route = lookup(plan.name)
    if not isinstance(route, Route):
        return rows[0]
    precisions, needs = {row.precision for row in rows}, [row.bytes for row in rows]
    return Row(
        id=plan.name,
        precision=precisions.pop() if len(precisions) == 1 else None,
        bytes=None if None in needs else sum(need or 0 for need in needs),
        installed=all(row.installed for row in rows),
        loaded=all(row.loaded for row in rows),
        loading=any(row.loading for row in rows),
        in_use=sum(row.in_use for row in rows),
        description=route.description,
        lanes=plan.lanes,
    )


def id_of(name: str) -> str:
    """What clients call a model or route: as in the catalogue, or a folder's or file's own name without its path."""
    if lookup(name):
        return name
    path = Path(name)
    if not path.is_absolute():  # a repository's
        return name
    return path.name if path.is_dir() else path.stem
