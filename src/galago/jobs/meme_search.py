"""The job API of meme-search, a captioning application: its bodies, models, callbacks and sentences, byte for byte."""

import io
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from galago.errors import InvalidImage, InvalidRequest
from galago.jobs.records import Callback, Job
from galago.media.formats import format_of
from galago.media.image import read_header

PATH = "/add_job"
"""The route of a job's request, by which the queue knows it."""
MAX_BYTES = 10 * 2**20
"""Of an image file."""
MAX_ATTEMPTS = 3
"""How often a job is tried that fails by no fault of its own."""
NOT_STARTED, IN_QUEUE, PROCESSING, FINISHED, FAILURE = 0, 1, 2, 3, 5
"""What the application calls the states of a job; it has a 4 too, which it refuses to be told."""


# --- models -----------------------------------------------------------------------------------

ModelId = Literal[
    "test",
    "Florence-2-base",
    "Florence-2-large",
    "SmolVLM-256M-Instruct",
    "SmolVLM-500M-Instruct",
    "moondream2",
    "moondream2-int8",
]


@dataclass(frozen=True)
class Asked:
    """What the application's name of a model stands for: a name that the catalogue knows, and what it is asked: the
    path and the fields of the request, and the member of the reply that has the text."""

    model: str
    path: str
    fields: Mapping[str, Any]
    member: str

    def of_another(self, model: str) -> "Asked":
        """What another model is asked in its place: a caption, since each is asked for that in its own words."""
        return _captioned(model, self.fields.get("length", "normal"))


def _captioned(model: str, length: str) -> Asked:
    return Asked(model, "/v1/caption", {"length": length}, "caption")


def _described(model: str) -> Asked:
    fields = {"question": "Can you describe this image?", "settings": {"max_tokens": 250}}
    return Asked(model, "/v1/query", fields, "answer")


MODELS: Mapping[str, Asked | None] = MappingProxyType(
    {
        "test": None,
        "Florence-2-base": _captioned("Florence-2-base", "normal"),
        "Florence-2-large": _captioned("Florence-2-large", "normal"),
        "SmolVLM-256M-Instruct": _described("SmolVLM-256M-Instruct"),
        "SmolVLM-500M-Instruct": _described("SmolVLM-500M-Instruct"),
        "moondream2": _captioned("moondream2", "short"),
        "moondream2-int8": _captioned("moondream2-int8", "short"),
    }
)
"""What is behind each name. `test` is no model: see describe_test."""


def describe_test(job: "AddJob") -> str:
    """What the model `test` says of an image, whose file only has to be there and in order."""
    return f"Test description for {PurePosixPath(job.image_path).stem}"


# --- bodies that come in ----------------------------------------------------------------------

# What a database's integers hold, and texts that PostgreSQL takes.
_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class AddJob(BaseModel):
    """A job as it was added. What an application of before May 2026 does not send is None, and not told back to it."""

    model_config = ConfigDict(frozen=True)

    image_core_id: _Int
    image_path: _Text
    attempt_id: _Int | None = None
    callback_token: _Text | None = None
    model: str = "Florence-2-base"


class _LegacyAddJob(AddJob):
    model: ModelId = "Florence-2-base"


class _AddJob(_LegacyAddJob):
    attempt_id: _Int
    callback_token: _Text


class Unprocessable(InvalidRequest):
    """A body or path that is not as it should be; `body` is what the application reads of it, with status 422."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        first = detail[0]
        where = ".".join(map(str, first["loc"]))
        super().__init__(f"{where}: {first['msg']}" if where else first["msg"], where or None)
        self.body = {"detail": detail}


def read_add_job(body: bytes, *, legacy: bool = False) -> AddJob:
    """The job in the body of POST /add_job. With `legacy`, attempt_id and callback_token may be absent or null.

    Raises Unprocessable.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    try:
        return (_LegacyAddJob if legacy else _AddJob).model_validate_json(text)
    except ValidationError as error:
        raise _unprocessable(error) from None


def read_remove_id(text: str) -> int:
    """The image_core_id in the path of DELETE /remove_job/{image_core_id}. Raises Unprocessable."""
    try:
        return _ID.validate_python(text)
    except ValidationError as error:
        raise _unprocessable(error, ("path", "image_core_id"), url=False) from None


_ID: TypeAdapter[int] = TypeAdapter(_Int)


def _unprocessable(error: ValidationError, before: tuple[str, ...] = (), url: bool = True) -> Unprocessable:
    """In FastAPI's form; of a path FastAPI leaves out the address of the explanation, of bodies the application's
    server puts it in."""
    # Not a number, which JSON does not have, is told as text.
    items = json.loads(error.json(include_url=url), parse_constant=str)
    members = ("type", "loc", "msg", "input", *(["url"] if url else []))
    return Unprocessable([{**{name: item[name] for name in members}, "loc": [*before, *item["loc"]]} for item in items])


