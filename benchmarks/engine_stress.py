"""Many mixed requests at once, each of which has to answer as it does alone, and end; and no memory is to be lost.

    python benchmarks/engine_stress.py --model scenes-int8 --count 500 --repeat 3

The requests are drawn from a seed (stress_requests.py): all skills, greedy and sampled, repeated images and such that
are encoded first, broken and odd ones, prompts that do not fit; clients that read every event as it comes and such
that read late, cancel or let go. First each is carried out alone. Then several threads submit all of them, as many at
once as the engine takes, `--repeat` times. What finishes has to give the same events and use the same tokens, what is
cancelled the first of them. Resident memory after the last time may be 5 % above that after the first.

Prints what differs; the exit code is 1 if anything does.
"""

import argparse
import faulthandler
import gc
import json
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from stress_requests import FAILS, Asked, draw_requests

import galago
from galago.errors import EngineBusy, GalagoError
from galago.request import Done, Event, Request
from galago.system.device import memory_in_use

if TYPE_CHECKING:
    from galago.engine.engine import EngineRun

PATIENCE_S = 300.0
"""No event of any request for so long: the engine is stuck."""
SETTLE_S = 2.0
"""An idle engine gives memory back sooner than that."""
GROWTH = 1.05
OVERTAKEN = 5
"""A request that is cancelled unread is so after so many times `after` events of others."""


@dataclass(frozen=True)
class Ending:
    """How a request ended: its events without the last, and what the last, or the error, told."""

    kind: Literal["done", "cancelled", "failed", "let go", "broken off"]
    events: tuple[Event, ...] = ()
    told: tuple[Any, ...] = ()


@dataclass
class _Open:
    """A request under way, and what its client has of it."""

    asked: Asked
    run: "EngineRun"
    events: list[Event] = field(default_factory=list)
    others: int = 0
    """events of other requests that its client has read since"""


