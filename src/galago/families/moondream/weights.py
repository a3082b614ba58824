"""The table from checkpoint names to parameters, and strict loading."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from galago.checkpoint.packed import Shape, TensorTable, load_either
from galago.checkpoint.tensors import check_finite, check_tensors, check_type, convert, plain_name, read_tensors
from galago.errors import CheckpointError
from galago.families.moondream.config import MoondreamConfig
from galago.families.moondream.region import RegionWeights
from galago.families.moondream.text import BlockLora, LowRank, TextBlock, TextWeights, text_stack
from galago.families.moondream.vision import VisionWeights
from galago.families.work import linear_weights
from galago.nn.vit import vit_of, with_stack
from galago.precision import Precision
from galago.precision.linear import LinearWeight, Mlp, norm_of


@dataclass(frozen=True)
class MoondreamWeights:
    vision: VisionWeights
    text: TextWeights
    region: RegionWeights


def shapes(c: MoondreamConfig) -> dict[str, Shape]:
    """Every tensor of a checkpoint (names without the `model.` prefix) with its shape."""
    t, v, r = c.text, c.vision, c.region
    out: dict[str, Shape] = {}

    def dense(name: str, n_out: int, n_in: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (n_out, n_in), (n_out,)

    def norm(name: str, dim: int) -> None:
        out[f"{name}.weight"] = out[f"{name}.bias"] = (dim,)

    def two(name: str, n_in: int, inner: int, n_out: int) -> None:
        dense(f"{name}.fc1", inner, n_in)
        dense(f"{name}.fc2", n_out, inner)

    dense("vision.patch_emb", v.enc_dim, v.in_channels * v.enc_patch_size**2)
    out["vision.pos_emb"] = (1, v.n_tokens, v.enc_dim)
    for i in range(v.enc_n_layers):
        block = f"vision.blocks.{i}"
        norm(f"{block}.ln1", v.enc_dim)
        dense(f"{block}.attn.qkv", 3 * v.enc_dim, v.enc_dim)
        dense(f"{block}.attn.proj", v.enc_dim, v.enc_dim)
        norm(f"{block}.ln2", v.enc_dim)
        two(f"{block}.mlp", v.enc_dim, v.enc_ff_dim, v.enc_dim)
    norm("vision.post_ln", v.enc_dim)
    two("vision.proj_mlp", 2 * v.enc_dim, v.proj_inner_dim, v.proj_out_dim)

    out["text.wte"] = (t.vocab_size, t.dim)
    for i in range(t.n_layers):
        block = f"text.blocks.{i}"
        norm(f"{block}.ln", t.dim)
        dense(f"{block}.attn.qkv", t.qkv_dim, t.dim)
        dense(f"{block}.attn.proj", t.dim, t.dim)
        two(f"{block}.mlp", t.dim, t.ff_dim, t.dim)
    norm("text.post_ln", t.dim)
    dense("text.lm_head", t.vocab_size, t.dim)

    out["region.coord_features"] = (1, r.coord_feat_dim // 2)
    dense("region.coord_encoder", r.dim, r.coord_feat_dim)
    two("region.coord_decoder", r.dim, r.inner_dim, r.coord_out_dim)
    out["region.size_features"] = (2, r.size_feat_dim // 2)
    dense("region.size_encoder", r.dim, r.size_feat_dim)
    two("region.size_decoder", r.dim, r.inner_dim, r.size_out_dim)
    return out


def assemble(
    tensors: Mapping[str, Tensor], linears: Mapping[str, LinearWeight], c: MoondreamConfig
) -> MoondreamWeights:
    """The weight tree over named linear maps and a full set of the other tensors."""
    dense = linears.__getitem__

    def two(name: str) -> Mlp:
        return Mlp(dense(f"{name}.fc1"), dense(f"{name}.fc2"))

    text = TextWeights(
        wte=tensors["text.wte"],
        blocks=tuple(
            TextBlock(
                ln=norm_of(tensors, f"text.blocks.{i}.ln"),
                qkv=dense(f"text.blocks.{i}.attn.qkv"),
                proj=dense(f"text.blocks.{i}.attn.proj"),
                mlp=two(f"text.blocks.{i}.mlp"),
            )
            for i in range(c.text.n_layers)
        ),
        post_ln=norm_of(tensors, "text.post_ln"),
        lm_head=dense("text.lm_head"),
    )
    region = RegionWeights(
        coord_features=tensors["region.coord_features"],
        coord_encoder=dense("region.coord_encoder"),
        coord_decoder=two("region.coord_decoder"),
        size_features=tensors["region.size_features"],
        size_encoder=dense("region.size_encoder"),
        size_decoder=two("region.size_decoder"),
    )
    tower = vit_of(tensors, linears, c.vision.enc_n_layers)
    return MoondreamWeights(VisionWeights(tower, two("vision.proj_mlp")), text, region)


def encode_flop(c: MoondreamConfig, crops: int) -> int:
    """Operations for an image: the tower sees every patch of every crop, the projection each patch of one."""
    projection = linear_weights(shapes(c), "vision.proj_mlp.")
    tower = linear_weights(shapes(c), "vision.") - projection
    return 2 * c.vision.n_tokens * (tower * crops + projection)


GROUP = 128
"""Inputs that share a scale and a zero point in the int4 layout."""
# Frequencies stay float32: see region.py.
FLOAT32 = {"region.coord_features", "region.size_features"}

_BLOCK = r"blocks\.(\d+)"
_ORIGINAL: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"vision_encoder\.encoder\.model\.visual\.patch_embed\.linear\.(.+)", r"vision.patch_emb.\1"),
        (r"vision_encoder\.encoder\.model\.visual\.pos_embed", "vision.pos_emb"),
        (rf"vision_encoder\.encoder\.model\.visual\.{_BLOCK}\.norm([12])\.(.+)", r"vision.blocks.\1.ln\2.\3"),
        (rf"vision_encoder\.encoder\.model\.visual\.{_BLOCK}\.(.+)", r"vision.blocks.\1.\2"),
        (r"vision_encoder\.encoder\.model\.visual\.norm\.(.+)", r"vision.post_ln.\1"),
        (r"vision_encoder\.projection\.mlp\.(.+)", r"vision.proj_mlp.\1"),
        (r"text_model\.transformer\.embd\.wte\.weight", "text.wte"),
        (r"text_model\.transformer\.h\.(\d+)\.mixer\.Wqkv\.(.+)", r"text.blocks.\1.attn.qkv.\2"),
        (r"text_model\.transformer\.h\.(\d+)\.mixer\.out_proj\.(.+)", r"text.blocks.\1.attn.proj.\2"),
        (r"text_model\.transformer\.h\.(\d+)\.(.+)", r"text.blocks.\1.\2"),
        (r"text_model\.lm_head\.ln\.(.+)", r"text.post_ln.\1"),
        (r"text_model\.lm_head\.linear\.(.+)", r"text.lm_head.\1"),
        (r"region_model\.(coordinate|size)_features\.weight", r"region.\1_features"),
        (r"region_model\.(coordinate|size)_(encoder|decoder)\.(.+)", r"region.\1_\2.\3"),
    )
)


def our_name(name: str) -> tuple[str, bool] | None:
    """A checkpoint's tensor name as ours, and whether the tensor is stored transposed.

    Reads the Hub's names with and without `model.`, and the original training names. None for
    tensors to drop: key-value buffers that fine-tunes saved from a running model carry.
    """
    name = plain_name(name)
    if name.endswith((".kv_cache.k_cache", ".kv_cache.v_cache")):
        return None
    if not re.match(r"(text_model|vision_encoder|region_model)\.", name):
        return name.removeprefix("model."), False
    for pattern, ours in _ORIGINAL:
        if pattern.fullmatch(name):
            renamed = pattern.sub(ours, name).replace("coordinate_", "coord_")
            return renamed, renamed in FLOAT32
    return name, False


def unpack_int4(packed: Tensor, scale: Tensor, zero_point: Tensor, shape: Shape) -> Tensor:
    """Values, float32 `shape` [out, in], of the 2025-05 int4 layout.

    packed is uint8 [G / 2, 128]: the high nibble of row r belongs to group r, the low one to group
    r + G / 2; scale and zero_point are [G, 1]. Raises CheckpointError for others.
    """
    groups = math.prod(shape) // GROUP
    wanted = {"packed": (groups // 2, GROUP), "scale": (groups, 1), "zero_point": (groups, 1)}
    for (part, size), tensor in zip(wanted.items(), (packed, scale, zero_point), strict=True):
        if tuple(tensor.shape) != size:
            raise CheckpointError(f"{part} has shape {tuple(tensor.shape)}, the config asks for {size}")
    if packed.dtype != torch.uint8:
        raise CheckpointError(f"packed is of type {str(packed.dtype).removeprefix('torch.')}; it should be uint8")
    nibbles = torch.cat((packed >> 4, packed & 0xF)).float()
    return ((nibbles - zero_point.float()) * scale.float()).reshape(shape)


def _unpack_int4_weights(
    pairs: Iterable[tuple[str, Tensor]], expected: Mapping[str, Shape]
) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors through, unpacking each packed weight from its three parts."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in pairs:
        weight, _, part = name.rpartition(".")
        if part not in ("packed", "scale", "zero_point") or weight not in expected:
            yield name, tensor
            continue
        have = parts.setdefault(weight, {})
        have[part] = tensor
        if len(have) == 3:
            try:
                unpacked = unpack_int4(have["packed"], have["scale"], have["zero_point"], expected[weight])
            except CheckpointError as error:
                raise CheckpointError(f"tensor {weight}: {error}") from None
            yield weight, unpacked
            del parts[weight]
    for weight, have in parts.items():
        lacking = sorted({"packed", "scale", "zero_point"} - set(have))
        raise CheckpointError(f"missing tensor {weight}.{lacking[0]}")


def _read_named(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_tensors(files):
        ours = our_name(name)
        if ours is not None:
            yield ours[0], tensor.T if ours[1] else tensor


def read(files: Iterable[Path], c: MoondreamConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint as stored, one by one.

    Raises CheckpointError naming the first missing, unexpected, doubled or wrong-shaped tensor.
    """
    expected = shapes(c)
    return check_tensors(_unpack_int4_weights(_read_named(files), expected), expected)


