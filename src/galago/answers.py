"""What the methods of a Model give back, made of a run's events. The shapes are those of Moondream's own clients."""

from collections.abc import Iterator
from typing import Any

from galago.arguments import BOX, spot
from galago.backends.backend import Run
from galago.request import (
    Caption,
    Detect,
    DetectGaze,
    Encode,
    Event,
    GazeFound,
    ImageEncoded,
    ObjectFound,
    Point,
    PointFound,
    Query,
    Reasoning,
    Request,
    Skill,
    TextDelta,
)


def answer_of(skill: Skill, run: Run | list[Event], stream: bool = False) -> dict[str, Any]:
    """The answer to a skill, as the Model's method of that name returns it; with `stream` its text as an iterator.

    Raises the request's error, of a stream while it is read. Leaving early cancels the run.
    """
    events = iter(run) if isinstance(run, list) else _events(run)
    match skill:
        case Detect():
            return {"objects": [dict(zip(BOX, e.box, strict=True)) for e in events if isinstance(e, ObjectFound)]}
        case Point():
            return {"points": [spot(e.point) for e in events if isinstance(e, PointFound)]}
        case DetectGaze():
            [found] = [e.point for e in events if isinstance(e, GazeFound)]
            return {"gaze": spot(found) if found else None}
        case Encode():
            [image] = [e.image for e in events if isinstance(e, ImageEncoded)]
            return {"image": image}
    result: dict[str, Any] = {}
    if isinstance(skill, Query) and skill.reasoning:
        # Comes before the first piece of the answer, so a stream has it too.
        thought = next(e for e in events if isinstance(e, Reasoning))
        grounding = [{"start_idx": g.start, "end_idx": g.end, "points": list(g.points)} for g in thought.grounding]
        result["reasoning"] = {"text": thought.text, "grounding": grounding}
    pieces = (e.text for e in events if isinstance(e, TextDelta))
    return {**result, "caption" if isinstance(skill, Caption) else "answer": pieces if stream else "".join(pieces)}


def answered(_: object, request: Request, run: Run) -> dict[str, Any]:
    """The same of a request, for batch.each."""
    return answer_of(request.skill, run)


def _events(run: Run) -> Iterator[Event]:
    try:
        yield from run
    except BaseException:  # also that of being left early
        run.cancel()
        raise
