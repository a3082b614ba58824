"""What is asked of each input of a batch, and where the answers stand in its row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from galago.answers import collect_answer
from galago.arguments import SettingsDict, make_request, object_limit
from galago.backends.backend import Facts, Run
from galago.batch.watch import spans
from galago.errors import InvalidRequest, quoted
from galago.request import Caption, Detect, Done, Length, Point, Query, Request, Skill

Place = tuple[str, ...]
"""The names that lead to an answer in a row: ("caption",), or ("objects", "person")."""


@dataclass(frozen=True)
class Question:
    """One thing that is asked of each input."""

    place: Place
    template: Request
    """the request, but for what it looks at"""

    @property
    def skill(self) -> Skill:
        return self.template.skill

    def answer(self, run: Run) -> tuple[Any, int]:
        """The answer to it as JSON can hold it, and how many tokens it took. Raises the request's error."""
        events = list(run)
        done = events[-1]
        assert isinstance(done, Done)
        [value] = collect_answer(self.skill, events).values()
        return value.strip() if isinstance(value, str) else value, done.usage.completion_tokens

    def of_frames(self, times: Sequence[float], answers: Sequence[Any], duration: float) -> list[dict[str, Any]]:
        """The answers about the frames of a video as one: texts by the spans that they hold for, places by the time."""
        if isinstance(self.skill, Caption | Query):
            held = spans(zip(times, answers, strict=True), duration)
            return [{"start": round(s.start, 3), "end": round(s.end, 3), "answer": s.answer} for s in held]
        return [{"time": round(t, 3), "found": found} for t, found in zip(times, answers, strict=True) if found]


@dataclass(frozen=True)
class Questions:
    """All that is asked of each input, each about the same image, which is encoded once."""

    each: tuple[Question, ...]

    def __iter__(self) -> Iterator[Question]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    def check(self, facts: Facts) -> None:
        """Raise UnsupportedTask for what the model cannot be asked."""
        for question in self:
            facts.check_skill(type(question.skill))


def collect(answers: Mapping[Place, Any]) -> dict[str, Any]:
    """The members of a row, of answers by their places."""
    row: dict[str, Any] = {}
    for (*way, last), answer in answers.items():
        inner = row
        for name in way:
            inner = inner.setdefault(name, {})
        inner[last] = answer
    return row


def make_questions(
    *,
    captions: Sequence[str] = (),
    queries: Sequence[str] = (),
    detect: Sequence[str] = (),
    point: Sequence[str] = (),
    settings: SettingsDict | None = None,
    max_objects: int | None = None,
) -> Questions:
    """Questions of the arguments of `galago batch`.

    One caption is the member `caption` of a row, several are in `captions` by their length; `answers` has a member for
    each question, `objects` and `points` for each word. Raises InvalidRequest for what is no question, for one that is
    asked twice, and where there is none.
    """
    several = "captions" if len(captions) > 1 else None
    limit = object_limit({"max_objects": max_objects} if max_objects is not None else None)
    of_objects = {k: v for k, v in (settings or {}).items() if k in ("variant", "detail")}
    asked: list[tuple[Place, Skill, Mapping[str, Any]]] = [
        *(((several, c) if several else ("caption",), Caption(cast(Length, c)), settings or {}) for c in captions),
        *((("answers", q), Query(q), settings or {}) for q in queries),
        *((("objects", name), Detect(name, **limit), of_objects) for name in detect),
        *((("points", name), Point(name, **limit), of_objects) for name in point),
    ]
    if not asked:
        raise InvalidRequest("nothing is asked; give --caption, --query, --detect or --point")
    places = [place for place, _, _ in asked]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise InvalidRequest(f"{quoted(place[-1])} is asked twice")
    return Questions(tuple(Question(place, make_request(skill, None, given, "batch")) for place, skill, given in asked))
