"""Working a queue: jobs are claimed and carried out side by side, their leases renewed, their callbacks sent.

All of it is asyncio; what waits for the database or for a site does so in threads.
"""

import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from galago.errors import EngineBusy, EngineClosed, GalagoError, InvalidRequest, UnsupportedTask
from galago.jobs.records import Delivery, Job, JobInput
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
"""Before a job is given back that the engine had no room for"""
MARGIN_S = 5.0
"""That the lease of a callback is longer than sending it may take: it is sent as soon as it is claimed"""
SENDERS = 4
"""Callbacks that are on their way at the same time"""
PERMANENT = (InvalidRequest, UnsupportedTask)
"""What no further attempt would mend"""

Perform = Callable[[Job, JobInput], Awaitable[str]]
"""Carries a job out; returns its result as JSON text"""


async def run_worker(
    store: JobStore,
    perform: Perform,
    *,
    slots: int = 8,
    allowed_hosts: tuple[str, ...] = (),
    secret: str | None = None,
    name: str | None = None,
) -> None:
    """Work the queue until this is cancelled; jobs that are under way then are given back to it.

    `slots` jobs run at a time. Callbacks go to public addresses and `allowed_hosts`, signed where there is a `secret`.
    """
    me = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    running: dict[str, tuple[Job, anyio.CancelScope]] = {}
    free = anyio.Semaphore(slots)

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            while True:
                await free.acquire()
                claimed = await _blocking(store.claim, me, LEASE_S, 1)
                if not claimed:
                    free.release()
                    await _blocking(store.wait, WAIT_S)
                    continue
                (job,) = claimed
                scope = anyio.CancelScope()
                running[job.id] = (job, scope)
                tasks.start_soon(carry_out, job, scope)

    async def carry_out(job: Job, scope: anyio.CancelScope) -> None:
        finish = partial(store.release, job)
        try:
            with scope:
                given = await _blocking(store.read_input, job.id)
                if given is not None:
                    finish = partial(store.complete, job, await perform(job, given))
            if scope.cancelled_caught:
                return  # it was cancelled, or given to another
        except EngineBusy:
            await anyio.sleep(BUSY_S)  # it was not its turn
        except EngineClosed:
            pass
        except PERMANENT as error:
            finish = partial(store.fail, job, str(error), permanent=True)
        except Exception as error:
            if not isinstance(error, GalagoError):
                log.error("job %s failed", job.id, exc_info=error)
            said = str(error) if isinstance(error, GalagoError) else "the server failed to carry out the request"
            finish = partial(store.fail, job, said)
        finally:
            del running[job.id]
            # A worker that stops has a moment for this.
            with anyio.CancelScope(shield=True):
                if not scope.cancelled_caught:
                    await _blocking(finish)
            free.release()

    async def renew() -> None:
        while True:
            await anyio.sleep(RENEW_S)
            held = dict(running)
            kept = await _blocking(store.renew, [job for job, _ in held.values()], LEASE_S) if held else set()
            for job_id in held.keys() - kept:
                held[job_id][1].cancel()

    async def deliver() -> None:
        while True:
            for delivery in await _blocking(store.deliveries.claim, me, TIMEOUT + MARGIN_S, 1):
                sent = await _blocking(_send, delivery, allowed_hosts, secret)
                if sent.ok:
                    await _blocking(store.deliveries.delivered, delivery, sent.status)
                else:
                    why = sent.error or f"it was answered with status {sent.status}"
                    await _blocking(partial(store.deliveries.failed, delivery, why, status=sent.status))
                break
            else:
                await _blocking(store.deliveries.wait, WAIT_S)

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


def _send(delivery: Delivery, allowed_hosts: tuple[str, ...], secret: str | None) -> Sent:
    headers = sign(secret, delivery.id, datetime.now(UTC), delivery.body) if secret else PLAIN_HEADERS
    return send(delivery.url, delivery.body, headers, allowed_hosts=allowed_hosts)


async def _blocking(call: Callable[..., T], *given: Any) -> T:
    return await anyio.to_thread.run_sync(call, *given, limiter=anyio.CapacityLimiter(1))
