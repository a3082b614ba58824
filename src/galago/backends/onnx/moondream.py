"""Moondream as ONNX graphs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galago.backends.onnx.decoder import FloatArray, OnnxCache, OnnxModel, OnnxPrecision, normalise
from galago.backends.onnx.sessions import Graph
from galago.engine.encoded_image import EncodedImage
from galago.engine.step import Crops, Prefix
from galago.errors import UnsupportedTask
from galago.families import ModelFiles
from galago.families.moondream.common import MoondreamModel, config_of
from galago.families.moondream.config import VisionConfig
from galago.families.moondream.image import crop_count
from galago.families.moondream.prompts import Coordinate, Prompt, Size
from galago.families.moondream.skills import skill_steps
from galago.families.text_model import check_vocabulary, identity_of
from galago.families.tokenizer import load_tokenizer
from galago.nn.passes import Passes
from galago.request import Media


@dataclass(frozen=True, eq=False)
class OnnxMoondream(MoondreamModel, OnnxModel):
    def check_media(self, media: Media | None, variant: str | None = None) -> None:
        if variant is not None:
            raise UnsupportedTask("a model that runs as ONNX graphs has no LoRA variants")
        super().check_media(media)

    def embed(self, prompt: Prompt) -> NDArray[np.int64] | FloatArray:
        if all(isinstance(item, int) for item in prompt):
            return self.token_ids(prompt)  # type: ignore[arg-type]
        return np.concatenate([self._embedding(item) for item in prompt])

    def _embedding(self, item: int | Coordinate | Size) -> FloatArray:
        match item:
            case Coordinate(value):
                return self.graphs["coordinate_encoder"](coordinates=np.array([[value]], np.float32))
            case Size(width, height):
                return self.graphs["size_encoder"](sizes=np.array([[width, height]], np.float32))
        return self.embed_tokens(self.token_ids([item]))

    def head(self, name: str, logits: FloatArray, hidden: FloatArray | None) -> FloatArray:
        if name == "logits":
            return logits
        assert hidden is not None
        return self.graphs[f"{name}_decoder"](hidden_states=hidden[None])[0]

    def encode_crops(self, pixels: NDArray[np.uint8]) -> Passes[FloatArray]:
        """Crops uint8 [n, crop, crop, 3], maybe of several images, to features [n, T, E]."""
        yield from ()
        return self.graphs["vision_encoder"](pixel_values=normalise(pixels))

    def embed_image(self, features: FloatArray, crops: Crops) -> FloatArray:
        """All crops' features [n, T, E], the global view first, to the image's embedding [T, D]."""
        views = np.concatenate((features[0], local_view(features, crops.tiling, self.config.vision)), axis=-1)
        return self.graphs["vision_projection"](features=views[None])[0]

    def encode_prefix(
        self, prefix: Prefix, embeddings: Sequence[FloatArray], variant: str | None = None
    ) -> Passes[EncodedImage]:
        """Keys and values of BOS and an image, whose positions attend to each other in both directions."""
        (source,), (embedding,) = prefix.images, embeddings
        yield from ()
        cache = OnnxCache(self.text_sizes, self.config.prefix_len, None)
        bos = self.embed_tokens(self.token_ids([self.config.tokens.bos_id]))
        self.feed(cache, np.concatenate((bos, embedding)), self.config.prefix_len)
        k, v = cache.keys_and_values()
        vision, size = self.config.vision, source.image.size
        crops = crop_count(vision, *size) if source.detail == "high" else 1
        return EncodedImage(self.identity, variant, k, v, size, crops, vision.n_tokens)


def local_view(features: FloatArray, tiling: tuple[int, int], c: VisionConfig) -> FloatArray:
    """All crops' features [n, T, E], the global view first, to the tiles' view [T, E]: stitched, then averaged."""
    if tiling == (1, 1):
        return features[0]
    (rows, columns), grid, margin = tiling, c.grid, c.overlap_margin
    tiles = features[1:].reshape(rows, columns, grid, grid, -1)
    # Neighbours overlap by two margins, of which each keeps one; the margins around the image stay.
    down = [slice(margin if i else 0, grid if i == rows - 1 else grid - margin) for i in range(rows)]
    across = [slice(margin if j else 0, grid if j == columns - 1 else grid - margin) for j in range(columns)]
    lines = [np.concatenate([tiles[i, j, y, x] for j, x in enumerate(across)], axis=1) for i, y in enumerate(down)]
    whole = np.concatenate(lines)
    pooled = np.tensordot(_averages(len(whole), grid), whole, 1)
    pooled = np.tensordot(_averages(whole.shape[1], grid), pooled, ((1,), (1,))).transpose(1, 0, 2)
    return np.ascontiguousarray(pooled, np.float32).reshape(grid * grid, -1)


def _averages(n: int, parts: int) -> FloatArray:
    """A matrix [parts, n] that averages n neighbours to so many parts, which overlap where n is not a multiple."""
    weights = np.zeros((parts, n), np.float32)
    for i in range(parts):
        begin, end = i * n // parts, -(-(i + 1) * n // parts)
        weights[i, begin:end] = 1 / (end - begin)
    return weights


def load(files: ModelFiles, graphs: dict[str, Graph], precision: str, revision: str | None) -> OnnxMoondream:
    """Raises CheckpointError."""
    tokenizer = load_tokenizer(files.tokenizer)
    config = config_of(files, tokenizer, revision)
    check_vocabulary(tokenizer, config.text)
    return OnnxMoondream(
        name=files.name,
        identity=identity_of(files, config.revision, precision, "onnx"),
        config=config,
        tokenizer=tokenizer,
        eos_id=config.tokens.eos_id,
        graphs=graphs,
        precision=OnnxPrecision(precision),
        steps=skill_steps,
    )
