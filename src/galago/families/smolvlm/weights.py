"""The table from checkpoint names to parameters, and strict loading."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from galago.checkpoint.packed import Shape, TensorTable, load_either
from galago.checkpoint.tensors import check_tensors, plain_name, read_tensors
from galago.families.smolvlm.config import SmolVLMConfig
from galago.families.smolvlm.text import TextBlock, TextWeights, text_stack
from galago.families.smolvlm.vision import VisionWeights
from galago.families.work import linear_weights
from galago.nn.vit import vit_of, with_stack
from galago.precision import Precision
from galago.precision.linear import GatedMlp, LinearWeight

HEAD, EMBEDDINGS = "lm_head.weight", "model.text_model.embed_tokens.weight"


@dataclass(frozen=True)
class SmolVLMWeights:
    vision: VisionWeights
    text: TextWeights


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of a checkpoint, and the name of our tensor that it is, or is the next part of."""

    name: str
    shape: Shape
    ours: str


def checkpoint_tensors(c: SmolVLMConfig) -> list[CheckpointTensor]:
    """Every tensor of a checkpoint. Those with the same `ours` are concatenated in this order."""
    v, t = c.vision, c.text
    out: list[CheckpointTensor] = []

    def add(name: str, ours: str, *shape: int) -> None:
        out.append(CheckpointTensor(name, shape, ours))

    def dense(name: str, ours: str, n_out: int, *n_in: int) -> None:
        add(f"{name}.weight", f"{ours}.weight", n_out, *n_in)
        add(f"{name}.bias", f"{ours}.bias", n_out)

    def norm(name: str, ours: str) -> None:
        add(f"{name}.weight", f"{ours}.weight", v.dim)
        add(f"{name}.bias", f"{ours}.bias", v.dim)

    tower = "model.vision_model"
    dense(f"{tower}.embeddings.patch_embedding", "vision.patch_emb", v.dim, 3, v.patch_size, v.patch_size)
    add(f"{tower}.embeddings.position_embedding.weight", "vision.pos_emb", v.grid**2, v.dim)
    for i in range(v.n_layers):
        name, ours = f"{tower}.encoder.layers.{i}", f"vision.blocks.{i}"
        norm(f"{name}.layer_norm1", f"{ours}.ln1")
        for part in "qkv":
            dense(f"{name}.self_attn.{part}_proj", f"{ours}.attn.qkv", v.dim, v.dim)
        dense(f"{name}.self_attn.out_proj", f"{ours}.attn.proj", v.dim, v.dim)
        norm(f"{name}.layer_norm2", f"{ours}.ln2")
        dense(f"{name}.mlp.fc1", f"{ours}.mlp.fc1", v.ff_dim, v.dim)
        dense(f"{name}.mlp.fc2", f"{ours}.mlp.fc2", v.dim, v.ff_dim)
    norm(f"{tower}.post_layernorm", "vision.post_ln")
    add("model.connector.modality_projection.proj.weight", "vision.proj.weight", t.dim, v.dim * v.scale**2)

    add(EMBEDDINGS, "text.wte", t.vocab_size, t.dim)
    for i in range(t.n_layers):
        name, ours = f"model.text_model.layers.{i}", f"text.blocks.{i}"
        add(f"{name}.input_layernorm.weight", f"{ours}.norm1", t.dim)
        for part, n_out in (("q", t.q_dim), ("k", t.kv_dim), ("v", t.kv_dim)):
            add(f"{name}.self_attn.{part}_proj.weight", f"{ours}.attn.qkv.weight", n_out, t.dim)
        add(f"{name}.self_attn.o_proj.weight", f"{ours}.attn.proj.weight", t.dim, t.q_dim)
        add(f"{name}.post_attention_layernorm.weight", f"{ours}.norm2", t.dim)
        for part in ("gate", "up"):
            add(f"{name}.mlp.{part}_proj.weight", f"{ours}.mlp.gate_up.weight", t.ff_dim, t.dim)
        add(f"{name}.mlp.down_proj.weight", f"{ours}.mlp.down.weight", t.dim, t.ff_dim)
    add("model.text_model.norm.weight", "text.norm", t.dim)
    add(HEAD, "text.lm_head.weight", t.vocab_size, t.dim)
    return out


