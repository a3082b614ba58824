"""Every golden image and tensor of Moondream2: crops exactly, activations within the stated tolerances."""

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from moondream_golden import (
    AT,
    FOLDERS,
    Fed,
    cases,
    crops,
    encoded,
    expected,
    image,
    keys,
    loaded,
    tensor,
    trace,
)
from PIL import Image
from torch import Tensor

from galago.families.moondream.bins import size_of_bin
from galago.families.moondream.region import (
    coordinate_logits,
    encode_coordinate,
    encode_size,
    fourier,
    size_logits,
)
from galago.families.moondream.vision import crop_features, image_embedding, local_features, stitch
from galago.nn.attention import attention
from galago.nn.decoder import decoder
from galago.nn.vit import normalise, patchify, vit_block
from galago.precision.linear import linear

IMAGES = [(folder, name) for folder in FOLDERS for name in expected(folder)["images"]]
KEYS = [(folder, key) for folder in FOLDERS for key in keys(AT[folder] / "expected.safetensors")]

VISION, KV, HIDDEN, LOGITS, REGION = 1e-4, 3e-4, 3e-3, 1e-3, 1e-4


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    worst = float((found - wanted).abs().max()) if wanted.numel() else 0.0
    assert worst <= tolerance, f"off by {worst:.2e}, {tolerance:.0e} is allowed"


def all_crops(folder: str, name: str) -> np.ndarray:
    """As the reference has them: with one tile it holds the view twice."""
    found = crops(folder, name)
    return np.concatenate((found.pixels, found.pixels)) if found.tiling == (1, 1) else found.pixels


# --- images ------------------------------------------------------------------------------------

FACTS = {
    "file",
    "size_wh",
    "mode",
    "tiling_hw",
    "n_crops",
    "crops_sha256",
    "prefix_len",
    "crops_png",
    "crops_png_holds",
    # Used below or about another resizing library.
    "feature_crops",
    "kv_positions",
    "embedding_std",
    "hidden_std",
    "vips_vs_pillow",
}


@pytest.mark.parametrize(("folder", "name"), IMAGES)
def test_image(folder: str, name: str) -> None:
    facts, picture, found = expected(folder)["images"][name], image(folder, name), crops(folder, name)
    assert set(facts) - FACTS == set()
    assert [*picture.size] == facts["size_wh"] and picture.mode == facts["mode"]
    assert [*found.tiling] == facts["tiling_hw"]
    pixels = all_crops(folder, name)
    assert len(pixels) == facts["n_crops"]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == facts["crops_sha256"]
    if facts.get("crops_png"):
        held = np.asarray(Image.open(AT[folder] / facts["crops_png"]))
        assert np.array_equal(held, np.concatenate((pixels[0], pixels[-1])))
    seen = encoded(folder, name)
    assert seen.positions == seen.image_tokens + 1 == facts["prefix_len"]
    assert seen.crops == len(found.pixels) and seen.size == picture.size
    assert seen.nbytes == 2 * seen.k.numel() * 4


# --- tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "key"), KEYS)
@torch.inference_mode()
def test_tensor(folder: str, key: str) -> None:
    wanted = tensor(AT[folder] / "expected.safetensors", key)
    owner, _, what = key.partition(".")
    if owner == "region":
        check_region(folder, what, wanted)
    elif owner in expected(folder)["images"] and not re.match(r".*\.(seg\d|prompt_|step_)", key):
        check_image(folder, owner, what, wanted)
    else:
        check_case(folder, key, wanted)


def check_image(folder: str, name: str, what: str, wanted: Tensor) -> None:
    m, facts = loaded(folder), expected(folder)["images"][name]
    c, w, views = m.config.vision, m.weights.vision, crops(folder, name)
    pixels = torch.from_numpy(views.pixels)
    if what == "crops":
        assert torch.equal(torch.from_numpy(all_crops(folder, name)), wanted)
    elif what == "crops_vips":
        worst = (torch.from_numpy(all_crops(folder, name)).int() - wanted.int()).abs().max()
        assert int(worst) == facts["vips_vs_pillow"]["max_abs"]
    elif what == "vision.after_pos" or re.fullmatch(r"vision\.after_block_\d+", what):
        x = linear(patchify(normalise(pixels[:1]), c.enc_patch_size), w.tower.patch_emb) + w.tower.pos_emb
        if what != "vision.after_pos":
            for block in w.tower.blocks[: int(what.rpartition("_")[2]) + 1]:
                x = vit_block(x, block, c.enc_n_heads, 1e-5)
        close(x, wanted, VISION)
    elif what in ("vision.features", "vision.reconstructed", "vision.pooled"):
        features = crop_features(pixels, w, c)
        if what == "vision.features":
            # With one tile, view 1 is view 0 again.
            close(features[[min(i, len(features) - 1) for i in facts["feature_crops"]]], wanted, VISION)
        elif what == "vision.reconstructed":
            close(stitch(features[1:] if len(features) > 1 else features, views.tiling, c), wanted, VISION)
        else:
            close(local_features(features, views.tiling, c), wanted, VISION)
    elif what == "embedding":
        found = image_embedding(pixels, views.tiling, w, c)
        close(found, wanted, VISION)
        assert float(found.std()) == pytest.approx(facts["embedding_std"], abs=1e-3)
    elif what == "prefix.hidden" or re.fullmatch(r"prefix\.hidden_after_block_\d+", what):
        count = m.config.text.n_layers if what == "prefix.hidden" else int(what.rpartition("_")[2]) + 1
        found = prefix_hidden(folder, name, count)
        close(found, wanted, HIDDEN)
        if what == "prefix.hidden":
            assert float(found.std()) == pytest.approx(facts["hidden_std"], abs=1e-2)
    elif what == "prefix.k":
        close(interleaved(encoded(folder, name).k[:, :, facts["kv_positions"]]), wanted, KV)
    elif what == "prefix.v":
        close(encoded(folder, name).v[:, :, facts["kv_positions"]], wanted, KV)
    else:
        pytest.fail(f"no test for {what}")


