"""The models of a server: resolving the names that clients send, loading, and reporting their state."""

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
from galago.fleet.default_model import choose_default_model
from galago.fleet.pool import ModelPool
from galago.fleet.routing import ResolvedRoute, ResolvedWay, resolve_routes, single_model_route
from galago.fleet.slots import PoolEntry
from galago.server.errors import Refused
from galago.server.interruptible import Interrupted, InterruptibleWork
from galago.server.settings import ServerSettings
from galago.store.catalog import Route, entries, entry_of, lookup, with_precision
from galago.store.hub import discard_partial, installed
from galago.system.progress import Progress

if TYPE_CHECKING:
    from galago.model import Model

MAX_LOAD_WAITERS = 256
"""Requests that may wait for a model to be loaded, and are in no engine's queue yet"""
MAX_NAME_LENGTH = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelStatus:
    """The state of a model that is in memory or can be loaded, or of a route's models together.

    `bytes` is the memory that it needs, if that is known.
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
    ways: tuple[ResolvedWay, ...] = ()
    """of a route; empty for a model"""


class Models:
    """The models that a pool holds for a server. A key is a model's name in the pool, an id what clients call it.

    `names` are the models and routes of the settings, the default one first; a request for one of them loads its model
    if needed. Other models of the catalogue are served only after load(), so that no stranger's request starts a
    download. With `strict`, other names are refused instead of answered by the default.
    """

    def __init__(self, pool: ModelPool, names: Sequence[str], strict: bool = False) -> None:
        if not names:
            raise InvalidRequest("a server needs at least one model", "model")
        self.pool = pool
        self.strict = strict
        self.by_name = resolve_routes(names, pool)
        self.configured = tuple(dict.fromkeys(key for route in self.by_name.values() for key in route.models))
        self.started_at = int(time.time())
        self.startup: Future[None] = Future()
        """done when the configured models are loaded, or with the error of the one that could not be"""
        self._facts: dict[str, Facts] = {}
        """of each model by its key, since its last load; their name is its id"""
        self._in_memory: WeakValueDictionary[str, Model] = WeakValueDictionary()
        self._errors: dict[str, Exception] = {}
        """why configured models have ended, until they are loaded anew"""
        self._load_waiters = threading.BoundedSemaphore(MAX_LOAD_WAITERS)
        self._loads = InterruptibleWork()
        self._given_up: set[str] = set()
        """keys whose load is to end at its next progress"""
        ids = [id_of(name) for name in dict.fromkeys([*self.by_name, *self.configured])]
        if duplicate := next((name for name in ids if ids.count(name) > 1), None):
            raise InvalidRequest(f"two of the models would be called {quoted(duplicate)}; rename one's folder", "model")
        # A wrong name is an error before anything is loaded.
        self._needs = {key: pool.need(key) for key in self.configured}

    @property
    def default(self) -> str:
        """The name of a model or a route."""
        return next(iter(self.by_name))

    @property
    def routes(self) -> tuple[ResolvedRoute, ...]:
        return tuple(route for route in self.by_name.values() if isinstance(lookup(route.name), Route))

    def load_configured(self) -> None:
        """Load the configured models, which must fit beside each other, and complete `startup`."""
        try:
            self.load(self.configured)
        except BaseException as error:
            self.startup.set_exception(error)
        else:
            self.startup.set_result(None)

    def check_ready(self) -> None:
        """Raise Refused while the configured models are being loaded, LoadFailed where that failed."""
        if not self.startup.done():
            raise Refused("model_loading", "the model is still being loaded; try again soon")
        if error := self.startup.exception():
            raise LoadFailed(f"the model could not be loaded: {error}")

    def load(self, keys: Sequence[str], progress: Progress | None = None) -> None:
        """Load models, which must fit beside each other; raises as `use` does."""
        with ExitStack() as stack:
            for key in keys:
                stack.enter_context(self.use(key, progress))

    def give_up_load(self, key: str) -> bool:
        """Have the load of a model end, with LoadFailed for all who wait for it; whether it was being loaded.

        It ends when the next part of its files is there. One that is nearly done may be loaded all the same.
        """
        is_loading = any(entry.name == key and entry.loading for entry in self.pool.loaded())
        if is_loading:
            self._given_up.add(key)
        return is_loading

    def cancel_loads(self) -> None:
        """Interrupt loads, wait a while for their cleanup, and delete partial downloads."""
        discard_partial()  # at once, since a stop may not wait until the network lets go of a thread
        self._loads.interrupt()
        discard_partial()

    @contextmanager
    def use(self, key: str, progress: Progress | None = None) -> "Iterator[tuple[Facts, Model]]":
        """A model of the pool, loaded first if it is not there; see ModelPool.use."""
        with ExitStack() as stack:
            # No variable of this frame may hold the model: the frame lives until its memory has to be free.
            yield self._register(key, self._enter(key, progress, stack))

    def resolve_model(self, name: str | None, medium: str) -> str:
        """The key of the model for a request with this `model` field and medium (of routing.MEDIA).

        A name that is neither configured nor in memory means the default, or raises Refused where names are strict.
        Raises InvalidRequest for a medium that the route does not take.
        """
        found = None if name is None else self.match(name)
        if found is None and name is not None and self.strict:
            ids = ", ".join(map(id_of, self.served_names()))
            raise Refused("model_not_found", f"no model {quoted(name)} here; there is {ids}", "model")
        return self.route_of(found or self.default).model_for(medium)

    def find_loadable(self, name: str) -> ResolvedRoute:
        """The model of the catalogue, or the configured model or route, of this name. Raises Refused for all others.

        Paths, which strangers may send, are no names.
        """
        found = self._match_exactly(name)
        if found is None:
            ids = ", ".join(dict.fromkeys([*map(id_of, self.served_names()), *(entry.id for entry in entries())]))
            raise Refused("model_not_found", f"no model {quoted(name)}; there are {ids}", "model")
        return self.route_of(found)

    def is_loaded(self, key: str) -> bool:
        """Whether the model can be used now without waiting for a load."""
        return any(entry.name == key and not entry.loading and not entry.ended for entry in self.pool.loaded())

    def current_error(self) -> Exception | None:
        """Why a configured model that was loaded does not answer, if one does not.

        The first call after it ended starts a thread that reloads it; the error stays until that succeeds.
        """
        for key in self._record_ended():
            threading.Thread(target=self._reload, args=[key], name="galago-load", daemon=True).start()
        return next(iter(list(self._errors.values())), None)

    def check_queue(self, key: str) -> None:
        """Raise EngineBusy if a model that is in memory could take no further request now."""
        if (model := self._in_memory.get(key)) and not model.ended:  # one that has is loaded anew
            model.backend.check_queue()

    def facts(self, name: str) -> Facts | None:
        """The facts of a model, or of a route's first model; None before its first load."""
        return self._facts.get(self.route_of(name).models[0])

    def describe_configured(self) -> list[str]:
        """The configured names with the precisions of their loaded models, such as "moondream2 (int8)"."""
        routes = self.by_name.items()
        precisions = {name: [self._facts[key].precision for key in route.models] for name, route in routes}
        commits = {name: self._facts[route.models[0]].commit for name, route in routes}
        pinned = {name: f"@{commit[:12]}" if commit and "/" in id_of(name) else "" for name, commit in commits.items()}
        return [f"{id_of(name)}{pinned[name]} ({', '.join(dict.fromkeys(of))})" for name, of in precisions.items()]

    def statuses(self) -> list[ModelStatus]:
        """The configured names, then other models in memory, then the rest of the catalogue. Reads files."""
        models = [canonical_name(entry.id, **self.pool.run_options) for entry in entries()]
        return self._statuses(list(dict.fromkeys([*self.served_names(), *models])))

    def status(self, name: str) -> ModelStatus:
        """The state of one model or route. Reads files."""
        return self._statuses([name])[0]

    def loaded(self) -> list[tuple[Facts, PoolEntry]]:
        """The models in memory, oldest first."""
        found = [(self._facts.get(entry.name), entry) for entry in self.pool.loaded() if not entry.loading]
        return [(facts, entry) for facts, entry in found if facts]

    def memory(self) -> dict[str, dict[str, Any]]:
        """Model.memory() by id, of those in memory; asks as stats() does."""
        found = {facts.name: self._in_memory.get(entry.name) for facts, entry in self.loaded()}
        return {name: model.memory() for name, model in found.items() if model}

    def stats(self) -> dict[str, dict[str, Any]]:
        """Model.stats() by id, of those in memory. Asking is no use of them, and keeps none."""
        found = {facts.name: self._in_memory.get(entry.name) for facts, entry in self.loaded()}
        return {name: model.stats() for name, model in found.items() if model}

    def free_bytes(self) -> int:
        """What of the budget no model has."""
        return max(self.pool.budget - sum(entry.bytes for entry in self.pool.loaded()), 0)

    def _record_ended(self) -> list[str]:
        """Record the errors of configured models that have ended. Returns those that were not recorded before."""
        ended = {
            entry.name: entry.ended for entry in self.pool.loaded() if entry.ended and entry.name in self.configured
        }
        new = [key for key in ended if key not in self._errors]
        self._errors |= {key: ended[key] for key in new}
        return new

    def _reload(self, key: str) -> None:
        try:
            self.load([key])
        except Exception as error:
            log.error("%s could not be loaded anew: %s", key, error)

    def _enter(self, key: str, progress: Progress | None, stack: ExitStack) -> "Model":
        if not self._load_waiters.acquire(blocking=False):
            raise EngineBusy(f"{MAX_LOAD_WAITERS} requests wait for their models to be loaded; try again later")
        self._record_ended()

        def tell(done: int, total: int) -> None:
            if key in self._given_up:
                raise LoadFailed(f"loading {quoted(id_of(key))} was given up, as somebody asked")
            if progress:
                progress(done, total)

        try:
            with self._loads.run():
                return stack.enter_context(self.pool.use(key, tell))
        except Interrupted:
            raise EngineClosed("the server was shut down while the model was loading") from None
        except Exception as error:
            if key in self._errors:
                self._errors[key] = error
            raise
        finally:
            self._given_up.discard(key)
            self._load_waiters.release()

    def _register(self, key: str, model: "Model") -> "tuple[Facts, Model]":
        self._errors.pop(key, None)
        if self._in_memory.get(key) is not model:
            self._in_memory[key] = model
            self._facts[key] = replace(model.backend.facts, name=id_of(key))
        return self._facts[key], model

    def route_of(self, name: str) -> ResolvedRoute:
        return self.by_name.get(name) or single_model_route(name)

    def served_names(self) -> tuple[str, ...]:
        """The configured names, and the keys of configured models and of those in memory."""
        return tuple(dict.fromkeys([*self.by_name, *self.configured, *(entry.name for entry in self.pool.loaded())]))

    def _match_exactly(self, name: str) -> str | None:
        if len(name) > MAX_NAME_LENGTH:
            return None
        for other in self.served_names():
            if id_of(other).lower() == name.lower():
                return other
        return canonical_name(name, **self.pool.run_options) if entry_of(name) else None

    def match(self, name: str) -> str | None:
        """The served name for one that a client sent; without a precision it matches the first of any precision."""
        here, exact = self.served_names(), self._match_exactly(name)
        if exact in here:
            return exact
        known = None if len(name) > MAX_NAME_LENGTH or with_precision(name)[1] else lookup(name)
        return next((other for other in here if known and lookup(other) is known), None)

    def _statuses(self, names: Sequence[str]) -> list[ModelStatus]:
        here, on_disk = {entry.name: entry for entry in self.pool.loaded()}, installed()
        routes = [self.route_of(name) for name in names]
        models = [[self._status(key, here.get(key), on_disk) for key in route.models] for route in routes]
        return [_route_status(*pair) for pair in zip(routes, models, strict=True)]

    def _status(self, key: str, loaded: PoolEntry | None, on_disk: dict[str, int]) -> ModelStatus:
        facts, entry, need = self._facts.get(key), entry_of(key), None
        precision = facts.precision if facts else None
        if entry and not facts:
            precision = precision_of(key, **self.pool.run_options)
        # A folder may have gone since.
        with suppress(GalagoError):
            need = self._needs.get(key) or self.pool.need(key)
        return ModelStatus(
            id=id_of(key),
            precision=precision,
            bytes=need,
            installed=entry is None or entry.id in on_disk,
            loaded=loaded is not None and not loaded.loading,
            loading=loaded is not None and loaded.loading,
            in_use=loaded.in_use if loaded else 0,
            description=entry.description if entry else "",
            revision=facts.revision if facts else entry.revision if entry else None,
            aliases=entry.aliases if entry and entry.id == key else (),
            facts=facts,
        )


