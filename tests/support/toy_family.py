"""A family in a few lines: a decoder of one block over sixteen pixels. It lies outside of the package, as a plug-in."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tiny_moondream
import torch
from safetensors.torch import save_file

from galago.checkpoint.packed import TensorTable, load_either
from galago.checkpoint.tensors import check_tensors, read_tensors
from galago.engine.encoded_image import EncodedImage
from galago.engine.step import ImageInput, Prefix
from galago.errors import ContextLengthExceeded, InvalidRequest
from galago.families.base import DecoderModel
from galago.families.family import Family, Outline
from galago.families.text_generation import text_steps
from galago.families.text_model import identity_of, kv_values
from galago.families.tokenizer import load_tokenizer
from galago.nn.decoder import rotary_attention
from galago.precision.linear import Mlp, linear, mlp
from galago.request import Caption, Chat, Encode, Query

SIDE, DIM, INNER, VOCAB, EOS = 4, 32, 64, tiny_moondream.VOCAB, tiny_moondream.EOS["starmie"]
LINEARS = {"see": (DIM, 3), "qkv": (3 * DIM, DIM), "proj": (DIM, DIM), "fc1": (INNER, DIM), "fc2": (DIM, INNER)}
LINEARS["head"] = (VOCAB, DIM)
SHAPES = {"wte": (VOCAB, DIM)} | {f"{name}.weight": shape for name, shape in LINEARS.items()}
TABLE = TensorTable(SHAPES, LINEARS, looked_up=frozenset({"wte"}))


@dataclass(frozen=True)
class Sizes:
    n_layers: int = 1
    n_heads: int = 2
    n_kv_heads: int = 2
    head_dim: int = DIM // 2
    rot_dim: int = DIM // 2
    vocab_size: int = VOCAB
    max_context: int = 64
    theta: float = 10000.0
    eps: float = 1e-5
    block_weights: int = 4 * DIM * DIM + 2 * DIM * INNER


@dataclass(frozen=True)
class Config:
    text: Sizes = field(default_factory=Sizes)


class Block:
    def __init__(self, w: dict[str, Any]) -> None:
        self.w = w

    def forward(self, x: Any, c: Any, table: Any, attend: Any) -> Any:
        x = x + linear(rotary_attention(linear(x, self.w["qkv"]), c, table, attend), self.w["proj"])
        return x + mlp(x, Mlp(self.w["fc1"], self.w["fc2"]))


@dataclass(frozen=True, eq=False)
class Toy(DecoderModel):
    revision = "toy"
    skills = frozenset({Caption, Query, Chat, Encode})

    @property
    def heads(self) -> Any:
        return {"logits": partial(linear, w=self.weights.linears["head"])}

    def skill(self, request: Any) -> Any:
        asked, shown = request.skill, request.shown
        if len(shown) != 1:
            raise InvalidRequest("this model looks at one image", "image")
        self.check_media(shown[0])
        said = (
            asked.question if isinstance(asked, Query) else asked.messages[-1].text if isinstance(asked, Chat) else "?"
        )
        prefix = shown[0] if isinstance(shown[0], EncodedImage) else self.image_prefix(shown[0])
        ids, room = self.tokenizer.encode(said), self.context - prefix.positions
        if len(ids) > room:
            raise ContextLengthExceeded(f"the prompt has {len(ids)} tokens, {room} fit")
        return text_steps(self, request, prefix, ids, min(request.sampling.max_tokens or 8, room), room)

    def image_prefix(self, shown: Any, detail: Any = "high") -> Prefix:
        return Prefix((ImageInput(shown, detail),), SIDE * SIDE)

    def make_crops(self, image: Any, detail: Any = "high") -> Any:
        return SimpleNamespace(pixels=np.asarray(image.convert("RGB").resize((SIDE, SIDE)))[None])

    def encode_crops(self, pixels: Any) -> Any:
        yield
        return linear(torch.from_numpy(pixels).flatten(1, 2).to(self.dtype) / 255, self.weights.linears["see"])

    def embed_image(self, features: Any, crops: Any) -> Any:
        return features[0]

    def encode_prefix(self, prefix: Any, embeddings: Any, variant: Any = None) -> Any:
        k, v = yield from self.prefill(embeddings[0])
        return EncodedImage(self.identity, variant, k, v, prefix.images[0].image.size, 1, SIDE * SIDE)


def read(files: Any) -> Any:
    return check_tensors(read_tensors(files.weights), SHAPES)


def load(files: Any, *, precision: Any, device: Any, revision: Any = None, variants: Any = None) -> Toy:
    tensors, linears = load_either(files.weights, partial(read, files), TABLE, precision, device)
    text = SimpleNamespace(wte=tensors["wte"], blocks=[Block(linears)], stack=None)
    weights, identity = SimpleNamespace(text=text, linears=linears), identity_of(files, precision)
    tokenizer = load_tokenizer(files.tokenizer)
    return Toy(files.name, identity, Config(), tokenizer, EOS, weights=weights, device=device, precision=precision)


def outline(files: Any) -> Outline:
    c = Sizes()
    return Outline("toy", SHAPES, "head.weight", EOS, kv_values(c), c.max_context, TABLE, partial(read, files))


FAMILY = Family(load, outline)


def write(folder: Path) -> Path:
    """A checkpoint of random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in SHAPES.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    tiny_moondream.tokenizer().save(str(folder / "tokenizer.json"))
    return folder
