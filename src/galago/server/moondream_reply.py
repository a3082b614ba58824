"""Moondream's REST API: from Events to JSON, in one piece or as server-sent events."""

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from galago.request import (
    Caption,
    Detect,
    Done,
    Event,
    GazeFound,
    ObjectFound,
    Point,
    PointFound,
    Query,
    Reasoning,
    Skill,
    TextDelta,
)
from galago.server.bodies import Json
from galago.server.errors import Failure, to_failure
from galago.server.serving import RequestStats
from galago.server.settings import MAX_TIMEOUT
from galago.server.streaming import Framing, sse_event
from galago.values import Spot

# Arguments of skills and the JSON fields that they come from, where the names differ.
_FIELD = {"image": "image_url"}


def error_body(failed: Failure) -> Json:
    """The members that readers of Moondream Station know, and which field is at fault."""
    status = {429: "rejected", 504: "timeout"}.get(failed.status, "error")
    param = _FIELD.get(failed.param, failed.param) if failed.param else None
    return {"error": failed.message, "status": status, "code": failed.code, "param": param}


# An event for those who read JSON, and a line that is none: Moondream's client takes all else for the end.
FRAMING = Framing(lambda error: (sse_event(error_body(to_failure(error))), "data: [ERROR]\n\n"))


def reply(skill: Skill, events: Iterable[Event]) -> Json:
    """The reply that is sent in one piece, from all events of a run."""
    texts: list[str] = []
    objects: list[Json] = []
    points: list[Json] = []
    more: Json = {}
    for event in events:
        match event:
            case TextDelta(text):
                texts.append(text)
            case Reasoning():
                more["reasoning"] = _thought(event)
            case ObjectFound((x_min, y_min, x_max, y_max)):
                corners = {"x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max}
                # A box may reach past the image, and clients cut pictures by it.
                objects.append({name: min(max(value, 0.0), 1.0) for name, value in corners.items()})
            case PointFound(spot):
                points.append(_spot(spot))
            case GazeFound(point):
                more["gaze"] = _spot(point) if point else None
            case Done():
                more |= _end(event)
                if texts:
                    more["_stats"] = _speed(event)
    match skill:
        case Caption():
            more["caption"] = "".join(texts)
        case Query():
            more["answer"] = "".join(texts)
        case Detect():
            more["objects"] = objects
        case Point():
            more |= {"points": points, "count": len(points)}
    return {"request_id": uuid.uuid4().hex, **more}


async def chunks(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    """The reply of a text skill as server-sent events."""
    async for event in events:
        match event:
            case TextDelta(text):
                yield sse_event({"chunk": text, "completed": False})
            case Reasoning():
                yield sse_event({"reasoning": _thought(event), "completed": False})
            case Done():
                # No chunk here, even an empty one: it would be given to the caller.
                ended = {"completed": True, "request_id": uuid.uuid4().hex}
                yield sse_event({**ended, **_end(event), "stats": _speed(event)})


def station_stats(model: str, found: Mapping[str, Json], stats: RequestStats, timeout: float | None) -> Json:
    """How the server stands, with the members that Moondream Station has; `found` is Model.stats() by model.

    Queues are those of all models in memory together; `models` has each. Station always has a limit of time; where
    there is none here, it is the longest that a request may name.
    """
    return {
        "workers": 1,
        "queue_size": sum(one["queue"]["waiting"] for one in found.values()),
        "max_queue_size": sum(one["limits"]["waiting"] for one in found.values()),
        "processing": sum(one["queue"]["running"] for one in found.values()),
        "timeouts": stats.timeouts,
        "default_timeout": MAX_TIMEOUT if timeout is None else timeout,
        "model": model,
        "status": "running",
        "requests_processed": stats.requests,
        "models": found,
    }


def _spot(point: Spot) -> Json:
    return {"x": point[0], "y": point[1]}


def _thought(reasoning: Reasoning) -> Json:
    grounding = [{"start_idx": g.start, "end_idx": g.end, "points": g.points} for g in reasoning.grounding]
    return {"text": reasoning.text, "grounding": grounding}


def _end(done: Done) -> Json:
    t, usage = done.timings, done.usage
    metrics: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "prefill_time_ms": 1000 * (t.encode_s + t.prefill_s),
        "decode_time_ms": 1000 * t.decode_s,
        "ttft_ms": 1000 * t.ttft_s,
    }
    if done.warnings:
        metrics["warnings"] = list(done.warnings)
    return {"finish_reason": done.finish_reason, "metrics": metrics}


def _speed(done: Done) -> Json:
    tokens, seconds = done.usage.completion_tokens, done.timings.total_s
    return {"tokens": tokens, "duration": round(seconds, 5), "tokens_per_sec": round(tokens / max(seconds, 1e-9), 1)}
