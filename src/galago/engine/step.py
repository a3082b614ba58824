"""What a skill and the engine say to each other.

A skill is a generator. It yields a Start (a new sequence over an image) or a Feed (what comes next
in the sequence) and is sent the answer, or it yields an Event, which goes to the client. At last it
returns an End. The engine steps it without knowing what it is about.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import KVCache
from galago.request import Detail, Encoding, Event, FinishReason, Request

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Start:
    """Begin a sequence over this image, or none; answered by the encoded image."""

    image: "Image.Image | Encoding | None"
    variant: str | None = None
    detail: Detail = "high"


@dataclass(frozen=True)
class Feed:
    """Put these after the sequence; answered by an Output."""

    input: Tensor
    """token ids, int64 [n], or embeddings [n, dim]"""
    logits: bool = True
    """coordinates are read from the hidden state, and need none"""


@dataclass(frozen=True)
class Output:
    """What the last position gave."""

    hidden: Tensor
    """residual stream [dim], not normalised"""
    logits: Tensor | None
    """float32 [vocab]"""
    room: int
    """positions that can still be fed"""


@dataclass(frozen=True)
class End:
    reason: FinishReason
    completion_tokens: int


Steps = Generator[Start | Feed | Event, EncodedImage | Output | None, End]


class StepModel(Protocol):
    """What the engine asks of a model."""

    @property
    def device(self) -> "torch.device": ...

    def skill(self, request: Request) -> Steps:
        """The steps of a request; raises what is wrong with it before the first."""
        ...

    def encode_image(
        self, image: "Image.Image", variant: str | None = None, detail: Detail = "high"
    ) -> EncodedImage: ...

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache: ...

    def forward(self, cache: KVCache, feed: Feed) -> Output: ...