def shapes(c: SmolVLMConfig) -> dict[str, Shape]:
    """The shapes of our tensors by name."""
    out: dict[str, Shape] = {}
    for source in checkpoint_tensors(c):
        first, *rest = source.shape
        if source.ours == "vision.patch_emb.weight":
            rest = [rest[0] * rest[1] * rest[2]]
        out[source.ours] = (out.get(source.ours, (0,))[0] + first, *rest)
    return out


def table(c: SmolVLMConfig) -> TensorTable:
    """The tensors of a checkpoint, as loading and packing need them."""
    all_shapes = shapes(c)
    linears = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in all_shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    return TensorTable(all_shapes, linears, looked_up=frozenset({"text.wte"}))


def read(files: Iterable[Path], c: SmolVLMConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint under our names, concatenated from their parts, one by one.

    Raises CheckpointError naming the first missing, unexpected, doubled or wrong-shaped tensor.
    """
    by_name = {source.name: source for source in checkpoint_tensors(c)}
    parts: dict[str, list[str]] = {}
    for source in by_name.values():
        parts.setdefault(source.ours, []).append(source.name)
    have: dict[str, dict[str, Tensor]] = {}
    expected = {name: source.shape for name, source in by_name.items()}
    pairs = _read_named(files)
    for name, tensor in check_tensors(_with_tied(pairs) if c.tied else pairs, expected):
        ours = by_name[name].ours
        found = have.setdefault(ours, {})
        found[name] = tensor.flatten(1) if tensor.dim() == 4 else tensor
        if len(found) == len(parts[ours]):
            yield ours, torch.cat([found[part] for part in parts[ours]]) if len(found) > 1 else found[name]
            del have[ours]


def _read_named(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_tensors(files):
        name = plain_name(name)
        # As a model without a head is saved.
        bare = name.startswith(("text_model.", "vision_model.", "connector."))
        yield f"model.{name}" if bare else name, tensor


def _with_tied(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, and last the head or the embedding table where the checkpoint has the other alone."""
    found: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if name in (HEAD, EMBEDDINGS):
            found[name] = tensor
        yield name, tensor
    if len(found) == 1:
        yield ({HEAD, EMBEDDINGS} - set(found)).pop(), next(iter(found.values()))


def assemble(tensors: Mapping[str, Tensor], linears: Mapping[str, LinearWeight], c: SmolVLMConfig) -> SmolVLMWeights:
    """The weight tree over named linear maps and a full set of the other tensors."""
    dense = linears.__getitem__

    text = TextWeights(
        wte=tensors["text.wte"],
        blocks=tuple(
            TextBlock(
                norm1=tensors[f"text.blocks.{i}.norm1"],
                qkv=dense(f"text.blocks.{i}.attn.qkv"),
                proj=dense(f"text.blocks.{i}.attn.proj"),
                norm2=tensors[f"text.blocks.{i}.norm2"],
                mlp=GatedMlp(dense(f"text.blocks.{i}.mlp.gate_up"), dense(f"text.blocks.{i}.mlp.down")),
            )
            for i in range(c.text.n_layers)
        ),
        norm=tensors["text.norm"],
        lm_head=dense("text.lm_head"),
    )
    tower = vit_of(tensors, linears, c.vision.n_layers)
    return SmolVLMWeights(VisionWeights(tower, dense("vision.proj")), text)


def encode_flop(c: SmolVLMConfig, crops: int) -> int:
    """Operations for an image or clip: the tower sees every patch of every crop, the projection each token of it."""
    projection = linear_weights(shapes(c), "vision.proj.")
    tower = linear_weights(shapes(c), "vision.") - projection
    return 2 * crops * (c.vision.grid**2 * tower + c.vision.n_tokens * projection)


def load(
    files: Sequence[Path],
    c: SmolVLMConfig,
    precision: Precision,
    device: torch.device,
) -> SmolVLMWeights:
    """The weights of a checkpoint, packed or not. Raises CheckpointError as `read` does."""
    w = assemble(*load_either(files, lambda: read(files, c), table(c), precision, device), c)
    tower = with_stack(w.vision.tower, c.vision.n_heads, precision.kv)
    text = replace(w.text, stack=text_stack(w.text.blocks, c.text, precision.kv))
    return replace(w, vision=replace(w.vision, tower=tower), text=text)
