"""Reading the JSON of requests, for every dialect.

Every function here raises InvalidRequest with the path of the field at fault, such as
`messages.0.content.1.image_url.url`. JSON null counts as absent; fields that nobody reads are ignored.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from random import Random
from typing import Any, TypeVar

from galago.errors import InvalidImage, InvalidRequest, InvalidVideo, TooManyImages
from galago.fleet.routing import medium_of
from galago.media.clip import Clip
from galago.media.fetch import fetch
from galago.media.image import MAX_PIXELS
from galago.media.picture import Picture, open_picture
from galago.media.source import decode_data_url
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip
from galago.messages import MediaField
from galago.request import Detail, Request, Sampling
from galago.server.bodies import Json
from galago.values import is_text

T = TypeVar("T")

LEAST_EDGE = 64
"""Pixels of a frame's longer side: a video is not made any smaller to fit beside other images."""
MAX_SCHEMA = 256 << 10
"""characters of a JSON Schema"""
DETAILS: dict[str, Detail] = {"auto": "high", "low": "low", "high": "high", "original": "high"}
_TOKEN_ID = re.compile("[0-9]{1,9}")
_WORDS = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "an array",
    dict: "an object",
}


@dataclass(frozen=True)
class MediaRef:
    """An image or a video as a request gives it: an URL or base64, and the path of the field that holds it."""

    url: str
    path: str
    is_video: bool = False
    detail: Detail = "high"

    @property
    def is_remote(self) -> bool:
        return self.url[:8].lower().startswith(("http:", "https:"))


def place_image(request: Request, opened: Sequence[Picture | Clip]) -> Request:
    """The request over its image, if it has one."""
    if len(opened) > 1:
        raise TooManyImages("this request takes one image")
    return replace(request, image=opened[0]) if opened else request


@dataclass(frozen=True)
class ParsedBody:
    """A parsed request: its images and videos are still to be opened; and how its reply is to be sent."""

    request: Request
    model: str | None
    stream: bool
    images: tuple[MediaRef, ...] = ()
    include_usage: bool = False
    n: int = 1
    place: Callable[[Request, Sequence[Picture | Clip]], Request] = place_image
    """returns the request with the opened images in their places"""

    @property
    def medium(self) -> str:
        """What media it holds, as a key of routing.MEDIA."""
        return medium_of(len(self.images), sum(ref.is_video for ref in self.images))


def expand_choices(parsed: ParsedBody, opened: Sequence[Picture | Clip]) -> list[Request]:
    """The request over its images, once for each choice.

    From one seed each draws with its own, the first with that very one. Raises TooManyImages.
    """
    request = parsed.place(parsed.request, opened)
    sampling = request.sampling
    if sampling.seed is None:
        return [request] * parsed.n
    seeds = [Random(f"{sampling.seed}/{i}").getrandbits(63) for i in range(1, parsed.n)]
    return [request, *(replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds)]


def read(owner: Json, name: str, kind: type[T], path: str = "") -> T | None:
    """owner[name] checked to be of this kind, or None; `path` is where the owner stands, with its dot."""
    value: Any = owner.get(name)
    if value is None:
        return None
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number: 3.0 is 3
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InvalidRequest(f"{path}{name} must be {_WORDS[kind]}", path + name)
    if isinstance(value, str):
        check_text(value, path + name)
    return value


def check_text(text: str, path: str) -> None:
    if not is_text(text):
        raise InvalidRequest(f"{path} holds half of a surrogate pair", path)


def media_ref_at(place: MediaField, is_video: bool) -> MediaRef:
    """The image or video at this place of a request. Any `detail` but low is high."""
    above, _, name = place.path.rpartition(".")
    url = required(read({name: place.value}, name, str, f"{above}." if above else ""), place.path)
    holder = {} if is_video or place.holder is None else dict(place.holder)
    detail = read(holder, "detail", str, f"{above}." if above else "")
    return MediaRef(url.strip(), place.path, is_video, "low" if detail == "low" else "high")


def read_detail(owner: Json, path: str = "") -> Detail | None:
    """How closely an image is looked at; None where that is not said."""
    detail = read(owner, "detail", str, path)
    if not detail:
        return None
    if detail not in DETAILS:
        raise InvalidRequest(f"{path}detail must be one of {', '.join(DETAILS)}", f"{path}detail")
    return DETAILS[detail]


def read_schema(owner: Json, name: str, path: str = "") -> str | None:
    """A JSON Schema that the text must fit, as text. Whether all of it can be enforced, the model tells."""
    schema = read(owner, name, dict, path)
    if schema is None:
        return None
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise InvalidRequest(f"{path}{name} is nested too deeply", path + name) from None
    if len(text) > MAX_SCHEMA:
        raise InvalidRequest(f"{path}{name} is longer than {MAX_SCHEMA} characters", path + name)
    return text


