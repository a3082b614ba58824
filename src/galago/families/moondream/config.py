"""Sizes, special tokens and revisions of the Moondream2 checkpoints.

Source: vikhyat/moondream, 2025-01-09 to 2025-06-21. The published `config.json` holds no sizes, so
the defaults here are the 2B model's; a nested `config` overrides any of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from galago.errors import CheckpointError

Family = Literal["legacy", "starmie"]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class TextConfig:
    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    n_heads: int = 32
    n_kv_heads: int = 32
    vocab_size: int = 51200
    max_context: int = 2048

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def qkv_dim(self) -> int:
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim


@dataclass(frozen=True)
class VisionConfig:
    enc_dim: int = 1152
    enc_n_layers: int = 27
    enc_n_heads: int = 16
    enc_ff_dim: int = 4304
    enc_patch_size: int = 14
    crop_size: int = 378
    in_channels: int = 3
    max_crops: int = 12
    overlap_margin: int = 4
    proj_inner_dim: int = 8192
    proj_out_dim: int = 2048

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.enc_patch_size

    @property
    def n_tokens(self) -> int:
        """Image tokens that the text model sees: one for each patch of a crop."""
        return self.grid**2


@dataclass(frozen=True)
class RegionConfig:
    dim: int = 2048
    inner_dim: int = 8192
    coord_feat_dim: int = 256
    coord_out_dim: int = 1024
    size_feat_dim: int = 512
    size_out_dim: int = 2048


@dataclass(frozen=True)
class Template:
    prefix: Ids
    suffix: Ids


@dataclass(frozen=True)
class TokenConfig:
    """Special ids and prompt templates; ids that a family lacks are None."""

    bos_id: int
    eos_id: int
    caption: Mapping[str, Ids]
    query: Template
    detect: Template
    point: Template
    answer_id: int | None = None
    thinking_id: int | None = None
    coord_id: int | None = None
    size_id: int | None = None
    start_ground_points_id: int | None = None
    end_ground_id: int | None = None


LEGACY_TOKENS = TokenConfig(
    bos_id=50256,
    eos_id=50256,
    caption={
        "short": (198, 198, 16438, 8305, 25),
        "normal": (198, 198, 24334, 1159, 25),
        "long": (198, 198, 14617, 8305, 25),
    },
    query=Template((198, 198, 24361, 25), (198, 198, 33706, 25)),
    detect=Template((198, 198, 47504, 25), (628,)),
    point=Template((198, 198, 12727, 25), (628,)),
)

STARMIE_TOKENS = TokenConfig(
    bos_id=0,
    eos_id=0,
    caption={
        "short": (1, 32708, 2, 12492, 3),
        "normal": (1, 32708, 2, 6382, 3),
        "long": (1, 32708, 2, 4059, 3),
    },
    query=Template((1, 15381, 2), (3,)),
    detect=Template((1, 7235, 476, 2), (3,)),
    point=Template((1, 2581, 2), (3,)),
    answer_id=3,
    thinking_id=4,
    coord_id=5,
    size_id=6,
    start_ground_points_id=7,
    end_ground_id=9,
)


@dataclass(frozen=True)
class Revision:
    """How one published state of Moondream2 is prompted and read; its tensors do not tell."""

    name: str
    family: Family
    lengths: tuple[str, ...]
    question_space: bool
    """A space goes before the question."""
    object_space: bool
    log_sizes: bool
    max_tokens: int

    @property
    def extended(self) -> bool:
        """Reasoning, spatial references, queries without an image and LoRA variants exist."""
        return self.family == "starmie"


REVISIONS = {
    r.name: r
    for r in (
        Revision("2025-01-09", "legacy", ("short", "normal"), False, False, False, 512),
        Revision("2025-03-27", "legacy", ("short", "normal", "long"), True, True, True, 768),
        Revision("2025-04-14", "legacy", ("short", "normal", "long"), True, True, True, 768),
        Revision("2025-06-21", "starmie", ("short", "normal", "long"), False, True, True, 768),
    )
}


@dataclass(frozen=True)
class MoondreamConfig:
    tokens: TokenConfig
    revision: Revision
    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    region: RegionConfig = field(default_factory=RegionConfig)

    @property
    def prefix_len(self) -> int:
        """Positions that BOS and the image take."""
        return 1 + self.vision.n_tokens


# Members of published configs that say nothing we need: derived from others, or of a storage format.
_IGNORED = {"prefix_attn", "group_size"}


def _overridden(default: Any, given: Mapping[str, Any], part: str) -> Any:
    known = {f.name for f in fields(default)}
    unknown = sorted(set(given) - known - _IGNORED)
    if unknown:
        raise CheckpointError(f"config.json: unknown field {part}.{unknown[0]}; known are {', '.join(sorted(known))}")
    return replace(default, **{k: v for k, v in given.items() if k in known and v is not None})


def _tokens(default: TokenConfig, given: Mapping[str, Any]) -> TokenConfig:
    plain = {k: v for k, v in given.items() if k != "templates"}
    templates: dict[str, Any] = {}
    for skill, value in given.get("templates", {}).items():
        if value is None:
            continue
        if skill == "caption":
            templates[skill] = {k: tuple(v) for k, v in value.items() if v is not None}
        else:
            templates[skill] = Template(tuple(value["prefix"]), tuple(value["suffix"]))
    return _overridden(default, plain | templates, "tokenizer")


def make_config(nested: Mapping[str, Any], revision: Revision) -> MoondreamConfig:
    """The config of a checkpoint from its nested dict (may be empty: the 2B sizes).

    Raises CheckpointError for a field that does not exist or sizes that do not fit together.
    """
    unknown = sorted(set(nested) - {"text", "vision", "region", "tokenizer"})
    if unknown:
        raise CheckpointError(f"config.json: unknown part {unknown[0]}; known are text, vision, region, tokenizer")
    text_given = dict(nested.get("text", {}))
    dim = text_given.get("dim", TextConfig.dim)
    # Configs of January 2025 lack ff_dim, and the 0.5B one lacks n_kv_heads: both follow the size.
    text_given.setdefault("ff_dim", 4 * dim)
    text_given.setdefault("n_kv_heads", text_given.get("n_heads", TextConfig.n_heads))
    tokens = LEGACY_TOKENS if revision.family == "legacy" else STARMIE_TOKENS
    config = MoondreamConfig(
        tokens=_tokens(tokens, nested.get("tokenizer", {})),
        revision=revision,
        text=_overridden(TextConfig(), text_given, "text"),
        vision=_overridden(VisionConfig(), {"proj_out_dim": dim} | dict(nested.get("vision", {})), "vision"),
        region=_overridden(RegionConfig(), {"dim": dim} | dict(nested.get("region", {})), "region"),
    )
    _check(config)
    return config


def _check(c: MoondreamConfig) -> None:
    rules = {
        "text.dim must be a multiple of text.n_heads": c.text.dim % c.text.n_heads == 0,
        "text.n_heads must be a multiple of text.n_kv_heads": c.text.n_heads % c.text.n_kv_heads == 0,
        "vision.enc_dim must be a multiple of vision.enc_n_heads": c.vision.enc_dim % c.vision.enc_n_heads == 0,
        "vision.crop_size must be a multiple of vision.enc_patch_size": c.vision.crop_size % c.vision.enc_patch_size
        == 0,
        "vision.proj_out_dim and region.dim must equal text.dim": c.vision.proj_out_dim == c.region.dim == c.text.dim,
        "text.max_context must exceed the image's tokens": c.text.max_context > c.prefix_len,
    }
    for rule, holds in rules.items():
        if not holds:
            raise CheckpointError(f"config.json: {rule}")
