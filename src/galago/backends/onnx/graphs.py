"""The graphs that a model is exported as, each with the function of PyTorch that it is checked against."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from galago.backends.onnx.builder import (
    LOWEST,
    Builder,
    Name,
    attention,
    layer_norm,
    linear,
    look_up,
    mlp,
    patchify,
    rms_norm,
    vit,
)
from galago.families.base import DecoderModel
from galago.families.moondream.model import Moondream
from galago.families.moondream.region import coordinate_logits, encode_coordinate, encode_size, size_logits
from galago.families.moondream.text import TextBlock as PhiBlock
from galago.families.smolvlm import vision as smolvlm_vision
from galago.families.smolvlm.model import SmolVLM
from galago.families.smolvlm.text import TextBlock as LlamaBlock
from galago.nn.decoder import decoder
from galago.nn.passes import finish
from galago.nn.vit import patchify as torch_patchify
from galago.nn.vit import vit as torch_vit
from galago.precision.linear import mlp as torch_mlp

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class ExportedGraph:
    """A graph, and what it must compute."""

    graph: Builder
    example: Callable[[int], Arrays]
    """inputs by name, whose dimensions of any size follow from a number"""
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    """the same of PyTorch: of the inputs, in their order, the outputs"""


def graphs_of(m: DecoderModel, int8: bool = False) -> Iterator[ExportedGraph]:
    """All graphs of a model that was loaded in float32, one by one."""
    yield from _moondream(m, int8) if isinstance(m, Moondream) else _smolvlm(m, int8)


def _moondream(m: Moondream, int8: bool) -> Iterator[ExportedGraph]:
    c, w, r, dim = m.config.vision, m.weights.vision, m.weights.region, m.config.text.dim
    side, eps = c.crop_size, 1e-5

    b = Builder("vision_encoder", int8)
    pixels = b.input("pixel_values", ["crops", 3, side, side])
    seen = vit(b, patchify(b, pixels, c.enc_patch_size, c.grid), w.tower, c.enc_n_heads, eps)
    b.output("image_features", seen, ["crops", c.n_tokens, c.enc_dim])

    def see(x: Tensor) -> Tensor:
        return torch_vit(torch_patchify(x, c.enc_patch_size), w.tower, c.enc_n_heads)

    yield ExportedGraph(b, lambda n: {"pixel_values": _random(n, 3, side, side)}, see)

    b = Builder("vision_projection", int8)
    views = b.input("features", ["images", c.n_tokens, 2 * c.enc_dim])
    b.output("image_features", mlp(b, views, w.projection), ["images", c.n_tokens, dim])
    yield ExportedGraph(
        b, lambda n: {"features": _random(n, c.n_tokens, 2 * c.enc_dim)}, lambda x: torch_mlp(x, w.projection)
    )

    yield _embed_tokens(m, int8)
    yield _decoder(m, int8)

    for name, given, width, features, encoder in (
        ("coordinate_encoder", "coordinates", 1, r.coord_features, r.coord_encoder),
        ("size_encoder", "sizes", 2, r.size_features, r.size_encoder),
    ):
        b = Builder(name, int8)
        x = b.op("Mul", b.input(given, ["number", width]), b.constant(2 * math.pi, np.float32))
        angles = b.op("MatMul", x, b.weight(features.numpy()))
        b.output(
            "inputs_embeds",
            linear(b, b.op("Concat", b.op("Cos", angles), b.op("Sin", angles), axis=-1), encoder),
            ["number", dim],
        )
        encode = encode_coordinate if width == 1 else encode_size

        def example(n: int, given: str = given, width: int = width) -> Arrays:
            return {given: torch.rand(n, width, generator=_seeded())}

        yield ExportedGraph(b, example, lambda x, encode=encode: encode(x, r, torch.float32))

    for name, weights, shape, read in (
        ("coordinate_decoder", r.coord_decoder, ["bins"], coordinate_logits),
        ("size_decoder", r.size_decoder, [2, "bins"], size_logits),
    ):
        b = Builder(name, int8)
        logits = mlp(b, b.input("hidden_states", ["number", dim]), weights)
        b.output("logits", b.reshape(logits, 0, 2, -1) if len(shape) > 1 else logits, ["number", *shape])
        yield ExportedGraph(b, lambda n: {"hidden_states": _random(n, dim)}, lambda x, read=read: read(x, r))


def _smolvlm(m: DecoderModel, int8: bool) -> Iterator[ExportedGraph]:
    assert isinstance(m, SmolVLM)
    c, w, side, grid = m.config.vision, m.weights.vision, m.config.vision.image_size, m.config.vision.grid
    b = Builder("vision_encoder", int8)
    pixels = b.reshape(b.input("pixel_values", [1, "images", 3, side, side]), -1, 3, side, side)
    if (used := grid * c.patch_size) < side:
        pixels = b.op("Slice", pixels, b.constant([0, 0]), b.constant([used, used]), b.constant([2, 3]))
    x = vit(b, patchify(b, pixels, c.patch_size, grid), w.tower, c.n_heads, c.eps)
    # A square of patches becomes a token.
    few, s = grid // c.scale, c.scale
    x = b.op("Transpose", b.reshape(x, 0, few, s, few, s, c.dim), perm=[0, 1, 3, 2, 4, 5])
    x = linear(b, b.reshape(x, 0, few * few, s * s * c.dim), w.projection)
    b.output("image_features", x, ["images", c.n_tokens, m.weights.text.wte.shape[-1]])

    def see(pixels: Tensor) -> Tensor:
        features = finish(smolvlm_vision.crop_passes(pixels.flatten(0, 1), w, c, c.n_layers))
        return smolvlm_vision.project(features, w, c)

    yield ExportedGraph(b, lambda n: {"pixel_values": _random(1, n, 3, side, side)}, see)
    yield _embed_tokens(m, int8)
    yield _decoder(m, int8)


def _embed_tokens(m: DecoderModel, int8: bool) -> ExportedGraph:
    table = m.weights.text.wte.float()
    b = Builder("embed_tokens", int8)
    ids = b.input("input_ids", ["batch", "sequence"], TensorProto.INT64)
    b.output("inputs_embeds", look_up(b, ids, table.numpy()), ["batch", "sequence", table.shape[1]])

    def example(n: int) -> Arrays:
        return {"input_ids": torch.randint(len(table), (2, n), generator=_seeded())}

    return ExportedGraph(b, example, lambda ids: table[ids])


# --- the decoder -------------------------------------------------------------------------------


def _decoder(m: DecoderModel, int8: bool) -> ExportedGraph:
    """The decoder over one more stretch of sequences, after so many positions; also after none.

    It gives the logits of the last position, and the keys and values of all. In Moondream's the first positions of a
    sequence, as many as `prefix_length` says, all see each other, and it gives the last one's residual stream too.
    """
    c, w, together = m.sizes, m.weights.text, isinstance(m, Moondream)
    dim = w.wte.shape[-1]
    b = Builder("decoder_model_merged", int8)
    x = b.input("inputs_embeds", ["batch", "sequence", dim])
    mask = b.input("attention_mask", ["batch", "total"], TensorProto.INT64)
    positions = b.input("position_ids", ["batch", "sequence"], TensorProto.INT64)
    prefix = b.input("prefix_length", [1], TensorProto.INT64) if together else None
    names = [f"{i}.{kind}" for i in range(c.n_layers) for kind in ("key", "value")]
    shape: list[int | str] = ["batch", c.n_kv_heads, "past", c.head_dim]
    past = {name: b.input(f"past_key_values.{name}", shape) for name in names}
    d = _Decoder(b, m, past, _visible(b, x, mask, past["0.key"], prefix), _angles(b, m, positions))
    for i, block in enumerate(w.blocks):
        x = d.phi(i, block, x) if isinstance(block, PhiBlock) else d.llama(i, block, x)
    last = b.op("Gather", x, b.constant([-1]), axis=1)
    normed = layer_norm(b, last, w.post_ln, c.eps) if together else rms_norm(b, last, w.norm, c.eps)
    b.output("logits", linear(b, normed, w.lm_head), ["batch", 1, c.vocab_size])
    if together:
        b.output("last_hidden_state", last, ["batch", 1, dim])
    for name in names:
        b.output(f"present.{name}", d.present[name], ["batch", c.n_kv_heads, "total", c.head_dim])

    def stretch(begin: int, end: int, kept: Sequence[Tensor]) -> Arrays:
        """Tokens by chance at these positions, after those with these keys and values."""
        ids = torch.randint(c.vocab_size, (1, end), generator=_seeded())
        given = {
            "inputs_embeds": w.wte[ids[:, begin:]].float(),
            "attention_mask": torch.ones(1, end, dtype=torch.int64),
            "position_ids": torch.arange(begin, end)[None],
            **({"prefix_length": torch.tensor([(begin + end) // 2])} if together else {}),
        }
        return given | {f"past_key_values.{name}": one for name, one in zip(names, kept, strict=True)}

    def example(n: int) -> Arrays:
        empty = [torch.empty(1, c.n_kv_heads, 0, c.head_dim)] * len(names)
        if not (before := 3 * (n - 2)):
            return stretch(0, n, empty)
        first = _decoder_reference(m, together, *stretch(0, before, empty).values())
        return stretch(before, before + n, first[-len(names) :])

    return ExportedGraph(b, example, lambda *inputs: _decoder_reference(m, together, *inputs))


def _visible(b: Builder, x: Name, mask: Name, key: Name, prefix: Name | None) -> Name:
    """What is added to the scores [batch, 1, 1, sequence, total]: 0 where a position sees another, else very little."""
    before = b.op("Squeeze", b.size(key, 2))
    total = b.op("Add", before, b.op("Squeeze", b.size(x, 1)))
    keys = b.op("Range", b.constant(0), total, b.constant(1))
    queries = b.op("Unsqueeze", b.op("Range", before, total, b.constant(1)), b.constant([1]))
    seen = b.op("LessOrEqual", keys, queries)
    if prefix:
        seen = b.op("Or", seen, b.op("And", b.op("Less", keys, prefix), b.op("Less", queries, prefix)))
    held = b.op("Unsqueeze", b.op("Cast", mask, to=TensorProto.BOOL), b.constant([1]))
    bias = b.op("Where", b.op("And", seen, held), b.constant(0, np.float32), b.constant(LOWEST, np.float32))
    return b.op("Unsqueeze", bias, b.constant([1, 2]))


def _angles(b: Builder, m: DecoderModel, positions: Name) -> tuple[Name, Name]:
    """Cosines and sines [batch, 1, sequence, rot_dim / 2] of the angles by which positions turn."""
    c = m.sizes
    steps = torch.arange(0, c.rot_dim, 2, dtype=torch.float32)
    frequencies = b.weight((c.theta ** (-steps / c.rot_dim)).numpy())
    places = b.op("Unsqueeze", b.op("Cast", positions, to=TensorProto.FLOAT), b.constant([1, 3]))
    angles = b.op("Mul", places, frequencies)
    return b.op("Cos", angles), b.op("Sin", angles)


@dataclass(frozen=True)
class _Decoder:
    """What all blocks of a decoder share."""

    b: Builder
    m: DecoderModel
    past: Mapping[str, Name]
    bias: Name
    angles: tuple[Name, Name]

    present: dict[str, Name] = field(default_factory=dict)
    """keys and values of all positions, once a block has them"""

    def phi(self, layer: int, w: PhiBlock, x: Name) -> Name:
        """Moondream's block, whose attention and MLP read the same."""
        u = layer_norm(self.b, x, w.ln, self.m.sizes.eps)
        mixed = linear(self.b, self.attend(layer, linear(self.b, u, w.qkv)), w.proj)
        return self.b.op("Add", self.b.op("Add", x, mixed), mlp(self.b, u, w.mlp))

    def llama(self, layer: int, w: LlamaBlock, x: Name) -> Name:
        """SmolVLM's block."""
        b, eps = self.b, self.m.sizes.eps
        qkv = linear(b, rms_norm(b, x, w.norm1, eps), w.qkv)
        x = b.op("Add", x, linear(b, self.attend(layer, qkv), w.proj))
        inner = linear(b, rms_norm(b, x, w.norm2, eps), w.mlp.gate_up)
        gate, up = b.ops(2, "Split", inner, axis=-1, num_outputs=2)
        gated = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
        return b.op("Add", x, linear(b, gated, w.mlp.down))

    def attend(self, layer: int, qkv: Name) -> Name:
        """Attention of queries, keys and values [batch, sequence, (heads + 2 kv heads) * d] over all so far."""
        b, c = self.b, self.m.sizes
        heads, kv, d = c.n_heads, c.n_kv_heads, c.head_dim
        split = b.op("Transpose", b.reshape(qkv, 0, 0, heads + 2 * kv, d), perm=[0, 2, 1, 3])
        qk, v = b.ops(2, "Split", split, b.constant([heads + kv, kv]), axis=1)
        q, k = b.ops(2, "Split", self.rotate(qk), b.constant([heads, kv]), axis=1)
        both = {"key": k, "value": v}
        for kind, new in both.items():
            name = f"{layer}.{kind}"
            both[kind] = self.present[name] = b.op("Concat", self.past[name], new, axis=2)
        # Query heads that share keys lie beside each other.
        grouped = b.reshape(q, 0, kv, heads // kv, -1, d)
        k, v = (b.op("Unsqueeze", both[kind], b.constant([2])) for kind in ("key", "value"))
        mixed = b.reshape(attention(b, grouped, k, v, d, self.bias), 0, heads, -1, d)
        return b.reshape(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, heads * d)

    def rotate(self, x: Name) -> Name:
        """Turn the first rot_dim entries of each head in pairs."""
        b, c, (cos, sin) = self.b, self.m.sizes, self.angles
        half = c.rot_dim // 2
        sizes = [half, half, *([c.head_dim - c.rot_dim] if c.head_dim > c.rot_dim else [])]
        first, second, *rest = b.ops(len(sizes), "Split", x, b.constant(sizes), axis=-1)
        turned = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
        other = b.op("Add", b.op("Mul", first, sin), b.op("Mul", second, cos))
        return b.op("Concat", turned, other, *rest, axis=-1)


def _decoder_reference(m: DecoderModel, together: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
    x, _, positions, *others = inputs
    length, past = (int(others[0]), others[1:]) if together else (0, others)
    before, present = past[0].shape[2], list[Tensor]()
    keys, queries = torch.arange(before + x.shape[1]), positions[0][:, None]
    seen = (keys <= queries) | ((keys < length) & (queries < length))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = torch.cat((past[2 * layer], k), 2), torch.cat((past[2 * layer + 1], v), 2)
        present.extend((k, v))
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen)

    last = decoder(x, m.weights.text, m.sizes, positions, attend)[:, -1:]
    return m.heads["logits"](last), *([last] if together else []), *present


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_seeded()).clamp(-1, 1)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
