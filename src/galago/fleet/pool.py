"""Several models in memory under one budget."""

import copy
import logging
import os
import threading
import time
import traceback
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
    quoted,
    size_of,
)
from galago.fleet.default_model import SHARE
from galago.fleet.slots import Loaded, Slot
from galago.system.device import available_memory, is_out_of_memory, pick_device, return_memory
from galago.system.progress import Progress
from galago.values import is_number, is_whole

if TYPE_CHECKING:
    from galago.model import Model

log = logging.getLogger(__name__)


class ModelPool:
    """Loads models when they are first used, and unloads those least recently used when another needs their place.

    `budget` is in bytes, by default nine tenths of what the device has available now. It bounds what the models need at
    their peaks, image caches, keys and values included. Of these a model has what its longest request may need, and a
    quarter of what is left at its load, until another model needs that; unless the options' `limits` say how much.
    `keep_alive` is how many seconds a model stays after its last use: 0 unloads it at once, None keeps it until its
    place is needed. A model in use never leaves. A child of a process that forks begins with an empty pool.

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
        self.choice = cast(RunOptions, {k: v for k, v in (options or {}).items() if k in RunOptions.__annotations__})
        self._device = pick_device(self.choice.get("device"))
        self.budget = int(SHARE * available_memory(self._device)) if budget is None else budget
        self._keep_alive = keep_alive
        self._options = dict(options or {})
        self._load = load or self._loading_own
        self.need = need or partial(memory_needed, **self.choice, limits=self._options.get("limits"))
        self._clock = clock
        self._changed = threading.Condition()
        self._slots: dict[str, Slot] = {}
        self._loading = False
        self._timer: threading.Timer | None = None
        self._closed = False
        _pools.add(self)

    @contextmanager
    def use(self, name: str, progress: Progress | None = None) -> Iterator["Model"]:
        """The model of this name, which stays loaded meanwhile; loaded first if it is not there.

        Who wants a model that is being loaded waits for that load; others are loaded one after another. Do not
        keep the model for later: it is closed when it leaves, but its memory is free only once you let go of it. A
        model that has ended (see Model.ended), in whatever way, is loaded anew.

        Raises OutOfMemory, before the load, if it does not fit even when all models that are not in use leave;
        what galago.load raises; LoadFailed; and EngineClosed after close().
        """
        slot, model = self._taken(canonical_name(name, **self.choice), progress)
        try:
            yield model
        finally:
            # This frame may live on in a traceback; the memory need not.
            del model
            self._release(slot)

    @property
    def keeps(self) -> bool:
        """Whether a model stays for a while after its use, so that the end of a use never waits."""
        return self._keep_alive != 0

    def load(self, name: str, progress: Progress | None = None) -> None:
        """Load a model ahead of its use; counts as a use, and raises as `use` does."""
        with self.use(name, progress):
            pass

    def unload(self, name: str) -> bool:
        """Take a model out of memory; whether it was there. Raises ModelInUse, and does not wait, if it is in use."""
        name = canonical_name(name, **self.choice)
        with self._changed:
            while (slot := self._slots.get(name)) and slot.leaving:
                self._changed.wait()
            if slot is None:
                return False
            if slot.users:
                doing = "in use" if slot.model else "being loaded"
                raise ModelInUse(f"{name} is {doing} and cannot be unloaded now; try again later")
            slot.leaving = True
        self._dispose([slot])
        return True

    def loaded(self) -> list[Loaded]:
        """The models in memory, and the one that is being loaded, oldest first."""
        with self._changed:
            return [slot.row(self._clock(), self._keep_alive) for slot in self._slots.values() if not slot.leaving]

    def expire(self) -> None:
        """Unload what was idle for `keep_alive`. A timer does this too."""
        with self._changed:
            past = self._clock() - (float("inf") if self._keep_alive is None else self._keep_alive)
            over = [slot for slot in self._slots.values() if slot.idle and slot.since <= past]
            for slot in over:
                slot.leaving = True
        self._dispose(over)

    def close(self) -> None:
        """Close every model, those in use too: their requests, and whoever waits for a load, get EngineClosed.

        A load that is under way is given up when it comes to its end, which this does not wait for.
        """
        with self._changed:
            self._closed = True
            if self._timer:
                self._timer.cancel()
            leaving = [slot for slot in self._slots.values() if slot.model and not slot.leaving]
            for slot in leaving:
                slot.leaving = True
            self._changed.notify_all()
        self._dispose(leaving)

    def __enter__(self) -> "ModelPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _forked(self) -> None:
        """In a child: threads that load, close or wait are not there, nor are those of models."""
        for slot in self._slots.values():
            slot.model = None
        self._changed, self._slots, self._loading, self._timer = threading.Condition(), {}, False, None

    # --- taking and giving back ------------------------------------------------------------------

    def _taken(self, name: str, progress: Progress | None) -> "tuple[Slot, Model]":
        """The slot with one more user, and its model."""
        need: int | None = None
        while True:
            self._bury(name)
            with self._changed:
                slot = self._slots.get(name)
                while not self._closed and (slot.leaving if slot else need is not None and self._loading):
                    self._changed.wait()
                    slot = self._slots.get(name)
                if self._closed:
                    raise EngineClosed("the models are shut down")
                if slot:
                    slot.users += 1
                elif need is not None:
                    mine = self._slots[name] = Slot(name, need)
                    self._loading = True
            if slot:
                return slot, self._joined(slot)
            if need is not None:
                return mine, self._loaded_into(mine, progress)
            need = self.need(name)

    def _bury(self, name: str) -> None:
        """Forget a model that has ended: who still uses it can only let go of it, and is not waited for."""
        with self._changed:
            slot = self._slots.get(name)
            if slot is None or slot.leaving or slot.model is None or (ended := slot.model.ended) is None:
                return
            model, slot.model, slot.failed = slot.model, None, ended
            del self._slots[name]
            self._changed.notify_all()
        log.warning("%s is loaded anew: %s", name, ended)
        model.close()
        del model
        return_memory(self._device)

    def _joined(self, slot: Slot) -> "Model":
        """The model of a slot that this thread is a user of, once it is loaded."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or slot.model or slot.failed)
                if self._closed:
                    raise EngineClosed("the models are shut down")
                if slot.failed:
                    # Each thread raises one of its own, as a traceback grows with every raise.
                    raise copy.copy(slot.failed)
                assert slot.model
                return slot.model
        except BaseException:
            self._release(slot)
            raise

    def _release(self, slot: Slot) -> None:
        with self._changed:
            slot.users -= 1
            slot.since = self._clock()
            at_once = self._keep_alive == 0 and slot.model is not None and slot.idle
            if at_once:
                slot.leaving = True
            else:
                self._set_timer()
        if at_once:
            self._dispose([slot])

    # --- loading ---------------------------------------------------------------------------------

    def _loading_own(self, name: str, progress: Progress | None) -> "Model":
        """galago.load, with a share of what is left of the budget lent for keys and values."""
        from galago.engine.limits import Limits
        from galago.model import load

        limits = self._options.get("limits") or Limits()
        if limits.kv_bytes is None and (longest := max_request_bytes(name, **self.choice)):
            with self._changed:
                slot, left = self._slots[name], self.budget - sum(slot.need for slot in self._slots.values())
                slot.kv = kv_share(longest, limits.running, max(left, 0))
                slot.lent = slot.kv - longest
                slot.need += slot.lent
                limits = replace(limits, kv_bytes=slot.kv)
        return load(name, progress=progress, **{**self._options, "limits": limits})

    def _take_back(self) -> None:
        """Have what was lent for keys and values back; requests that run keep theirs until they end."""
        for slot in self._slots.values():
            if slot.lent and slot.model:
                slot.need -= slot.lent
                slot.model.backend.limit_kv(slot.kv - slot.lent)
                slot.lent = 0

    def _loaded_into(self, slot: Slot, progress: Progress | None) -> "Model":
        """Load a slot's model; in whatever way that ends, all who wait for it are told."""
        model: Model | None = None
        try:
            self._make_room(slot)
            model = self._load(slot.name, progress=progress)
        except BaseException as error:
            slot.failed = self._told(slot, error)
            _let_go(error)
            return_memory(self._device)
            if slot.failed is error or not isinstance(error, Exception):
                raise
            raise slot.failed from error
        finally:
            with self._changed:
                self._loading = False
                if model is None or self._closed:
                    slot.failed = slot.failed or LoadFailed(f"loading {slot.name} failed")
                    del self._slots[slot.name]
                else:
                    slot.model = model
                self._changed.notify_all()
        if slot.failed:
            model.close()
            raise EngineClosed("the models are shut down")
        return model

    def _make_room(self, slot: Slot) -> None:
        """Unload those least recently used until the budget has room, or raise OutOfMemory and unload none."""
        while True:
            leaving: list[Slot] = []
            with self._changed:
                if self._closed:
                    raise EngineClosed("the models are shut down")
                if sum(other.need for other in self._slots.values()) > self.budget:
                    self._take_back()
                if sum(other.need for other in self._slots.values()) <= self.budget:
                    return
                others = [other for other in self._slots.values() if other is not slot and not other.leaving]
                busy = {other.name: other.need for other in others if other.users}
                fits = slot.need + sum(busy.values()) <= self.budget
                excess = slot.need + sum(other.need for other in others) - self.budget
                for other in sorted((o for o in others if fits and o.idle), key=lambda o: o.since):
                    if excess > 0:
                        excess -= other.need
                        other.leaving = True
                        leaving.append(other)
                if fits and not leaving:
                    # Another thread is unloading what is in the way.
                    self._changed.wait()
            if not fits:
                raise OutOfMemory(self._refusal(slot, busy))
            self._dispose(leaving)

    def _refusal(self, slot: Slot, busy: Mapping[str, int]) -> str:
        users = ", ".join(f"{name} {size_of(need)}" for name, need in busy.items())
        used = f", of which {size_of(sum(busy.values()))} are in use ({users})" if busy else ""
        fitting = self._precisions(slot, self.budget - sum(busy.values()))
        hint = f"it would fit in {fitting}" if fitting else "it would fit in no precision"
        return f"{slot.name} needs {size_of(slot.need)}, and the budget is {size_of(self.budget)}{used}; {hint}"

    def _precisions(self, slot: Slot, most: int) -> str:
        """Those in which a model needs no more than so many bytes."""
        needs = {name: self.need(slot.name, precision=name) for name in precisions_of(slot.name)}
        return " or ".join(f"{name} ({size_of(need)})" for name, need in needs.items() if need <= most)

    def _told(self, slot: Slot, error: BaseException) -> GalagoError:
        """What those who wait are told of a load that failed."""
        if isinstance(error, GalagoError):
            return error
        if is_out_of_memory(error):
            log.warning("loading %s: memory ran out", slot.name, exc_info=error)
            less = self._precisions(slot, slot.need - 1)
            hint = f"; it needs less in {less}" if less else ""
            return OutOfMemory(f"memory ran out while {slot.name} was loading ({size_of(slot.need)} expected){hint}")
        if not isinstance(error, Exception):
            return LoadFailed(f"loading {slot.name} was interrupted ({type(error).__name__})")
        log.error("loading %s failed", slot.name, exc_info=error)
        return LoadFailed(f"loading {slot.name} failed ({type(error).__name__}); the log tells more")

    # --- leaving ---------------------------------------------------------------------------------

    def _dispose(self, slots: list[Slot]) -> None:
        """Close models whose slots were marked as leaving, and free what they took."""
        left = list(slots)
        try:
            while left:
                self._close_model(left[0])
                left.pop(0)
        finally:
            with self._changed:
                for slot in left:
                    # Interrupted: whoever comes next may have them, or unload them.
                    slot.leaving = slot.model is None
                self._changed.notify_all()

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
            with self._changed:
                del self._slots[slot.name]
                self._changed.notify_all()

    def _set_timer(self) -> None:
        """See that what is idle leaves in time. One timer is enough: no model goes sooner than an earlier one."""
        idle = [slot.since for slot in self._slots.values() if slot.model and slot.idle]
        if self._timer or self._closed or self._keep_alive is None or not idle:
            return
        wait = min(idle) + self._keep_alive - self._clock()
        self._timer = threading.Timer(min(max(wait, 0.0), threading.TIMEOUT_MAX), self._ring)
        self._timer.daemon = True
        self._timer.start()

    def _ring(self) -> None:
        try:
            self.expire()
        finally:
            with self._changed:
                self._timer = None
                self._set_timer()


_pools: "weakref.WeakSet[ModelPool]" = weakref.WeakSet()


def _all_forked() -> None:
    for pool in list(_pools):
        pool._forked()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_all_forked)


def _let_go(error: BaseException | None) -> None:
    """Empty the frames of an error's traceback: what was half loaded is in their variables."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
