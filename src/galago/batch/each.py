"""The loop over many inputs: several requests in flight, answers in the order of the inputs."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from galago.backends.backend import Run
from galago.engine.decoding import MAX_DECODED_BYTES
from galago.errors import EngineBusy, EngineClosed, GalagoError
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import Media, Request

Input = TypeVar("Input")
Result = TypeVar("Result")

IN_FLIGHT = 32
"""Requests at a time: twice what an engine carries out at once, so that it never waits for the next."""


def each(
    inputs: Iterable[Input],
    request: Callable[[Input], Request],
    submit: Callable[[Request], Run],
    finish: Callable[[Input, Request, Run], Result],
    *,
    in_flight: int = IN_FLIGHT,
    progress: Callable[[int], None] = lambda done: None,
) -> Generator[Result | GalagoError, None, None]:
    """Yield the result of each input in the order of the inputs, or the error that was raised for it.

    `request` makes a request of an input, `submit` hands it to a model, `finish` makes the result from its Run, all in
    the thread that iterates. `inputs` may be endless: at most `in_flight` are taken ahead, fewer while their images
    have 512 MiB or more together or the model's queue is full. A result that is ready when the next input has been
    taken is yielded at once. `progress` is called with how many are done.

    A model that takes no more requests ends it with EngineClosed; so does any other error than a GalagoError, such as
    one of `inputs` itself. However it ends, what is in flight is cancelled.
    """
    waiting, upcoming = iter(inputs), None
    in_progress: deque[_Pending[Input]] = deque()
    done, more = 0, True
    try:
        while True:
            while upcoming or (more and _fits(in_progress, in_flight)):
                if upcoming is None:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    upcoming = _prepare(item, request)
                if not upcoming.try_submit(submit, may_wait=bool(in_progress)):
                    break
                in_progress.append(upcoming)
                upcoming = None
                if in_progress[0].is_done:
                    break
            if not in_progress:
                return
            result = _result(in_progress.popleft(), finish)
            done += 1
            progress(done)
            yield result
            del result  # an endless loop holds on to nothing
    finally:
        for pending in in_progress:
            if pending.run is not None:
                pending.run.cancel()


def raise_errors(results: Generator[Result | GalagoError, None, None]) -> Generator[Result, None, None]:
    """Yield the results of `each` and raise the first error among them, which ends its loop."""
    with closing(results):
        for result in results:
            if isinstance(result, GalagoError):
                raise result
            yield result


@dataclass
class _Pending(Generic[Input]):
    """An input that was taken, with its request, run or error as far as it has come."""

    input: Input
    request: Request | None = None
    run: Run | None = None
    error: GalagoError | None = None
    bytes: int = 0
    """of its images and clips, which stay in memory until it is done"""

    @property
    def is_done(self) -> bool:
        """Whether its result is there without waiting."""
        return self.run is None or self.run.ended

    def try_submit(self, submit: Callable[[Request], Run], may_wait: bool) -> bool:
        """Submit it; False where the queue is full and it may wait for others to end."""
        if self.request is not None and self.error is None:
            try:
                self.run = submit(self.request)
            except EngineBusy as error:
                if may_wait:
                    return False
                self.error = error
            except GalagoError as error:
                self.error = error
        return True


def _prepare(item: Input, request: Callable[[Input], Request]) -> _Pending[Input]:
    try:
        made = request(item)
    except GalagoError as error:
        return _Pending(item, error=error)
    return _Pending(item, made, bytes=sum(map(_bytes, made.shown)))


def _fits(in_progress: "deque[_Pending[Input]]", in_flight: int) -> bool:
    return len(in_progress) < in_flight and sum(pending.bytes for pending in in_progress) < MAX_DECODED_BYTES


def _bytes(media: Media) -> int:
    match media:
        case Picture():
            return len(media.data)
        case Image.Image():
            return 3 * media.width * media.height
        case Clip():
            return sum(map(_bytes, media.frames))
    return 0


def _result(pending: _Pending[Input], finish: Callable[[Input, Request, Run], Result]) -> Result | GalagoError:
    try:
        if pending.error is not None:
            raise pending.error
        assert pending.request is not None and pending.run is not None
        return finish(pending.input, pending.request, pending.run)
    except EngineClosed:
        raise
    except GalagoError as error:
        # Kept as a result, it must not hold on to pictures and runs, which the frames that it came through do.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
