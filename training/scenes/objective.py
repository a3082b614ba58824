"""The forward pass over a batch and its losses, through the family's own functions."""

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galago.families.moondream.config import MoondreamConfig, VisionConfig
from galago.families.moondream.region import coordinate_logits, encode_coordinate, encode_size, size_logits
from galago.families.moondream.text import logits_of
from galago.families.moondream.vision import crop_features, local_features, project
from galago.families.moondream.weights import MoondreamWeights
from galago.nn.attention import attention
from galago.nn.decoder import Attend, decoder
from training.scenes.data import COLOR_CLASSES, FINISHES, GLYPHS, NAME_CLASSES, NO_GLYPH, TOLD, Batch, Truth
from training.scenes.pack import KINDS, NONE

SIGMA = 4.0
"""Bins are trained towards a bell of this many bins: a near miss is nearly right."""


class PatchHeads(nn.Module):
    """Auxiliary heads, thrown away after training: what lies under a patch, and where its middle is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.color = nn.Linear(dim, len(COLOR_CLASSES))
        self.name = nn.Linear(dim, len(NAME_CLASSES))
        self.shape = nn.Linear(dim, 6)
        self.letter = nn.Linear(dim, len(GLYPHS))
        self.place = nn.Linear(dim, 4)
        self.look = nn.Linear(dim, 3)
        self.shade, self.texture = (nn.Linear(dim, len(names)) for names in FINISHES)

    def forward(
        self, x: Tensor, classes: Tensor, shape: Tensor, finish: Tensor, glyph: Tensor, look: Tensor
    ) -> dict[str, Tensor]:
        """Losses of features x [..., dim]; for the rest see Batch. Rare things are averaged by themselves."""
        far = F.smooth_l1_loss(self.shape(x).float(), shape.nan_to_num(), reduction="none")
        seen = self.look(x).float()
        turn = F.mse_loss(seen[..., :2], look[..., :2].nan_to_num(), reduction="none")
        target = F.binary_cross_entropy_with_logits(seen[..., 2], look[..., 2].nan_to_num(), reduction="none")
        return {
            "patch": F.cross_entropy(self.color(x).flatten(0, -2).float(), classes[..., 0].flatten())
            + F.cross_entropy(self.name(x).flatten(0, -2).float(), classes[..., 1].flatten())
            + 0.3 * mean_of(far[..., :4], ~shape[..., :4].isnan()),
            "finish": known_mean(self.shade(x), finish[..., 0]) + known_mean(self.texture(x), finish[..., 1]),
            "glyph": known_mean(self.letter(x), glyph[..., 0]) + 0.5 * known_mean(self.place(x), glyph[..., 1]),
            "look": mean_of(turn, ~look[..., :2].isnan())
            + mean_of(target, ~look[..., 2].isnan())
            + 0.1 * mean_of(far[..., 4:], ~shape[..., 4:].isnan()),
        }


class ToldHeads(nn.Module):
    """The same for what the decoder makes of an image's tokens: what captions say of a thing, and of which others too.

    So that captions and counts need not find from answers of one word that things alike are to be put together.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(dim, classes) for classes in TOLD)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """The loss of hidden states x [..., dim] against what is told [..., len(TOLD)], see Batch.patch_told."""
        x = F.layer_norm(x.float(), x.shape[-1:])  # residual streams grow
        return torch.stack([known_mean(part(x), told[..., i]) for i, part in enumerate(self.parts)]).sum()


