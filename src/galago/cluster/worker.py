"""A worker of a batch on Ray: it loads the model once, and answers blocks of rows."""

import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from galago.batch.questions import Questions
from galago.batch.rows import Row
from galago.batch.run import FinishedRow, finished_rows, make_record, model_label
from galago.errors import EngineClosed, GalagoError, GenerationFailed, LoadFailed
from galago.media.timeline import FrameSampling

AT_ONCE = 2
"""Blocks that a worker answers at the same time, so that its model has work while one ends."""
WHOLE = 2
"""Times that a block is tried as a whole; after so many ends of its worker its rows are asked about one by one."""
MOST_TRIES = 20
"""Of a block whose worker ends again and again, whichever row it looks at."""


@dataclass(frozen=True)
class Block:
    """Rows that are answered together, in one process."""

    number: int
    rows: Sequence[Row]


@dataclass(frozen=True)
class Answers:
    """What became of a block: its rows, or what ends the run."""

    rows: Sequence[FinishedRow] = ()
    error: GalagoError | None = None


@dataclass(frozen=True)
class Work:
    """What each worker is to do."""

    model: dict[str, Any]
    """the arguments of galago.load"""
    questions: Questions
    sampling: Callable[[FrameSampling], FrameSampling]
    """of videos, of what is usual for the model"""
    folder: str
    """that relative paths start from"""
    images: bool
    """whether the files of the images come back with the answers"""


class Ledger:
    """Which blocks were begun, and the rows that were looked at when a worker ended.

    One process for a run. What it knows is lost with it: then a block is merely tried more often.
    """

    def __init__(self) -> None:
        self._tries: Counter[int] = Counter()
        self._looking: dict[int, int] = {}
        self._blamed: dict[int, set[int]] = {}

    def begin(self, block: int) -> tuple[int, set[int]]:
        """Which try this is, 1 the first, and the places of the rows at which a worker ended."""
        self._tries[block] += 1
        blamed = self._blamed.setdefault(block, set())
        if block in self._looking:
            blamed.add(self._looking.pop(block))
        return self._tries[block], set(blamed)

    def look(self, block: int, place: int) -> None:
        self._looking[block] = place

    def end(self, block: int) -> None:
        for known in (self._tries, self._looking, self._blamed):
            known.pop(block, None)


class Worker:
    """The class that Ray Data makes an actor of."""

    def __init__(self, work: Work, ledger: Any) -> None:
        import galago

        self._work, self._ledger = work, ledger
        self._running, self._all = threading.Semaphore(AT_ONCE), threading.Lock()
        self._model: galago.Model | None = None
        self._wrong: GalagoError | None = None
        with suppress(OSError):
            os.chdir(work.folder)
        try:
            self._model = galago.load(**work.model)
            work.questions.check(self._model.backend.facts)
        except GalagoError as error:
            # An actor that cannot be made would be made again and again.
            self._wrong = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"answers": [pickle.dumps(self._answer(pickle.loads(packed))) for packed in batch["block"]]}

    def _answer(self, block: Block) -> Answers:
        if self._wrong is not None:
            return Answers(error=_plain(self._wrong))
        attempt, blamed = self._call("begin", block.number)
        try:
            with self._places(AT_ONCE if attempt > WHOLE else 1):
                rows = self._one_by_one(block, blamed) if attempt > WHOLE else self._rows(block.rows)
        except EngineClosed as error:
            if attempt >= MOST_TRIES:
                return Answers(error=_plain(error))
            os._exit(1)  # what is broken is in this process; Ray starts another, and tries the block again
        self._call("end", block.number)
        return Answers(rows)

    def _rows(self, rows: Sequence[Row]) -> list[FinishedRow]:
        assert self._model is not None
        backend = self._model.backend
        sampling = self._work.sampling(self._model.video_sampling or FrameSampling())
        finished = finished_rows(backend, rows, self._work.questions, sampling, self._work.images)
        return [replace(one, row=_without_source(one.row)) for one in finished]

    def _one_by_one(self, block: Block, blamed: set[int]) -> list[FinishedRow]:
        assert self._model is not None
        done: list[FinishedRow] = []
        for place, row in enumerate(block.rows):
            if place in blamed:
                why = f"the process that looked at it ended {WHOLE + 1} times: killed, or out of memory"
                label = model_label(self._model.backend.facts)
                done.append(FinishedRow(_without_source(row), make_record(row, label, GenerationFailed(why)), None, 0))
                continue
            self._call("look", block.number, place)
            done += self._rows([row])
        return done

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        """So many of the AT_ONCE places: a block that may end the process has it alone."""
        with self._all if count > 1 else nullcontext():
            for _ in range(count):
                self._running.acquire()
        try:
            yield
        finally:
            self._running.release(count)

    def _call(self, method: str, *given: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._ledger, method).remote(*given))
        except ray.exceptions.RayActorError:
            return (1, set()) if method == "begin" else None


def _without_source(row: Row) -> Row:
    """A row that may have held its image, without it."""
    return replace(row, source=b"")


def _plain(error: GalagoError) -> GalagoError:
    """An error that another process can read: those with more arguments than a message cannot be pickled."""
    return error if pickle.loads(pickle.dumps(error)).args == error.args else LoadFailed(str(error))