def required(value: T | None, path: str) -> T:
    if value is None:
        raise InvalidRequest(f"{path} is required", path)
    return value


def read_sampling(given: Json, path: str = "") -> Sampling:
    """How text is to be drawn; `path` is where the settings stand, with its dot."""
    temperature = read(given, "temperature", float, path) or 0.0
    if not 0 <= temperature <= 2:
        raise InvalidRequest(f"{path}temperature must be a number in 0..2", f"{path}temperature")
    seed = read(given, "seed", int, path)
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise InvalidRequest(f"{path}seed must fit in 64 bits", f"{path}seed")
    stop = given.get("stop")
    stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(s, str) for s in stop):
        raise InvalidRequest(f"{path}stop must be a string or an array of up to 4 strings", f"{path}stop")
    for text in stop:
        check_text(text, f"{path}stop")
    top_p = read(given, "top_p", float, path)
    limits = [_limit(given, name, path) for name in ("max_completion_tokens", "max_tokens")]
    tokens = next((limit for limit in limits if limit is not None), None)
    min_p = read(given, "min_p", float, path) or 0.0
    top_k = read(given, "top_k", int, path)
    penalty = read(given, "repetition_penalty", float, path)
    frequency, presence = (read(given, f"{name}_penalty", float, path) or 0.0 for name in ("frequency", "presence"))
    bias = read(given, "logit_bias", dict, path) or {}
    if not all(_TOKEN_ID.fullmatch(token) for token in bias):
        raise InvalidRequest(f"{path}logit_bias must have ids of tokens as its names", f"{path}logit_bias")
    try:
        return Sampling(
            temperature=temperature,
            top_p=1.0 if top_p is None else top_p,
            min_p=min_p,
            seed=seed,
            max_tokens=tokens,
            stop=tuple(stop),
            # Other servers say "all of them" so.
            top_k=None if top_k in (0, -1) else top_k,
            repetition_penalty=1.0 if penalty is None else penalty,
            frequency_penalty=frequency,
            presence_penalty=presence,
            logit_bias={int(token): by for token, by in bias.items()},
        )
    except InvalidRequest as error:
        # A Sampling knows its own names alone.
        raise InvalidRequest(f"{path}{error}", f"{path}{error.param}") from None


def _limit(given: Json, name: str, path: str) -> int | None:
    limit = read(given, name, int, path)
    if limit == -1:  # as other servers say "the model's own"
        return None
    if limit is not None and limit < 1:
        raise InvalidRequest(f"{path}{name} must be >= 1", path + name)
    return limit


def fetch_media(ref: MediaRef, allow_hosts: Collection[str]) -> bytes:
    """The bytes of a remote image or video, from a public address or one of these hosts."""
    try:
        return fetch(ref.url, public_only=True, allowed_hosts=allow_hosts)
    except InvalidRequest as error:
        error.param = ref.path
        raise


def open_media(
    ref: MediaRef, sampling: FrameSampling | None, fetched: bytes | None = None, max_pixels: int = MAX_PIXELS
) -> Picture | Clip:
    """The image, of which only the header is read, or the frames of the video; the bytes are `fetched` if it is remote.

    The frames are those that `sampling` says, which is the model's own, or the usual ones where it looks at images only
    and will refuse them; all together have `max_pixels` at the most. No file is ever opened for a client. Raises
    InvalidImage and InvalidVideo with the path of the field.
    """
    what = "video" if ref.is_video else "image"
    try:
        if ref.url[:5].lower() == "file:":
            raise InvalidImage(f"files are never read for a client; send the {what} itself as a data: URL")
        data = decode_data_url(ref.url, what) if fetched is None else fetched
        if ref.is_video:
            return _read_clip(data, sampling or FrameSampling(), max_pixels)
        return open_picture(data, max_pixels=max_pixels, param=ref.path)
    except InvalidRequest as error:
        error.param = ref.path
        raise


def clip_bytes(sampling: FrameSampling | None) -> int:
    """What the frames of one video take at the most."""
    sampling = sampling or FrameSampling()
    return 4 * min(MAX_PIXELS, sampling.max_frames * sampling.longest_edge**2)


def _read_clip(data: bytes, sampling: FrameSampling, max_pixels: int) -> Clip:
    edge = min(sampling.longest_edge, isqrt(max_pixels // sampling.max_frames))
    if edge < LEAST_EDGE:
        raise InvalidVideo(f"too many pixels in one request; {MAX_PIXELS / 1e6:g} million are allowed")
    return load_clip(data, replace(sampling, longest_edge=edge))