def known_mean(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy over what has a class; 0 where nothing has."""
    classes = classes.flatten()
    loss = F.cross_entropy(logits.flatten(0, -2).float(), classes, reduction="sum", ignore_index=NO_GLYPH)
    return loss / (classes != NO_GLYPH).sum().clamp(min=1)


def soft_bins(logits: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy [n] of logits [n, bins] against a bell around fractional bins [n]."""
    steps = torch.arange(logits.shape[-1], device=logits.device)
    bell = torch.softmax(-0.5 * ((steps - bins.unsqueeze(-1)) / SIGMA) ** 2, dim=-1)
    # Less the bell's own entropy, so that a perfect answer costs nothing.
    return -(bell * (logits.float().log_softmax(-1) - bell.clamp(min=1e-9).log())).sum(-1)


def embed(batch: Batch, w: MoondreamWeights, prefix: Tensor, bos: int) -> Tensor:
    """Prefix embeddings [B, T, D] and what the blocks feed, as one sequence [B, 1 + T + R * ROW, D]."""
    x = F.embedding(batch.tokens.clamp(min=0), w.text.wte)
    value = batch.fed.nan_to_num()
    is_coordinate = ~batch.fed[..., 0].isnan() & batch.fed[..., 1].isnan()
    is_size = ~batch.fed[..., 1].isnan()
    x = torch.where(is_coordinate[..., None], encode_coordinate(value[..., :1], w.region, x.dtype), x)
    x = torch.where(is_size[..., None], encode_size(value, w.region, x.dtype), x)
    begun = begin(prefix, w, bos)
    return torch.cat((begun, x.to(begun.dtype).flatten(1, 2)), dim=1)


def begin(image: Tensor, w: MoondreamWeights, bos: int) -> Tensor:
    """What every sequence about images [B, T, D] begins with, [B, 1 + T, D] in the type of the embeddings."""
    start = w.text.wte[bos].expand(len(image), 1, -1)
    return torch.cat((start, image.to(start.dtype)), dim=1)


def packed_attention(block: Tensor, prefix: int) -> Attend:
    """Attention in which the prefix sees itself, and a block the prefix and its own past.

    block is [B, R, ROW]; the sequence is the prefix, then the rows one after the other. Each row
    is attended to by itself, which skips nearly all that the mask would hide.
    """
    b, r, n = block.shape
    own = (block[..., :, None] == block[..., None, :]).tril().flatten(0, 1)
    open_prefix = torch.ones(b * r, n, prefix, dtype=torch.bool, device=block.device)
    sees = torch.cat((open_prefix, own), dim=-1)[:, None]
    mask = torch.zeros(sees.shape, device=block.device).masked_fill(~sees, -1e4)

    def rows(x: Tensor) -> Tensor:  # [B, H, R * n, d] to [B * R, H, n, d]
        return x.unflatten(2, (r, n)).transpose(1, 2).flatten(0, 1)

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix])
        keys, values = (
            torch.cat((x[:, :, :prefix].repeat_interleave(r, dim=0), rows(x[:, :, prefix:])), dim=2) for x in (k, v)
        )
        # Written out: on a CPU the fused kernel's backward pass takes more than twice as long.
        scores = rows(q[:, :, prefix:]) @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask.to(q.dtype)
        rest = scores.softmax(-1) @ values
        return torch.cat((first, rest.unflatten(0, (b, r)).transpose(1, 2).flatten(2, 3)), dim=2)

    return attend


