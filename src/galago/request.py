"""Request and Event: the types that every face passes to the engine and gets back.

A face (HTTP dialect, command line, Python Model) turns its input into a Request, and Events into its output; it holds
no model logic. Coordinates are 0..1 from the top left, relative to the whole image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args

from galago.values import Box, Spot, check, is_number, is_text, is_whole

if TYPE_CHECKING:
    from PIL import Image

    from galago.media.clip import Clip
    from galago.media.picture import Picture

Length = Literal["short", "normal", "long"]
FinishReason = Literal["stop", "length", "cancelled"]
Priority = Literal["interactive", "batch"]
Role = Literal["system", "user", "assistant"]
P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class Encoding:
    """An image already encoded by the model of this identity; only that (and the LoRA variant) can use it."""

    model: str
    variant: str | None


# --- skills: what is asked -------------------------------------------------------------------


@dataclass(frozen=True)
class Caption:
    length: Length = "normal"


@dataclass(frozen=True)
class Query:
    question: str
    reasoning: bool = False
    spatial_refs: tuple[Spot | Box, ...] = ()


@dataclass(frozen=True)
class Detect:
    object: str
    max_objects: int = 50


@dataclass(frozen=True)
class Point:
    object: str
    max_objects: int = 50


@dataclass(frozen=True)
class DetectGaze:
    """Where the person whose eyes are at `eye` looks; `face` with `accurate` averages many questions."""

    eye: Spot | None = None
    face: Box | None = None
    accurate: bool = False
    force: bool = False


@dataclass(frozen=True)
class Encode:
    """See an image or a video once, for many questions about it: its answer is an ImageEncoded."""


Media = Union["Image.Image", "Picture", "Clip", Encoding]
"""What a model looks at: an image, an image file that is not decoded yet, a clip, or one that it encoded before."""


@dataclass(frozen=True, eq=False)
class Message:
    """One turn of a conversation: a text, or texts and what is shown between them."""

    role: Role
    content: "str | tuple[str | Media, ...]"

    @property
    def parts(self) -> "tuple[str | Media, ...]":
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """Its texts, each on a line of its own."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def shown(self) -> "tuple[Media, ...]":
        return tuple(part for part in self.parts if not isinstance(part, str))


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with a user turn. Messages of one side that follow each other become one turn."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        _check_messages(self.messages)
        turns = merge_turns((m.role, m.parts) for m in self.messages)
        if len(turns) < len(self.messages):
            object.__setattr__(self, "messages", tuple(Message(role, parts) for role, parts in turns))


def merge_turns(messages: Iterable[tuple[Role, Sequence[P]]]) -> list[tuple[Role, tuple[P, ...]]]:
    """Merge consecutive messages (role, parts) of one role into one turn; texts that meet become paragraphs of one."""
    turns: list[tuple[Role, tuple[P, ...]]] = []
    for role, parts in messages:
        if turns and turns[-1][0] == role:
            _, before = turns.pop()
            if before and parts and isinstance(before[-1], str) and isinstance(parts[0], str):
                both = "\n\n".join(text for text in (before[-1], parts[0]) if text.strip())
                before, parts = before[:-1], (cast(P, both), *parts[1:])
            turns.append((role, (*before, *parts)))
        else:
            turns.append((role, tuple(parts)))
    return turns


Detail = Literal["low", "high"]
Skill = Caption | Query | Detect | Point | DetectGaze | Chat | Encode
STILL_SKILLS = Detect | Point | DetectGaze
"""Skills that look at images only: of a video at its first frame."""


