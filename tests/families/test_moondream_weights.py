"""Loading is strict: every fault names the tensor or file, nothing is filled in or dropped silently."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_moondream as tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from galago.errors import CheckpointError
from galago.families.moondream.weights import our_name
from galago.request import Query, Request

NAME = "model.text.blocks.1.mlp.fc1.weight"
OURS = NAME.removeprefix("model.")


def refused(folder: Path, *says: str) -> None:
    with pytest.raises(CheckpointError) as error:
        tiny.load(folder)
    assert all(word in str(error.value) for word in says), str(error.value)


def answers(folder: Path, **options: Any) -> str:
    with tiny.open_model(folder, **options) as model:
        return str(model.query(tiny.IMAGE, "What is it?", settings=tiny.WARM)["answer"])


def test_missing(tmp_path: Path) -> None:
    weights = tiny.tensors()
    del weights[NAME]
    refused(tiny.write(tmp_path, weights=weights), "missing", OURS)


def test_unexpected(tmp_path: Path) -> None:
    weights = tiny.tensors() | {"model.text.blocks.7.ln.weight": torch.zeros(64)}
    refused(tiny.write(tmp_path, weights=weights), "unexpected", "text.blocks.7.ln.weight")


def test_wrong_shape(tmp_path: Path) -> None:
    weights = tiny.tensors()
    weights[NAME] = weights[NAME][:-1]
    refused(tiny.write(tmp_path, weights=weights), OURS, "(63, 64)", "(64, 64)")


def test_twice(tmp_path: Path) -> None:
    weights = tiny.tensors()
    refused(tiny.write(tmp_path, weights=weights | {OURS: weights[NAME].clone()}), "twice", OURS)


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_damaged_file(tmp_path: Path, keep: int) -> None:
    file = tiny.write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(tmp_path, "model.safetensors")


def test_pickle_with_more_than_tensors(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weights": Path("not a tensor")}, tmp_path / "model.pt")
    refused(tmp_path, "model.pt")


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ({"text": {"dim": 65}}, "text.n_heads is 32, by default; allowed is a number by which dim (65)"),
        ({"text": {"colour": 1}}, "text.colour"),
        ({"sound": {}}, "sound"),
        ({"text": tiny.NESTED["text"] | {"max_context": 10}}, "max_context"),
    ],
)
def test_config_that_does_not_fit(tmp_path: Path, member: dict[str, Any], says: str) -> None:
    members = tiny.config()
    members["config"] = members["config"] | member
    refused(tiny.write(tmp_path, members=members), "config.json", says)


def test_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    members = tiny.config(vocab_size=tiny.VOCAB - 1)
    weights = tiny.tensors()
    for name in ("text.wte", "text.lm_head.weight", "text.lm_head.bias"):
        weights[f"model.{name}"] = weights[f"model.{name}"][:-1]
    refused(tiny.write(tmp_path, weights=weights, members=members), "tokenizer.json")


def test_key_value_buffers_are_dropped(tmp_path: Path) -> None:
    leftovers = {f"model.text.blocks.0.kv_cache.{kind}_cache": torch.zeros(1, 2, 4, 32) for kind in "kv"}
    plain, carrying = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b", weights=tiny.tensors() | leftovers)
    assert answers(plain) == answers(carrying)


def test_names_without_prefix_and_pickles(tmp_path: Path) -> None:
    weights = {name.removeprefix("model."): t for name, t in tiny.tensors().items()}
    folder = tiny.write(tmp_path / "a")
    wanted = answers(folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "model.pt")
    assert answers(folder) == wanted


ORIGINAL = (
    (r"vision\.patch_emb\.", "vision_encoder.encoder.model.visual.patch_embed.linear."),
    (r"vision\.pos_emb", "vision_encoder.encoder.model.visual.pos_embed"),
    (r"vision\.blocks\.(\d+)\.ln(\d)", r"vision_encoder.encoder.model.visual.blocks.\1.norm\2"),
    (r"vision\.blocks\.", "vision_encoder.encoder.model.visual.blocks."),
    (r"vision\.post_ln", "vision_encoder.encoder.model.visual.norm"),
    (r"vision\.proj_mlp", "vision_encoder.projection.mlp"),
    (r"text\.wte", "text_model.transformer.embd.wte.weight"),
    (r"text\.blocks\.(\d+)\.attn\.qkv", r"text_model.transformer.h.\1.mixer.Wqkv"),
    (r"text\.blocks\.(\d+)\.attn\.proj", r"text_model.transformer.h.\1.mixer.out_proj"),
    (r"text\.blocks\.", "text_model.transformer.h."),
    (r"text\.post_ln", "text_model.lm_head.ln"),
    (r"text\.lm_head", "text_model.lm_head.linear"),
    (r"region\.(coord|size)_features", r"region_model.\1_features.weight"),
    (r"region\.(coord|size)_(encoder|decoder)", r"region_model.\1_\2"),
)


def original(name: str) -> str:
    for pattern, theirs in ORIGINAL:
        if re.match(pattern, name):
            return re.sub(pattern, theirs, name, count=1).replace("_model.coord_", "_model.coordinate_")
    raise AssertionError(name)


@pytest.mark.parametrize("compiled", [False, True])
def test_original_names(tmp_path: Path, compiled: bool) -> None:
    weights: dict[str, Tensor] = {}
    for name, t in tiny.tensors().items():
        theirs = original(name.removeprefix("model."))
        assert our_name(theirs) == (name.removeprefix("model."), "features" in name)
        if compiled:
            first, rest = theirs.split(".", 1)
            theirs = f"{first}._orig_mod.{rest}"
        weights[theirs] = t.T if "features" in name else t
    plain, renamed = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b", weights=weights)
    assert answers(plain) == answers(renamed)


# --- int4 --------------------------------------------------------------------------------------

PACKED = re.compile(r"model\.(text\.blocks\.\d+\.(attn|mlp)|region\.(coord|size)_(en|de)coder).*\.weight")


def quantised(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint with packed linears, and one that holds the values that these stand for."""
    packed, plain = {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, t in weights.items():
        if not PACKED.fullmatch(name) or t.numel() % 256:
            packed[name] = plain[name] = t
            continue
        groups = t.numel() // 128
        nibbles = torch.randint(0, 16, (groups, 128), generator=generator, dtype=torch.uint8)
        scale = torch.rand(groups, 1, generator=generator) * 0.05
        zero = torch.randint(6, 10, (groups, 1), generator=generator).float()
        packed[f"{name}.packed"] = nibbles[: groups // 2] << 4 | nibbles[groups // 2 :]
        packed[f"{name}.scale"], packed[f"{name}.zero_point"] = scale, zero
        plain[name] = ((nibbles.float() - zero) * scale).reshape(t.shape)
    return packed, plain


def test_int4(tmp_path: Path) -> None:
    packed, plain = quantised(tiny.tensors())
    assert sum(name.endswith(".packed") for name in packed) == 4 * 2 + 6  # text blocks, region
    assert answers(tiny.write(tmp_path / "a", weights=packed)) == answers(tiny.write(tmp_path / "b", weights=plain))
    for change, says in (
        ({f"{NAME}.scale": torch.ones(3, 1)}, ("scale has shape (3, 1)", OURS)),
        ({f"{NAME}.packed": packed[f"{NAME}.packed"].float()}, ("is of type float32", OURS)),
        ({f"{NAME}.packed": packed[f"{NAME}.packed"][:, :-1]}, ("packed has shape", OURS)),
    ):
        refused(tiny.write(tmp_path / "d", weights=packed | change), *says)
    del packed[f"{NAME}.scale"]
    refused(tiny.write(tmp_path / "c", weights=packed), "missing", f"{OURS}.scale")


# --- LoRA --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("text_model.transformer.h.1.mlp.fc2.parametrizations.weight.0.B"), "text.blocks.1.mlp.fc2.B"),
        (lambda t: t.update({"text_model.transformer.h.2.mlp.fc2.A": torch.zeros(2, 64)}), "text.blocks.2.mlp.fc2.A"),
        (
            lambda t: t.update({"text_model.transformer.h.0.mlp.fc1.parametrizations.weight.0.A": torch.zeros(2, 63)}),
            "text.blocks.0.mlp.fc1",
        ),
        (
            lambda t: t.update({"text_model.transformer.h.0.mlp.fc1.parametrizations.weight.0.A": torch.zeros(2)}),
            "text.blocks.0.mlp.fc1.A has shape (2,)",
        ),
        (
            lambda t: t.update({n: x.to(torch.int8) for n, x in t.items()}),
            "is of type int8",
        ),
    ],
)
def test_lora_is_strict(tmp_path: Path, change: Any, says: str) -> None:
    tensors = tiny.lora()
    change(tensors)
    save_file(tensors, tmp_path / "v.safetensors")
    with tiny.open_model(tiny.write(tmp_path / "m")) as model, pytest.raises(CheckpointError) as error:
        model.submit(Request(Query("x"), tiny.IMAGE, variant=str(tmp_path / "v.safetensors")))
    assert says in str(error.value) and "v.safetensors" in str(error.value)
