"""What models that write text have in common, whatever computes their forward passes.

This file needs no PyTorch: see base.DecoderModel for the models that compute with it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from galago.engine.arrays import Array
from galago.engine.constraint import Constraint, vocabulary
from galago.engine.encoded_image import EncodedImage
from galago.engine.step import Steps
from galago.errors import CheckpointError, InvalidRequest
from galago.families import ModelFiles
from galago.families.tokenizer import Tokenizer
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.media.timeline import FrameSampling
from galago.nn.sizes import TextSizes
from galago.request import Media, Request

if TYPE_CHECKING:
    from galago.engine.shortest_end import Vocabulary


@dataclass(frozen=True, eq=False)
class TextModel(ABC):
    """A loaded model without its forward passes."""

    name: str
    identity: str
    """name and digest of checkpoint, preprocessing, type and device: what an encoded image belongs to"""
    config: Any
    """its `text` is of nn.decoder.DecoderSizes"""
    tokenizer: Tokenizer
    eos_id: int
    """the token that ends an answer"""

    @abstractmethod
    def skill(self, request: Request) -> Steps: ...

    @abstractmethod
    def token_ids(self, ids: Sequence[int]) -> Array:
        """Token ids as the model is fed them."""

    @property
    def video_sampling(self) -> FrameSampling | None:
        return None

    @property
    def text_sizes(self) -> TextSizes:
        found: TextSizes = self.config.text
        return found

    @property
    def context(self) -> int:
        """Positions that a sequence may have at the most."""
        return self.text_sizes.max_context

    def constraint(self, json_schema: str) -> Constraint:
        """A Constraint of a text to a schema. Raises InvalidRequest."""
        return Constraint(self._vocabulary, json_schema)

    @cached_property
    def _vocabulary(self) -> "Vocabulary":
        # Made when it is first needed: it takes a good part of a second.
        return vocabulary(self.tokenizer.backend.to_str(), self.text_sizes.vocab_size, self.eos_id)

    def check_media(self, media: Media, variant: str | None = None) -> None:
        """Raise InvalidRequest unless this is an image or a clip, or was encoded by this model and variant."""
        if isinstance(media, Image.Image | Picture | Clip):
            return
        if not isinstance(media, EncodedImage):
            what = type(media).__name__
            raise InvalidRequest(f"an image must be a PIL image, a clip or an encoded one, not {what}", "image")
        if media.model != self.identity:
            raise InvalidRequest(f"the image was encoded by {media.model}, this is {self.identity}", "image")
        if media.variant != variant:
            raise InvalidRequest(f"the image was encoded with variant {media.variant}, not {variant}", "variant")


def kv_values(c: TextSizes) -> int:
    """How many numbers the keys and values of a position are."""
    return 2 * c.n_layers * c.n_kv_heads * c.head_dim


def identity_of(files: ModelFiles, *decisive: object) -> str:
    """The name of a checkpoint with a digest of its files and of all else that its answers depend on."""
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files.weights]
    return f"{files.name}@{hashlib.sha256(repr((stats, *decisive)).encode()).hexdigest()[:12]}"


def check_vocabulary(tokenizer: Tokenizer, c: TextSizes) -> None:
    """Raise CheckpointError where a tokenizer has more tokens than the model."""
    if (known := tokenizer.backend.get_vocab_size()) > c.vocab_size:
        raise CheckpointError(f"tokenizer.json has {known} tokens, the model {c.vocab_size}")
