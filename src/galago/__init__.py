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

if TYPE_CHECKING:
    from galago.engine.encoded_image import EncodedImage
    from galago.engine.limits import Limits
    from galago.media.clip import Clip
    from galago.model import Model, load
    from galago.pool import ModelPool
    from galago.watching import watch

__all__ = [
    "CheckpointError",
    "Clip",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "DownloadError",
    "EncodedImage",
    "EngineBusy",
    "EngineClosed",
    "EngineFailed",
    "GalagoError",
    "GenerationFailed",
    "InvalidImage",
    "InvalidRequest",
    "InvalidVideo",
    "Limits",
    "LoadFailed",
    "Model",
    "ModelInUse",
    "ModelNotFound",
    "ModelPool",
    "NotANumber",
    "OutOfMemory",
    "TooManyImages",
    "UnsupportedTask",
    "load",
    "watch",
]

_LAZY = {
    "Clip": "galago.media.clip",
    "EncodedImage": "galago.engine.encoded_image",
    "Limits": "galago.engine.limits",
    "Model": "galago.model",
    "ModelPool": "galago.pool",
    "load": "galago.model",
    "watch": "galago.watching",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'galago' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
