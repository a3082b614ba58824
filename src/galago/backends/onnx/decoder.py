"""A model whose forward passes are ONNX graphs, as the engine steps it: no PyTorch is needed."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galago.backends.onnx.sessions import Graph, Value, array_of, value_of
from galago.engine.encoded_image import EncodedImage
from galago.engine.step import Crops, Feed, StepOutput
from galago.errors import ContextLengthExceeded
from galago.families.text_model import TextModel, TextSizes, kv_values
from galago.nn.passes import Passes, pieces
from galago.system.device import CPU, Processor

FloatArray = NDArray[np.float32]
PROMPT_ROWS = 256
"""Positions of a prompt in one pass, which other requests wait for."""


@dataclass(frozen=True)
class OnnxPrecision:
    name: str


class OnnxCache:
    """The keys and values of one sequence, those of its prefix among them: the decoder gives all of them anew."""

    def __init__(self, sizes: TextSizes, limit: int, prefix: EncodedImage | None) -> None:
        self.limit, self.length = limit, prefix.positions if prefix else 0
        self._position_bytes = kv_values(sizes) * 4
        empty = np.zeros((sizes.n_layers, sizes.n_kv_heads, 0, sizes.head_dim), np.float32)
        k, v = (prefix.k, prefix.v) if prefix else (empty, empty)
        self.past: list[Value] = [value_of(part[None]) for pair in zip(k, v, strict=True) for part in pair]
        """keys, then values, of one layer after the other, each [1, kv heads, positions, head dim]"""

    @property
    def bytes(self) -> int:
        return self.length * self._position_bytes

    @property
    def room(self) -> int:
        return self.limit - self.length

    def keys_and_values(self) -> tuple[FloatArray, FloatArray]:
        """Both as [layers, kv heads, positions, head dim]."""
        k, v = (np.concatenate([array_of(value) for value in self.past[i::2]]) for i in (0, 1))
        return k, v


@dataclass(frozen=True, eq=False)
class OnnxModel(TextModel):
    """A loaded model; a family adds how it sees and its heads."""

    graphs: Mapping[str, Graph]
    precision: OnnxPrecision

    crops_per_pass = 1
    rows_per_pass = PROMPT_ROWS
    shares_prefixes = False

    @property
    def device(self) -> Processor:
        return CPU

    @property
    def kv_bytes(self) -> int:
        return kv_values(self.text_sizes) * 4

    def token_ids(self, ids: Sequence[int]) -> NDArray[np.int64]:
        return np.array(ids, np.int64)

    @abstractmethod
    def head(self, name: str, logits: FloatArray, hidden: FloatArray | None) -> FloatArray:
        """The values of a head, of the last position's logits [vocab] and residual stream [dim]."""

    def embed_tokens(self, ids: NDArray[np.int64]) -> FloatArray:
        """Token ids [n] to embeddings [n, dim]."""
        return self.graphs["embed_tokens"](input_ids=ids[None])[0]

    def embed_image(self, features: FloatArray, crops: Crops) -> FloatArray:
        """All crops' features [n, T, D] to the image's embedding."""
        return features.reshape(-1, features.shape[-1])

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> OnnxCache:
        return OnnxCache(self.text_sizes, self.context, encoded)

    def forward(self, caches: Sequence[OnnxCache], feeds: Sequence[Feed]) -> list[StepOutput]:
        """One step of each sequence, one after the other."""
        return [self._step(cache, feed) for cache, feed in zip(caches, feeds, strict=True)]

    def _step(self, cache: OnnxCache, feed: Feed) -> StepOutput:
        fed = feed.input
        x = fed if fed.dtype == np.float32 else self.embed_tokens(fed)
        logits, hidden = self.feed(cache, x)
        heads = {name: self.head(name, logits, hidden) for name in feed.heads}
        return StepOutput(logits if hidden is None else hidden, heads, cache.room)

    def feed(self, cache: OnnxCache, x: FloatArray, together: int = 0) -> tuple[FloatArray, FloatArray | None]:
        """Append embeddings [n, dim] to a sequence; the logits [vocab] of the last, and its residual stream [dim] where
        the decoder gives it. The first `together` positions of the sequence see each other, others what came before.

        Raises ContextLengthExceeded if they do not fit.
        """
        n, begin = len(x), cache.length
        if n > cache.room:
            raise ContextLengthExceeded(f"{n} more tokens do not fit: {cache.room} positions are left")
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": x[None],
            "attention_mask": np.ones((1, begin + n), np.int64),
            "position_ids": np.arange(begin, begin + n)[None],
            "prefix_length": np.array([together], np.int64),
        }
        decoder = self.graphs["decoder_model_merged"]
        given: dict[str, Any] = {name: value_of(array) for name, array in inputs.items() if name in decoder.inputs}
        found = dict(
            zip(decoder.outputs, decoder.run(given | dict(zip(self._past, cache.past, strict=True))), strict=True)
        )
        cache.past = [found[name] for name in self._present]
        cache.length += n
        hidden = found.get("last_hidden_state")
        return array_of(found["logits"])[0, -1], None if hidden is None else array_of(hidden)[0, -1]

    def prefill(self, x: FloatArray) -> Passes[OnnxCache]:
        """A cache with the keys and values of embeddings [n, dim] that see what came before them, in pieces."""
        cache = OnnxCache(self.text_sizes, len(x), None)
        for rows in pieces(len(x), self.rows_per_pass):
            if rows.start:
                yield
            self.feed(cache, x[rows.start : rows.stop])
        return cache

    @cached_property
    def _past(self) -> list[str]:
        return [f"past_key_values.{i}.{kind}" for i in range(self.text_sizes.n_layers) for kind in ("key", "value")]

    @cached_property
    def _present(self) -> list[str]:
        return [f"present.{i}.{kind}" for i in range(self.text_sizes.n_layers) for kind in ("key", "value")]


def normalise(pixels: NDArray[np.uint8]) -> FloatArray:
    """uint8 images [n, H, W, C] to float32 [n, C, H, W] in -1..1."""
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    return (x / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
