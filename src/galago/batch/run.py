"""A batch: every input is asked every question, and each becomes one row, in the order of the inputs."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from galago.backends.backend import Backend, Facts, Run
from galago.batch.each import each
from galago.batch.formats import Record
from galago.batch.opened import Opened, Roots, open_ahead
from galago.batch.outputs import Output
from galago.batch.questions import Place, Question, Questions, collect
from galago.batch.rows import NAME, Row
from galago.errors import GalagoError, InvalidRequest
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.media.timeline import FrameSampling
from galago.request import STILL_SKILLS, Media, Request

MOST_NAMED = 1000
"""Rows with an error that are told at the end; the output has all."""


@dataclass
class Counts:
    """How far a batch is."""

    before: int = 0
    """rows that an earlier run has done, those with an error too"""
    failed_before: int = 0
    done: int = 0
    """rows of this run, with and without an error"""
    tokens: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    """the name and message of each row with an error, of the first MOST_NAMED"""
    failed: int = 0


def run_batch(
    model: Backend,
    rows: Iterable[Row],
    questions: Questions,
    output: Output,
    *,
    counts: Counts,
    sampling: FrameSampling,
    roots: Roots,
    also: Callable[[Row, Record], None] = lambda row, record: None,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Ask all that is not yet in the output, and add a row for each input to it; see `galago batch --help`.

    `also` is given each row before it is added, and `tell` called when it was. What is wrong with one input is a row
    with its error. Raises UnsupportedTask for what the model lacks, and what ends all: what the output raises, a folder
    of inputs that has vanished, a model that takes no more requests.
    """
    questions.check(model.facts)
    done = names_done(output, questions, model_label(model.facts), counts)
    with closing(finished_rows(model, not_done(rows, done), questions, sampling, output.takes_images)) as finished:
        add_rows(finished, output, counts=counts, roots=roots, also=also, tell=tell)


@dataclass(frozen=True)
class FinishedRow:
    """An input with its row of the output."""

    row: Row
    record: Record
    image: bytes | None
    """its file, where that is wanted and at hand"""
    tokens: int
    """that its answers took"""


def finished_rows(
    model: Backend, rows: Iterable[Row], questions: Questions, sampling: FrameSampling, images: bool
) -> Generator[FinishedRow, None, None]:
    """Ask about each row, many at a time; yields them in order, with their files if `images`. Raises what ends all."""
    label = model_label(model.facts)
    with closing(answer_rows(model, rows, questions, sampling)) as answered:
        for opened, result, tokens in answered:
            file = file_bytes(opened) if images else None
            yield FinishedRow(opened.row, make_record(opened.row, label, result), file, tokens)


def add_rows(
    finished: Iterable[FinishedRow],
    output: Output,
    *,
    counts: Counts,
    roots: Roots,
    also: Callable[[Row, Record], None],
    tell: Callable[[], None],
) -> None:
    """Add finished rows to the output, and finish that; see run_batch."""
    for one in finished:
        if error := one.record.get("error"):
            roots.check()
            counts.failed += 1
            if len(counts.errors) < MOST_NAMED:
                counts.errors.append((one.row.name, error["message"]))
        also(one.row, one.record)
        output.add(one.record, one.image)
        counts.done += 1
        counts.tokens += one.tokens
        tell()
    output.finish()


def model_label(facts: Facts) -> str:
    """The name of the model in a row, with its precision."""
    return facts.name if facts.name.endswith(f"-{facts.precision}") else f"{facts.name}-{facts.precision}"


def names_done(output: Output, questions: Questions, label: str, counts: Counts) -> Counter[str]:
    """How often each name is in the output. Raises InvalidRequest where that is of another model or other questions."""
    done: Counter[str] = Counter()
    for record in output:
        if record["model"] != label:
            raise other_model(record, label)
        if "error" not in record and (lacking := next((q for q in questions if not _has(record, q)), None)):
            what = ".".join(lacking.place)
            raise InvalidRequest(f"the output has no {what} of what is done already; name another --out", "out")
        done[record[NAME]] += 1
        counts.before += 1
        counts.failed_before += "error" in record
    return done


def other_model(record: Record, label: str) -> InvalidRequest:
    """The error of an output that has a row of another model."""
    return InvalidRequest(f"the output has answers of {record['model']}, not of {label}; name another --out", "out")