# --- callbacks --------------------------------------------------------------------------------

STATUS, DESCRIPTION = "status_sender", "description_sender"
"""Events: the application's own tests look for these names in the log."""
REFUSED = (401, 422)
"""Statuses by which the application says that it will never take a callback: the image is gone, or tried anew."""


def callback_base(environ: Mapping[str, str]) -> str:
    """The address of the application in its own variables: GEN_URL, else APP_PORT on this machine, else port 3000."""
    base = environ.get("GEN_URL") or f"http://127.0.0.1:{environ.get('APP_PORT') or 3000}"
    return f"{base.rstrip('/')}/image_cores"


def callbacks(job: Job) -> list[Callback]:
    """What is posted when a job has changed its state; its `extra` is the AddJob, its callback URL a callback_base."""
    added = AddJob.model_validate_json(job.extra or "")
    match job.state:
        case "queued":
            return [_status(job, added, IN_QUEUE)]
        case "running":
            return [_status(job, added, PROCESSING)]
        case "done":
            text = json.loads(job.result or "{}")["description"]
            return [_description(job, added, text), _status(job, added, FINISHED)]
        case "cancelled":
            return [_status(job, added, NOT_STARTED)]
    message = job.error or ""
    if not job.error_is_permanent:
        message = f"Max retries ({MAX_ATTEMPTS}) exceeded. Last error: {message}"
    return [_status(job, added, FAILURE, message), _description(job, added, f"Error: {message}")]


def _status(job: Job, added: AddJob, state: int, error_message: str | None = None) -> Callback:
    """A message goes with FAILURE alone."""
    told = {} if error_message is None else {"error_message": error_message}
    return _callback(job, added, STATUS, {"status": state, **told})


def _description(job: Job, added: AddJob, text: str) -> Callback:
    return _callback(job, added, DESCRIPTION, {"description": text})


def _callback(job: Job, added: AddJob, event: str, told: Mapping[str, Any]) -> Callback:
    data: dict[str, Any] = {"image_core_id": added.image_core_id, **told}
    for name in ("attempt_id", "callback_token"):
        if getattr(added, name) is not None:
            data[name] = getattr(added, name)
    # As the application's own client writes JSON: blanks after separators, all but ASCII escaped.
    body = json.dumps({"data": data}, allow_nan=False)
    return Callback(f"{job.callback_url}/{event.removesuffix('_sender')}_receiver", event, body)


# --- images, and what is said of failures -----------------------------------------------------


class ImageFailure(InvalidImage):
    """An image that no further attempt would read; the message is the sentence that the application shows."""


def read_image(root: Path, image_path: str) -> bytes:
    """The bytes of a job's image: a file below the root, of at most MAX_BYTES, that begins as an image does.

    The path is relative to the root, with a slash before it or not. Neither `..` nor links lead out of the root.
    Raises ImageFailure.
    """
    try:
        base = root.resolve()
        path = (base / image_path.lstrip("/")).resolve()
        if not path.is_relative_to(base):
            raise ImageFailure(f"Image path leads out of the image folder: {image_path}")
        # A link that was put there meanwhile is not followed, a pipe not waited for.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _corrupt(image_path)
            data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                size = max(found.st_size, len(data)) / 2**20
                raise ImageFailure(f"Image file too large: {size:.1f}MB exceeds {MAX_BYTES >> 20}MB limit")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        if isinstance(error, ImageFailure):
            raise
        raise ImageFailure(f"Image file not found: {image_path}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise _unreadable(image_path, getattr(error, "strerror", None) or str(error)) from None
    _check_kind(data, image_path)
    return data


def _check_kind(data: bytes, image_path: str) -> None:
    file = io.BytesIO(data)
    if format_of(file) is None:
        raise _corrupt(image_path)
    try:
        read_header(file, "it")
    except InvalidImage as error:
        # What broke a decoder is the cause; without one it is a bound, or a kind that needs an extra.
        raise _corrupt(image_path) if error.__cause__ else _unreadable(image_path, str(error)) from None


def _corrupt(image_path: str) -> ImageFailure:
    return ImageFailure(f"Invalid or corrupt image file: {image_path}")


def _unreadable(image_path: str, why: str) -> ImageFailure:
    return ImageFailure(f"Cannot read image file: {image_path} - {why}")


def permanent_message(job: AddJob, error: InvalidRequest) -> str:
    """What the application is told of an error that no further attempt would mend."""
    if isinstance(error, InvalidImage) and not isinstance(error, ImageFailure):
        return str(_corrupt(job.image_path))
    return str(error)
