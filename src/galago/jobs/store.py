"""Jobs and their states: queued -> running -> done, failed or cancelled. Every change is one short transaction."""

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from galago.errors import InvalidRequest, quoted
from galago.jobs.database import Database, Transaction
from galago.jobs.deliveries import DeliveryQueue
from galago.jobs.ids import IdSource
from galago.jobs.meme_search import AddJob
from galago.jobs.numbers import Cursor, ends, number_of, read_cursor
from galago.jobs.old_queue import take_over
from galago.jobs.records import (
    CANCELLED,
    DONE,
    FAILED,
    PENDING,
    QUEUED,
    RUNNING,
    STATES,
    Callback,
    Counts,
    Job,
    JobInput,
    JobPage,
    NewJob,
    check_page,
    no_callbacks,
    storable,
)
from galago.jobs.schema import deliveries, inputs, jobs
from galago.jobs.settings import QueueSettings

log = logging.getLogger(__name__)
PREFIX = "job_"
BATCH = 500
"""Rows that one transaction removes or takes back at most, so that others get their turn."""
NO_LEASE: dict[str, Any] = {"leased_by": None, "lease_until": None}


class JobStore:
    """The jobs of one database, for any number of threads and processes; `deliveries` has their callbacks.

    A worker claims jobs for some seconds, the lease, and renews it while it works; a job whose lease ran out is given
    to the next who claims. So a job may be carried out more than once, but ends once: complete, fail and release of a
    worker that has lost its lease change nothing and return None. Made by `galago.jobs.open_store`; each method may
    raise JobsDatabaseError, and has then changed nothing.
    """

    def __init__(
        self,
        database: Database,
        settings: QueueSettings = QueueSettings(),
        callbacks: Callable[[Job], list[Callback]] = no_callbacks,
    ) -> None:
        self._database, self._settings, self._callbacks = database, settings, callbacks
        self._ids = IdSource()
        self.name = database.name
        """of the database, without its password"""
        self.deliveries = DeliveryQueue(database, settings)

    def close(self) -> None:
        """Close the database; who waits stops waiting."""
        self._database.close()

    def take_over_old_jobs(self, add: Callable[[AddJob, str], object]) -> int:
        """Take over the jobs of meme-search's own generator, if this is its file; see old_queue.take_over."""
        return take_over(self._database, add)

    def add(self, new: NewJob) -> tuple[Job, bool]:
        """Queue a job; returns it, and whether it is new. With the idempotency key of an earlier job it is that one.

        Raises InvalidRequest if it is too large, or if the earlier job was another request.
        """
        self._check_size("body", len(new.body.encode()), self._settings.max_body_bytes)
        self._check_size("image", len(new.image or b""), self._settings.max_image_bytes)
        digest = _digest(new)
        with self._database.write() as tx:
            row = {
                "id": self._ids.next(PREFIX, tx.now), "state": QUEUED, "path": new.path, "digest": digest,
                "image_path": new.image_path, "priority": new.priority, "attempts": 0,
                "max_attempts": new.max_attempts, "claims": 0, "not_before": tx.now + new.delay_s,
                "error_is_permanent": False, "idempotency_key": new.idempotency_key,
                "callback_url": new.callback_url, "external_id": new.external_id, "extra": new.extra,
                "keep_s": self._settings.keep_s if new.keep_s is None else new.keep_s, "created_at": tx.now,
                "change": number_of(tx, self._database.is_postgres),
            }  # fmt: skip
            dialect: Any = postgresql if self._database.is_postgres else sqlite
            query = dialect.insert(jobs).values(row).on_conflict_do_nothing(index_elements=["idempotency_key"])
            while (added := tx.connection.execute(query.returning(jobs)).one_or_none()) is None:
                same_key = select(jobs).where(jobs.c.idempotency_key == new.idempotency_key)
                # None if it expired between the two.
                if (earlier := tx.connection.execute(same_key).one_or_none()) is not None:
                    return _same_request(_job(earlier), digest), False
            job = _job(added)
            tx.connection.execute(insert(inputs).values(job_id=job.id, body=new.body, image=new.image))
            tx.wakes = True
            self._call_back(tx, job)
            return job, True

    def get(self, job_id: str) -> Job | None:
        with self._database.read() as tx:
            return self._get(tx, job_id)

    def read_input(self, job_id: str) -> JobInput | None:
        """What the job is about; None if it is gone."""
        with self._database.read() as tx:
            found = tx.connection.execute(select(inputs.c.body, inputs.c.image).where(inputs.c.job_id == job_id))
            row = found.one_or_none()
        return None if row is None else JobInput(row.body, row.image)

    def page(
        self,
        states: Collection[str] = STATES,
        *,
        path: str | None = None,
        external_id: str | None = None,
        after: str | None = None,
        limit: int = 50,
        newest_first: bool = True,
    ) -> JobPage:
        """The jobs in these states, of one route or one id of the client's if given, in the order in which they came.

        `limit` of them (1 to 1000), from the one after the id `after` on. Raises InvalidRequest.
        """
        check_page(states, STATES, after, PREFIX, limit)
        where: list[ColumnElement[bool]] = [jobs.c.state.in_(sorted(states))]
        if path is not None:
            where.append(jobs.c.path == path)
        if external_id is not None:
            where.append(jobs.c.external_id == external_id)
        rows, more = self._database.page(jobs, where, after, limit, newest_first)
        return JobPage(tuple(map(_job, rows)), more)

    def changes(self, after: str | None, limit: int = 100) -> tuple[tuple[Job, ...], str]:
        """The jobs whose state changed behind the cursor `after`, in the order of their changes and as they are now,
        `limit` at most; and the cursor to go on from. Without one: none, and the cursor of now.

        What a job was in between is left out, and a job that is removed. In PostgreSQL a change is told once every
        transaction of the server is over that began to write before it. Raises InvalidRequest for what is no cursor.
        """
        with self._database.read() as tx:
            # First: of what ends meanwhile, the query below sees more than this says, and not less.
            end, following = ends(tx, self._database.is_postgres)
            cursor = Cursor(end) if after is None else read_cursor(after, following)
            query = select(jobs).where(cursor.after(), jobs.c.change < end)
            rows = tx.connection.execute(query.order_by(jobs.c.change, jobs.c.id).limit(limit)).all()
        found = tuple(map(_job, rows))
        return found, found[-1].cursor if len(found) == limit else str(end)

    def last_change(self) -> int:
        """The number of the last change that `changes` tells; another one whenever there is more."""
        with self._database.read() as tx:
            end, _ = ends(tx, self._database.is_postgres)
            if not self._database.is_postgres:
                return end
            return tx.connection.scalar(select(func.max(jobs.c.change)).where(jobs.c.change < end)) or 0

    def counts(self, path: str | None = None) -> Counts:
        """How many jobs are in each state, and how long the oldest has been ready to run; of one route, if given."""
        only = [] if path is None else [jobs.c.path == path]
        with self._database.read() as tx:
            counted = tx.connection.execute(select(jobs.c.state, func.count()).where(*only).group_by(jobs.c.state))
            by_state = dict.fromkeys(STATES, 0) | dict(tuple(row) for row in counted)
            oldest = tx.connection.scalar(select(func.min(jobs.c.not_before)).where(jobs.c.state == QUEUED, *only))
        return Counts(by_state, None if oldest is None or oldest > tx.now else tx.now - oldest)

    def wait(self, timeout_s: float, without: Collection[str] = ()) -> bool:
        """Wait until there is a job to claim; False if there is none after `timeout_s` seconds, or at `close`.

        Another may claim it first. Jobs of the paths `without` do not count.
        """
        return self._database.wait(timeout_s, partial(_next_due, without))

    def claim(self, worker: str, lease_s: float, limit: int = 1, without: Collection[str] = ()) -> list[Job]:
        """Take up at most `limit` jobs whose time has come, for `lease_s` seconds: the highest priority first, then the
        oldest; none of the paths `without`. Those whose lease ran out are among them; one that was lost as often as it
        may be tried has failed."""
        with self._database.write() as tx:
            self._take_back(tx)
            # A sum, so that the index by which they are in order is used, not that of times, after which all that are
            # queued would have to be sorted.
            ready = select(jobs.c.id).where(jobs.c.state == QUEUED, jobs.c.not_before + 0 <= tx.now, *_not_of(without))
            ready = ready.order_by(jobs.c.priority.desc(), jobs.c.id).limit(limit).with_for_update(skip_locked=True)
            ids = tx.connection.scalars(ready).all()
            taken = {
                "state": RUNNING, "attempts": jobs.c.attempts + 1, "claims": jobs.c.claims + 1, "started_at": tx.now,
                "leased_by": worker, "lease_until": tx.now + lease_s,
            }  # fmt: skip
            claimed = self._change(tx, [jobs.c.id.in_(ids)], taken) if ids else []
        return sorted(claimed, key=lambda job: (-job.priority, job.id))

    def renew(self, claimed: Collection[Job], lease_s: float) -> set[str]:
        """Keep these jobs for `lease_s` seconds from now; returns the ids of those that the worker still has. The
        others were cancelled, or given to another."""
        kept = set()
        with self._database.write() as tx:
            for job in sorted(claimed, key=lambda job: job.id):
                longer = update(jobs).where(*_leased(job)).values(lease_until=tx.now + lease_s)
                if tx.connection.execute(longer).rowcount:
                    kept.add(job.id)
        return kept

    def complete(self, job: Job, result: str) -> Job | None:
        """The job is done, with this result (JSON text). None if the lease was lost."""
        with self._database.write() as tx:
            done = {"result": storable(result), "error": None, "error_is_permanent": False}
            return self._change_one(tx, _leased(job), _finished(tx, DONE) | done)

    def fail(self, job: Job, error: str, *, permanent: bool = False) -> Job | None:
        """An attempt failed for the reason `error`. Unless that is `permanent`, or the attempts are used up, the job is
        queued again, for some seconds from now. None if the lease was lost."""
        with self._database.write() as tx:
            if permanent or job.attempts >= job.max_attempts:
                values = _finished(tx, FAILED)
            else:
                values = {
                    "state": QUEUED,
                    "not_before": tx.now + self._settings.retry.delay_s(job.attempts),
                    **NO_LEASE,
                }
                tx.wakes = True
            values |= {"error": storable(error), "error_is_permanent": permanent}
            return self._change_one(tx, _leased(job), values)

    def release(self, job: Job) -> Job | None:
        """Give a job back, since its worker stops; that costs it no attempt. None if the lease was lost."""
        with self._database.write() as tx:
            tx.wakes = True
            values = {"state": QUEUED, "max_attempts": jobs.c.max_attempts + 1, "not_before": tx.now, **NO_LEASE}
            return self._change_one(tx, _leased(job), values)

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a job, whether it waits or runs; one that is finished stays as it is. None if there is none."""
        with self._database.write() as tx:
            open_ = [jobs.c.id == job_id, jobs.c.state.in_([QUEUED, RUNNING])]
            return self._change_one(tx, open_, _finished(tx, CANCELLED)) or self._get(tx, job_id)

    def retry(self, job_id: str) -> Job | None:
        """Queue a failed or cancelled job again, as if it were new. None if there is none; raises InvalidRequest if it
        is in another state."""
        with self._database.write() as tx:
            anew = {
                "state": QUEUED, "attempts": 0, "not_before": tx.now, "error": None, "error_is_permanent": False,
                "started_at": None, "finished_at": None, "expires_at": None,
            }  # fmt: skip
            changed = self._change_one(tx, [jobs.c.id == job_id, jobs.c.state.in_([FAILED, CANCELLED])], anew)
            tx.wakes = changed is not None
            if changed is None and (job := self._get(tx, job_id)) is not None:
                raise InvalidRequest(f"only a failed or cancelled job can be tried again, and {job_id} is {job.state}")
            return changed

    def expire(self) -> int:
        """Remove the finished jobs whose time is over and all of whose callbacks were delivered or are dead, with all
        that belongs to them; returns how many."""
        total = 0
        while True:
            with self._database.write() as tx:
                unsent = select(deliveries.c.id).where(deliveries.c.job_id == jobs.c.id, deliveries.c.state == PENDING)
                over = select(jobs.c.id).where(jobs.c.expires_at <= tx.now, ~unsent.exists())
                ids = tx.connection.scalars(over.limit(BATCH).with_for_update(skip_locked=True)).all()
                for table, key in ((deliveries, deliveries.c.job_id), (inputs, inputs.c.job_id), (jobs, jobs.c.id)):
                    tx.connection.execute(delete(table).where(key.in_(ids)))
            total += len(ids)
            if len(ids) < BATCH:
                return total

    def _take_back(self, tx: Transaction) -> None:
        lapsed = select(jobs.c.id, jobs.c.attempts, jobs.c.max_attempts).where(
            jobs.c.state == RUNNING, jobs.c.lease_until <= tx.now
        )
        for row in tx.connection.execute(lapsed.limit(BATCH).with_for_update(skip_locked=True)).all():
            if row.attempts < row.max_attempts:
                values: dict[str, Any] = {"state": QUEUED, "not_before": tx.now, **NO_LEASE}
                log.warning("the worker of job %s was lost: it is queued again", row.id)
            else:
                error = f"its worker was lost in attempt {row.attempts} of {row.max_attempts}"
                values = _finished(tx, FAILED) | {"error": error, "error_is_permanent": False}
                log.warning("job %s failed: %s", row.id, error)
            self._change(tx, [jobs.c.id == row.id], values)

    def _change_one(self, tx: Transaction, where: Sequence[ColumnElement[bool]], values: dict[str, Any]) -> Job | None:
        changed = self._change(tx, where, values)
        return changed[0] if changed else None

    def _change(self, tx: Transaction, where: Sequence[ColumnElement[bool]], values: dict[str, Any]) -> list[Job]:
        """Change the jobs of which `where` holds, and write their callbacks."""
        values = values | {"change": number_of(tx, self._database.is_postgres)}
        rows = tx.connection.execute(update(jobs).where(*where).values(values).returning(jobs)).all()
        changed = [_job(row) for row in rows]
        for job in changed:
            self._call_back(tx, job)
        return changed

    def _call_back(self, tx: Transaction, job: Job) -> None:
        if calls := self._callbacks(job):
            self.deliveries.add(tx, job.id, calls)

    def _get(self, tx: Transaction, job_id: str) -> Job | None:
        row = tx.connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        return None if row is None else _job(row)

    def _check_size(self, what: str, size: int, most: int) -> None:
        if size > most:
            raise InvalidRequest(f"the {what} of a job may have {most} bytes, and this has {size}", what)


def _job(row: Row[Any]) -> Job:
    return Job(**row._mapping)


def _leased(job: Job) -> list[ColumnElement[bool]]:
    """What holds while the worker that claimed the job still has it."""
    return [
        jobs.c.id == job.id,
        jobs.c.state == RUNNING,
        jobs.c.leased_by == job.leased_by,
        jobs.c.claims == job.claims,
    ]


def _finished(tx: Transaction, state: str) -> dict[str, Any]:
    # Without keep_s the sum is NULL: it never expires.
    return {"state": state, "finished_at": tx.now, "expires_at": tx.now + jobs.c.keep_s, **NO_LEASE}


def _not_of(paths: Collection[str]) -> list[ColumnElement[bool]]:
    return [jobs.c.path.not_in(sorted(paths))] if paths else []


def _next_due(without: Collection[str], tx: Transaction) -> float | None:
    queued = select(func.min(jobs.c.not_before)).where(jobs.c.state == QUEUED, *_not_of(without))
    leased = select(func.min(jobs.c.lease_until)).where(jobs.c.state == RUNNING)
    times = [time for time in (tx.connection.scalar(queued), tx.connection.scalar(leased)) if time is not None]
    return min(times, default=None)


def _digest(new: NewJob) -> str:
    digest = hashlib.sha256()
    for part in (new.path.encode(), new.body.encode(), (new.image_path or "").encode(), new.image or b""):
        # With its length, so that no part can be mistaken for the end of another.
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _same_request(job: Job, digest: str) -> Job:
    if job.digest != digest:
        raise InvalidRequest(
            f"the idempotency key {quoted(job.idempotency_key)} was used for another request: take a new key",
            "idempotency_key",
        )
    return job
