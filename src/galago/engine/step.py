"""What a skill, the engine and a model say to each other.

A skill is a generator. It yields a Start (a new sequence, maybe over images) or a Feed (what comes next
in the sequence) and is sent the answer, or it yields an Event, which goes to the client. At last it
returns an End. The engine steps many of them together without knowing what they are about.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import KVCache
from galago.nn.passes import Passes
from galago.precision import Precision
from galago.request import Detail, Encoding, Event, FinishReason, Request

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from galago.media.clip import Clip
    from galago.media.picture import Picture


@dataclass(frozen=True)
class Look:
    """An image, and how closely the model looks at it."""

    image: "Image.Image | Picture"
    detail: Detail = "high"


@dataclass(frozen=True)
class Prefix:
    """What a sequence begins with as far as its last image: made once for all that begin so."""

    looks: tuple[Look, ...]
    """the images in their order, at least one"""
    positions: int
    """of the context that it takes"""
    plan: tuple[int, ...] = ()
    """where the images stand and what stands around them, in the model's own terms"""


@dataclass(frozen=True)
class Start:
    """Begin a sequence with this prefix, with one that is encoded already, or empty; answered by the encoded one."""

    prefix: "Prefix | Encoding | None"
    positions: int
    """the most that will be fed: what memory is set aside for"""
    variant: str | None = None


@dataclass(frozen=True)
class Feed:
    """Put these after the sequence; answered by an Output."""

    input: Tensor
    """token ids, int64 [n], or embeddings [n, dim]"""
    reads: tuple[str, ...] = ("logits",)
    """the model's heads that are computed of the last position: logits of the next token, or others that it has"""


@dataclass(frozen=True)
class Output:
    """What the last position gave."""

    hidden: Tensor
    """residual stream [dim], not normalised"""
    heads: Mapping[str, Tensor]
    """what was read, float32, by the name of the head"""
    room: int
    """positions that can still be fed"""

    @property
    def logits(self) -> Tensor | None:
        """[vocab], where they were read"""
        return self.heads.get("logits")


@dataclass(frozen=True)
class End:
    reason: FinishReason
    completion_tokens: int


Step = Start | Feed | Event
Steps = Generator[Step, EncodedImage | Output | None, End]


class Views(Protocol):
    """What a model looks at of an image."""

    @property
    def pixels(self) -> "np.ndarray":
        """[crops, ...], of one shape for all images"""
        ...


class StepModel(Protocol):
    """What the engine asks of a model: by one thread, in inference mode, all but `skill`, `opening` and `views`."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str:
        """Of weights, revision, precision and device: what encoded images belong to."""
        ...

    @property
    def device(self) -> "torch.device": ...
    @property
    def precision(self) -> Precision: ...
    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values for each position."""
        ...

    @property
    def context(self) -> int:
        """Positions that a sequence may have at the most."""
        ...

    @property
    def crops_at_once(self) -> int: ...
    @property
    def rows_at_once(self) -> int:
        """Rows of a prompt that one pass takes."""
        ...

    def skill(self, request: Request) -> Steps:
        """The steps of a request; raises what is wrong with it before the first."""
        ...

    def opening(self, shown: "Image.Image | Picture | Clip", detail: Detail = "high") -> Prefix:
        """The prefix of a question about this; raises InvalidRequest for what the model does not look at."""
        ...

    def views(self, image: "Image.Image", detail: Detail = "high") -> Any:
        """The Views of an image; may be asked in any thread."""
        ...

    def see(self, pixels: "np.ndarray") -> Passes[Tensor]:
        """Crops, maybe of several images, to the features of each [crops, ...]."""
        ...

    def embed_image(self, features: Tensor, views: Any) -> Tensor:
        """The features of one image's crops to its embedding."""
        ...

    def prefix(self, prefix: Prefix, embeddings: Sequence[Tensor], variant: str | None = None) -> Passes[EncodedImage]:
        """The prefix, of which these are the embeddings of its images, one for each of its looks."""
        ...

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache: ...

    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[Output]:
        """A step of several sequences, none of which sees another, with each head computed once for all that read it.

        After an error it may be repeated.
        """
        ...
