"""Sizes, special tokens and revisions of the Moondream2 checkpoints.

Source: vikhyat/moondream, 2025-01-09 to 2025-06-21. The published `config.json` holds no sizes, so
the defaults here are the 2B model's; a nested `config` overrides any of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from galago.checkpoint.config_file import Members, list_of, member, members_of, one_of, read, whole

PromptFamily = Literal["legacy", "starmie"]
Ids = tuple[int, ...]
SIZE, LAYERS, SIDE = whole(1, 1 << 20), whole(1, 1000), whole(1, 1 << 12)
LEAST_TEXT = 32
"""Positions beside an image that a question and its answer take, of the shortest kind."""


@dataclass(frozen=True)
class TextConfig:
    dim: int = member(SIZE, 2048)
    ff_dim: int = member(SIZE, 8192)
    n_layers: int = member(LAYERS, 24)
    n_heads: int = member(SIZE, 32)
    n_kv_heads: int = member(SIZE, 32)
    vocab_size: int = member(whole(1, 1 << 24), 51200)
    max_context: int = member(whole(1, 1 << 24), 2048)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def qkv_dim(self) -> int:
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_dim

    @property
    def rot_dim(self) -> int:
        return self.head_dim // 2

    @property
    def theta(self) -> float:
        return 10000.0

    @property
    def eps(self) -> float:
        return 1e-5

    @property
    def block_weights(self) -> int:
        return self.dim * (self.qkv_dim + self.dim + 2 * self.ff_dim)


@dataclass(frozen=True)
class VisionConfig:
    enc_dim: int = member(SIZE, 1152)
    enc_n_layers: int = member(LAYERS, 27)
    enc_n_heads: int = member(SIZE, 16)
    enc_ff_dim: int = member(SIZE, 4304)
    enc_patch_size: int = member(SIDE, 14)
    crop_size: int = member(SIDE, 378)
    in_channels: int = member(one_of(3), 3)
    max_crops: int = member(whole(1, 256), 12)
    overlap_margin: int = member(whole(0, 1000), 4)
    proj_inner_dim: int = member(SIZE, 8192)
    proj_out_dim: int = member(SIZE, 2048)

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.enc_patch_size

    @property
    def n_tokens(self) -> int:
        """Image tokens that the text model sees: one for each patch of a crop."""
        return self.grid**2

    @property
    def block_weights(self) -> int:
        return self.enc_dim * (4 * self.enc_dim + 2 * self.enc_ff_dim)


@dataclass(frozen=True)
class RegionConfig:
    dim: int = member(SIZE, 2048)
    inner_dim: int = member(SIZE, 8192)
    coord_feat_dim: int = member(SIZE, 256)
    coord_out_dim: int = member(SIZE, 1024)
    size_feat_dim: int = member(SIZE, 512)
    size_out_dim: int = member(SIZE, 2048)


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
    """How to prompt one published state of Moondream2 and read its outputs; its tensors do not show it."""

    name: str
    family: PromptFamily
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


_IGNORED = {"prefix_attn", "group_size"}
"""Members of published configs that say nothing we need: derived from others, or of a storage format."""
_TOKENS = ("bos_id", "eos_id", "answer_id", "thinking_id", "coord_id", "size_id")
_MARKS = ("start_ground_points_id", "end_ground_id")


def make_config(nested: Mapping[str, Any], revision: Revision) -> MoondreamConfig:
    """The config of a checkpoint from its nested dict (may be empty: the 2B sizes).

    Raises CheckpointError for a field that does not exist or holds what is not allowed, and for sizes that do not fit
    together.
    """
    given = members_of(nested, "config.json")
    given.only("text", "vision", "region", "tokenizer")
    text, vision, region = (given.part(name) for name in ("text", "vision", "region"))
    for part, kind in ((text, TextConfig), (vision, VisionConfig), (region, RegionConfig)):
        part.only(*kind.__dataclass_fields__, ignored=_IGNORED)
    # Configs of January 2025 lack ff_dim, and the 0.5B one lacks n_kv_heads: both follow the size.
    dim, heads = text.take("dim", SIZE, TextConfig.dim), text.take("n_heads", SIZE, TextConfig.n_heads)
    sizes = read(TextConfig, text, ff_dim=4 * dim, n_kv_heads=heads)
    config = MoondreamConfig(
        tokens=_tokens(revision, given.part("tokenizer"), sizes.vocab_size),
        revision=revision,
        text=sizes,
        vision=read(VisionConfig, vision, proj_out_dim=dim),
        region=read(RegionConfig, region, dim=dim),
    )
    _check(config, text, vision, region)
    return config


def _tokens(revision: Revision, given: Members, vocabulary: int) -> TokenConfig:
    default = LEGACY_TOKENS if revision.family == "legacy" else STARMIE_TOKENS
    given.only("templates", *_TOKENS, *_MARKS)
    id_, ids = whole(0, vocabulary - 1), list_of(whole(0, vocabulary - 1), 64)
    plain = {name: given.take(name, id_, getattr(default, name)) for name in (*_TOKENS, *_MARKS)}
    templates = given.part("templates")
    templates.only("caption", "query", "detect", "point")
    captions = templates.part("caption")
    captions.only(*STARMIE_TOKENS.caption)
    # A part that is given stands for all of the default.
    lengths = [name for name in captions if captions[name] is not None] or default.caption
    caption = {name: captions.take(name, ids, default.caption.get(name)) for name in lengths}
    for name in revision.lengths:
        captions.require(name, None, name in caption, ids.allowed)
    made: dict[str, Any] = {}
    for skill in ("query", "detect", "point"):
        part = templates.part(skill)
        part.only("prefix", "suffix")
        if part:
            made[skill] = Template(part.needed("prefix", ids), part.needed("suffix", ids))
    tokens = replace(default, caption=caption, **plain, **made)
    # Where the file says nothing, the ids are of a vocabulary that a small model does not have.
    below = f"ids below vocab_size ({vocabulary})"
    for name in (*_TOKENS, *_MARKS):
        given.require(name, getattr(tokens, name), (getattr(tokens, name) or 0) < vocabulary, below)
    for skill in ("query", "detect", "point"):
        template = getattr(tokens, skill)
        both = (*template.prefix, *template.suffix)
        templates.require(skill, both, max(both, default=0) < vocabulary, below)
    for length, line in caption.items():
        captions.require(length, line, max(line, default=0) < vocabulary, below)
    return tokens


def _check(c: MoondreamConfig, text: Members, vision: Members, region: Members) -> None:
    """Whether the parts fit together. Raises CheckpointError."""
    t, v, r = c.text, c.vision, c.region
    # Half of each head is turned, in pairs.
    heads = f"a number by which dim ({t.dim}) becomes heads of a multiple of 4"
    text.require("n_heads", t.n_heads, t.dim % (4 * t.n_heads) == 0, heads)
    text.require("n_kv_heads", t.n_kv_heads, t.n_heads % t.n_kv_heads == 0, f"a divisor of n_heads ({t.n_heads})")
    divides = f"a divisor of enc_dim ({v.enc_dim})"
    vision.require("enc_n_heads", v.enc_n_heads, v.enc_dim % v.enc_n_heads == 0, divides)
    whole_patches = v.crop_size % v.enc_patch_size == 0
    vision.require("enc_patch_size", v.enc_patch_size, whole_patches, f"a divisor of crop_size ({v.crop_size})")
    inner = 2 * v.overlap_margin < v.grid
    vision.require("overlap_margin", v.overlap_margin, inner, f"below half of the patches of a side ({v.grid})")
    same = f"text.dim ({t.dim})"
    vision.require("proj_out_dim", v.proj_out_dim, v.proj_out_dim == t.dim, same)
    region.require("dim", r.dim, r.dim == t.dim, same)
    for name, least in (("coord_feat_dim", 2), ("size_feat_dim", 2), ("size_out_dim", 4)):
        size = getattr(r, name)
        region.require(name, size, size >= least and size % 2 == 0, f"an even number, {least} at least")
    region.require("coord_out_dim", r.coord_out_dim, r.coord_out_dim >= 2, "2 at least")
    least = c.prefix_len + LEAST_TEXT
    fits = f"at least {least}: an image of {v.n_tokens} tokens and a question"
    text.require("max_context", t.max_context, t.max_context >= least, fits)