def prefix_hidden(folder: str, name: str, n_blocks: int) -> Tensor:
    """The residual stream of the prefix after so many blocks."""
    m, views = loaded(folder), crops(folder, name)
    seen = image_embedding(torch.from_numpy(views.pixels), views.tiling, m.weights.vision, m.config.vision)
    x = torch.cat((m.weights.text.wte[m.config.tokens.bos_id].unsqueeze(0), seen)).unsqueeze(0)
    text = replace(m.weights.text, blocks=m.weights.text.blocks[:n_blocks])
    positions = torch.arange(m.config.prefix_len)
    return decoder(x, text, m.config.text, positions, lambda _, q, k, v: attention(q, k, v))[0]


def interleaved(k: Tensor) -> Tensor:
    """Keys with their turned halves as the reference stores them: a0 b0 a1 b1 ..."""
    quarter = k.shape[-1] // 4
    a, b, rest = k[..., :quarter], k[..., quarter : 2 * quarter], k[..., 2 * quarter :]
    return torch.cat((torch.stack((a, b), -1).flatten(-2), rest), -1)


def check_region(folder: str, what: str, wanted: Tensor) -> None:
    w, facts = loaded(folder).weights.region, expected(folder)["region"]
    file = AT[folder] / "expected.safetensors"

    def given(key: str) -> Tensor:
        return tensor(file, f"region.{key}")

    float32 = torch.float32
    if what in ("coord_in", "size_in", "hidden_in"):
        assert wanted.dtype == float32  # used by the others
    elif what == "coord_fourier":
        close(fourier(given("coord_in"), w.coord_features), wanted, REGION)
    elif what == "coord_encoded":
        close(encode_coordinate(given("coord_in"), w, float32), wanted, REGION)
    elif what == "size_fourier":
        close(fourier(given("size_in"), w.size_features), wanted, REGION)
    elif what == "size_encoded":
        close(encode_size(given("size_in"), w, float32), wanted, REGION)
    elif what == "coord_logits":
        found = coordinate_logits(given("hidden_in"), w)
        close(found, wanted, REGION)
        assert found.argmax(-1).tolist() == facts["coord_bins"]
    elif what == "size_logits":
        found = size_logits(given("hidden_in"), w)
        close(found, wanted, REGION)
        assert found.argmax(-1).tolist() == facts["size_bins"]
        sizes = size_of_bin(found.argmax(-1).numpy(), found.shape[-1], loaded(folder).config.revision.log_sizes)
        close(torch.from_numpy(sizes), torch.tensor(facts["sizes"]), 1e-6)
    elif what in ("spatial_coords", "spatial_sizes"):
        coords, sizes = [], []
        for ref in facts["spatial_refs"]:
            if len(ref) == 4:
                x0, y0, x1, y1 = ref
                coords += [(x0 + x1) / 2, (y0 + y1) / 2]
                sizes.append((x1 - x0, y1 - y0))
            else:
                coords += ref
        if what == "spatial_coords":
            close(encode_coordinate(torch.tensor(coords).unsqueeze(-1), w, float32), wanted, REGION)
        else:
            close(encode_size(torch.tensor(sizes), w, float32), wanted, REGION)
    else:
        pytest.fail(f"no test for region.{what}")


def check_case(folder: str, key: str, wanted: Tensor) -> None:
    match = re.fullmatch(r"(?P<case>.+?)(\.seg(?P<segment>\d+))?\.(?P<what>(prompt|step)_(hidden|logits))", key)
    assert match and match["case"] in cases(folder), f"no test for {key}"
    case, t = cases(folder)[match["case"]], trace(folder, match["case"])
    (feeds,) = t.sequences
    prompt, steps = parts(case, feeds, match["segment"])
    if match["what"] == "prompt_hidden":
        close(prompt.hidden, wanted, HIDDEN)
    elif match["what"] == "prompt_logits":
        close(t.recorder.logits(prompt.hidden[-1]), wanted, LOGITS)
    else:
        hidden = torch.cat([fed.hidden for fed in steps])
        if match["segment"] is None:
            hidden = hidden[:12]
        if match["what"] == "step_hidden":
            close(hidden, wanted, HIDDEN)
        else:
            close(t.recorder.logits(hidden), wanted, LOGITS)


def parts(case: dict, feeds: list[Fed], segment: str | None) -> tuple[Fed, list[Fed]]:
    """The prompt and the steps after it, of one segment of a text."""
    if segment is None:
        return feeds[0], feeds[1:]
    lengths = [1 + len(s["token_ids"]) for s in case["segments"]]
    begin = sum(lengths[: int(segment)])
    return feeds[begin], feeds[begin + 1 : begin + lengths[int(segment)]]
