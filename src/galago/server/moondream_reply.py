"""Moondream's REST API: from Events to JSON, in one piece or as server-sent events."""

import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from galago.request import (
    Caption,
    Detect,
    Done,
    Event,
    FinishReason,
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
from galago.server.dialect import Body, Numbered, Reply
from galago.server.errors import Failure, to_failure
from galago.server.streaming import sse_event

SkillMetrics = TypedDict(
    "SkillMetrics",
    {
        "input_tokens": int,
        "output_tokens": int,
        "prefill_time_ms": float,
        "decode_time_ms": float,
        "ttft_ms": float,
        "warnings": NotRequired[list[str]],
    },
)
Speed = TypedDict("Speed", {"tokens": int, "duration": float, "tokens_per_sec": float})
Spot = TypedDict("Spot", {"x": float, "y": float})
Corners = TypedDict("Corners", {"x_min": float, "y_min": float, "x_max": float, "y_max": float})
Grounding = TypedDict("Grounding", {"start_idx": int, "end_idx": int, "points": list[list[float]]})
Thought = TypedDict("Thought", {"text": str, "grounding": list[Grounding]})
Answered = TypedDict(
    "Answered",
    {"request_id": str, "finish_reason": FinishReason, "metrics": SkillMetrics, "_stats": NotRequired[Speed]},
)


class CaptionAnswer(Answered):
    caption: str


class QueryAnswer(Answered):
    answer: str
    reasoning: NotRequired[Thought]


class Objects(Answered):
    objects: list[Corners]


class Points(Answered):
    points: list[Spot]
    count: int


class Gaze(Answered):
    gaze: Annotated[Spot | None, Field(description="null where it falls nowhere in the image")]


MoondreamError = TypedDict(
    "MoondreamError",
    {"error": str, "status": Literal["rejected", "timeout", "error"], "code": str, "param": str | None},
)


def error_body(failed: Failure) -> Json:
    """The members that readers of Moondream Station know, and which field is at fault."""
    status = {429: "rejected", 504: "timeout"}.get(failed.status, "error")
    param = "image_url" if failed.param == "image" else failed.param or None
    return {"error": failed.message, "status": status, "code": failed.code, "param": param}


class SkillReply(Reply):
    body: Body

    def whole(self, events: Sequence[Numbered]) -> Json:
        texts: list[str] = []
        objects: list[Corners] = []
        points: list[Spot] = []
        more: Json = {}
        for _, event in events:
            match event:
                case TextDelta(text):
                    texts.append(text)
                case Reasoning():
                    more["reasoning"] = _thought(event)
                case ObjectFound(box):
                    objects.append(_corners(box))
                case PointFound((x, y)):
                    points.append({"x": x, "y": y})
                case GazeFound(point):
                    more["gaze"] = {"x": point[0], "y": point[1]} if point else None
                case Done():
                    more |= _end(event)
                    if texts:
                        more["_stats"] = _speed(event)
        answers: dict[type[Skill], Json] = {
            Caption: {"caption": "".join(texts)},
            Query: {"answer": "".join(texts)},
            Detect: {"objects": objects},
            Point: {"points": points, "count": len(points)},
        }
        return {"request_id": uuid.uuid4().hex, **more, **answers.get(self.body.skill, {})}

    def piece(self, choice: int, event: Event) -> Iterator[str]:
        match event:
            case TextDelta(text):
                yield sse_event({"chunk": text, "completed": False})
            case ObjectFound(box):
                yield sse_event({"object": _corners(box), "completed": False})
            case PointFound((x, y)):
                yield sse_event({"point": {"x": x, "y": y}, "completed": False})
            case Reasoning():
                yield sse_event({"reasoning": _thought(event), "completed": False})
            case Done():
                # No chunk here, even an empty one: it would be given to the caller.
                ended = {"completed": True, "request_id": uuid.uuid4().hex}
                yield sse_event({**ended, **_end(event), "stats": _speed(event)})

    def failed(self, error: Exception) -> tuple[str, ...]:
        # An event for those who read JSON, and a line that is none: Moondream's client takes all else for the end.
        return sse_event(error_body(to_failure(error))), "data: [ERROR]\n\n"


def _corners(box: tuple[float, float, float, float]) -> Corners:
    """A box may reach past the image, and clients cut pictures by it."""
    x_min, y_min, x_max, y_max = (min(max(value, 0.0), 1.0) for value in box)
    return {"x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max}


def _thought(reasoning: Reasoning) -> Thought:
    grounding: list[Grounding] = [
        {"start_idx": g.start, "end_idx": g.end, "points": [list(p) for p in g.points]} for g in reasoning.grounding
    ]
    return {"text": reasoning.text, "grounding": grounding}


def _end(done: Done) -> Json:
    t, usage = done.timings, done.usage
    metrics: SkillMetrics = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "prefill_time_ms": 1000 * (t.encode_s + t.prefill_s),
        "decode_time_ms": 1000 * t.decode_s,
        "ttft_ms": 1000 * t.ttft_s,
    }
    if done.warnings:
        metrics["warnings"] = list(done.warnings)
    return {"finish_reason": done.finish_reason, "metrics": metrics}


def _speed(done: Done) -> Speed:
    tokens, seconds = done.usage.completion_tokens, done.timings.total_s
    return {"tokens": tokens, "duration": round(seconds, 5), "tokens_per_sec": round(tokens / max(seconds, 1e-9), 1)}
