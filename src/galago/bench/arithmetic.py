"""Bytes and operations that a model's work takes, from its shapes.

Products with weights alone: attention, norms and the KV cache come on top, so what is reached is a little more than
what is reported.
"""

import math
from typing import TYPE_CHECKING, Any

import torch

from galago import hub
from galago.bench.case import Case
from galago.families.moondream.config import REVISIONS, MoondreamConfig, make_config
from galago.families.moondream.image import tiling_of
from galago.families.moondream.weights import shapes
from galago.precision import Precision, pick_precision

if TYPE_CHECKING:
    from galago.model import Model


def work_of(model: "Model", case: Case) -> dict[str, Any]:
    """`crops`, `decode_bytes` a step, `prefill_flop` a position, `encode_flop` an image; nothing for other families.

    A multiplication and its addition count as two operations.
    """
    files = hub.locate(case.model)
    if files.family != "moondream":
        return {}
    config = make_config(files.config.get("config") or {}, REVISIONS[model.revision])
    crops = crops_of(config, case.width, case.height) if case.detail == "high" else 1
    return {
        "crops": crops,
        "decode_bytes": decode_bytes(config, pick_precision(model.precision, torch.device(model.device))),
        "prefill_flop": 2 * _weights(config, "text.blocks."),
        "encode_flop": encode_flop(config, crops),
    }


def crops_of(c: MoondreamConfig, width: int, height: int) -> int:
    """Views that the vision tower looks at."""
    rows, columns = tiling_of(height, width, c.vision)
    return 1 if rows * columns == 1 else 1 + rows * columns


def encode_flop(c: MoondreamConfig, crops: int) -> int:
    """The tower sees every patch of every crop; the projection each patch of one."""
    projection = _weights(c, "vision.proj_mlp.")
    tower = _weights(c, "vision.") - projection
    return 2 * c.vision.n_tokens * (tower * crops + projection)


def decode_bytes(c: MoondreamConfig, precision: Precision) -> float:
    """Weights that one decode step must read, those of all text blocks and the head, in bytes."""
    return precision.weight_bytes * (_weights(c, "text.blocks.") + _weights(c, "text.lm_head."))


def _weights(c: MoondreamConfig, prefix: str) -> int:
    """Weights of the linear maps whose names start so: matrices, neither biases nor tables."""
    found = shapes(c).items()
    return sum(
        math.prod(s) for name, s in found if name.startswith(prefix) and name.endswith(".weight") and len(s) == 2
    )