@dataclass(frozen=True)
class Sampling:
    """How text is drawn. Temperature 0 is greedy; coordinates are always greedy.

    temperature >= 0; top_p and min_p in 0..1; max_tokens >= 1 or None for the model's own limit;
    text ends before the first of `stop`, which is not given out. Only the top_k most likely tokens are drawn
    from; a repetition_penalty above 1 makes those that the text has already less likely (as in CTRL,
    arXiv:1909.05858), one below 1 more. As OpenAI documents them, presence_penalty (-2..2) is taken from the logit of
    each token that the text has already, frequency_penalty (-2..2) as often as it has it, and logit_bias adds
    -100..100 to those of up to 300 token ids. With a `json_schema`, the text of a JSON Schema, the text is JSON
    that fits it, wherever the limit has room for any: where it would be cut, it ends by a short way.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int | None = None
    repetition_penalty: float = 1.0
    json_schema: str | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check(is_number(self.temperature) and 0 <= self.temperature < float("inf"), "temperature", "a number >= 0")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            check(is_number(value) and 0 <= value <= 1, name, "a number in 0..1")
        check(self.seed is None or is_whole(self.seed), "seed", "a whole number or null")
        check(self.max_tokens is None or (is_whole(self.max_tokens) and self.max_tokens >= 1), "max_tokens", ">= 1")
        stops = isinstance(self.stop, tuple) and all(is_text(s) and s for s in self.stop)
        check(stops, "stop", "a string or a list of strings, none of them empty or with half of a surrogate pair")
        check(self.top_k is None or (is_whole(self.top_k) and self.top_k >= 1), "top_k", "a whole number >= 1")
        penalty = self.repetition_penalty
        check(is_number(penalty) and 0 < penalty < float("inf"), "repetition_penalty", "a number above 0")
        check(self.json_schema is None or is_text(self.json_schema), "json_schema", "a JSON Schema, or its text")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            check(is_number(value) and -2 <= value <= 2, name, "a number in -2..2")
        bias = self.logit_bias
        fits = isinstance(bias, Mapping) and all(is_whole(t) and t >= 0 and is_number(by) for t, by in bias.items())
        fits = fits and len(bias) <= 300 and all(-100 <= by <= 100 for by in bias.values())
        check(fits, "logit_bias", "a number in -100..100 for each of up to 300 token ids")


@dataclass(frozen=True)
class Request:
    """One thing to do: a skill, what it looks at, its sampling and LoRA variant.

    `image` of a conversation stands before its first user turn; its messages may hold more.

    With detail `low` the model sees a large image as a whole only, not also piece by piece: quicker, and coarser.
    Interactive requests go before those of a batch; a request that is not done `timeout` seconds after it was
    given fails with DeadlineExceeded. With `top_logprobs` each token of a text is told with its probability and
    with so many (0..20) of the likeliest tokens in its place.
    """

    skill: Skill
    image: "Media | None" = None
    sampling: Sampling = field(default_factory=Sampling)
    variant: str | None = None
    detail: Detail | tuple[Detail, ...] = "high"
    """of all images and videos, or one for each"""
    priority: Priority = "interactive"
    timeout: float | None = None
    top_logprobs: int | None = None

    @property
    def shown(self) -> "tuple[Media, ...]":
        """All images and videos of the request, in their order."""
        own = () if self.image is None else (self.image,)
        messages = self.skill.messages if isinstance(self.skill, Chat) else ()
        return (*own, *(shown for message in messages for shown in message.shown))

    def detail_of(self, i: int) -> Detail:
        """The detail of the i-th image or video."""
        return self.detail[i] if isinstance(self.detail, tuple) else self.detail

    def __post_init__(self) -> None:
        check_skill(self.skill)
        check(isinstance(self.sampling, Sampling), "sampling", "a Sampling")
        check(self.variant is None or is_text(self.variant), "variant", "the name of a LoRA file, or None")
        check(_is_one_of(self.priority, Priority), "priority", "interactive or batch")
        limit = self.timeout
        check(limit is None or (is_number(limit) and limit > 0), "timeout", "seconds > 0, or null")
        details = self.detail if isinstance(self.detail, tuple) else (self.detail,)
        check(all(_is_one_of(detail, Detail) for detail in details), "detail", "low or high")
        each = len(details) == len(self.shown)
        check(each or not isinstance(self.detail, tuple), "detail", "one for all that is shown, or as many as that")
        told = self.top_logprobs
        check(told is None or (is_whole(told) and 0 <= told <= 20), "top_logprobs", "a whole number in 0..20")


# --- events: what comes back -----------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token and the logarithm of its probability as the model gave it: before temperature, penalties and masks."""

    text: str
    """how it is spelled; parts of characters are U+FFFD"""
    utf8: bytes | None
    """its bytes; control tokens, which stand for no text, have none"""
    logprob: float
    top: tuple["Token", ...] = ()
    """the likeliest tokens in its place, likeliest first"""


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the answer: never part of a character, never text that a stop would take back."""

    text: str
    tokens: tuple[Token, ...] = ()
    """those that begin in this piece, where the request asks for probabilities; a stop's come with the last"""


