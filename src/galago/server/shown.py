"""Images and videos in bodies: where clients put them, and how they are opened."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypeAliasType

from galago.errors import InvalidImage, InvalidRequest, InvalidVideo
from galago.media.clip import Clip
from galago.media.fetch import fetch
from galago.media.image import MAX_PIXELS
from galago.media.picture import Picture, open_picture
from galago.media.source import decode_data_url
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip
from galago.messages import ATTACHED, HOLDERS, media_members
from galago.request import Detail
from galago.server.fields import Fields, Items, detail_of, required, some_of

LEAST_EDGE = 64
"""Pixels of a frame's longer side: a video is not made any smaller to fit beside other images."""


@dataclass(frozen=True)
class MediaRef:
    """An image or a video as a request gives it: an URL or base64, and the path of the field that holds it."""

    url: str
    path: str
    is_video: bool = False
    detail: Detail | None = None

    @property
    def is_remote(self) -> bool:
        return self.url[:8].lower().startswith(("http:", "https:"))


# --- fields ------------------------------------------------------------------------------------

# Aliases with a name stand once in /openapi.json.
File = TypeAliasType(
    "File",
    Annotated[
        str,
        Field(
            json_schema_extra={"format": "image-url"},
            description="the file itself: a data: URL in base64, or the bare base64; or an http or https URL of it",
        ),
    ],
)
DetailName = Annotated[str, Field(description="low sees a large image as a whole only; all else is high")]


class MediaObject(Fields):
    """An object around an image or a video, which is in the first of these that is not null."""

    model_config = ConfigDict(json_schema_extra=some_of(HOLDERS, "string"))
    url: File | None = None
    path: File | None = None
    base64: File | None = None
    data: File | None = None
    detail: DetailName | None = None


Shown = TypeAliasType("Shown", File | MediaObject)


class MediaPart(Fields):
    """A part that shows something, in the first member that is not null."""

    url: Shown | None = None
    path: Shown | None = None
    base64: Shown | None = None
    data: Shown | None = None
    source: Shown | None = None


class ImagePart(MediaPart):
    model_config = ConfigDict(json_schema_extra=some_of(media_members(False), "string", "object"))
    type: Literal["image_url", "input_image", "image"]
    image_url: Shown | None = None
    image: Shown | None = None
    detail: DetailName | None = None

    def ref(self, path: str) -> MediaRef:
        return _first(self, media_members(False), path, False)


class VideoPart(MediaPart):
    model_config = ConfigDict(json_schema_extra=some_of(media_members(True), "string", "object"))
    type: Literal["video_url", "input_video", "video"]
    video_url: Shown | None = None
    video: Shown | None = None

    def ref(self, path: str) -> MediaRef:
        return _first(self, media_members(True), path, True)


Several = Items[Shown]


class Attached(Fields):
    """What is shown beside a text: images and videos, one or several."""

    images: Shown | Several | None = None
    image: Shown | Several | None = None
    image_url: Shown | Several | None = None
    videos: Shown | Several | None = None
    video: Shown | Several | None = None
    video_url: Shown | Several | None = None

    def attached(self, path: str = "") -> list[MediaRef]:
        """`path` is where the object stands, with its dot."""
        found: list[MediaRef] = []
        for name, is_video in ATTACHED.items():
            if isinstance(value := getattr(self, name), list):
                found += [ref_of(one, f"{path}{name}.{i}", is_video) for i, one in enumerate(value)]
            elif value is not None:
                found.append(ref_of(value, path + name, is_video))
        return found


def ref_of(value: str | MediaObject, path: str, is_video: bool = False, detail: str | None = None) -> MediaRef:
    """An image or a video that is given as itself or as an object around it."""
    if isinstance(value, str):
        return MediaRef(value.strip(), path, is_video, None if is_video else detail_of(detail))
    return _first(value, HOLDERS, f"{path}.", is_video)


def _first(owner: Any, names: Sequence[str], path: str, is_video: bool) -> MediaRef:
    """The first member that holds something; `path` is where the owner stands, with its dot."""
    name = next((name for name in names if getattr(owner, name) is not None), None)
    if name is None:
        raise required(path + names[0], f": the {'video' if is_video else 'image'}")
    return ref_of(getattr(owner, name), path + name, is_video, getattr(owner, "detail", None))


# --- opening -----------------------------------------------------------------------------------


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


def pixels_left(opened: Sequence[Picture | Clip]) -> int:
    """Pixels that a request's further images may have."""
    images = (image for one in opened for image in (one.frames if isinstance(one, Clip) else [one]))
    return MAX_PIXELS - sum(image.width * image.height for image in images)


def _read_clip(data: bytes, sampling: FrameSampling, max_pixels: int) -> Clip:
    edge = min(sampling.longest_edge, isqrt(max_pixels // sampling.max_frames))
    if edge < LEAST_EDGE:
        raise InvalidVideo(f"too many pixels in one request; {MAX_PIXELS / 1e6:g} million are allowed")
    return load_clip(data, replace(sampling, longest_edge=edge))
