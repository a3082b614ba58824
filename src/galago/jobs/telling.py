"""What is told of a job: to its callback when its state changes, and to whoever asks."""

import json
from datetime import UTC, datetime
from typing import Any

from galago.jobs import meme_search
from galago.jobs.records import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Callback, Delivery, Job
from galago.jobs.sending import Event, event_body

EVENTS: dict[str, Event] = {
    QUEUED: "job.queued",
    RUNNING: "job.started",
    DONE: "job.done",
    FAILED: "job.failed",
    CANCELLED: "job.cancelled",
}


def callbacks(job: Job) -> list[Callback]:
    """What is posted about a change of a job's state. That it waits for another attempt, or begins that, is no news."""
    is_repeated = (job.state == QUEUED and job.attempts > 0) or (job.state == RUNNING and job.attempts > 1)
    if job.callback_url is None or is_repeated:
        return []
    if job.path == meme_search.PATH:
        return meme_search.callbacks(job)
    event = EVENTS[job.state]
    at = datetime.fromtimestamp(job.finished_at or job.started_at or job.created_at, UTC)
    return [Callback(job.callback_url, event, event_body(event, job_json(job), at))]


def job_json(job: Job) -> dict[str, Any]:
    """A job as clients see it. Times are seconds since 1970."""
    error = None if job.error is None else {"message": job.error, "permanent": job.error_is_permanent}
    return {
        "id": job.id,
        "object": "job",
        "path": job.path,
        "status": job.state,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "next_attempt_at": job.not_before if job.state == QUEUED else None,
        "priority": job.priority,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "expires_at": job.expires_at,
        "result": None if job.result is None else json.loads(job.result),
        "error": error,
    }


def delivery_json(delivery: Delivery) -> dict[str, Any]:
    """A callback as clients see it, without its body. Times are seconds since 1970."""
    names = ("sequence", "event", "url", "state", "attempts", "next_at", "last_status", "last_error")
    told = {name: getattr(delivery, name) for name in (*names, "created_at", "delivered_at")}
    return {"id": delivery.id, "object": "job.delivery", "job_id": delivery.job_id, **told}
