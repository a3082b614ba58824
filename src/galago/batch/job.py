"""A batch as it was asked for, carried out by one model of this machine."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic

from galago.backends.backend import Backend
from galago.batch.opened import Roots
from galago.batch.outputs import NoOutput, Output, open_output
from galago.batch.questions import Questions
from galago.batch.remote import RemotePath
from galago.batch.rows import Row, Rows
from galago.batch.run import Counts, answer_rows, model_label, names_done, not_done, run_batch
from galago.batch.sidecars import Sidecars
from galago.errors import GalagoError, InvalidRequest
from galago.media.timeline import FrameSampling

MEASURED = 16
"""Rows that an estimate asks about."""


@dataclass(frozen=True)
class Job:
    """Which rows are asked what, and where the answers go."""

    rows: Rows
    questions: Questions
    roots: Roots
    out: Path | RemotePath | None = None
    format: str | None = None
    shard_rows: int | None = None
    sidecars: Sidecars | None = None
    retry_errors: bool = False

    def open_output(self) -> Output:
        """Raises InvalidRequest for an output that is one of the inputs, or that cannot be written."""
        if self.out is None:
            return NoOutput()
        self.roots.check_output(self.out)
        output = open_output(self.out, self.format, self.shard_rows)
        if self.retry_errors:
            output.forget_errors()
        return output

    def to_do(self) -> Iterator[Row]:
        """The rows whose sidecars can be written, or have no caption yet where there is no other output."""
        if self.sidecars is None:
            return iter(self.rows)
        checked = self.sidecars.check(self.rows)
        return checked if self.out is not None else self.sidecars.without_caption(checked)

    def run(
        self, model: Backend, output: Output, counts: Counts, sampling: FrameSampling, tell: Callable[[], None]
    ) -> None:
        """Carry it out; see run_batch."""
        also = self.sidecars.write if self.sidecars else lambda row, record: None
        run_batch(
            model, self.to_do(), self.questions, output, counts=counts, sampling=sampling, roots=self.roots,
            also=also, tell=tell,
        )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What a batch would take."""

    total: int
    done: int
    """of the total, by earlier runs"""
    measured: int
    errors: int
    """of those measured"""
    images_per_minute: float
    seconds_left: float


def estimate(job: Job, model: Backend, sampling: FrameSampling) -> Estimate:
    """Count the rows of a batch, and ask about the first few that are not done.

    Nothing is written. Raises InvalidRequest where nothing is left to do.
    """
    job.questions.check(model.facts)
    counts, names = Counts(), Counter[str]()
    if job.out is not None and job.out.exists():
        output = job.open_output()
        try:
            names = names_done(output, job.questions, model_label(model.facts), counts)
        finally:
            output.close()
    total = sum(1 for _ in job.to_do())
    begin, measured, errors = monotonic(), 0, 0
    with closing(
        answer_rows(model, islice(not_done(job.to_do(), names), MEASURED), job.questions, sampling)
    ) as answered:
        for _, result, _ in answered:
            measured += 1
            errors += isinstance(result, GalagoError)
    if not measured:
        raise InvalidRequest(f"nothing is left to do: all of {total} rows are done")
    per_second = measured / (monotonic() - begin)
    left = max(0, total - counts.before)
    return Estimate(total, counts.before, measured, errors, round(60 * per_second, 1), round(left / per_second, 1))