def chosen(mask: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Flat indices where mask is true, repeated up to a multiple of `step`, and which of them count.

    A round number for the same reason as in data.row.
    """
    at = mask.flatten().nonzero().squeeze(1)
    spare = at.new_zeros(-len(at) % step)
    return torch.cat((at, spare)), torch.arange(len(at) + len(spare), device=at.device) < len(at)


def mean_of(loss: Tensor, counts: Tensor) -> Tensor:
    """The mean of a loss, each value counted by its weight; 0 where none counts."""
    return (loss * counts).sum() / counts.sum().clamp(min=1)


def losses(
    batch: Batch, w: MoondreamWeights, c: MoondreamConfig, heads: nn.ModuleDict
) -> tuple[dict[str, Tensor], Tensor]:
    """Every loss of a batch, each a mean, and of each of KINDS the sums of its losses and their number [K, 2].

    Losses: patch, finish, glyph and look of the tower's features, the same with `token_` of the projected ones; told;
    where the batch has rows, token, coordinate and size.
    """
    features = crop_features(batch.pixels, w.vision, c.vision)
    starts = torch.tensor(batch.starts, device=features.device)
    image = images(features, batch, w, c)
    *truth, told = (getattr(batch, f.name) for f in fields(Truth))
    out: dict[str, Tensor] = heads["tower"](features, *truth)
    projected = heads["projected"](image, *(part[starts] for part in truth))
    out |= {f"token_{name}": loss for name, loss in projected.items()}
    by_kind = torch.zeros(len(KINDS), 2, device=features.device)
    asked, middle = batch.block.shape[0] if batch.block.shape[1] else 0, list[Tensor]()
    if asked:
        hidden, seen = _read(batch, w, c, image[:asked])
        middle.append(seen)
        out |= _answers(batch, w, c, hidden, by_kind)
    if asked < len(image):
        middle.append(_seen(image[asked:], w, c))
    out["told"] = heads["decoded"](torch.cat(middle), told[starts])
    return out, by_kind


def images(features: Tensor, batch: Batch, w: MoondreamWeights, c: MoondreamConfig) -> Tensor:
    """The embeddings [N, T, D] of a batch's images from the features [C, T, E] of its crops."""
    local = whole = features.index_select(0, torch.tensor(batch.starts, device=features.device))
    tiled = [i for i, tiling in enumerate(batch.tilings) if tiling != (1, 1)]
    if tiled:
        views = [_local(features, batch.starts[i], batch.tilings[i], c.vision) for i in tiled]
        local = local.index_copy(0, torch.tensor(tiled, device=features.device), torch.stack(views))
    return project(whole, local, w.vision)


def _local(features: Tensor, start: int, tiling: tuple[int, int], c: VisionConfig) -> Tensor:
    """The local view [T, E] of the image whose crops begin at `start`."""
    return local_features(features[start : start + 1 + tiling[0] * tiling[1]], tiling, c)


def _read(batch: Batch, w: MoondreamWeights, c: MoondreamConfig, image: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's output for the rows [B * R * ROW, D], and what half its blocks make of the images [B, T, D]."""
    x = embed(batch, w, image, c.tokens.bos_id)
    prefix, half = c.prefix_len, _half(c)
    first = torch.arange(prefix, device=x.device).expand(len(x), -1)
    positions = torch.cat((first, prefix + batch.position.flatten(1)), dim=1)
    attend = packed_attention(batch.block, prefix)
    middle = decoder(x, w.text, c.text, positions, attend, blocks=range(half))
    hidden = decoder(middle, w.text, c.text, positions, attend, blocks=range(half, c.text.n_layers))
    return hidden[:, prefix:].flatten(0, 1), middle[:, 1:prefix]


def _seen(image: Tensor, w: MoondreamWeights, c: MoondreamConfig) -> Tensor:
    """What half the decoder's blocks make of images [B, T, D] of which nothing is asked."""
    x = begin(image, w, c.tokens.bos_id)
    positions = torch.arange(c.prefix_len, device=x.device).expand(len(x), -1)
    seen = decoder(x, w.text, c.text, positions, lambda _layer, q, k, v: attention(q, k, v), blocks=range(_half(c)))
    return seen[:, 1:]


def _half(c: MoondreamConfig) -> int:
    return (c.text.n_layers + 1) // 2


def _answers(
    batch: Batch, w: MoondreamWeights, c: MoondreamConfig, hidden: Tensor, by_kind: Tensor
) -> dict[str, Tensor]:
    """Losses of what is said in the decoder's output; those of each kind are added to by_kind."""
    out: dict[str, Tensor] = {}

    kind, weight = batch.kind.flatten(), batch.weight.flatten()

    def mean(loss: Tensor, at: Tensor, counts: Tensor) -> Tensor:
        by_kind.index_add_(0, kind[at], torch.stack((loss.detach() * counts, counts.float()), 1))
        return mean_of(loss, counts * weight[at])

    at, counts = chosen(batch.next_token != NONE, 256)
    said = batch.next_token.flatten()[at].clamp(min=0)
    token = F.cross_entropy(logits_of(hidden[at], w.text).float(), said, reduction="none")
    out["token"] = mean(token, at, counts)

    value = batch.next_value.flatten(0, 2)
    is_size = ~value[:, 1].isnan()
    at, counts = chosen(~value[:, 0].isnan() & ~is_size, 256)
    places = value[at, 0].nan_to_num() * c.region.coord_out_dim
    out["coordinate"] = mean(soft_bins(coordinate_logits(hidden[at], w.region), places), at, counts)

    at, counts = chosen(is_size, 256)
    bins = c.region.size_out_dim // 2
    sizes = (value[at].nan_to_num().clamp(min=1 / bins).log2() + 10) / 10 * (bins - 1)
    spread = soft_bins(size_logits(hidden[at], w.region).flatten(0, 1), sizes.flatten())
    out["size"] = mean_of(spread.unflatten(0, (-1, 2)).mean(1), counts)
    return out


WEIGHTS = {
    "token": 1.0, "coordinate": 0.4, "size": 0.3, "patch": 1.2, "token_patch": 1.2, "glyph": 0.7, "token_glyph": 0.5,
    "look": 0.5, "token_look": 0.5, "finish": 0.2, "token_finish": 0.2, "told": 0.4,
}  # fmt: skip
