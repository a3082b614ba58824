"""A dialect that asks about a picture: all that one needs, for tests."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from pydantic import model_validator
from typing_extensions import TypedDict

from galago.request import Event, Query, Request, TextDelta
from galago.server.dialect import Body, Defaults, Dialect, Numbered, Reply, Route, single
from galago.server.errors import Failure
from galago.server.fields import Name
from galago.server.shown import File, MediaRef


class AskBody(Body):
    kind = Query
    picture: File
    question: Name

    @model_validator(mode="after")
    def _read(self) -> Self:
        self._media = (MediaRef(self.picture, "picture"),)
        return self

    def request(self, opened: Sequence[Any], defaults: Defaults) -> Request:
        return Request(Query(self.question), single(opened), detail=defaults.detail, timeout=defaults.timeout)


class Said(TypedDict):
    said: str


class Wrong(TypedDict):
    wrong: str


class AskReply(Reply):
    content_type = "text/plain"

    def whole(self, events: Sequence[Numbered]) -> dict[str, Any]:
        return {"said": "".join(event.text for _, event in events if isinstance(event, TextDelta))}

    def piece(self, choice: int, event: Event) -> Iterator[str]:
        if isinstance(event, TextDelta):
            yield event.text

    def failed(self, error: Exception) -> tuple[str]:
        return (f"failed: {error}",)


def error_body(failed: Failure) -> dict[str, Any]:
    return {"wrong": failed.message}


ASK = Route("toy", ("/toy",), "Ask about a picture", AskBody, AskReply, Said, streams="the text as it comes")
TOY = Dialect("Toy", (ASK,), error_body, Wrong)
