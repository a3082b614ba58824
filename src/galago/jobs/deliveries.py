"""Callbacks on their way: pending -> delivered or dead. Those of one job are sent one after the other."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, select, update

from galago.jobs.database import Database, Transaction
from galago.jobs.ids import IdSource
from galago.jobs.records import (
    DEAD,
    DELIVERED,
    DELIVERY_STATES,
    PENDING,
    Callback,
    Counts,
    Delivery,
    DeliveryPage,
    check_page,
    storable,
)
from galago.jobs.schema import deliveries, jobs
from galago.jobs.settings import QueueSettings

log = logging.getLogger(__name__)
PREFIX = "msg_"


class DeliveryQueue:
    """The callbacks of one database, for any number of threads and processes. Each method may raise JobsDatabaseError,
    and has then changed nothing.

    Of the pending ones of a job, one has a time (`next_at`); the others get theirs when that one is delivered or dead.
    So what is sent never overtakes what came before, and those of a receiver that is down cost nothing. What decides
    about the order of a job's callbacks locks the job first.
    """

    def __init__(self, database: Database, settings: QueueSettings) -> None:
        self._database, self._settings = database, settings
        self._ids = IdSource()

    def add(self, tx: Transaction, job_id: str, callbacks: Sequence[Callback]) -> None:
        """Queue the callbacks of a change of a job, in the transaction that made it."""
        of_job = deliveries.c.job_id == job_id
        last = tx.connection.scalar(select(func.max(deliveries.c.sequence)).where(of_job)) or 0
        waits = last > 0 and self._first_pending(tx, job_id) is not None
        rows = [
            {
                "id": self._ids.next(PREFIX, tx.now), "job_id": job_id, "sequence": last + i, "url": callback.url,
                "event": callback.event, "body": callback.body, "state": PENDING, "attempts": 0,
                "next_at": None if waits or i > 1 else tx.now, "created_at": tx.now,
            }
            for i, callback in enumerate(callbacks, 1)
        ]  # fmt: skip
        tx.connection.execute(insert(deliveries), rows)
        tx.wakes = True

    def get(self, delivery_id: str) -> Delivery | None:
        with self._database.read() as tx:
            return _get(tx, delivery_id)

    def page(
        self,
        states: Collection[str] = DELIVERY_STATES,
        *,
        job_id: str | None = None,
        after: str | None = None,
        limit: int = 50,
        newest_first: bool = True,
    ) -> DeliveryPage:
        """The callbacks in these states, of one job if given, in the order in which they were queued.

        `limit` of them (1 to 1000), from the one after the id `after` on. Raises InvalidRequest.
        """
        check_page(states, DELIVERY_STATES, after, PREFIX, limit)
        where: list[ColumnElement[bool]] = [deliveries.c.state.in_(sorted(states))]
        if job_id is not None:
            where.append(deliveries.c.job_id == job_id)
        rows, more = self._database.page(deliveries, where, after, limit, newest_first)
        return DeliveryPage(tuple(map(_delivery, rows)), more)

    def counts(self) -> Counts:
        """How many callbacks are in each state, and how long the oldest could have been sent."""
        with self._database.read() as tx:
            counted = tx.connection.execute(select(deliveries.c.state, func.count()).group_by(deliveries.c.state))
            by_state = dict.fromkeys(DELIVERY_STATES, 0) | dict(tuple(row) for row in counted)
            oldest = _next_due(tx)
        return Counts(by_state, None if oldest is None or oldest > tx.now else tx.now - oldest)

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is one to send; False if there is none after `timeout_s` seconds, or at `close`."""
        return self._database.wait(timeout_s, _next_due)

    def claim(self, worker: str, lease_s: float, limit: int = 1) -> list[Delivery]:
        """Take at most `limit` callbacks whose time has come, those that have waited longest first, of no job two.

        They come again after `lease_s` seconds, which must be more than sending takes: else one that is sent still may
        arrive after the next of its job.
        """
        with self._database.write() as tx:
            due = select(deliveries.c.id).where(deliveries.c.state == PENDING, deliveries.c.next_at <= tx.now)
            due = due.order_by(deliveries.c.next_at, deliveries.c.id).limit(limit).with_for_update(skip_locked=True)
            ids = tx.connection.scalars(due).all()
            if not ids:
                return []
            taken = {"attempts": deliveries.c.attempts + 1, "next_at": tx.now + lease_s, "leased_by": worker}
            query = update(deliveries).where(deliveries.c.id.in_(ids)).values(taken).returning(deliveries)
            claimed = [_delivery(row) for row in tx.connection.execute(query)]
        return sorted(claimed, key=lambda delivery: delivery.id)

    def delivered(self, sent: Delivery, status: int) -> Delivery | None:
        """It arrived, and was answered by this HTTP status. True whoever sent it: None only if it is not pending any
        more, since another sent it too."""
        with self._database.write() as tx:
            values = {"state": DELIVERED, "last_status": status, "last_error": None, "delivered_at": tx.now}
            return self._settle(tx, sent, [deliveries.c.state == PENDING], values)

    def failed(
        self,
        sent: Delivery,
        error: str,
        *,
        status: int | None = None,
        retry_after_s: float = 0,
        permanent: bool = False,
    ) -> Delivery | None:
        """It did not arrive, or the answer was no success: it comes again later, `retry_after_s` seconds from now at
        the soonest. If the failure is `permanent`, or the attempts are used up, it is dead, and the next of its job is
        sent. None if it was given to another meanwhile, or is settled."""
        with self._database.write() as tx:
            leased = [
                deliveries.c.state == PENDING,
                deliveries.c.leased_by == sent.leased_by,
                deliveries.c.attempts == sent.attempts,
            ]
            values: dict[str, Any] = {"last_status": status, "last_error": storable(error), "leased_by": None}
            if permanent or sent.attempts >= self._settings.max_deliveries:
                settled = self._settle(tx, sent, leased, values | {"state": DEAD})
                if settled is not None:
                    log.warning("callback %s of job %s is given up: %s", sent.id, sent.job_id, error)
                return settled
            wait_s = min(retry_after_s, self._settings.redelivery.most_s)
            next_at = tx.now + max(self._settings.redelivery.delay_s(sent.attempts), wait_s)
            return self._change(tx, sent.id, leased, values | {"next_at": next_at})

    def replay(self, delivery_id: str) -> Delivery | None:
        """Send a callback again that was delivered or is dead, from its first attempt on; one that waits for its next
        attempt is sent now. Where another of its job is pending, it follows that one. None if there is none."""
        with self._database.write() as tx:
            found = _get(tx, delivery_id)
            if found is None or not _lock_job(tx, found.job_id):
                return None
            found = _get(tx, delivery_id)
            if found is None or found.leased_by is not None:
                return found
            waits = (
                found.next_at is None if found.state == PENDING else self._first_pending(tx, found.job_id) is not None
            )
            values = {"state": PENDING, "attempts": 0, "next_at": None if waits else tx.now, "delivered_at": None}
            tx.wakes = True
            return self._change(tx, delivery_id, [deliveries.c.leased_by.is_(None)], values) or _get(tx, delivery_id)

    def _settle(self, tx: Transaction, sent: Delivery, where: list[Any], values: dict[str, Any]) -> Delivery | None:
        """It is not sent any more: the next of its job gets its time."""
        _lock_job(tx, sent.job_id)
        settled = self._change(tx, sent.id, where, values | {"next_at": None, "leased_by": None})
        if settled is not None and (following := self._first_pending(tx, sent.job_id)) is not None:
            # One that was replayed meanwhile may have come before it.
            untimed = [deliveries.c.next_at.is_(None)]
            tx.wakes = self._change(tx, following, untimed, {"next_at": tx.now}) is not None
        return settled

    def _change(self, tx: Transaction, delivery_id: str, where: list[Any], values: dict[str, Any]) -> Delivery | None:
        query = update(deliveries).where(deliveries.c.id == delivery_id, *where).values(values).returning(deliveries)
        row = tx.connection.execute(query).one_or_none()
        return None if row is None else _delivery(row)

    def _first_pending(self, tx: Transaction, job_id: str) -> str | None:
        pending = select(deliveries.c.id).where(deliveries.c.job_id == job_id, deliveries.c.state == PENDING)
        return tx.connection.scalar(pending.order_by(deliveries.c.sequence).limit(1))


def _lock_job(tx: Transaction, job_id: str) -> bool:
    """Keep others from changing the job and its callbacks until the transaction ends; False if it is gone."""
    return tx.connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update()) is not None


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**row._mapping)


def _get(tx: Transaction, delivery_id: str) -> Delivery | None:
    row = tx.connection.execute(select(deliveries).where(deliveries.c.id == delivery_id)).one_or_none()
    return None if row is None else _delivery(row)


def _next_due(tx: Transaction) -> float | None:
    return tx.connection.scalar(select(func.min(deliveries.c.next_at)).where(deliveries.c.state == PENDING))
