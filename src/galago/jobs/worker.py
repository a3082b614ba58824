"""Working a queue: jobs are claimed and carried out side by side, their leases renewed, their callbacks sent.

All of it is asyncio; what waits for the database or for a site does so in threads.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from galago.errors import EngineBusy, EngineClosed, GalagoError, InvalidRequest, ModelNotFound, UnsupportedTask
from galago.jobs import meme_search
from galago.jobs.metrics import AttemptOutcome, count_attempt, count_callback
from galago.jobs.records import DEAD, DONE, QUEUED, Delivery, Job, JobInput
from galago.jobs.sending import PLAIN_HEADERS, TIMEOUT, Sent, send, sign
from galago.jobs.store import JobStore

T = TypeVar("T")
log = logging.getLogger(__name__)
LEASE_S = 15.0
"""Seconds after which another takes up the jobs of a worker that was killed"""
RENEW_S = 3.0
"""Between renewals of the leases, which also tell of jobs that were cancelled"""
EXPIRE_S = 60.0
WAIT_S = 1.0
"""That one look for something to do takes at the longest"""
BUSY_S = 1.0
"""Before a job is tried again that the engine had no room for"""
MARGIN_S = 5.0
"""That the lease of a callback is longer than sending it may take: it is sent as soon as it is claimed"""
GONE = 410
"""The status by which Standard Webhooks' receivers end their interest"""
STOP_S = 2.0
"""That a stop waits for the callbacks that are on their way; they are sent again later, else"""
SENDERS = 4
"""Callbacks that are on their way at the same time"""
PERMANENT = (InvalidRequest, UnsupportedTask, ModelNotFound)
"""What no further attempt would mend"""

Perform = Callable[[Job, JobInput], Awaitable[str]]
"""Carries a job out; returns its result as JSON text"""


async def run_worker(
    store: JobStore,
    perform: Perform,
    *,
    slots: int = 8,
    without: Collection[str] = (),
    allowed_hosts: tuple[str, ...] = (),
    secret: str | None = None,
    name: str | None = None,
) -> None:
    """Work the queue until this is cancelled; jobs that are under way then are given back to it.

    `slots` jobs run at a time, none of the paths `without`. Callbacks go to public addresses and `allowed_hosts`,
    signed where there is a `secret`.
    """
    me = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    running: dict[str, tuple[Job, anyio.CancelScope]] = {}
    ended = anyio.Event()

    async def work() -> None:
        nonlocal ended
        while True:
            while len(running) >= slots:
                await ended.wait()
                ended = anyio.Event()
            # What is given back at a stop is not for this worker to take up again.
            await anyio.lowlevel.checkpoint()
            # All that there is room for: a claim of several takes little longer than one of one.
            # Shielded, since what is claimed while this is cancelled has to be given back too.
            with anyio.CancelScope(shield=True):
                claimed = await _blocking(store.claim, me, LEASE_S, slots - len(running), without)
            for job in claimed:
                scope = anyio.CancelScope()
                running[job.id] = (job, scope)
                tasks.start_soon(carry_out, job, scope)
            if not claimed:
                await _blocking(store.wait, WAIT_S, without)

    async def carry_out(job: Job, scope: anyio.CancelScope) -> None:
        release = finish = partial(store.release, job)
        outcome: AttemptOutcome = "lost"
        try:
            with scope:
                given = await _blocking(store.read_input, job.id)
                if given is not None:
                    finish = partial(store.complete, job, await _in_its_turn(perform, job, given))
        except EngineClosed:
            pass
        except PERMANENT as error:
            log.warning("job %s permanently failed: %s", job.id, error)
            finish = partial(store.fail, job, str(error), permanent=True)
        except Exception as error:
            if not isinstance(error, GalagoError):
                log.error("job %s failed", job.id, exc_info=error)
            said = str(error) if isinstance(error, GalagoError) else "the server failed to carry out the request"
            log.warning("attempt %d of %d at job %s failed: %s", job.attempts, job.max_attempts, job.id, said)
            finish = partial(store.fail, job, said)
        finally:
            # A worker that stops has a moment for this. A job whose scope is cancelled is another's, or nobody's.
            with anyio.move_on_after(LEASE_S, shield=True):
                if not scope.cancelled_caught:
                    outcome = _outcome(await _settle(finish), is_released=finish is release)
            count_attempt(outcome)
            del running[job.id]
            ended.set()

    async def renew() -> None:
        while True:
            await anyio.sleep(RENEW_S)
            held = dict(running)
            kept = await _blocking(store.renew, [job for job, _ in held.values()], LEASE_S) if held else set()
            for job_id in held.keys() - kept:
                held[job_id][1].cancel()

    async def deliver() -> None:
        while True:
            claimed = await _blocking(store.deliveries.claim, me, TIMEOUT + MARGIN_S, 1)
            for delivery in claimed:
                await send_one(delivery)
            if not claimed:
                await _blocking(store.deliveries.wait, WAIT_S)

    async def send_one(delivery: Delivery) -> None:
        call = partial(_send, delivery, allowed_hosts, secret)
        # A task of its own, since a stop is not to wait for a slow receiver, but for what is nearly sent.
        limiter = anyio.CapacityLimiter(1)
        sending = asyncio.ensure_future(anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter))
        try:
            await asyncio.wait({sending})
        finally:
            with anyio.move_on_after(STOP_S, shield=True):
                await asyncio.wait({sending})
                await _record(store, delivery, sending.result())
            sending.cancel()

    async def expire() -> None:
        while True:
            await _blocking(store.expire)
            await anyio.sleep(EXPIRE_S)

    async with anyio.create_task_group() as tasks:
        for one in (work, renew, expire, *[deliver] * SENDERS):
            tasks.start_soon(_go_on, one)


