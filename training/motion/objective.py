"""The forward pass over a batch and its losses, through the family's own functions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galago.families.smolvlm.config import SmolVLMConfig
from galago.families.smolvlm.text import logits_of
from galago.families.smolvlm.vision import crop_features, project
from galago.families.smolvlm.weights import SmolVLMWeights
from galago.lab.eval.motion.score import MEASURES
from galago.nn.decoder import Attend, decoder
from galago.nn.vit import normalise
from training.loop import Losses
from training.motion.data import Batch
from training.motion.pack import NONE
from training.motion.truth import COLOR_CLASSES, NAME_CLASSES, STATES
from training.scenes.objective import chosen, known_mean, mean_of

WEIGHTS = {"token": 1.0, "patch": 0.7, "token_patch": 0.7, "before": 0.3, "motion": 0.5, "state": 0.3}
"""How much each loss counts."""


class Lies(nn.Module):
    """Auxiliary heads, thrown away after training: what lies in a cell, and where its middle is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.color = nn.Linear(dim, len(COLOR_CLASSES))
        self.name = nn.Linear(dim, len(NAME_CLASSES))
        self.offset = nn.Linear(dim, 2)

    def forward(self, x: Tensor, kind: Tensor, offset: Tensor) -> Tensor:
        """The loss of features x [..., dim]; for the rest see truth.Lying."""
        far = F.smooth_l1_loss(self.offset(x).float(), offset.nan_to_num(), reduction="none", beta=0.2)
        known = known_mean(self.color(x), kind[..., 0]) + known_mean(self.name(x), kind[..., 1])
        return known + mean_of(far, ~offset.isnan())


class Moves(nn.Module):
    """The same for what happens over time: what lay in a cell before, and how what lies there moves."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.color = nn.Linear(dim, len(COLOR_CLASSES))
        self.name = nn.Linear(dim, len(NAME_CLASSES))
        self.step = nn.Linear(dim, 2)
        self.state = nn.Linear(dim, STATES)

    def forward(self, x: Tensor, before: Tensor, step: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Losses of the decoder's output x [..., dim]; for the rest see truth.Moving."""
        far = F.smooth_l1_loss(self.step(x).float(), step.nan_to_num(), reduction="none", beta=0.2)
        return {
            "before": known_mean(self.color(x), before[..., 0]) + known_mean(self.name(x), before[..., 1]),
            "motion": mean_of(far, ~step.isnan()),
            "state": known_mean(self.state(x), state),
        }


def heads(c: SmolVLMConfig) -> nn.ModuleDict:
    return nn.ModuleDict({"tower": Lies(c.vision.dim), "projected": Lies(c.text.dim), "decoded": Moves(c.text.dim)})


def packed_attention(block: Tensor, prefix: int) -> Attend:
    """Attention in which the prefix sees its own past, and a block the whole prefix and its own past.

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
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        first = F.scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True)
        keys, values = (
            torch.cat((x[:, :, :prefix].repeat_interleave(r, dim=0), rows(x[:, :, prefix:])), dim=2) for x in (k, v)
        )
        # Written out: on a CPU the fused kernel's backward pass takes more than twice as long.
        scores = rows(q[:, :, prefix:]) @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask.to(q.dtype)
        rest = scores.softmax(-1) @ values
        return torch.cat((first, rest.unflatten(0, (b, r)).transpose(1, 2).flatten(2, 3)), dim=2)

    return attend


def losses(batch: Batch, w: SmolVLMWeights, c: SmolVLMConfig, heads: nn.ModuleDict) -> Losses:
    """Every loss of a batch, each a mean, and of each measure the sums of its losses and their number [K, 2].

    Losses: token; patch of the tower's features and token_patch of the projected ones; before, motion and state of
    what the first half of the decoder makes of the frames' tokens.
    """
    b, n = batch.pixels.shape[:2]
    features = crop_features(normalise(batch.pixels.flatten(0, 1)), w.vision, c.vision)
    image = project(features, w.vision, c.vision)
    out = {
        "patch": heads["tower"](features.unflatten(0, (b, n)), batch.patch_kind, batch.patch_offset),
        "token_patch": heads["projected"](image.unflatten(0, (b, n)), batch.token_kind, batch.token_offset),
    }

    is_image = batch.prefix == c.image_id
    x = F.embedding(batch.prefix, w.text.wte).expand(b, -1, -1).clone()
    x[:, is_image] = image.reshape(b, -1, image.shape[-1]).to(x.dtype)
    x = torch.cat((x, F.embedding(batch.tokens, w.text.wte).flatten(1, 2)), dim=1)
    prefix = len(batch.prefix)
    first = torch.arange(prefix, device=x.device).expand(b, -1)
    positions = torch.cat((first, prefix + batch.position.flatten(1)), dim=1)
    attend, depth = packed_attention(batch.block, prefix), len(w.text.blocks)
    # Half way: what is known there the other blocks can look for.
    half = decoder(x, w.text, c.text, positions, attend, range(depth // 2))
    hidden = decoder(half, w.text, c.text, positions, attend, range(depth // 2, depth))
    seen = half[:, :prefix][:, is_image].unflatten(1, (n, -1))
    out |= heads["decoded"](seen, batch.before, batch.step, batch.state)

    at, counts = chosen(batch.next_token != NONE, 256)
    said = batch.next_token.flatten()[at].clamp(min=0)
    logits = logits_of(hidden[:, prefix:].flatten(0, 1)[at], w.text, c.text)
    token = F.cross_entropy(logits.float(), said, reduction="none")
    out["token"] = mean_of(token, counts)
    by_kind = torch.zeros(len(MEASURES), 2, device=x.device)
    by_kind.index_add_(0, batch.kind.flatten()[at], torch.stack((token.detach() * counts, counts.float()), 1))
    return out, by_kind
