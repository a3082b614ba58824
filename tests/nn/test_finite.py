"""Weights that are no numbers are refused when they are read, and what is computed from none stays none."""

import math
import re
from pathlib import Path

import pytest
import tiny_moondream as tiny
import tiny_smolvlm
import torch
from instruction_sets import HALVES, HERE, or_skipped
from safetensors.torch import load_file, save_file
from torch import Tensor

import galago
from galago.checkpoint.tensors import metadata
from galago.errors import CheckpointError
from galago.kernels import Kernels, load
from galago.nn.finite import is_finite
from galago.precision.quantise import quantise, values
from galago.precision.quantised import RowMajor
from galago.store import hub, packing

NAMES = ("float32", "bfloat16", "float16", "int8", "int4")
BAD = (math.nan, math.inf, -math.inf)


@pytest.fixture(params=or_skipped(HERE))
def k(request: pytest.FixtureRequest) -> Kernels:
    found = load(request.param)
    assert found
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", BAD)
def test_one_value_among_many_is_seen(dtype: torch.dtype, value: float) -> None:
    for n in (1, 7, 64, 1000):
        for at in {0, n // 2, n - 1}:
            x = torch.linspace(-3, 3, n).to(dtype)
            assert is_finite(x)
            x[at] = value
            assert not is_finite(x), (n, at)


def test_what_has_no_such_values_is_finite() -> None:
    assert is_finite(torch.empty(0)) and is_finite(torch.tensor([3, 255], dtype=torch.uint8))
    assert is_finite(torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max]))


# --- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "name",
    ["text.wte", "text.blocks.1.mlp.fc1.weight", "text.lm_head.bias", "vision.post_ln.bias", "region.size_features"],
)
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, precision: str, value: float, name: str) -> None:
    weights = tiny.tensors()
    weights[f"model.{name}"].view(-1)[-2:] = value
    folder = tiny.write(tmp_path, weights=weights)
    count = weights[f"model.{name}"].numel()
    with pytest.raises(CheckpointError, match=rf"tensor {re.escape(name)}: 2 of {count} values .*download it again"):
        galago.load(folder, precision=precision)


@pytest.mark.parametrize("precision", NAMES)
def test_the_other_family_too(tmp_path: Path, precision: str) -> None:
    weights = tiny_smolvlm.tensors()
    weights["model.text_model.layers.1.mlp.up_proj.weight"][3, 5] = math.nan
    tiny_smolvlm.write(tmp_path, weights=weights)
    with pytest.raises(CheckpointError, match=r"tensor text\.blocks\.1\.mlp\.gate_up\.weight: 1 of"):
        galago.load(tmp_path, precision=precision)


def test_pickles_too(tmp_path: Path) -> None:
    weights = tiny.tensors()
    weights["model.text.post_ln.weight"][0] = math.nan
    tiny.write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"tensor text\.post_ln\.weight: 1 of"):
        galago.load(tmp_path)


def test_weights_that_a_narrower_type_cannot_hold(tmp_path: Path) -> None:
    weights = tiny.tensors()
    weights["model.text.blocks.0.mlp.fc2.bias"][5] = 1e6
    folder = tiny.write(tmp_path, weights=weights)
    with galago.load(folder, precision="bfloat16") as model:
        assert model.caption(tiny.IMAGE, settings={"max_tokens": 2})
    with pytest.raises(CheckpointError, match=r"mlp\.fc2\.bias: 1 of 64 values are too large for float16; use bf"):
        galago.load(folder, precision="float16")


def test_a_variant_that_a_narrower_type_cannot_hold(tmp_path: Path) -> None:
    weights = {name: tensor.clone().fill_(1e6) for name, tensor in tiny.lora().items()}
    save_file(weights, tmp_path / "wide.safetensors")
    with (
        galago.load(tiny.write(tmp_path / "model"), variants=tmp_path, precision="float16") as model,
        pytest.raises(CheckpointError, match=r"wide\.safetensors: tensor .* too large for float16"),
    ):
        model.caption(tiny.IMAGE, settings={"variant": "wide.safetensors"})


