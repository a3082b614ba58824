"""The protocol between a skill, the engine and a model.

A skill is a generator. It yields a Start (a new sequence, maybe over images) or a Feed (what comes next
in the sequence) and is sent the answer, or it yields an Event, which goes to the client. At last it
returns an End. The engine steps many of them together without knowing what they are about.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from galago.engine.arrays import Array
from galago.engine.encoded_image import EncodedImage
from galago.nn.passes import Passes
from galago.request import Detail, Encoding, Event, FinishReason, Request
from galago.system.device import Device

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from galago.media.clip import Clip
    from galago.media.picture import Picture


CHUNK = 64
"""Positions that a cache grows by at least. Chunks are never moved, so growing copies nothing."""


@dataclass(frozen=True)
class ImageInput:
    """An image, and the detail in which it is encoded."""

    image: "Image.Image | Picture"
    detail: Detail = "high"


@dataclass(frozen=True)
class Prefix:
    """The beginning of a sequence up to its last image; encoded once for all sequences that begin with the same."""

    images: tuple[ImageInput, ...]
    """the images in their order, at least one"""
    positions: int
    """how many of the context it takes"""
    layout: tuple[int, ...] = ()
    """where the images stand and what stands around them, in terms of the family: token ids, for example"""


@dataclass(frozen=True)
class Start:
    """Begin a sequence with a prefix, with an encoded one, or empty; answered by the encoded prefix."""

    prefix: "Prefix | Encoding | None"
    positions: int
    """how many will be fed at the most: memory is set aside for them"""
    variant: str | None = None


@dataclass(frozen=True)
class Feed:
    """Append these to the sequence; answered by a StepOutput."""

    input: Array
    """token ids, int64 [n] (of NumPy, whatever the model computes with, or its own), or embeddings [n, dim]"""
    heads: tuple[str, ...] = ("logits",)
    """which of the model's heads are computed of the last position: logits of the next token, or others that it has"""


@dataclass(frozen=True)
class StepOutput:
    """What the model computed of the last position of a Feed."""

    hidden: Array
    """residual stream [dim], not normalised"""
    heads: Mapping[str, Array]
    """values of the heads that were asked for, float32, in the memory of the processor, by name"""
    room: int
    """positions that can still be fed"""

    @property
    def logits(self) -> Array | None:
        """[vocab], where they were asked for"""
        return self.heads.get("logits")


@dataclass(frozen=True)
class End:
    reason: FinishReason
    completion_tokens: int


Step = Start | Feed | Event
StepResult = EncodedImage | StepOutput | None
"""What a skill is sent after a Start, after a Feed and after an Event."""
Steps = Generator[Step, StepResult, End]


@dataclass(frozen=True)
class Crops:
    """The parts of one image that the vision tower encodes; a family's `make_crops` says their order."""

    pixels: "np.ndarray"
    """uint8 [crops, height, width, 3], of one size for all images"""
    tiling: tuple[int, int]
    """rows and columns of tiles"""


class SequenceCache(Protocol):
    """The keys and values of one sequence, in the model's own form."""

    @property
    def bytes(self) -> int:
        """Bytes of its own, a shared prefix not counted."""
        ...


class NamedPrecision(Protocol):
    @property
    def name(self) -> str:
        """as users write it: float32, int8"""
        ...


class StepModel(Protocol):
    """A model as the engine uses it: from one thread, in inference mode, but for `skill`, `image_prefix` and
    `make_crops`, which any thread may call."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str:
        """Stands for weights, revision, precision and device; encoded images belong to one identity."""
        ...

    @property
    def device(self) -> Device: ...
    @property
    def precision(self) -> NamedPrecision: ...
    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values for each position."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """Whether sequences over one image read its keys and values where they are; else each has a copy."""
        ...

    @property
    def context(self) -> int:
        """Positions that a sequence may have at the most."""
        ...

    @property
    def crops_per_pass(self) -> int: ...
    @property
    def rows_per_pass(self) -> int:
        """Rows of a prompt that one pass takes."""
        ...

    def skill(self, request: Request) -> Steps:
        """The steps of a request. Raises what is wrong with it before the first step."""
        ...

    def image_prefix(self, media: "Image.Image | Picture | Clip", detail: Detail = "high") -> Prefix:
        """The prefix of a question about this image or clip. Raises InvalidRequest for what the model cannot take."""
        ...

    def make_crops(self, image: "Image.Image", detail: Detail = "high") -> Crops:
        """Cut an image into crops."""
        ...

    def encode_crops(self, pixels: "np.ndarray") -> Passes[Array]:
        """Run crops, maybe of several images, through the vision tower: features [crops, ...]."""
        ...

    def embed_image(self, features: Array, crops: Crops) -> Array:
        """Join the features of all crops of one image to its embedding."""
        ...

    def encode_prefix(
        self, prefix: Prefix, embeddings: Sequence[Array], variant: str | None = None
    ) -> Passes[EncodedImage]:
        """Compute the keys and values of a prefix from the embeddings of its images, one for each."""
        ...

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> SequenceCache: ...

    def forward(self, caches: Sequence[Any], feeds: Sequence[Feed]) -> list[StepOutput]:
        """One step of several sequences, none of which sees another; each head is computed once for all of them.

        After an error it may be repeated.
        """
        ...
