"""What a dialect is made of: bodies, which make requests, and replies, which make bodies or streams of events.

A dialect is a file that ends in a Dialect. The way from its bodies to its replies is the same for all (serving.py), and
so is what /openapi.json tells of it (openapi.py).
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field, PrivateAttr

from galago.backends.backend import Facts
from galago.errors import TooManyImages
from galago.fleet.routing import medium_of
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.messages import ATTACHED
from galago.request import Detail, Event, Request, Skill
from galago.server.bodies import Json, load_json, validate
from galago.server.errors import Failure
from galago.server.fields import Fields, Text
from galago.server.shown import MediaRef
from galago.server.streaming import Framing
from galago.server.unread_media import check_no_unread_media

if TYPE_CHECKING:
    from galago.server.models import Models

ModelName = Annotated[
    Text, Field(description="of GET /v1/models; any other name means the default, unless names are strict")
]
Stream = Annotated[bool, Field(description="answer in pieces, as they come")]
B = TypeVar("B", bound="Body")
Numbered = tuple[int, Event]
"""An event, and the number of the choice that it belongs to"""


_SHOWING = {"messages", "input", *ATTACHED}
"""Fields that may hold images and videos"""


@dataclass(frozen=True)
class Defaults:
    """What the server's settings say where a body does not."""

    timeout: float | None = None
    detail: Detail = "high"


class Body(Fields):
    """What a client sends to ask a model for something."""

    kind: ClassVar[type[Skill]]
    """the skill that it asks for"""
    media_place: ClassVar[str] = ""
    """where images belong, for those who put one where nobody looks; empty where that is let go"""
    model: ModelName | None = None
    stream: Stream | None = None
    _media: Sequence[MediaRef] = PrivateAttr(())

    @property
    def media(self) -> Sequence[MediaRef]:
        """The images and videos, in their order."""
        return self._media

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return 1

    @property
    def timeout_s(self) -> float | None:
        return None

    @property
    def schema_path(self) -> str:
        """where the JSON Schema stands that its text must fit"""
        return "settings.json_schema"

    def check(self) -> None:
        """Raise InvalidRequest for fields that do not go together."""

    @property
    def is_idle(self) -> bool:
        """Whether it asks a model for nothing, but to be loaded, say; its route answers it."""
        return False

    @property
    def skill(self) -> type[Skill]:
        return self.kind

    @abstractmethod
    def request(self, opened: Sequence[Picture | Clip], defaults: Defaults) -> Request:
        """The request over its media, which are open; where they were put on one sheet, there is one."""

    def key(self, models: "Models") -> str:
        """The key of the model that is meant. Raises Refused where no model here is."""
        medium = medium_of(len(self._media), sum(ref.is_video for ref in self._media))
        return models.resolve_model(self.model, medium)

    def on_start(self, models: "Models") -> None:
        """Called when the request is submitted, and its model in use."""

    def forget_media(self) -> None:
        """Let go of what the body shows, as it was sent."""
        self._media = ()
        for name in _SHOWING & type(self).model_fields.keys():
            setattr(self, name, None)


def read(kind: type[B], raw: bytes) -> B:
    """A body of its declared type. Raises InvalidRequest with the path of what is wrong. Slow with an image in it."""
    given = load_json(raw)
    body = validate(kind, given)
    if body.media_place:
        check_no_unread_media(given, body.media, body.media_place)
    body.check()
    return body


class Reply(Framing):
    """An answer as it is written: in one piece, or in lines of a stream. `arrived` is a time.perf_counter()."""

    facts: Facts
    """of the model, once the request has begun"""

    def __init__(self, body: Any, model: str, arrived: float, assistant_compat: bool = False) -> None:
        self.body, self.model, self.arrived, self.assistant_compat = body, model, arrived, assistant_compat

    def whole(self, events: Sequence[Numbered]) -> Json:
        """The body, from all events."""
        raise NotImplementedError

    def piece(self, choice: int, event: Event) -> Iterable[str]:
        """What an event adds to the stream."""
        raise NotImplementedError

    def end(self) -> Iterable[str]:
        """What ends a stream."""
        return ()

    async def lines(self, events: AsyncIterator[Numbered]) -> AsyncIterator[str]:
        async for choice, event in events:
            for line in self.piece(choice, event):
                yield line
        for line in self.end():
            yield line


@dataclass(frozen=True)
class Route:
    """Something that can be asked for. `name` is its operation's in /openapi.json, `gives` the type of its reply."""

    name: str
    paths: tuple[str, ...]
    summary: str
    body: type[Body]
    reply: type[Reply]
    gives: Any
    streams: str = ""
    """what a stream is, for people; empty where there is none"""
    idle: "Callable[[Models, Any], Awaitable[Json]] | None" = None
    """answers a body that asks a model for nothing"""


@dataclass(frozen=True)
class Dialect:
    name: str
    routes: tuple[Route, ...]
    error_body: Callable[[Failure], Json]
    error: Any
    """the type of its error bodies"""


def single(opened: Sequence[Picture | Clip]) -> Picture | Clip | None:
    """The image of a request that takes one, if it has one."""
    if len(opened) > 1:
        raise TooManyImages("this request takes one image")
    return opened[0] if opened else None