def test_weights_that_cannot_be_evened_out(tmp_path: Path) -> None:
    weights = tiny.tensors()
    weights["model.text.lm_head.weight"][0] = 3.4e38
    with pytest.raises(CheckpointError, match=r"tensor text\.lm_head\.scale: "):
        galago.load(tiny.write(tmp_path, weights=weights), precision="int4")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_nothing_is_packed_from_them(tmp_path: Path, precision: str) -> None:
    weights = tiny.tensors()
    weights["model.text.lm_head.weight"][0, 0] = math.inf
    folder = tiny.write(tmp_path / "model", weights=weights)
    with pytest.raises(CheckpointError, match=r"tensor text\.lm_head\.weight: 1 of"):
        packing.quantise_model(hub.locate(folder), precision, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_packed_copy_with_such_scales(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "model")
    made = packing.quantise_model(hub.locate(folder), "int8", tmp_path / "made")
    about = metadata(made)
    tensors = {name: t.clone() for name, t in load_file(made).items()}
    tensors["text.lm_head.scale"][1] = math.nan
    save_file(tensors, made, dict(about))
    with pytest.raises(CheckpointError, match="is damaged: its checksum differs; quantize the original anew"):
        galago.load(tmp_path / "made")


def test_a_variant_with_them(tmp_path: Path) -> None:
    weights = tiny.lora()
    name = next(name for name in weights if name.endswith("h.1.mlp.fc1.parametrizations.weight.0.B"))
    weights[name][3, 1] = math.nan
    save_file(weights, tmp_path / "broken.safetensors")
    with galago.load(tiny.write(tmp_path / "model"), variants=tmp_path) as model:
        with pytest.raises(CheckpointError, match=r"broken\.safetensors: tensor text\.blocks\.1\.mlp\.fc1\.B: 1 of"):
            model.caption(tiny.IMAGE, settings={"variant": "broken.safetensors"})
        assert model.caption(tiny.IMAGE, settings={"max_tokens": 2})


# --- products ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("m", [3, 40])
def test_a_row_that_is_no_number_gives_none_and_its_neighbours_theirs(
    k: Kernels, bits: int, value: float, m: int
) -> None:
    for n_in in (70, 300):
        w = quantise(torch.randn(100, n_in), torch.randn(100), bits)
        handle = k.weight(w.panels, w.total, w.scale, w.bias, w.multiply, w.n, w.k, w.bits)
        x = torch.randn(m, n_in)
        right = k.gemm(x, handle), k.gemm(x, handle, gelu=True)
        for at in (0, 33, n_in - 1):
            broken = x.clone()
            broken[1, at] = value
            for found, wanted in zip((k.gemm(broken, handle), k.gemm(broken, handle, gelu=True)), right, strict=True):
                assert found[1].isnan().all(), at
                others = [i for i in range(m) if i != 1]
                assert torch.equal(found[others], wanted[others])


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("m", [1, 40])
def test_torch_s_products_do_the_same(value: float, m: int) -> None:
    w = quantise(torch.randn(64, 64), torch.randn(64), 8)
    row_major = RowMajor(values(w), w.scale, w.bias, w.multiply)
    x = torch.randn(m, 64)
    x[0, 9] = value
    found = row_major.forward(x)
    assert not found[0].isfinite().any() and found[1:].isfinite().all()


def kept(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_attention_over_what_is_kept(k: Kernels, value: float, where: str) -> None:
    q, keys, vals = torch.rand(2, 1, 32) + 0.1, kept(2, 50, 32).abs(), kept(2, 50, 32) / 8
    assert k.decode(q, [(keys, vals)], 49).isfinite().all()
    {"q": q, "k": keys, "v": vals}[where].view(2, -1)[0, -3] = value
    found = k.decode(q, [(keys, vals)], 49)
    if where == "k" and value == -math.inf:  # is seen by nobody
        return
    assert not found[0].isfinite().all() and found[1].isfinite().all()


@pytest.mark.parametrize("k", or_skipped(HERE), indirect=True)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_attention_of_all(k: Kernels, int8: bool, value: float, where: str) -> None:
    q, keys, vals = (torch.rand(1, 2, 70, 32) + 0.1 for _ in range(3))
    assert k.attention(q, keys, vals, int8=int8).isfinite().all()
    {"q": q, "k": keys, "v": vals}[where][0, 0, 65, 3] = value
    found = k.attention(q, keys, vals, int8=int8)
    # Nobody looks at a key that is infinitely far off, unless it changes what is taken from all.
    if where == "k" and value == -math.inf and k.name in HALVES and not int8:
        return
    assert not found[0, 0, 65].isfinite().all() and found[0, 1].isfinite().all()


@pytest.mark.parametrize("value", [*BAD, 1e30])
@pytest.mark.parametrize("bias", [True, False])
def test_norms(k: Kernels, value: float, bias: bool) -> None:
    """Of numbers whose squares are too large too: what was divided by infinity would look like zeros."""
    x = torch.randn(3, 70)
    x[1, 66] = value
    found = k.norm(x, torch.ones(70), torch.zeros(70) if bias else None, 1e-5)
    assert found[[0, 2]].isfinite().all()
    assert found[1].isnan().any()


@pytest.mark.parametrize("value", BAD)
def test_keys_and_values_are_stored_as_they_are(k: Kernels, value: float) -> None:
    x = torch.zeros(1, 2, 16)
    x[0, 1, 4] = value
    y = torch.zeros(1, 2, 16, dtype=torch.bfloat16)
    k.store(x, y)
    assert torch.equal(y.isnan(), x.isnan()) and torch.equal(y.isinf(), x.isinf())
