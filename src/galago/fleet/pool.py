"""A pool of models in memory under one budget: loaded on first use, the least recently used unloaded first."""

import copy
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from galago.backends.memory_estimate import RunOptions, canonical_name, max_request_bytes, memory_needed, precisions_of
from galago.engine.kv_share import kv_share
from galago.errors import (
    EngineClosed,
    GalagoError,
    InvalidRequest,
    LoadFailed,
    ModelInUse,
    OutOfMemory,
    clear_tracebacks,
    quoted,
    size_of,
)
from galago.fleet.default_model import MEMORY_SHARE
from galago.fleet.slots import PoolEntry, Slot
from galago.system.device import available_memory, device_here, is_out_of_memory, return_memory
from galago.system.progress import Progress
from galago.values import is_number, is_whole

if TYPE_CHECKING:
    from galago.model import Model

log = logging.getLogger(__name__)


class ModelPool:
    """Loads models when they are first used, and unloads the least recently used when another needs their memory.

    `budget` is in bytes, by default nine tenths of what the device has available now. It bounds what the models need at
    their peaks, image caches, keys and values included. For keys and values a model gets what its longest request may
    need and a quarter of what is left at its load, until another model needs that; unless `limits` in the options say
    how much. `keep_alive` is how many seconds a model stays after its last use: 0 unloads it at once, None keeps it
    until its memory is needed. A model in use is never unloaded. A forked child begins with an empty pool.

    `options` are further arguments of galago.load, for every model. `load` is called with a name and `progress`;
    `need` with a name, or with a name and a `precision`, and gives bytes. Methods may be called from any thread.
    They wait for loads, so an event loop calls them, the end of `use` included, in a thread.
    """

    def __init__(
        self,
        budget: int | None = None,
        *,
        keep_alive: float | None = 300.0,
        options: Mapping[str, Any] | None = None,
        load: "Callable[..., Model] | None" = None,
        need: Callable[..., int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if keep_alive is not None and not (is_number(keep_alive) and keep_alive >= 0):
            raise InvalidRequest("keep_alive must be seconds, 0, or None for ever", "keep_alive")
        if budget is not None and not (is_whole(budget) and budget >= 0):
            raise InvalidRequest(f"budget must be a whole number of bytes, or None, not {quoted(budget)}", "budget")
        self._options = options = dict(options or {})
        self.run_options = cast(RunOptions, {k: v for k, v in options.items() if k in RunOptions.__annotations__})
        self._device = device_here(self.run_options.get("device"))
        self.budget = int(MEMORY_SHARE * available_memory(self._device)) if budget is None else budget
        self._keep_alive = keep_alive
        self._load = load or self._load_with_kv_share
        self.need = need or partial(memory_needed, **self.run_options, limits=self._options.get("limits"))
        self._clock = clock
        self._condition = threading.Condition()
        self._slots: dict[str, Slot] = {}
        self._loading = False
        self._timer: threading.Timer | None = None
        self._closed = False
        _pools.add(self)

    @contextmanager
    def use(self, name: str, progress: Progress | None = None) -> Iterator["Model"]:
        """The model of this name, loaded first if needed, which stays loaded inside the `with`.

        Several users of a model share one load; models are loaded one after another. Do not keep the model for later:
        the pool closes it when it unloads it, but its memory is free only once you let go of it. A model that has
        ended (see Model.ended), in whatever way, is loaded anew.

        Raises OutOfMemory, before the load, if it does not fit even when all models that are not in use are unloaded;
        what galago.load raises; LoadFailed; and EngineClosed after close().
        """
        slot, model = self._acquire(canonical_name(name, **self.run_options), progress)
        try:
            yield model
        finally:
            # This frame may live on in a traceback; the memory need not.
            del model
            self._release(slot)

    @property
    def keeps(self) -> bool:
        """Whether a model stays for a while after its use, so that the end of a use never waits."""
        return self._keep_alive != 0 and all(slot.keep_alive != 0 for slot in list(self._slots.values()))

    def set_keep_alive(self, name: str, keep_alive: float | None) -> None:
        """Let a model in memory stay so many seconds after its last use, in place of the pool's own `keep_alive`."""
        with self._condition:
            if slot := self._slots.get(canonical_name(name, **self.run_options)):
                slot.keep_alive = keep_alive
                self._set_timer()

    def load(self, name: str, progress: Progress | None = None) -> None:
        """Load a model ahead of its use; counts as a use, and raises as `use` does."""
        with self.use(name, progress):
            pass

    def unload(self, name: str) -> bool:
        """Take a model out of memory; whether it was there. Raises ModelInUse, and does not wait, if it is in use."""
        name = canonical_name(name, **self.run_options)
        with self._condition:
            while (slot := self._slots.get(name)) and slot.is_unloading:
                self._condition.wait()
            if slot is None:
                return False
            if slot.users:
                doing = "in use" if slot.model else "being loaded"
                raise ModelInUse(f"{name} is {doing} and cannot be unloaded now; try again later")
            slot.is_unloading = True
        self._unload([slot])
        return True

    def loaded(self) -> list[PoolEntry]:
        """The models in memory, and the one that is being loaded, oldest first."""
        with self._condition:
            return [s.entry(self._clock()) for s in self._slots.values() if not s.is_unloading]

    def expire(self) -> None:
        """Unload the models that were idle for `keep_alive`. A timer does this too."""
        with self._condition:
            now = self._clock()
            over = [slot for slot in self._slots.values() if slot.expires is not None and slot.expires <= now]
            for slot in over:
                slot.is_unloading = True
        self._unload(over)

    def close(self) -> None:
        """Close every model, those in use too: their requests, and whoever waits for a load, get EngineClosed.

        A model that is being loaded is discarded when its load ends, which this does not wait for.
        """
        with self._condition:
            self._closed = True
            if self._timer:
                self._timer.cancel()
            unloading = [slot for slot in self._slots.values() if slot.model and not slot.is_unloading]
            for slot in unloading:
                slot.is_unloading = True
            self._condition.notify_all()
        self._unload(unloading)

    def __enter__(self) -> "ModelPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _reset_after_fork(self) -> None:
        """Empty the pool in a forked child, which has no threads that load, close, wait or run models."""
        for slot in self._slots.values():
            slot.model = None
        self._condition, self._slots, self._loading, self._timer = threading.Condition(), {}, False, None

    def _acquire(self, name: str, progress: Progress | None) -> "tuple[Slot, Model]":
        """Add a user to the slot of this name, load its model if needed, and return both."""
        need: int | None = None
        while True:
            self._drop_ended(name)
            with self._condition:
                slot = self._slots.get(name)
                while not self._closed and (slot.is_unloading if slot else need is not None and self._loading):
                    self._condition.wait()
                    slot = self._slots.get(name)
                if self._closed:
                    raise EngineClosed("the models are shut down")
                if slot:
                    slot.users += 1
                elif need is not None:
                    mine = self._slots[name] = Slot(name, need, self._keep_alive)
                    self._loading = True
            if slot:
                return slot, self._wait_until_loaded(slot)
            if need is not None:
                return mine, self._load_into(mine, progress)
            need = self.need(name)

    def _drop_ended(self, name: str) -> None:
        """Drop a model that has ended, without waiting for those that still hold it."""
        with self._condition:
            slot = self._slots.get(name)
            if slot is None or slot.is_unloading or slot.model is None or (ended := slot.model.ended) is None:
                return
            model, slot.model, slot.error = slot.model, None, ended
            del self._slots[name]
            self._condition.notify_all()
        log.warning("%s is loaded anew: %s", name, ended)
        model.close()
        del model
        return_memory(self._device)

    def _wait_until_loaded(self, slot: Slot) -> "Model":
        """Wait for a load by another thread and return the model. Raises, and releases the slot, if the load failed."""
        try:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or slot.model or slot.error)
                if self._closed:
                    raise EngineClosed("the models are shut down")
                if slot.error:
                    # Each thread raises one of its own, as a traceback grows with every raise.
                    raise copy.copy(slot.error)
                assert slot.model
                return slot.model
        except BaseException:
            self._release(slot)
            raise

    def _release(self, slot: Slot) -> None:
        with self._condition:
            slot.users -= 1
            slot.last_used = self._clock()
            at_once = slot.keep_alive == 0 and slot.model is not None and slot.is_idle
            if at_once:
                slot.is_unloading = True
            else:
                self._set_timer()
        if at_once:
            self._unload([slot])

    def _load_with_kv_share(self, name: str, progress: Progress | None) -> "Model":
        """Load by galago.load, lending the model a share of the free budget for keys and values."""
        from galago.engine.limits import Limits
        from galago.model import load

        limits = self._options.get("limits") or Limits()
        if limits.kv_bytes is None and (longest := max_request_bytes(name, **self.run_options)):
            with self._condition:
                slot, left = self._slots[name], self.budget - sum(slot.need for slot in self._slots.values())
                slot.kv_bytes = kv_share(longest, limits.running, max(left, 0))
                slot.lent_kv_bytes = slot.kv_bytes - longest
                slot.need += slot.lent_kv_bytes
                limits = replace(limits, kv_bytes=slot.kv_bytes)
        return load(name, progress=progress, **{**self._options, "limits": limits})

    def _reclaim_kv(self) -> None:
        """Reclaim the memory lent for keys and values; running requests keep theirs until they end."""
        for slot in self._slots.values():
            if slot.lent_kv_bytes and slot.model:
                slot.need -= slot.lent_kv_bytes
                slot.model.backend.limit_kv(slot.kv_bytes - slot.lent_kv_bytes)
                slot.lent_kv_bytes = 0

    def _load_into(self, slot: Slot, progress: Progress | None) -> "Model":
        """Load a slot's model, and wake all that wait for it however that ends."""
        model: Model | None = None
        try:
            self._make_room(slot)
            model = self._load(slot.name, progress=progress)
        except BaseException as error:
            slot.error = self._load_error(slot, error)
            clear_tracebacks(error)
            return_memory(self._device)
            if slot.error is error or not isinstance(error, Exception):
                raise
            raise slot.error from error
        finally:
            with self._condition:
                self._loading = False
                if model is None or self._closed:
                    slot.error = slot.error or LoadFailed(f"loading {slot.name} failed")
                    del self._slots[slot.name]
                else:
                    slot.model = model
                self._condition.notify_all()
        if slot.error:
            model.close()
            raise EngineClosed("the models are shut down")
        return model

    def _make_room(self, slot: Slot) -> None:
        """Unload the least recently used models until the slot fits, or raise OutOfMemory and unload none."""
        while True:
            unloading: list[Slot] = []
            with self._condition:
                if self._closed:
                    raise EngineClosed("the models are shut down")
                if sum(other.need for other in self._slots.values()) > self.budget:
                    self._reclaim_kv()
                if sum(other.need for other in self._slots.values()) <= self.budget:
                    return
                others = [other for other in self._slots.values() if other is not slot and not other.is_unloading]
                busy = {other.name: other.need for other in others if other.users}
                fits = slot.need + sum(busy.values()) <= self.budget
                excess = slot.need + sum(other.need for other in others) - self.budget
                for other in sorted((o for o in others if fits and o.is_idle), key=lambda o: o.last_used):
                    if excess > 0:
                        excess -= other.need
                        other.is_unloading = True
                        unloading.append(other)
                if fits and not unloading:
                    # Another thread is unloading what is in the way.
                    self._condition.wait()
            if not fits:
                raise OutOfMemory(self._no_room_message(slot, busy))
            self._unload(unloading)

    def _no_room_message(self, slot: Slot, busy: Mapping[str, int]) -> str:
        users = ", ".join(f"{name} {size_of(need)}" for name, need in busy.items())
        used = f", of which {size_of(sum(busy.values()))} are in use ({users})" if busy else ""
        fitting = self._precisions_within(slot, self.budget - sum(busy.values()))
        hint = f"it would fit in {fitting}" if fitting else "it would fit in no precision"
        return f"{slot.name} needs {size_of(slot.need)}, and the budget is {size_of(self.budget)}{used}; {hint}"

    def _precisions_within(self, slot: Slot, most: int) -> str:
        """The precisions, in words, in which the model needs `most` bytes at most."""
        needs = {name: self.need(slot.name, precision=name) for name in precisions_of(slot.name)}
        return " or ".join(f"{name} ({size_of(need)})" for name, need in needs.items() if need <= most)

    def _load_error(self, slot: Slot, error: BaseException) -> GalagoError:
        """The error of a failed load for those that wait for it."""
        if isinstance(error, GalagoError):
            return error
        if is_out_of_memory(error):
            log.warning("loading %s: memory ran out", slot.name, exc_info=error)
            less = self._precisions_within(slot, slot.need - 1)
            hint = f"; it needs less in {less}" if less else ""
            return OutOfMemory(f"memory ran out while {slot.name} was loading ({size_of(slot.need)} expected){hint}")
        if not isinstance(error, Exception):
            return LoadFailed(f"loading {slot.name} was interrupted ({type(error).__name__})")
        log.error("loading %s failed", slot.name, exc_info=error)
        return LoadFailed(f"loading {slot.name} failed ({type(error).__name__}); the log tells more")

    def _unload(self, slots: list[Slot]) -> None:
        """Close models whose slots are marked as unloading, and free their memory."""
        left = list(slots)
        try:
            while left:
                self._close_model(left[0])
                left.pop(0)
        finally:
            with self._condition:
                for slot in left:
                    # Interrupted: whoever comes next may have them, or unload them.
                    slot.is_unloading = slot.model is None
                self._condition.notify_all()

    def _close_model(self, slot: Slot) -> None:
        model, slot.model = slot.model, None
        try:
            assert model
            model.close()
        except Exception:
            log.exception("closing %s failed", slot.name)
        finally:
            del model
            return_memory(self._device)
            with self._condition:
                del self._slots[slot.name]
                self._condition.notify_all()

    def _set_timer(self) -> None:
        """Start the timer for the model that expires first, in place of the one that runs."""
        expiring = [slot.expires for slot in self._slots.values() if slot.expires is not None]
        if self._timer:
            self._timer.cancel()
        if self._closed or not expiring:
            return
        wait = min(expiring) - self._clock()
        self._timer = threading.Timer(min(max(wait, 0.0), threading.TIMEOUT_MAX), self._on_timer)
        self._timer.daemon = True
        self._timer.start()

    def _on_timer(self) -> None:
        try:
            self.expire()
        finally:
            with self._condition:
                self._set_timer()


_pools: "weakref.WeakSet[ModelPool]" = weakref.WeakSet()


def _reset_all_after_fork() -> None:
    for pool in list(_pools):
        pool._reset_after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_reset_all_after_fork)