def table(c: MoondreamConfig) -> TensorTable:
    """The tensors of a checkpoint, as loading and packing need them."""
    all_shapes = shapes(c)
    names = (name.removesuffix(".weight") for name, shape in all_shapes.items() if len(shape) == 2)
    sizes = {name: all_shapes[f"{name}.weight"] for name in names if f"{name}.bias" in all_shapes}
    linears = {name: (n_out, n_in) for name, (n_out, n_in) in sizes.items()}
    return TensorTable(all_shapes, linears, exact=frozenset(FLOAT32), looked_up=frozenset({"text.wte"}))


def load(
    files: Sequence[Path],
    c: MoondreamConfig,
    precision: Precision,
    device: torch.device,
) -> MoondreamWeights:
    """The weights of a checkpoint, packed or not. Raises CheckpointError as `read` does."""
    w = assemble(*load_either(files, lambda: read(files, c), table(c), precision, device), c)
    tower = with_stack(w.vision.tower, c.vision.enc_n_heads, precision.kv)
    text = replace(w.text, stack=text_stack(w.text.blocks, c.text, precision.kv))
    return replace(w, vision=replace(w.vision, tower=tower), text=text)


_LORA_NAMES = (
    ("text_model.transformer.h", "text.blocks"),
    (".mixer", ".attn"),
    (".out_proj", ".proj"),
    (".Wqkv", ".qkv"),
    (".parametrizations.weight.0", ""),
)


