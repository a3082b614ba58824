"""A loaded SmolVLM: the forward passes that the engine steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.step import Crops, Prefix
from galago.families.base import DecoderModel
from galago.families.smolvlm.common import SmolVLMModel
from galago.families.smolvlm.image import tiling_of
from galago.families.smolvlm.text import logits_of
from galago.families.smolvlm.vision import crop_passes, project
from galago.families.smolvlm.weights import SmolVLMWeights, encode_flop, shapes
from galago.families.work import Work, blocks_per_piece, work_of
from galago.nn.decoder import embed_tokens
from galago.nn.passes import Passes
from galago.nn.vit import normalise
from galago.request import Detail


@dataclass(frozen=True, eq=False)
class SmolVLM(SmolVLMModel, DecoderModel):
    weights: SmolVLMWeights

    @property
    def heads(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Logits of the next token [n, vocab]."""
        return {"logits": partial(logits_of, w=self.weights.text, c=self.config.text)}

    def encode_crops(self, pixels: np.ndarray) -> Passes[Tensor]:
        """Crops uint8 [n, side, side, 3], maybe of several images, to embeddings [n, T, D]."""
        c, w = self.config.vision, self.weights.vision
        per_piece = blocks_per_piece(len(pixels) * c.grid**2 * c.block_weights, self.device, self.precision)
        given = normalise(torch.from_numpy(pixels).to(self.device))
        return project((yield from crop_passes(given, w, c, per_piece, self.precision.kv)), w, c)

    def embed_image(self, features: Tensor, crops: Crops) -> Tensor:
        """All crops' embeddings [n, T, D] to the image's [n * T, D], in the type that keys and values have."""
        return features.flatten(0, 1).to(self.precision.kv)

    def work(self, size: tuple[int, int], frames: int, detail: Detail) -> Work:
        c = self.config
        rows, columns = tiling_of(size, c.image, c.image.split and detail == "high")
        crops = frames or rows * columns + 1
        return work_of(crops, encode_flop(c, crops), shapes(c), self.weights.text)

    def encode_prefix(
        self, prefix: Prefix, embeddings: Sequence[Tensor], variant: str | None = None
    ) -> Passes[EncodedImage]:
        """Keys and values of a conversation up to its last image, `rows_per_pass` in each piece."""
        ids = torch.tensor(prefix.layout, device=self.device)
        images = torch.cat([embedding.to(self.device, self.dtype) for embedding in embeddings])
        places = (ids == self.config.image_id).nonzero().flatten()
        if len(places) != len(images):
            raise ValueError(f"the images have {len(images)} tokens, the prompt has places for {len(places)}")
        x = embed_tokens(ids, self.weights.text, self.dtype).index_copy(0, places, images)
        k, v = yield from self.prefill(x)
        return EncodedImage(
            model=self.identity,
            variant=variant,
            k=k,
            v=v,
            size=prefix.images[0].image.size,
            crops=len(images) // self.config.vision.n_tokens,
            image_tokens=len(images),
        )
