"""Bytes and operations that a model's work takes, from its shapes.

Products with weights alone: attention, norms and the KV cache come on top, so what is reached is a little more than
what is reported.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from galago.bench.case import Case
from galago.families.moondream import weights as moondream
from galago.families.moondream.config import MoondreamConfig
from galago.families.moondream.image import tiling_of
from galago.families.smolvlm import weights as smolvlm
from galago.families.smolvlm.config import SmolVLMConfig
from galago.families.smolvlm.image import tiling_of as frame_tiling

if TYPE_CHECKING:
    from galago.model import Model

LEAST_BYTES = 4096
"""Biases and norms are left out: reading them would take longer than they count."""


def work_of(model: "Model", case: Case) -> dict[str, Any]:
    """`crops`, `decode_bytes` a step, `prefill_flop` a position, `encode_flop` an image or clip.

    A multiplication and its addition count as two operations.
    """
    c = cast(Any, model.backend).model.config
    if isinstance(c, MoondreamConfig):
        crops = crops_of(c, case.width, case.height) if case.detail == "high" else 1
        flop, text = encode_flop(c, crops), _weights(moondream.shapes(c), "text.blocks.")
    else:
        crops = case.frames or frames_of(c, case)
        flop, text = frames_flop(c, crops), _weights(smolvlm.shapes(c), "text.blocks.")
    return {
        "crops": crops,
        "decode_bytes": sum(t.nbytes for t in decode_weights(model)),
        "prefill_flop": 2 * text,
        "encode_flop": flop,
    }


def decode_weights(model: "Model") -> list[Tensor]:
    """The tensors that one decode step must read, those of all text blocks and the head."""
    text = cast(Any, model.backend).model.weights.text
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


def frames_of(c: SmolVLMConfig, case: Case) -> int:
    """Frames that SmolVLM's tower looks at: the tiles of an image, and all of it."""
    rows, columns = frame_tiling((case.width, case.height), c.image, c.image.split and case.detail == "high")
    return rows * columns + 1


def encode_flop(c: MoondreamConfig, crops: int) -> int:
    """The tower sees every patch of every crop; the projection each patch of one."""
    projection = _weights(moondream.shapes(c), "vision.proj_mlp.")
    tower = _weights(moondream.shapes(c), "vision.") - projection
    return 2 * c.vision.n_tokens * (tower * crops + projection)


def frames_flop(c: SmolVLMConfig, frames: int) -> int:
    """The tower sees every patch of every frame, the projection each token of it."""
    projection = _weights(smolvlm.shapes(c), "vision.proj.")
    tower = _weights(smolvlm.shapes(c), "vision.") - projection
    return 2 * frames * (c.vision.grid**2 * tower + c.vision.n_tokens * projection)


def _weights(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Weights of the linear maps whose names start so: matrices, neither biases nor tables."""
    found = shapes.items()
    return sum(
        math.prod(s) for name, s in found if name.startswith(prefix) and name.endswith(".weight") and len(s) == 2
    )
