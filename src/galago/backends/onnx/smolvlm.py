"""SmolVLM as ONNX graphs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galago.backends.onnx.decoder import FloatArray, OnnxModel, OnnxPrecision, normalise
from galago.backends.onnx.sessions import Graph
from galago.engine.encoded_image import EncodedImage
from galago.engine.step import Prefix
from galago.errors import InvalidRequest
from galago.families import ModelFiles
from galago.families.smolvlm.common import SmolVLMModel, checked_tokenizer, config_of
from galago.families.smolvlm.skills import skill_steps
from galago.families.text_model import identity_of
from galago.nn.passes import Passes


@dataclass(frozen=True, eq=False)
class OnnxSmolVLM(SmolVLMModel, OnnxModel):
    def head(self, name: str, logits: FloatArray, hidden: FloatArray | None) -> FloatArray:
        assert name == "logits"
        return logits

    def encode_crops(self, pixels: NDArray[np.uint8]) -> Passes[FloatArray]:
        """Crops uint8 [n, side, side, 3], maybe of several images, to embeddings [n, T, D]."""
        yield from ()
        return self.graphs["vision_encoder"](pixel_values=normalise(pixels)[None])

    def encode_prefix(
        self, prefix: Prefix, embeddings: Sequence[FloatArray], variant: str | None = None
    ) -> Passes[EncodedImage]:
        """Keys and values of a conversation up to its last image, `rows_per_pass` in each piece."""
        ids, images = self.token_ids(prefix.layout), np.concatenate(list(embeddings))
        places = np.flatnonzero(ids == self.config.image_id)
        if len(places) != len(images):
            raise ValueError(f"the images have {len(images)} tokens, the prompt has places for {len(places)}")
        x = self.embed_tokens(ids)
        x[places] = images
        cache = yield from self.prefill(x)
        k, v = cache.keys_and_values()
        crops = len(images) // self.config.vision.n_tokens
        return EncodedImage(self.identity, variant, k, v, prefix.images[0].image.size, crops, len(images))


def load(files: ModelFiles, graphs: dict[str, Graph], precision: str, revision: str | None) -> OnnxSmolVLM:
    """Raises CheckpointError, and InvalidRequest for another revision than the model's."""
    config = config_of(files)
    if revision not in (None, config.name):
        raise InvalidRequest(f"{files.name} is of the revision {config.name}, not {revision}", "revision")
    tokenizer, eos_id = checked_tokenizer(files, config)
    return OnnxSmolVLM(
        name=files.name,
        identity=identity_of(files, config, precision, "onnx"),
        config=config,
        tokenizer=tokenizer,
        eos_id=eos_id,
        graphs=graphs,
        precision=OnnxPrecision(precision),
        steps=skill_steps,
    )
