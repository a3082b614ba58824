"""Bytes and operations that a model's work takes, from its shapes.

Products with weights alone: attention, norms and the KV cache come on top, so what is reached is a little more than
what is reported.
"""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from galago import hub
from galago.bench.case import Case
from galago.families.moondream.config import REVISIONS, MoondreamConfig, make_config
from galago.families.moondream.image import tiling_of
from galago.families.moondream.weights import shapes

if TYPE_CHECKING:
    from galago.model import Model

LEAST_BYTES = 4096
"""Biases and norms are left out: reading them would take longer than they count."""


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
        "decode_bytes": sum(t.nbytes for t in decode_weights(model)),
        "prefill_flop": 2 * _weights(config, "text.blocks."),
        "encode_flop": encode_flop(config, crops),
    }


def decode_weights(model: "Model") -> list[Tensor]:
    """The tensors that one decode step must read, those of all text blocks and the head."""
    text = cast(Any, model._loaded).weights.text
    return [t for t in _tensors([text.blocks, text.lm_head]) if t.nbytes >= LEAST_BYTES]


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, list | tuple):
        for one in held:
            yield from _tensors(one)
    elif is_dataclass(held):
        for field in fields(held):
            yield from _tensors(getattr(held, field.name))


def crops_of(c: MoondreamConfig, width: int, height: int) -> int:
    """Views that the vision tower looks at."""
    rows, columns = tiling_of(height, width, c.vision)
    return 1 if rows * columns == 1 else 1 + rows * columns


def encode_flop(c: MoondreamConfig, crops: int) -> int:
    """The tower sees every patch of every crop; the projection each patch of one."""
    projection = _weights(c, "vision.proj_mlp.")
    tower = _weights(c, "vision.") - projection
    return 2 * c.vision.n_tokens * (tower * crops + projection)


def _weights(c: MoondreamConfig, prefix: str) -> int:
    """Weights of the linear maps whose names start so: matrices, neither biases nor tables."""
    found = shapes(c).items()
    return sum(
        math.prod(s) for name, s in found if name.startswith(prefix) and name.endswith(".weight") and len(s) == 2
    )
