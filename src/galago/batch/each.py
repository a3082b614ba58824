"""One loop over many inputs: several requests in flight, answers in the order of the inputs."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from galago.backends.backend import Run
from galago.engine.decoding import MOST
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
    """What `finish` makes of each input's run, in the order of the inputs; or the error that was raised for it.

    `request` makes a request of an input, `submit` hands it to a model, `finish` reads the events of its Run, all in
    the thread that iterates. `inputs` may be endless: of them are taken so many as are in flight, fewer where what
    these look at has 512 MiB or more together, and where the model's queue is full. An answer that is there when the
    next input has been taken is given out at once. `progress` is told how many are done.

    A model that takes no more requests ends it with EngineClosed; so does any other error than a GalagoError, such as
    one of `inputs` itself. However it ends, what is in flight is cancelled.
    """
    waiting, held = iter(inputs), None
    flying: deque[_Asked[Input]] = deque()
    done, more = 0, True
    try:
        while True:
            while held or (more and _fits(flying, in_flight)):
                if held is None:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    held = _asked(item, request)
                if not held.begun(submit, may_wait=bool(flying)):
                    break
                flying.append(held)
                held = None
                if flying[0].over:
                    break
            if not flying:
                return
            result = _result(flying.popleft(), finish)
            done += 1
            progress(done)
            yield result
            del result  # an endless loop holds on to nothing
    finally:
        for asked in flying:
            if asked.run is not None:
                asked.run.cancel()


def raised(results: Generator[Result | GalagoError, None, None]) -> Generator[Result, None, None]:
    """The same results; the first error is raised, which ends the loop that they come from."""
    with closing(results):
        for result in results:
            if isinstance(result, GalagoError):
                raise result
            yield result


@dataclass
class _Asked(Generic[Input]):
    """An input and how far it is: of request, run and error it has what came of it."""

    input: Input
    request: Request | None = None
    run: Run | None = None
    error: GalagoError | None = None
    bytes: int = 0
    """of what it looks at, which stay in memory until it is done"""

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.run is None or self.run.ended

    def begun(self, submit: Callable[[Request], Run], may_wait: bool) -> bool:
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


def _asked(item: Input, request: Callable[[Input], Request]) -> _Asked[Input]:
    try:
        made = request(item)
    except GalagoError as error:
        return _Asked(item, error=error)
    return _Asked(item, made, bytes=sum(map(_bytes, made.shown)))


def _fits(flying: "deque[_Asked[Input]]", in_flight: int) -> bool:
    return len(flying) < in_flight and sum(asked.bytes for asked in flying) < MOST


def _bytes(shown: Media) -> int:
    match shown:
        case Picture():
            return len(shown.data)
        case Image.Image():
            return 3 * shown.width * shown.height
        case Clip():
            return sum(map(_bytes, shown.frames))
    return 0


def _result(asked: _Asked[Input], finish: Callable[[Input, Request, Run], Result]) -> Result | GalagoError:
    try:
        if asked.error is not None:
            raise asked.error
        assert asked.request is not None and asked.run is not None
        return finish(asked.input, asked.request, asked.run)
    except EngineClosed:
        raise
    except GalagoError as error:
        # Kept as a result, it must not hold on to pictures and runs, which the frames that it came through do.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
