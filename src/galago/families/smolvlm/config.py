"""Sizes and preprocessing of SmolVLM, SmolVLM2 and Idefics3 checkpoints.

Published files leave out what equals the defaults of the transformers library (5.24), so those are the defaults
here; a wrong one is told when the tensors are read, as their shapes do not fit then.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from galago.checkpoint.config_file import (
    FLAG,
    OBJECT,
    Members,
    close_to,
    member,
    members_of,
    none,
    number,
    one_of,
    read,
    whole,
)
from galago.errors import CheckpointError
from galago.media.timeline import MOST_FRAMES, FrameSampling

SIZE, LAYERS, SIDE = whole(1, 1 << 20), whole(1, 1000), whole(1, 1 << 14)
EPS, THETA, FRAMES = number(0, 1), number(1, 1e12), whole(1, 1 << 16)
LEAST_TEXT = 64
"""Positions beside an image that a question and its answer take, of the shortest kind."""
LONGEST = 4096
"""No edge of an image becomes longer, whatever a config asks for."""


@dataclass(frozen=True)
class VisionConfig:
    dim: int = member(SIZE, 1152, "hidden_size")
    ff_dim: int = member(SIZE, 3072, "intermediate_size")
    n_layers: int = member(LAYERS, 12, "num_hidden_layers")
    n_heads: int = member(SIZE, 16, "num_attention_heads")
    image_size: int = member(SIDE, 224)
    """side of a crop in pixels"""
    patch_size: int = member(SIDE, 32)
    eps: float = member(EPS, 1e-6, "layer_norm_eps")
    scale: int = 2
    """neighbouring patches, along each side, that become one token"""

    @property
    def grid(self) -> int:
        """Patches along one side of a crop; what does not fill one is left out at the right and the bottom."""
        return self.image_size // self.patch_size

    @property
    def n_tokens(self) -> int:
        """Tokens that the text model sees of a crop."""
        return (self.grid // self.scale) ** 2

    @property
    def block_weights(self) -> int:
        return self.dim * (4 * self.dim + 2 * self.ff_dim)


@dataclass(frozen=True)
class TextConfig:
    dim: int = member(SIZE, 4096, "hidden_size")
    ff_dim: int = member(SIZE, 11008, "intermediate_size")
    n_layers: int = member(LAYERS, 32, "num_hidden_layers")
    n_heads: int = member(SIZE, 32, "num_attention_heads")
    n_kv_heads: int = member(SIZE, name="num_key_value_heads")
    head_dim: int = member(SIZE)
    vocab_size: int = member(whole(1, 1 << 24))
    max_context: int = member(whole(1, 1 << 24), 2048, "max_position_embeddings")
    theta: float = member(THETA, name="rope_theta")
    eps: float = member(EPS, 1e-6, "rms_norm_eps")

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def rot_dim(self) -> int:
        return self.head_dim

    @property
    def block_weights(self) -> int:
        return self.dim * (2 * self.q_dim + 2 * self.kv_dim + 3 * self.ff_dim)


@dataclass(frozen=True)
class ImageConfig:
    """How an image is cut into crops."""

    edge: int = 0
    """the longest edge after the first resizing"""
    tile: int = 0
    """side of a crop"""
    split: bool = member(FLAG, True, "do_image_splitting")
    """whether an image is also seen in pieces"""
    resize: bool = member(FLAG, True, "do_resize")
    """whether there is a first resizing"""
    video: FrameSampling | None = None
    """which frames of a video; None: the model was not trained with videos"""


@dataclass(frozen=True)
class SmolVLMConfig:
    name: str
    """SmolVLM or SmolVLM2"""
    vision: VisionConfig
    text: TextConfig
    image: ImageConfig
    image_id: int
    tied: bool
    """whether head and embedding table may be one tensor"""


def make_config(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], video: Mapping[str, Any] | None = None
) -> SmolVLMConfig:
    """The config of a checkpoint from its config.json, and from what its files say of images and videos.

    Of videos older files speak in `video_sampling` of the preprocessor, newer ones in a processor of their own. Raises
    CheckpointError for what is missing, not supported, or does not fit together.
    """
    given = members_of(config, "config.json")
    images = members_of(preprocessor, "preprocessor_config.json")
    vision, text = (_required_part(given, name) for name in ("vision_config", "text_config"))
    for part, name, rule in _FIXED:
        {"config": given, "vision": vision, "text": text, "image": images}[part].take(name, rule, None)
    made = SmolVLMConfig(
        name="SmolVLM2" if given.get("model_type") == "smolvlm" else "SmolVLM",
        vision=replace(read(VisionConfig, vision), scale=given.take("scale_factor", whole(1, 64), 2)),
        text=_text(text, given),
        image=_image(images, members_of(video or {}, "video_preprocessor_config.json")),
        image_id=given.take("image_token_id", whole(0, 1 << 24), 128257),
        # Which of the two says it depends on the version that saved the file.
        tied=any(part.take("tie_word_embeddings", FLAG, False) for part in (given, text)),
    )
    _check(made, given, text, vision, images)
    return made


# Members that change what is computed, and that only one value is known for.
_HALF, _YES = close_to(0.5), one_of(True)
_FIXED = (
    ("config", "quantization_config", none("the weights must not be quantized by another program")),
    ("vision", "num_channels", one_of(3)),
    ("vision", "hidden_act", one_of("gelu_pytorch_tanh")),
    ("text", "model_type", one_of("llama")),
    ("text", "hidden_act", one_of("silu")),
    ("text", "attention_bias", one_of(False)),
    ("text", "mlp_bias", one_of(False)),
    ("image", "image_mean", _HALF),
    ("image", "image_std", _HALF),
    ("image", "do_rescale", _YES),
    ("image", "rescale_factor", close_to(1 / 255)),
    ("image", "do_normalize", _YES),
    ("image", "resample", one_of(1)),
)


def _required_part(given: Members, name: str) -> Members:
    given.needed(name, OBJECT)
    return given.part(name)


def _text(given: Members, config: Members) -> TextConfig:
    # Files that newer versions of the library saved have these in a part of their own.
    for name in ("rope_parameters", "rope_scaling"):
        rope = given.part(name)
        for kind in ("rope_type", "type"):
            rope.take(kind, one_of("default"), None)
        for factor in ("factor", "partial_rotary_factor"):
            rope.take(factor, one_of(1), None)
    heads = given.take("num_attention_heads", SIZE, 32)
    return read(
        TextConfig,
        given,
        n_kv_heads=heads,
        head_dim=max(given.take("hidden_size", SIZE, 4096) // heads, 1),
        vocab_size=config.take("vocab_size", whole(1, 1 << 24), 32000),
        theta=given.part("rope_parameters").take("rope_theta", THETA, None),
    )


def _image(given: Members, video: Members) -> ImageConfig:
    if not given:
        raise CheckpointError(f"{given.file} is missing, or empty: it says how images are prepared")
    edge, tile = (given.part(name).needed("longest_edge", SIDE) for name in ("size", "max_image_size"))
    return replace(read(ImageConfig, given), edge=edge, tile=tile, video=_video(given, video))


def _video(images: Members, given: Members) -> FrameSampling | None:
    """From a video's own processor or else the preprocessor's `video_sampling`; None where there is neither."""
    part = given.part("video_sampling") or given or images.part("video_sampling")
    fps = part.take("fps", number(0, 1000), None)
    frames = part.take("max_frames", FRAMES, part.take("num_frames", FRAMES, None))
    return FrameSampling(fps or 1.0, min(frames or 64, MOST_FRAMES)) if fps or frames else None


def _check(c: SmolVLMConfig, given: Members, text: Members, vision: Members, images: Members) -> None:
    """Whether the parts fit together. Raises CheckpointError."""
    v, t, image = c.vision, c.text, c.image
    side = math.ceil(min(image.edge, LONGEST) / image.tile)
    frames = side**2 + 1 if image.split and side > 1 else 1
    frame, room = v.n_tokens + 2, t.max_context - LEAST_TEXT
    divides = "a divisor of"
    vision.require("num_attention_heads", v.n_heads, v.dim % v.n_heads == 0, f"{divides} hidden_size ({v.dim})")
    vision.require("patch_size", v.patch_size, v.grid > 0, f"at most image_size ({v.image_size})")
    given.require("scale_factor", v.scale, v.grid % v.scale == 0, f"{divides} the patches of a side ({v.grid})")
    square = f"max_image_size.longest_edge of the preprocessor ({image.tile})"
    vision.require("image_size", v.image_size, v.image_size == image.tile, square)
    shared = f"{divides} num_attention_heads ({t.n_heads})"
    text.require("num_key_value_heads", t.n_kv_heads, t.n_heads % t.n_kv_heads == 0, shared)
    text.require("head_dim", t.head_dim, t.head_dim % 2 == 0, "an even number")
    given.require("image_token_id", c.image_id, c.image_id < t.vocab_size, f"below vocab_size ({t.vocab_size})")
    least = f"at least {frame + LEAST_TEXT}: an image and a question"
    text.require("max_position_embeddings", t.max_context, frame <= room, least)
    fits = f"fewer pixels: the {frames} frames of an image do not fit in max_position_embeddings ({t.max_context})"
    images.part("size").require("longest_edge", image.edge, frames * frame <= room, fits)
