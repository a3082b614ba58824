"""Galago: compact vision-language models on the machine that you have.

    import galago
    model = galago.load("moondream2")
    image = model.encode_image("photo.jpg")
    model.query(image, "How many people?")["answer"]

Importing galago imports no torch: that happens when a model is loaded.
"""

import concurrent.futures.thread  # noqa: F401  PyTorch's load needs it, and it cannot be had after the main thread's end
from importlib import import_module
from typing import TYPE_CHECKING, Any

from galago.errors import (
    CheckpointError,
    ContextLengthExceeded,
    DeadlineExceeded,
    DownloadError,
    EngineBusy,
    EngineClosed,
    EngineFailed,
    GalagoError,
    GenerationFailed,
    InvalidImage,
    InvalidRequest,
    InvalidVideo,
    LoadFailed,
    ModelInUse,
    ModelNotFound,
    NotANumber,
    OutOfMemory,
    TooManyImages,
    UnsupportedTask,
)
from galago.request import (
    Caption,
    Chat,
    Detect,
    DetectGaze,
    Done,
    Encode,
    Encoding,
    Event,
    GazeFound,
    Grounding,
    ImageEncoded,
    Message,
    ObjectFound,
    Point,
    PointFound,
    Query,
    Reasoning,
    Request,
    Sampling,
    Skill,
    TextDelta,
    Timings,
    Token,
    Usage,
)

if TYPE_CHECKING:
    from galago import aio
    from galago.backends.backend import Backend, Facts, Run
    from galago.batch.watch import watch
    from galago.engine.encoded_image import EncodedImage
    from galago.engine.limits import Limits
    from galago.fleet.pool import ModelPool
    from galago.media.clip import Clip
    from galago.model import Model, load

__all__ = [
    "Backend",
    "Caption",
    "Chat",
    "CheckpointError",
    "Clip",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "Detect",
    "DetectGaze",
    "Done",
    "DownloadError",
    "Encode",
    "EncodedImage",
    "Encoding",
    "EngineBusy",
    "EngineClosed",
    "EngineFailed",
    "Event",
    "Facts",
    "GalagoError",
    "GazeFound",
    "GenerationFailed",
    "Grounding",
    "ImageEncoded",
    "InvalidImage",
    "InvalidRequest",
    "InvalidVideo",
    "Limits",
    "LoadFailed",
    "Message",
    "Model",
    "ModelInUse",
    "ModelNotFound",
    "ModelPool",
    "NotANumber",
    "ObjectFound",
    "OutOfMemory",
    "Point",
    "PointFound",
    "Query",
    "Reasoning",
    "Request",
    "Run",
    "Sampling",
    "Skill",
    "TextDelta",
    "Timings",
    "Token",
    "TooManyImages",
    "UnsupportedTask",
    "Usage",
    "aio",
    "load",
    "watch",
]

_LAZY = {
    "Backend": "galago.backends.backend",
    "Facts": "galago.backends.backend",
    "Clip": "galago.media.clip",
    "EncodedImage": "galago.engine.encoded_image",
    "Limits": "galago.engine.limits",
    "Model": "galago.model",
    "ModelPool": "galago.fleet.pool",
    "Run": "galago.backends.backend",
    "load": "galago.model",
    "watch": "galago.batch.watch",
}


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("galago.aio")
    if name not in _LAZY:
        raise AttributeError(f"module 'galago' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "aio"})
