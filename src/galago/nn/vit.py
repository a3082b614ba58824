"""A pre-norm vision transformer with learned positions and no class token (SigLIP's shape)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from galago.nn.attention import attention, merge_heads, split_heads
from galago.nn.passes import Passes, finish, pieces
from galago.nn.stack import Block, Stack, stack_of
from galago.precision.linear import LinearWeight, Mlp, Norm, add, layer_norm, linear, mlp, norm_of


@dataclass(frozen=True)
class VitBlock:
    ln1: Norm
    qkv: LinearWeight
    proj: LinearWeight
    ln2: Norm
    mlp: Mlp


@dataclass(frozen=True)
class VitWeights:
    patch_emb: LinearWeight
    pos_emb: Tensor
    """[1, T, dim]"""
    blocks: tuple[VitBlock, ...]
    post_ln: Norm
    stack: Stack | None = None
    """the blocks as one call, where their precision allows it"""


def vit_of(tensors: Mapping[str, Tensor], linears: Mapping[str, LinearWeight], n_blocks: int) -> VitWeights:
    """The tower of weights whose names begin with `vision.`; its learned positions may be [T, dim]."""

    def block(i: int) -> VitBlock:
        name = f"vision.blocks.{i}"
        ln1, ln2 = (norm_of(tensors, f"{name}.{part}") for part in ("ln1", "ln2"))
        qkv, proj, fc1, fc2 = (linears[f"{name}.{part}"] for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
        return VitBlock(ln1, qkv, proj, ln2, Mlp(fc1, fc2))

    positions = tensors["vision.pos_emb"]
    return VitWeights(
        patch_emb=linears["vision.patch_emb"],
        pos_emb=positions if positions.dim() == 3 else positions.unsqueeze(0),
        blocks=tuple(map(block, range(n_blocks))),
        post_ln=norm_of(tensors, "vision.post_ln"),
    )


def with_stack(w: VitWeights, n_heads: int, kv: torch.dtype) -> VitWeights:
    """The same with all blocks as one call, where their precision allows it."""
    parts = [Block((b.ln1, b.ln2), (b.qkv, b.proj, b.mlp.fc1, b.mlp.fc2)) for b in w.blocks]
    return replace(w, stack=stack_of(parts, n_heads, n_heads, kv))


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images [B, C, H, W] to patches [B, (H / patch) * (W / patch), C * patch * patch].

    Patches run row by row; within one: channel, then row, then column.
    """
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def vit_block(
    x: Tensor, w: VitBlock, n_heads: int, eps: float, kv: torch.dtype | None = None, key_mask: Tensor | None = None
) -> Tensor:
    """One block over [B, T, dim]; every patch attends to every patch, or to those of `key_mask` (bool [B, T])."""
    q, k, v = (split_heads(part, n_heads) for part in linear(layer_norm(x, w.ln1, eps), w.qkv).chunk(3, -1))
    x = add(x, linear(merge_heads(attention(q, k, v, kv, key_mask)), w.proj))
    return add(x, mlp(layer_norm(x, w.ln2, eps), w.mlp))


def vit(patches: Tensor, w: VitWeights, n_heads: int, eps: float = 1e-5, kv: torch.dtype | None = None) -> Tensor:
    """Patches [B, T, C * p * p] to features [B, T, dim], after the final norm.

    Attention may compute in the type `kv`, see nn.attention.
    """
    return finish(vit_passes(patches, w, n_heads, len(w.blocks), eps, kv))


def vit_passes(
    patches: Tensor,
    w: VitWeights,
    n_heads: int,
    blocks_per_piece: int,
    eps: float = 1e-5,
    kv: torch.dtype | None = None,
    position_ids: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Passes[Tensor]:
    """The same, `blocks_per_piece` blocks in each piece.

    `position_ids` int64 [B, T] says which learned position each patch has, where that is not its own, and `key_mask`,
    bool [B, T], which patches others attend to, where that is not all.
    """
    x = linear(patches, w.patch_emb)
    x = add(x, w.pos_emb.expand_as(x) if position_ids is None else w.pos_emb[0, position_ids])
    for blocks in pieces(len(w.blocks), blocks_per_piece):
        if blocks.start:
            yield
        if (stack := w.stack) and key_mask is None:
            for image in x:
                stack.forward(image, [((), len(image))], together=True, eps=eps, blocks=blocks)
        else:
            for i in blocks:
                x = vit_block(x, w.blocks[i], n_heads, eps, kv, key_mask)
    return layer_norm(x, w.post_ln, eps)


def normalise(pixels: Tensor, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """uint8 images [B, H, W, C] to float32 [B, C, H, W], (x / 255 - mean) / std."""
    return (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - mean) / std
