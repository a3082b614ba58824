"""A loaded Moondream2: the forward passes that the engine steps."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.step import Crops, Prefix
from galago.errors import InvalidRequest, quoted
from galago.families.base import DecoderModel
from galago.families.moondream.common import MoondreamModel
from galago.families.moondream.image import crop_count
from galago.families.moondream.prompts import Coordinate, Prompt, Size
from galago.families.moondream.region import coordinate_logits, encode_coordinate, encode_size, size_logits
from galago.families.moondream.text import TextWeights, logits_of, with_lora
from galago.families.moondream.vision import crop_passes, embedding_of
from galago.families.moondream.weights import (
    MoondreamWeights,
    encode_flop,
    load_lora,
    shapes,
)
from galago.families.work import Work, blocks_per_piece, work_of
from galago.kernels import kv_buffer
from galago.nn.attention import attention, store
from galago.nn.decoder import decoder, embed_tokens
from galago.nn.passes import Passes, pieces
from galago.nn.rotary import rotary_table
from galago.request import Detail, Media

MAX_LORAS = 8
"""LoRA variants kept in memory; the one loaded first is dropped first."""


@dataclass(frozen=True, eq=False)
class Moondream(MoondreamModel, DecoderModel):
    weights: MoondreamWeights
    variants: Path | None = None
    """the folder that variants are named in; without one a variant is a path to a file"""
    loras: dict[str, TextWeights] = field(default_factory=dict)

    @property
    def heads(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Logits [n, vocab] of the next token, of a coordinate [n, bins], and of a width and a height [n, 2, bins]."""
        w = self.weights
        return {
            "logits": partial(logits_of, w=w.text),
            "coordinate": partial(coordinate_logits, w=w.region),
            "size": partial(size_logits, w=w.region),
        }

    def check_media(self, media: Media | None, variant: str | None = None) -> None:
        """Check one image, or none. Loads the variant if it is new; raises CheckpointError if it does not fit."""
        self.text_weights(variant)
        super().check_media(media, variant)

    def embed(self, prompt: Prompt) -> Tensor:
        if all(isinstance(item, int) for item in prompt):
            return torch.tensor(prompt, device=self.device)
        return torch.cat([self._embedding(item) for item in prompt])

    def _embedding(self, item: int | Coordinate | Size) -> Tensor:
        match item:
            case Coordinate(value):
                return encode_coordinate(self._float32(value), self.weights.region, self.dtype)
            case Size(width, height):
                return encode_size(self._float32(width, height), self.weights.region, self.dtype)
        return embed_tokens(torch.tensor([item], device=self.device), self.weights.text, self.dtype)

    def _float32(self, *numbers: float) -> Tensor:
        """A tensor of these numbers, whatever torch's default type is: half precision would round a coordinate to a few
        pixels."""
        return torch.tensor([numbers], dtype=torch.float32, device=self.device)

    def text_weights(self, variant: str | None) -> TextWeights:
        """The decoder's weights; those of a variant are read at its first use."""
        if variant is None:
            return self.weights.text
        if variant not in self.loras:
            file = Path(variant) if self.variants is None else self.variants / variant
            inside = self.variants is None or file.resolve().is_relative_to(self.variants.resolve())
            if not inside or not os.path.isfile(file):
                raise InvalidRequest(f"no LoRA variant {quoted(variant)}", "variant")
            if len(self.loras) >= MAX_LORAS:
                self.loras.pop(next(iter(self.loras)), None)
            updates = load_lora(file, self.config, self.dtype, self.device)
            self.loras[variant] = with_lora(self.weights.text, updates)
        return self.loras[variant]

    def encode_crops(self, pixels: np.ndarray) -> Passes[Tensor]:
        """Crops uint8 [n, crop, crop, 3], maybe of several images, to features [n, T, E], in pieces of bounded work."""
        c = self.config.vision
        per_piece = blocks_per_piece(len(pixels) * c.n_tokens * c.block_weights, self.device, self.precision)
        given = torch.from_numpy(pixels).to(self.device)
        return crop_passes(given, self.weights.vision, c, per_piece, self.precision.kv)

    def embed_image(self, features: Tensor, crops: Crops) -> Tensor:
        """All crops' features [n, T, E] to the image's embedding [T, D], in the type that keys and values have."""
        return embedding_of(features, crops.tiling, self.weights.vision, self.config.vision).to(self.precision.kv)

    def work(self, size: tuple[int, int], frames: int, detail: Detail) -> Work:
        crops = crop_count(self.config.vision, *size) if detail == "high" else 1
        return work_of(crops, encode_flop(self.config, crops), shapes(self.config), self.weights.text)

    def encode_prefix(
        self, prefix: Prefix, embeddings: Sequence[Tensor], variant: str | None = None
    ) -> Passes[EncodedImage]:
        """Keys and values of BOS and an image, whose positions attend to each other in both directions."""
        (source,), (embedding,) = prefix.images, embeddings
        c, t, w, kv = self.config, self.config.text, self.text_weights(variant), self.precision.kv
        shape = (t.n_layers, t.n_kv_heads, c.prefix_len, t.head_dim)
        keys = torch.empty(shape, dtype=kv, device=self.device)
        values = torch.empty_like(keys)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store(k[0], keys[layer])
            store(v[0], values[layer])
            return attention(q, k, v, kv)

        bos = embed_tokens(torch.tensor([c.tokens.bos_id], device=self.device), w, self.dtype)
        x = torch.cat((bos, embedding.to(self.dtype)))
        positions = torch.arange(c.prefix_len, device=self.device)
        turns = rotary_table(positions, t.rot_dim, t.theta)
        per_piece = blocks_per_piece(c.prefix_len * t.block_weights, self.device, self.precision)
        for blocks in pieces(t.n_layers, per_piece):
            if blocks.start:
                yield
            if w.stack:
                kept = [([kv_buffer(keys, values, 0)], c.prefix_len)]
                w.stack.forward(x, kept, turns, together=True, keys_only=True, blocks=blocks)
            else:
                x = decoder(x.unsqueeze(0), w, t, positions, attend, blocks)[0]
        return EncodedImage(
            model=self.identity,
            variant=variant,
            k=keys,
            v=values,
            size=source.image.size,
            crops=crop_count(c.vision, *source.image.size) if source.detail == "high" else 1,
            image_tokens=c.vision.n_tokens,
        )
