"""The base of models whose text comes from one decoder, which gets images as embeddings."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from galago.engine.batch import Batch, forward_step
from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import KVCache
from galago.engine.step import Feed, StepModel, StepOutput
from galago.families.text_model import TextModel, kv_values
from galago.families.work import Work, crops_per_pass, rows_per_pass
from galago.nn.decoder import DecoderSizes, DecoderWeights, decoder, embed_tokens
from galago.nn.passes import Passes, finish, pieces
from galago.nn.rotary import rotary_table
from galago.nn.stack import exact_rows
from galago.precision import Precision
from galago.request import Detail
from galago.system.device import synchronize


@dataclass(frozen=True, eq=False)
class DecoderModel(TextModel):
    """A loaded model of PyTorch. A family adds the rest of family.LoadedModel: vision, prefix and skills."""

    weights: Any
    """their `text` is of nn.decoder.DecoderWeights"""
    device: torch.device
    precision: Precision

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Functions of residual streams [n, dim] to values [n, ...] that a skill can ask for, by name."""

    def text_weights(self, variant: str | None) -> DecoderWeights:
        """The decoder's weights, of a LoRA variant where there are any."""
        found: DecoderWeights = self.weights.text
        return found

    @property
    def shares_prefixes(self) -> bool:
        return True

    def token_ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(list(ids), device=self.device)

    def work(self, size: tuple[int, int], frames: int, detail: Detail) -> Work | None:
        return None

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.precision.dtype

    @property
    def sizes(self) -> DecoderSizes:
        found: DecoderSizes = self.config.text
        return found

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values for each position."""
        return kv_values(self.sizes) * self.precision.kv.itemsize

    @property
    def crops_per_pass(self) -> int:
        """Crops in one pass of the vision tower."""
        return crops_per_pass(self.device)

    @property
    def rows_per_pass(self) -> int:
        """Rows of a prompt in one pass."""
        return rows_per_pass(self.sizes.n_layers * self.sizes.block_weights, self.device, self.precision)

    @torch.inference_mode()
    def encode_image(self, image: Image.Image, variant: str | None = None, detail: Detail = "high") -> EncodedImage:
        """Encode an image at once, without the engine: its crops, their features, its prefix."""
        begin, m = time.perf_counter(), cast(StepModel, self)
        crops = m.make_crops(image, detail)
        parts = (crops.pixels[some.start : some.stop] for some in pieces(len(crops.pixels), self.crops_per_pass))
        embedding = m.embed_image(torch.cat([finish(m.encode_crops(part)) for part in parts]), crops)
        synchronize(self.device)
        middle = time.perf_counter()
        encoded = finish(m.encode_prefix(m.image_prefix(image, detail), [embedding], variant))
        synchronize(self.device)
        return replace(encoded, encode_s=middle - begin, prefill_s=time.perf_counter() - middle)

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None, limit: int | None = None) -> KVCache:
        """The cache of a sequence after this prefix, or of an empty one, up to `limit` or the context's positions."""
        shape = (self.sizes.n_layers, self.sizes.n_kv_heads, self.sizes.head_dim)
        return KVCache(shape, limit or self.context, self.precision.kv, self.device, encoded, variant)

    def prefill(self, x: Tensor, variant: str | None = None) -> Passes[tuple[Tensor, Tensor]]:
        """Keys and values of embeddings [n, dim] with causal attention, `rows_per_pass` in each piece."""
        cache = self.new_cache(None, variant, len(x))
        cache.reserve(len(x))
        for rows in pieces(len(x), self.rows_per_pass):
            if rows.start:
                yield
            self._hidden([cache], [x[rows.start : rows.stop]], keys_only=True)
        return cache.own_keys_and_values()

    def hidden(self, cache: KVCache, tokens: Tensor) -> Tensor:
        """Append ids [n] or embeddings [n, dim] to the sequence; their residual stream [n, dim].

        Raises ContextLengthExceeded if they do not fit.
        """
        return self._hidden([cache], [tokens])[0]

    @torch.inference_mode()
    def _hidden(self, caches: Sequence[KVCache], tokens: Sequence[Tensor], keys_only: bool = False) -> Sequence[Tensor]:
        """The same for several sequences of one variant, none of which sees another. A failed call can be repeated.

        With `keys_only` the residual streams are worth nothing: less may be computed then.
        """
        c, w = self.sizes, self.text_weights(caches[0].variant)
        batch = Batch(caches, [len(given) for given in tokens], self.device)
        if any(part.is_floating_point() for part in tokens):
            x = torch.cat([part if part.is_floating_point() else embed_tokens(part, w, self.dtype) for part in tokens])
        else:  # most often: a single look-up
            x = embed_tokens(torch.cat(list(tokens)), w, self.dtype)
        if w.stack:
            turns = rotary_table(batch.positions, c.rot_dim, c.theta)
            w.stack.forward(x, batch.kv_buffers, turns, keys_only=keys_only, eps=c.eps)
        else:
            x = decoder(x.unsqueeze(0), w, c, batch.positions, batch.attend)[0]
        return batch.advance(x)

    @torch.inference_mode()
    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[StepOutput]:
        """One step of several sequences. On a CPU none of it depends on what else is in the step."""
        # Where torch multiplies, the last bits of a row depend on how many there are, but for few; so there only
        # single rows go together.
        variants = [cache.variant for cache in caches]
        exact = {variant: self.text_weights(variant).stack is not None for variant in variants}
        alone = [len(feed.input) > 1 and not exact[v] for feed, v in zip(feeds, variants, strict=True)]
        groups = [(v, i if by_itself else None) for i, (v, by_itself) in enumerate(zip(variants, alone, strict=True))]
        max_batch = exact_rows(self.device, self.weights.text.stack)
        return forward_step(caches, feeds, groups, self._hidden, self.heads, max_batch)
