"""Sizes and preprocessing of SmolVLM, SmolVLM2 and Idefics3 checkpoints.

Published files leave out what equals the defaults of the transformers library (5.23), so those are the defaults
here; a wrong one is told when the tensors are read, as their shapes do not fit then.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from galago.errors import CheckpointError, InvalidRequest
from galago.media.timeline import MOST_FRAMES, FrameSampling


@dataclass(frozen=True)
class VisionConfig:
    dim: int
    ff_dim: int
    n_layers: int
    n_heads: int
    image_size: int
    """side of a frame in pixels"""
    patch_size: int
    eps: float
    scale: int
    """neighbouring patches, along each side, that become one token"""

    @property
    def grid(self) -> int:
        """Patches along one side of a frame; what does not fill one is left out at the right and the bottom."""
        return self.image_size // self.patch_size

    @property
    def n_tokens(self) -> int:
        """Tokens that the text model sees of a frame."""
        return (self.grid // self.scale) ** 2


@dataclass(frozen=True)
class TextConfig:
    dim: int
    ff_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    theta: float
    eps: float

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim


@dataclass(frozen=True)
class ImageConfig:
    """How an image becomes frames."""

    edge: int
    """the longest edge after the first resizing"""
    tile: int
    """side of a frame"""
    split: bool
    """whether an image is also seen in pieces"""
    resize: bool
    """whether there is a first resizing"""
    video: FrameSampling | None
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
    """whether the head may be the embedding table"""


def make_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> SmolVLMConfig:
    """The config of a checkpoint from its config.json and its preprocessor_config.json.

    Raises CheckpointError for what is missing, not supported, or does not fit together.
    """
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    made = SmolVLMConfig(
        name="SmolVLM2" if config.get("model_type") == "smolvlm" else "SmolVLM",
        vision=_vision(vision, config.get("scale_factor", 2)),
        text=_text(text, config),
        image=_image(preprocessor),
        image_id=config.get("image_token_id", 128257),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
    _check(made, text, vision)
    return made


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"config.json: {name} is missing")
    return part


def _vision(given: Mapping[str, Any], scale: int) -> VisionConfig:
    return VisionConfig(
        dim=given.get("hidden_size", 1152),
        ff_dim=given.get("intermediate_size", 3072),
        n_layers=given.get("num_hidden_layers", 12),
        n_heads=given.get("num_attention_heads", 16),
        image_size=given.get("image_size", 224),
        patch_size=given.get("patch_size", 32),
        eps=given.get("layer_norm_eps", 1e-6),
        scale=scale,
    )


def _text(given: Mapping[str, Any], config: Mapping[str, Any]) -> TextConfig:
    dim, heads = given.get("hidden_size", 4096), given.get("num_attention_heads", 32)
    # Files that newer versions of the library saved have it in a part of its own.
    theta = given.get("rope_theta") or (given.get("rope_parameters") or {}).get("rope_theta")
    if theta is None:
        raise CheckpointError("config.json: text_config.rope_theta is missing")
    return TextConfig(
        dim=dim,
        ff_dim=given.get("intermediate_size", 11008),
        n_layers=given.get("num_hidden_layers", 32),
        n_heads=heads,
        n_kv_heads=given.get("num_key_value_heads") or heads,
        head_dim=given.get("head_dim") or dim // heads,
        vocab_size=given.get("vocab_size", config.get("vocab_size", 32000)),
        max_context=given.get("max_position_embeddings", 2048),
        theta=float(theta),
        eps=given.get("rms_norm_eps", 1e-6),
    )


def _image(given: Mapping[str, Any]) -> ImageConfig:
    edges = []
    for name in ("size", "max_image_size"):
        edge = (given.get(name) or {}).get("longest_edge")
        if not isinstance(edge, int) or edge < 1:
            raise CheckpointError(f"preprocessor_config.json: {name}.longest_edge is missing")
        edges.append(edge)
    for name in ("image_mean", "image_std"):
        if any(value != 0.5 for value in given.get(name) or ()):
            raise CheckpointError(f"preprocessor_config.json: {name} must be 0.5; got {given[name]}")
    return ImageConfig(
        edge=edges[0],
        tile=edges[1],
        split=given.get("do_image_splitting", True),
        resize=given.get("do_resize", True),
        video=_video(given.get("video_sampling")),
    )


def _video(given: Mapping[str, Any] | None) -> FrameSampling | None:
    if given is None:
        return None
    try:
        return FrameSampling(given.get("fps", 1), min(given.get("max_frames", 64), MOST_FRAMES))
    except (InvalidRequest, TypeError) as error:
        raise CheckpointError(f"preprocessor_config.json: video_sampling: {error}") from None


def _positive(value: Any) -> bool:
    """Whether it is such a number: JSON's readers take NaN and Infinity too."""
    return isinstance(value, int | float) and 0 < value < math.inf


def _check(c: SmolVLMConfig, text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    v, t = c.vision, c.text
    rules = {
        "vision_config.num_attention_heads must divide the hidden size": v.dim % v.n_heads == 0,
        "scale_factor must divide the patches of a side": v.grid > 0 and v.grid % v.scale == 0,
        "text_config.num_key_value_heads must divide num_attention_heads": t.n_heads % t.n_kv_heads == 0,
        "vision_config.layer_norm_eps must be a number above 0": _positive(v.eps),
        "text_config.rms_norm_eps must be a number above 0": _positive(t.eps),
        "text_config.rope_theta must be a number above 0": _positive(t.theta),
        "text_config.head_dim must be even": t.head_dim % 2 == 0,
        "image_token_id must be in the vocabulary": 0 <= c.image_id < t.vocab_size,
        "text_config.hidden_act must be silu": text.get("hidden_act", "silu") == "silu",
        "text_config must have no biases": not (text.get("attention_bias") or text.get("mlp_bias")),
        "text_config.rope_scaling is not supported": not text.get("rope_scaling"),
        "vision_config.hidden_act must be gelu_pytorch_tanh": vision.get("hidden_act", "gelu_pytorch_tanh")
        == "gelu_pytorch_tanh",
        "vision_config.image_size must be max_image_size.longest_edge of preprocessor_config.json": v.image_size
        == c.image.tile,
    }
    for rule, holds in rules.items():
        if not holds:
            raise CheckpointError(f"config.json: {rule}")
