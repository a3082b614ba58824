"""From crops to image embeddings: vision tower, stitching, pooling, projection."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from galago.families.moondream.config import VisionConfig
from galago.nn.passes import Passes, finish
from galago.nn.vit import VitWeights, normalise, patchify, vit_passes
from galago.precision.linear import Mlp, mlp


@dataclass(frozen=True)
class VisionWeights:
    tower: VitWeights
    projection: Mlp


def crop_features(pixels: Tensor, w: VisionWeights, c: VisionConfig, kv: torch.dtype | None = None) -> Tensor:
    """uint8 crops [n, crop, crop, 3] to features [n, T, enc_dim], T = grid * grid.

    On a CPU one crop after another: each keeps all cores busy, and the memory is that of one.
    """
    alone = pixels.device.type == "cpu" and not torch.is_grad_enabled()
    parts = pixels.split(1 if alone else len(pixels))
    return torch.cat([finish(crop_passes(part, w, c, c.enc_n_layers, kv)) for part in parts])


def crop_passes(
    pixels: Tensor, w: VisionWeights, c: VisionConfig, blocks_per_piece: int, kv: torch.dtype | None = None
) -> Passes[Tensor]:
    """The same for crops that go together, `blocks_per_piece` blocks in each piece."""
    patches = patchify(normalise(pixels), c.enc_patch_size).to(w.tower.pos_emb.dtype)
    return vit_passes(patches, w.tower, c.enc_n_heads, blocks_per_piece, kv=kv)


def stitch(tiles: Tensor, tiling: tuple[int, int], c: VisionConfig) -> Tensor:
    """Tile features [rows * cols, T, E], row by row, to one map [h, w, E].

    Neighbours overlap by two margins; a seam lies in the middle of the overlap, while the outer
    margins of the image are kept.
    """
    rows, cols = tiling
    grid, margin = c.grid, c.overlap_margin
    step = grid - 2 * margin
    tiles = tiles.reshape(rows, cols, grid, grid, -1)
    out = tiles.new_empty(rows * step + 2 * margin, cols * step + 2 * margin, tiles.shape[-1])
    for i in range(rows):
        top, bottom = (0 if i == 0 else margin), (grid if i == rows - 1 else grid - margin)
        for j in range(cols):
            left, right = (0 if j == 0 else margin), (grid if j == cols - 1 else grid - margin)
            out[i * step + top : i * step + bottom, j * step + left : j * step + right] = tiles[
                i, j, top:bottom, left:right
            ]
    return out


def pool(features: Tensor, grid: int) -> Tensor:
    """A stitched map [h, w, E] to [grid * grid, E] by adaptive average pooling."""
    pooled = F.adaptive_avg_pool2d(features.permute(2, 0, 1).float(), grid)
    return pooled.flatten(1).T.to(features.dtype)


def local_features(features: Tensor, tiling: tuple[int, int], c: VisionConfig) -> Tensor:
    """All crops' features [n, T, E], global first, to the local view [T, E]."""
    if tiling == (1, 1):
        return features[0]
    return pool(stitch(features[1:], tiling, c), c.grid)


def project(global_view: Tensor, local_view: Tensor, w: VisionWeights) -> Tensor:
    """Both views [..., T, E] to image embeddings [..., T, D]."""
    return mlp(torch.cat((global_view, local_view), dim=-1), w.projection)


def image_embedding(
    pixels: Tensor, tiling: tuple[int, int], w: VisionWeights, c: VisionConfig, kv: torch.dtype | None = None
) -> Tensor:
    """uint8 crops [n, crop, crop, 3] of one image to its embedding [T, D]; see `vit` for kv."""
    return embedding_of(crop_features(pixels, w, c, kv), tiling, w, c)


def embedding_of(features: Tensor, tiling: tuple[int, int], w: VisionWeights, c: VisionConfig) -> Tensor:
    """All crops' features [n, T, E], global first, to the image's embedding [T, D]."""
    return project(features[0], local_features(features, tiling, c), w)