def _has(record: Record, question: Question) -> bool:
    """Whether a row has the answer to a question, as a member of a member or flat as CSV has it."""
    held: Any = record if ".".join(question.place) not in record else None
    if "frames" in record or any(name.startswith("frames.") for name in record):
        return True
    for name in question.place if held is not None else ():
        if not isinstance(held, dict) or name not in held:
            return False
        held = held[name]
    return True


def not_done(rows: Iterable[Row], done: Counter[str]) -> Iterator[Row]:
    """The rows without as many of each name as are done."""
    left = Counter(done)
    for row in rows:
        if left[row.name] > 0:
            left[row.name] -= 1
        else:
            yield row


@dataclass(frozen=True, eq=False)
class _Ask:
    """One request about an input: a question about all of it, or about one frame of a video."""

    opened: Opened
    question: Question
    frame: int | None
    last: bool
    """whether it is the last one about this input"""

    def request(self) -> Request:
        media = self.opened.media
        if isinstance(media, GalagoError):
            raise media
        shown: Media = media.frames[self.frame] if isinstance(media, Clip) and self.frame is not None else media
        return replace(self.question.template, image=shown)


Answered = tuple[Opened, dict[str, Any] | GalagoError, int]
"""An input, its answers as the members of its row or the first error, and how many tokens they took."""


def answer_rows(
    model: Backend, rows: Iterable[Row], questions: Questions, sampling: FrameSampling
) -> Generator[Answered, None, None]:
    """Ask about each row all questions, many at a time; yields them in order. Raises what ends all."""
    taken: deque[_Ask] = deque()
    videos = model.facts.video_sampling is not None

    def asks() -> Iterator[_Ask]:
        for opened in open_ahead(rows, sampling):
            for ask in _asks(opened, questions, videos):
                taken.append(ask)
                yield ask

    def finish(ask: _Ask, _: Request, run: Run) -> tuple[Any, int]:
        return ask.question.answer(run)

    answers: list[tuple[_Ask, Any]] = []
    tokens, error = 0, None
    with closing(each(asks(), _Ask.request, model.submit, finish)) as results:
        for result in results:
            ask = taken.popleft()
            if isinstance(result, GalagoError):
                error = error or result
            else:
                answers.append((ask, result[0]))
                tokens += result[1]
            if ask.last:
                yield ask.opened, error or _members(ask.opened, questions, answers), tokens
                answers, tokens, error = [], 0, None


def _asks(opened: Opened, questions: Questions, videos: bool) -> Iterator[_Ask]:
    """The requests about an input. A video is seen as a whole where the model can and the question is about it."""
    clip = opened.media if isinstance(opened.media, Clip) else None
    pairs: list[tuple[Question, int | None]] = []
    for question in questions:
        whole = clip is None or (videos and not isinstance(question.skill, STILL_SKILLS))
        pairs += [(question, frame) for frame in ([None] if whole or clip is None else range(len(clip.frames)))]
    for number, (question, frame) in enumerate(pairs, start=1):
        yield _Ask(opened, question, frame, number == len(pairs))


def _members(opened: Opened, questions: Questions, answers: Sequence[tuple[_Ask, Any]]) -> dict[str, Any]:
    """Answers as the members of a row; what was asked of a video's frames is in its member `frames`."""
    whole = {ask.question.place: answer for ask, answer in answers if ask.frame is None}
    if not isinstance(opened.media, Clip) or len(whole) == len(questions):
        return collect(whole)
    by_frame: dict[Place, Any] = {}
    for question in questions:
        if question.place not in whole:
            told = [answer for ask, answer in answers if ask.question is question]
            by_frame[question.place] = question.of_frames(opened.media.times, told, opened.media.duration)
    return {**collect(whole), "frames": collect(by_frame)}


def make_record(row: Row, label: str, result: dict[str, Any] | GalagoError) -> Record:
    """The row of the output: what the list said, then the name, the model, and the answers or the error."""
    told = {"error": {"code": result.code, "message": str(result)}} if isinstance(result, GalagoError) else result
    kept = {name: value for name, value in row.columns.items() if name not in (NAME, "model", "error", "frames")}
    return {NAME: row.name, **kept, "model": label, **told}


def file_bytes(opened: Opened) -> bytes | None:
    """The file of an image that could be opened, as it is."""
    if isinstance(opened.media, Picture) and opened.media.full_size is None:
        return opened.media.data
    source = opened.row.source
    if isinstance(source, bytes):
        return source
    try:
        read = source() if callable(source) else opened.row.file.read_bytes() if opened.row.file else None
    except (OSError, GalagoError):
        return None
    return read if isinstance(read, bytes) else None