async def _go_on(what: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do something for ever, also past a database that is away for a while."""
    while True:
        try:
            await what()
        except Exception as error:
            log.error("the job queue: %s", error, exc_info=None if isinstance(error, GalagoError) else error)
            await anyio.sleep(1)


async def _settle(finish: Callable[[], T]) -> T:
    """Write how a job ended, also past a database that is away for a while."""
    while True:
        try:
            return await _blocking(finish)
        except GalagoError as error:
            log.error("the job queue: %s", error)
            await anyio.sleep(1)


def _outcome(ended: Job | None, is_released: bool) -> AttemptOutcome:
    if ended is None:
        return "lost"
    if ended.state == QUEUED:
        return "released" if is_released else "retried"
    return "done" if ended.state == DONE else "failed"


async def _in_its_turn(perform: Perform, job: Job, given: JobInput) -> str:
    """Carry a job out once the engine has room for it."""
    while True:
        try:
            return await perform(job, given)
        except EngineBusy:
            await anyio.sleep(BUSY_S)


async def _record(store: JobStore, delivery: Delivery, sent: Sent) -> None:
    """Write what became of a callback."""
    if sent.ok:
        await _blocking(store.deliveries.delivered, delivery, sent.status)
        count_callback("delivered")
        log.info("%s successfully delivered, of job %s", delivery.event, delivery.job_id)
        return
    why = sent.error or f"it was answered with status {sent.status}"
    log.warning("%s not delivered, of job %s: %s", delivery.event, delivery.job_id, why)
    failed = partial(store.deliveries.failed, delivery, why, status=sent.status)
    ended = await _blocking(partial(failed, permanent=_is_refused(delivery, sent)))
    count_callback("dead" if ended and ended.state == DEAD else "failed")


def _is_refused(delivery: Delivery, sent: Sent) -> bool:
    """Whether the receiver said that it will never take this callback."""
    is_meme_search = delivery.event in (meme_search.STATUS, meme_search.DESCRIPTION)
    return sent.status == GONE or (is_meme_search and sent.status in meme_search.REFUSED)


def _send(delivery: Delivery, allowed_hosts: tuple[str, ...], secret: str | None) -> Sent:
    headers = sign(secret, delivery.id, datetime.now(UTC), delivery.body) if secret else PLAIN_HEADERS
    return send(delivery.url, delivery.body, headers, allowed_hosts=allowed_hosts)


async def _blocking(call: Callable[..., T], *given: Any) -> T:
    return await anyio.to_thread.run_sync(call, *given, limiter=anyio.CapacityLimiter(1))