class _Pulse:
    """Counts what happens, so that a thread without anything to read can wait for the next."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def beat(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_past(self, count: int) -> None:
        with self._changed:
            # What a client lets go of makes room without an event, hence the limit.
            self._changed.wait_for(lambda: self.count > count, 1.0)


# --- carrying out ------------------------------------------------------------------------------


def alone(fresh: Callable[[], AbstractContextManager[galago.Model]], asked: Sequence[Asked]) -> list[Ending]:
    """How each request ends when nothing else runs and nobody cancels it.

    No model that `fresh` makes sees an image twice, so what it may keep of images cannot matter.
    """
    endings: dict[int, Ending] = {}
    seen = Counter[int]()
    turns: dict[int, list[Asked]] = {}
    for one in asked:
        turn = 0 if one.picture is None else seen[one.picture]
        turns.setdefault(turn, []).append(one)
        if one.picture is not None:
            seen[one.picture] += 1
    for requests in turns.values():
        with fresh() as model:
            for one in requests:
                try:
                    opened = _Open(one, _submit(model, one, encode=isinstance(one.image, bytes)))
                    while (ending := _read(opened, cancel=False)) is None:
                        pass
                except Exception as error:
                    ending = _failed(error)
                endings[one.number] = ending
    return [endings[one.number] for one in asked]


def together(model: galago.Model, asked: Iterable[Asked], clients: int, at_once: int) -> dict[int, Ending]:
    """How each request ends when `clients` threads have up to `at_once` under way each.

    One that never ends is missing.
    """
    todo, pulse = deque(asked), _Pulse()
    endings: dict[int, Ending] = {}
    threads = [
        threading.Thread(target=_client, args=(model, todo, at_once, pulse, endings), daemon=True)
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            before = pulse.count
            thread.join(PATIENCE_S)
            if thread.is_alive() and pulse.count == before:
                return dict(endings)
    return endings


def _client(model: galago.Model, todo: deque[Asked], at_once: int, pulse: _Pulse, endings: dict[int, Ending]) -> None:
    under_way: deque[_Open] = deque()
    refused: Asked | None = None
    while True:
        count = pulse.count
        while len(under_way) < at_once:
            try:
                asked = refused or todo.popleft()
            except IndexError:
                break
            refused = None
            try:
                one = _Open(asked, _submit(model, asked, asked.encoded or isinstance(asked.image, bytes)))
                if asked.cancel == "before":
                    one.run.cancel()
                # Whoever wants to stop in the middle must not come late.
                (under_way.append if asked.late else under_way.appendleft)(one)
                del one
            except EngineBusy:
                refused = asked
                break
            except Exception as error:
                endings[asked.number] = _failed(error)
            pulse.beat()
        if under_way:
            one = under_way.popleft()
            try:
                ending = _read(one, cancel=True)
            except Exception as error:
                ending = _failed(error, one.events)
            if ending is not None:
                endings[one.asked.number] = ending
            elif one.asked.cancel in ("middle", "let go"):
                under_way.appendleft(one)
            else:
                under_way.append(one)
            del one  # the run may be one to let go of
            _overtaken(under_way)
            pulse.beat()
        elif refused:
            pulse.wait_past(count)
        else:
            return


def _overtaken(under_way: deque[_Open]) -> None:
    """Cancel, in the middle of whatever they are at, those that are to be cancelled unread."""
    for one in under_way:
        one.others += 1
        if one.asked.cancel == "middle" and one.asked.late and one.others == OVERTAKEN * one.asked.after:
            one.run.cancel()


def _submit(model: galago.Model, asked: Asked, encode: bool) -> "EngineRun":
    # A copy: the content is what makes an image the same.
    image = asked.image if asked.image is None or isinstance(asked.image, bytes) else asked.image.copy()
    given = model.encode_image(image, {"detail": asked.detail}) if encode and image is not None else image
    assert not isinstance(given, bytes)
    return model.submit(Request(asked.skill, given, asked.sampling, detail=asked.detail))


def _read(one: _Open, cancel: bool) -> Ending | None:
    """Take the next event, or all that are left for a client that reads late; None while there are more."""
    asked, run = one.asked, one.run
    for event in run:
        if isinstance(event, Done):
            if cancel and asked.cancel == "after":
                run.cancel()
            return _ended(one, event, [*run])
        one.events.append(event)
        if cancel and len(one.events) == asked.after:
            if asked.cancel == "middle" and not asked.late:
                run.cancel()
            elif asked.cancel == "let go":
                return Ending("let go", tuple(one.events))
        if not asked.late:
            return None
    return Ending("broken off", tuple(one.events))


def _ended(one: _Open, done: Done, beyond: list[Event]) -> Ending:
    if beyond:
        return Ending("broken off", (*one.events, *beyond), ("events after the last",))
    if done.finish_reason == "cancelled":
        return Ending("cancelled", tuple(one.events))
    used = done.usage
    # What is cached depends on who came before.
    told = (done.finish_reason, used.prompt_tokens, used.image_tokens, used.completion_tokens)
    return Ending("done", tuple(one.events), told)


def _failed(error: Exception, events: Sequence[Event] = ()) -> Ending:
    return Ending("failed", tuple(events), (error.code if isinstance(error, GalagoError) else repr(error),))


# --- comparing ---------------------------------------------------------------------------------


def off_alone(asked: Asked, ending: Ending) -> str | None:
    """What is wrong with the ending of a request that was alone."""
    wanted = FAILS.get(asked.kind)
    if wanted is None:
        return None if ending.kind == "done" else f"{ending.kind} {ending.told}"
    return None if ending.told == (wanted,) else f"{ending.kind} {ending.told}, not {wanted}"


def off_together(asked: Asked, wanted: Ending, ending: Ending | None) -> str | None:
    """How an ending differs from the one of the same request alone."""
    if ending is None:
        return "never ended"
    part = ending.kind == "cancelled" and asked.cancel in ("before", "middle")
    part = part or (ending.kind == "let go" and asked.cancel == "let go")
    if not part and ending.kind != wanted.kind:
        return f"{ending.kind} {ending.told}, alone {wanted.kind} {wanted.told}"
    for place, (theirs, ours) in enumerate(zip(wanted.events, ending.events, strict=False)):
        if theirs != ours:
            return f"event {place} is {ours}, alone {theirs}"
    if len(ending.events) > len(wanted.events) or (not part and len(ending.events) < len(wanted.events)):
        return f"{len(ending.events)} events, alone {len(wanted.events)}"
    if not part and ending.told != wanted.told:
        return f"{ending.told}, alone {wanted.told}"
    return None


def differences(asked: Sequence[Asked], wanted: Sequence[Ending], found: dict[int, Ending]) -> list[str]:
    """A line for each request that did not end as it should."""
    told = []
    for one, alone_ending in zip(asked, wanted, strict=True):
        if off := off_together(one, alone_ending, found.get(one.number)):
            told.append(f"{one}: {off}")
    return told


# --- the run -----------------------------------------------------------------------------------


def resident(device: str) -> int:
    """Bytes in use once the engine is idle and has tidied up."""
    gc.collect()
    time.sleep(SETTLE_S)
    return memory_in_use(torch.device(device)).used


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes", help="a name of the catalogue, or a checkpoint's folder")
    parser.add_argument("--precision")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--count", type=int, default=500, help="requests")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--repeat", type=int, default=3, help="times that all of them are submitted")
    parser.add_argument("--clients", type=int, default=4, help="threads that submit")
    # More than wait and run in the engine, so that it refuses some.
    parser.add_argument("--at-once", type=int, default=30, help="requests that each of them has under way")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    args = parser.parse_args()
    if args.count < 1 or args.repeat < 1:
        parser.error("--count and --repeat must be at least 1")

    def fresh() -> galago.Model:
        return galago.load(args.model, precision=args.precision, device=args.device, threads=args.threads)

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    asked = draw_requests(args.seed, args.count)
    begin = time.perf_counter()
    wanted = alone(fresh, asked)
    alone_s = time.perf_counter() - begin
    off = [f"{one}: alone: {why}" for one, ending in zip(asked, wanted, strict=True) if (why := off_alone(one, ending))]
    for line in off:
        say(line)
    say(f"{len(asked)} requests alone: {alone_s:.1f} s")

    rounds: list[dict[str, Any]] = []
    model = fresh()
    about = {"model": model.name, "precision": model.precision, "device": model.device, "kernels": model.kernels}
    for number in range(1, args.repeat + 1):
        begin = time.perf_counter()
        found = together(model, asked, args.clients, args.at_once)
        seconds = time.perf_counter() - begin
        differ = [f"round {number}: {line}" for line in differences(asked, wanted, found)]
        kinds = Counter(ending.kind for ending in found.values())
        stuck = len(found) < len(asked)
        used = resident(model.device)
        rounds.append({"seconds": seconds, "endings": dict(kinds), "resident_bytes": used})
        for line in differ:
            say(line)
        off += differ
        ends = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        say(f"round {number}: {seconds:.1f} s; {ends}; {len(differ)} differ; resident {used / 1e6:.1f} MB")
        del found
        if stuck:
            faulthandler.dump_traceback()
            break
    growth = rounds[-1]["resident_bytes"] / rounds[0]["resident_bytes"]
    if growth > GROWTH:
        off.append(f"resident memory grew to {growth:.3f} of that after the first round")
        say(off[-1])
    if args.json:
        facts = {**about, "seed": args.seed, "count": len(asked), "alone_s": alone_s, "rounds": rounds}
        print(json.dumps({**facts, "growth": growth, "off": off}, indent=1))
    say(f"{len(off)} things are off" if off else "all is as it should be")
    sys.stdout.flush()
    if stuck:
        os._exit(1)  # closing would wait for the engine
    model.close()
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
