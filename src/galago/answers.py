"""Collecting a run's events into what a Model's methods return, in the shapes of Moondream's own clients."""

from collections.abc import Iterator
from typing import Any

from galago.arguments import BOX_KEYS, spot_dict
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


def collect_answer(skill: Skill, run: Run | list[Event], stream: bool = False) -> dict[str, Any]:
    """The answer to a skill, as the Model's method of that name returns it; with `stream` its text as an iterator.

    Raises the request's error, of a stream while it is read. Leaving early cancels the run.
    """
    events = iter(run) if isinstance(run, list) else _events(run)
    match skill:
        case Detect():
            return {"objects": [dict(zip(BOX_KEYS, e.box, strict=True)) for e in events if isinstance(e, ObjectFound)]}
        case Point():
            return {"points": [spot_dict(e.point) for e in events if isinstance(e, PointFound)]}
        case DetectGaze():
            [found] = [e.point for e in events if isinstance(e, GazeFound)]
            return {"gaze": spot_dict(found) if found else None}
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


def collect_mapped_answer(_: object, request: Request, run: Run) -> dict[str, Any]:
    """collect_answer with the arguments that batch.each passes."""
    return collect_answer(request.skill, run)


def _events(run: Run) -> Iterator[Event]:
    try:
        yield from run
    except BaseException:  # also that of being left early
        run.cancel()
        raise