def _route_status(route: ResolvedRoute, statuses: Sequence[ModelStatus]) -> ModelStatus:
    """The state of a route from those of its models; a model's own is returned as it is."""
    entry = lookup(route.name)
    if not isinstance(entry, Route):
        return statuses[0]
    precisions, needs = {status.precision for status in statuses}, [status.bytes for status in statuses]
    return ModelStatus(
        id=route.name,
        precision=precisions.pop() if len(precisions) == 1 else None,
        bytes=None if None in needs else sum(need or 0 for need in needs),
        installed=all(status.installed for status in statuses),
        loaded=all(status.loaded for status in statuses),
        loading=any(status.loading for status in statuses),
        in_use=sum(status.in_use for status in statuses),
        description=entry.description,
        ways=route.ways,
    )


def id_of(name: str) -> str:
    """What clients call a model or route: as in the catalogue, or a folder's or file's own name without its path."""
    if lookup(name):
        return name
    path = Path(name)
    if not path.is_absolute():  # a repository's
        return name
    return path.name if path.is_dir() else path.stem


def configured_models(pool: ModelPool, settings: ServerSettings) -> tuple[Models, str | None]:
    """The models of the settings and None; or, where those name none, the default model and why it was chosen."""
    names, why = settings.model, None
    if names is None:
        chosen = choose_default_model(pool.budget, options=pool.run_options)
        names, why = (chosen.name,), chosen.reason
        log.warning("%s", why)
    return Models(pool, names, settings.strict_model_names), why
