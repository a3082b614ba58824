"""Moondream's REST API, as its Python client and Moondream Station have it: a path for each skill."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from galago.errors import InvalidRequest, UnsupportedTask
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.messages import ATTACHED
from galago.request import Caption, Detect, DetectGaze, Length, Point, Query, Request, Skill
from galago.server.bodies import Json
from galago.server.dialect import Body, Defaults, Dialect, Route, single
from galago.server.fields import (
    DETAILS,
    Count,
    Fields,
    Items,
    JsonSchema,
    Limit,
    Name,
    SamplingFields,
    Share,
    Temperature,
    TopP,
    Unsupported,
    no_more,
    required,
    some_of,
)
from galago.server.moondream_reply import (
    CaptionAnswer,
    Gaze,
    MoondreamError,
    Objects,
    Points,
    QueryAnswer,
    SkillReply,
    error_body,
)
from galago.server.settings import MAX_TIMEOUT
from galago.server.shown import Attached

MaxObjects = Annotated[Count, Field(description="find so many at most; 50 by default")]


# --- bodies --------------------------------------------------------------------------------------


class SkillSettings(SamplingFields):
    max_objects: MaxObjects | None = None
    json_schema: JsonSchema | None = None
    detail: Literal["auto", "low", "high", "original", ""] | None = None
    # A file of the server's, and which of them may be opened is not for strangers to say.
    variant: Annotated[Any, Unsupported(())] = None


class SpotObject(Fields):
    x: Share
    y: Share


class BoxObject(Fields):
    x_min: Share
    y_min: Share
    x_max: Share
    y_max: Share


SpotBody = Annotated[Items[Share], Field(min_length=2, max_length=2)] | SpotObject
BoxBody = Annotated[Items[Share], Field(min_length=4, max_length=4)] | BoxObject
Refs = Annotated[Items[SpotBody | BoxBody], Field(description="what the question is about")]
_SEEN = some_of(ATTACHED, "string", "object", "array")


class SkillBody(Body, Attached):
    """What the bodies of all skills have. `settings` go before the same settings beside them."""

    model_config = ConfigDict(json_schema_extra=_SEEN)
    media_place = "give it as image_url"
    needs_image: ClassVar[bool] = True
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT, description="seconds that it may take in all")] | None = None
    settings: SkillSettings | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: Limit | None = None
    max_objects: MaxObjects | None = None

    @model_validator(mode="after")
    def _read(self) -> Self:
        self._media = self.attached()
        return self

    def check(self) -> None:
        if self.needs_image and not self._media:
            raise required("image_url", ": the image, as a data: URL, as bare base64, or as an http or https URL")

    @property
    def timeout_s(self) -> float | None:
        return self.timeout

    def asked(self, **limits: int) -> Skill:
        """The skill; `limits` are those of its objects, if there are any."""
        raise NotImplementedError

    def request(self, opened: Sequence[Picture | Clip], defaults: Defaults) -> Request:
        beside = {name: getattr(self, name) for name in ("temperature", "top_p", "max_tokens", "max_objects")}
        own = self.settings or SkillSettings()
        settings = own.model_copy(update={name: v for name, v in beside.items() if getattr(own, name) is None})
        limits = {} if settings.max_objects is None else {"max_objects": settings.max_objects}
        detail = DETAILS.get(settings.detail or "") or next((ref.detail for ref in self._media if ref.detail), None)
        sampling, detail = settings.sampling(settings.json_schema), detail or defaults.detail
        return Request(self.asked(**limits), single(opened), sampling, detail=detail, timeout=defaults.timeout)


class CaptionBody(SkillBody):
    kind = Caption
    length: Annotated[Length, Field(description="normal by default")] | None = None

    def asked(self, **limits: int) -> Skill:
        return Caption(self.length or "normal")


class QueryBody(SkillBody):
    # Questions may do without an image.
    model_config = ConfigDict(json_schema_extra={"anyOf": [_SEEN, no_more("spatial_refs")]})
    kind = Query
    needs_image = False
    question: Name
    reasoning: Annotated[bool, Field(description="think first, and say what was thought")] | None = None
    spatial_refs: Refs | None = None

    def check(self) -> None:
        if self.spatial_refs and not self.media:
            raise InvalidRequest("spatial_refs need an image to refer to", "spatial_refs")

    def asked(self, **limits: int) -> Skill:
        return Query(self.question, bool(self.reasoning), tuple(map(_numbers, self.spatial_refs or ())))


class ObjectBody(SkillBody):
    model_config = ConfigDict(json_schema_extra={"allOf": [_SEEN, some_of(("object", "obj"), "string")]})
    object: Annotated[Name, Field(description="what to look for")] | None = None
    obj: Annotated[Name, Field(description="the same, where object is absent")] | None = None

    def check(self) -> None:
        super().check()
        if self.object is None and self.obj is None:
            raise required("object", ": what to look for")

    @property
    def name(self) -> str:
        return self.object or self.obj or ""


class DetectBody(ObjectBody):
    kind = Detect

    def asked(self, **limits: int) -> Skill:
        return Detect(self.name, **limits)


class PointBody(ObjectBody):
    kind = Point
    spatial_refs: Refs | None = None

    def check(self) -> None:
        super().check()
        if self.spatial_refs:
            raise UnsupportedTask("this model points without spatial_refs")

    def asked(self, **limits: int) -> Skill:
        return Point(self.name, **limits)


class GazeFlags(Fields):
    prioritize_accuracy: bool | None = None
    force_detect: bool | None = None


_ACCURATE: Json = {
    "required": ["unstable_settings"],
    "properties": {
        "unstable_settings": {
            "type": "object",
            "required": ["prioritize_accuracy"],
            "properties": {"prioritize_accuracy": {"const": True}},
        }
    },
}
_LOOKS: Json = {
    "if": _ACCURATE,
    "then": some_of(("face",), "array", "object"),
    "else": some_of(("eye",), "array", "object"),
}


class GazeBody(SkillBody):
    model_config = ConfigDict(json_schema_extra={"allOf": [_SEEN, _LOOKS]})
    kind = DetectGaze
    eye: Annotated[SpotBody, Field(description="where the eyes of a person are")] | None = None
    face: Annotated[BoxBody, Field(description="needed with prioritize_accuracy, as the eye is without")] | None = None
    unstable_settings: GazeFlags | None = None

    def check(self) -> None:
        super().check()
        needed = "face" if self.unstable_settings and self.unstable_settings.prioritize_accuracy else "eye"
        if getattr(self, needed) is None:
            raise required(needed)

    def asked(self, **limits: int) -> Skill:
        flags = self.unstable_settings or GazeFlags()
        eye, face = (None if place is None else _numbers(place) for place in (self.eye, self.face))
        return DetectGaze(eye, face, bool(flags.prioritize_accuracy), bool(flags.force_detect))


class SegmentBody(SkillBody):
    model_config = ConfigDict(json_schema_extra={"description": "no model that there is can do this"})
    needs_image = False

    def check(self) -> None:
        raise UnsupportedTask("this model has no segmentation")


def _numbers(place: Any) -> Any:
    """Coordinates as a tuple, however they were given."""
    return tuple(place) if isinstance(place, list) else tuple(place.model_dump().values())


_FOUND = "objects with `object` or `point`, as they are found, then one with `completed` true; a failure as of texts."
_STREAM = "objects with `chunk`, then one with `completed` true. A failure is an event with `error`, then `[ERROR]`."


def _route(name: str, body: type[SkillBody], gives: Any, summary: str, streams: str = "") -> Route:
    return Route(name, (f"/v1/{name}", f"/{name}"), summary, body, SkillReply, gives, streams)


MOONDREAM = Dialect(
    "Moondream",
    (
        _route("caption", CaptionBody, CaptionAnswer, "Describe an image", _STREAM),
        _route("query", QueryBody, QueryAnswer, "Answer a question, about an image or without one", _STREAM),
        _route("detect", DetectBody, Objects, "Find objects: their bounding boxes", _FOUND),
        _route("point", PointBody, Points, "Point at objects: one point in each", _FOUND),
        # Nobody's client has it yet; the name is that of the model's own method, by which Station would route it.
        _route("detect_gaze", GazeBody, Gaze, "Tell where a person looks"),
        _route("segment", SegmentBody, None, "Outline an object: not offered by any model yet"),
    ),
    error_body,
    MoondreamError,
)