def load_lora(file: Path, c: MoondreamConfig, dtype: torch.dtype, device: torch.device) -> tuple[BlockLora, ...]:
    """Read a LoRA variant, one update for each of the four linears of every text block; strictly."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_tensors([file]):
        for old, new in _LORA_NAMES:
            name = name.replace(old, new)
        name = name.removeprefix("model.")
        try:
            check_type(name, tensor)
            check_finite(name, tensor)
            tensors[name] = convert(name, tensor, device, dtype)
        except CheckpointError as error:
            raise CheckpointError(f"{file.name}: {error}") from None

    sizes = shapes(c)

    def update(name: str) -> LowRank:
        n_out, n_in = sizes[f"{name}.weight"]
        found = []
        for part in ("A", "B"):
            tensor = tensors.pop(f"{name}.{part}", None)
            if tensor is None:
                raise CheckpointError(f"{file.name}: missing tensor {name}.{part}")
            found.append(tensor)
        a, b = found
        if a.dim() != 2:
            raise CheckpointError(f"{file.name}: tensor {name}.A has shape {tuple(a.shape)}; it should have two sides")
        # The output projection's update reads the block's input, which has its own width.
        if a.shape[1] != (c.text.dim if name.endswith("attn.proj") else n_in) or b.shape != (n_out, a.shape[0]):
            given = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise CheckpointError(f"{file.name}: {name} has updates {given}, which do not fit")
        return LowRank(a, b)

    blocks = tuple(
        BlockLora(
            update(f"text.blocks.{i}.attn.qkv"),
            update(f"text.blocks.{i}.attn.proj"),
            update(f"text.blocks.{i}.mlp.fc1"),
            update(f"text.blocks.{i}.mlp.fc2"),
        )
        for i in range(c.text.n_layers)
    )
    if tensors:
        raise CheckpointError(f"{file.name}: unexpected tensor {sorted(tensors)[0]}")
    return blocks
