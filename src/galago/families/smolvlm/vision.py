"""From crops to image embeddings: vision tower, pixel shuffle, projection."""

from dataclasses import dataclass

import torch
from torch import Tensor

from galago.families.smolvlm.config import VisionConfig
from galago.nn.passes import Passes, finish
from galago.nn.vit import VitWeights, patchify, vit_passes
from galago.precision.linear import LinearWeight, linear


@dataclass(frozen=True)
class VisionWeights:
    tower: VitWeights
    projection: LinearWeight


def patches_of(crops: Tensor, c: VisionConfig) -> Tensor:
    """Normalised crops [n, 3, side, side] to patches [n, grid * grid, 3 * p * p]."""
    side = c.grid * c.patch_size
    return patchify(crops[:, :, :side, :side], c.patch_size)


def crop_features(
    crops: Tensor, w: VisionWeights, c: VisionConfig, kv: torch.dtype | None = None, mask: Tensor | None = None
) -> Tensor:
    """Normalised crops [n, 3, side, side] to features [n, grid * grid, dim].

    `mask` bool [n, grid, grid] says which patches hold something; by default all do. See nn.vit for kv.
    """
    return finish(crop_passes(crops, w, c, c.n_layers, kv, mask))


def crop_passes(
    crops: Tensor,
    w: VisionWeights,
    c: VisionConfig,
    blocks_per_piece: int,
    kv: torch.dtype | None = None,
    mask: Tensor | None = None,
) -> Passes[Tensor]:
    """The same, `blocks_per_piece` blocks in each piece."""
    patches = patches_of(crops, c).to(w.tower.pos_emb.dtype)
    position_ids = None if mask is None else torch.stack([positions(one) for one in mask])
    key_mask = None if mask is None else mask.flatten(1)
    return vit_passes(patches, w.tower, c.n_heads, blocks_per_piece, c.eps, kv, position_ids, key_mask)


def positions(mask: Tensor) -> Tensor:
    """The index of the learned position of each patch of a crop, int64 [n * n], where only some hold something.

    Those bool [n, n] are spread over the whole of the crop as if there were no others; the others have the first.
    """
    n = len(mask)

    def buckets(count: int) -> Tensor:
        # float32 whatever the model computes with: coarser numbers fall into other buckets.
        places = torch.arange(count, dtype=torch.float32) * (1 / max(count, 1))
        edges = torch.arange(1 / n, 1.0, 1 / n, dtype=torch.float32)
        return torch.bucketize(places.clamp(max=1 - 1e-6), edges, right=True)

    rows, columns = buckets(int(mask[:, 0].sum())), buckets(int(mask[0].sum()))
    ids = torch.zeros(n * n, dtype=torch.int64)
    ids[mask.flatten().cpu()] = (rows[:, None] * n + columns).flatten()
    return ids.to(mask.device)


def pixel_shuffle(features: Tensor, c: VisionConfig) -> Tensor:
    """Features [n, grid * grid, dim] to [n, T, dim * scale * scale]: a square of patches to each token, row by row."""
    side, s = c.grid // c.scale, c.scale
    n = features.shape[0]  # not len(), which would fix the number in an export
    x = features.view(n, side, s, side, s, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, side * side, -1)


def project(features: Tensor, w: VisionWeights, c: VisionConfig) -> Tensor:
    """Features [n, grid * grid, dim] to the embeddings of the crops' tokens [n, T, text dim]."""
    return linear(pixel_shuffle(features, c), w.projection)