@dataclass(frozen=True)
class Grounding:
    """Characters start..end of the reasoning text, and the points that they speak of."""

    start: int
    end: int
    points: tuple[Spot, ...]


@dataclass(frozen=True)
class Reasoning:
    text: str
    grounding: tuple[Grounding, ...]


@dataclass(frozen=True)
class ObjectFound:
    """A bounding box; not clamped, so it may reach past 0..1."""

    box: Box


@dataclass(frozen=True)
class PointFound:
    point: Spot


@dataclass(frozen=True)
class GazeFound:
    """Where the gaze falls, or None when it falls nowhere in the image."""

    point: Spot | None


@dataclass(frozen=True, eq=False)
class ImageEncoded:
    image: Encoding


@dataclass(frozen=True)
class Usage:
    """Positions of the context: image_tokens and cached_tokens are parts of prompt_tokens."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds: vision and projection; image prefix and prompt; steps after; first event; all of it."""

    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True)
class Done:
    """The last event of every request."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    warnings: tuple[str, ...] = ()
    """what of the images and videos could not be read, a sentence each"""


Event = TextDelta | Reasoning | ObjectFound | PointFound | GazeFound | ImageEncoded | Done


# --- checks ----------------------------------------------------------------------------------


def _is_one_of(value: Any, choices: Any) -> bool:
    # Arrays compare element by element.
    return isinstance(value, str) and value in get_args(choices)


def _are_relative(values: Any, count: tuple[int, ...]) -> bool:
    return isinstance(values, tuple) and len(values) in count and all(is_number(v) and 0 <= v <= 1 for v in values)


def _check_text(value: Any, param: str, kind: str) -> None:
    check(not isinstance(value, str) or is_text(value), param, f"{kind} without half of a surrogate pair")
    check(isinstance(value, str) and value.strip(), param, f"{kind} that is not empty")


def _check_messages(messages: Any) -> None:
    """Raise InvalidRequest for messages of wrong types, whatever their texts are."""
    allowed = "Messages of a system, user or assistant, with a text or a tuple of parts"
    check(isinstance(messages, tuple) and all(isinstance(m, Message) for m in messages), "messages", allowed)
    for i, m in enumerate(messages):
        check(_is_one_of(m.role, Role), f"messages.{i}.role", "system, user or assistant")
        check(isinstance(m.content, str | tuple), f"messages.{i}.content", "a text or a tuple of parts")
        texts = [part for part in m.parts if isinstance(part, str)]
        check(all(map(is_text, texts)), f"messages.{i}.content", "without half of a surrogate pair")


def check_skill(skill: Skill) -> None:
    """Raise InvalidRequest, naming the argument, where a skill's arguments are out of range."""
    match skill:
        case Caption(length):
            check(_is_one_of(length, Length), "length", "short, normal or long")
        case Query(question, reasoning, refs):
            _check_text(question, "question", "a text")
            check(isinstance(reasoning, bool), "reasoning", "True or False")
            places = "points (x, y) or boxes (x0, y0, x1, y1), all in 0..1"
            check(isinstance(refs, tuple) and all(_are_relative(ref, (2, 4)) for ref in refs), "spatial_refs", places)
        case Detect(name, most) | Point(name, most):
            _check_text(name, "object", "a name")
            check(is_whole(most) and most >= 1, "max_objects", "a whole number >= 1")
        case DetectGaze(eye, face, accurate, force):
            for flag, value in {"prioritize_accuracy": accurate, "force_detect": force}.items():
                check(isinstance(value, bool), flag, "True or False")
            check(eye is None or _are_relative(eye, (2,)), "eye", "a point (x, y) in 0..1")
            check(face is None or _are_relative(face, (4,)), "face", "a box (x_min, y_min, x_max, y_max) in 0..1")
            check(face is not None if accurate else eye is not None, "face" if accurate else "eye", "given")
        case Chat(messages):
            check(messages and messages[-1].role == "user", "messages", "a conversation that ends with a user turn")
            check(messages and messages[-1].text.strip(), "messages", "a conversation whose last turn has text")
        case _:
            check(isinstance(skill, Encode), "skill", "Caption, Query, Detect, Point, DetectGaze, Chat or Encode")
