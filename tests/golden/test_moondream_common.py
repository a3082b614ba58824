"""The model-free golden tables of Moondream2: tiling, stitching, sampling, streaming and more."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moondream_golden import COMMON, FOLDERS, loaded, tensor
from moondream_golden import keys as keys_of

from galago.engine.sampling import probabilities
from galago.engine.text_stream import TextStream
from galago.families.moondream.bins import size_of_bin
from galago.families.moondream.config import VisionConfig
from galago.families.moondream.image import tiling_of
from galago.families.moondream.skills import without_outliers
from galago.families.moondream.vision import pool, stitch
from galago.families.moondream.weights import our_name, shapes, unpack_int4

FILES = sorted(p.name for p in COMMON.glob("*"))
CHECKS: dict[str, Callable[[Path], None]] = {}


def check(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(function: Callable[[Path], None]) -> Callable[[Path], None]:
        CHECKS[name] = function
        return function

    return register


def rows(file: Path, fields: set[str]) -> list[dict[str, Any]]:
    """The rows of a table, of which none has a field that its check does not know."""
    table = json.loads(file.read_text(encoding="utf-8"))
    assert table and all(set(row) <= fields for row in table)
    return table


@pytest.mark.parametrize("name", FILES)
def test_table(name: str) -> None:
    assert name in CHECKS, f"no test for {name}"
    CHECKS[name](COMMON / name)


@check("tiling.json")
def tiling(file: Path) -> None:
    for row in rows(file, {"h", "w", "crop", "patch", "margin", "max_crops", "tiling"}):
        c = VisionConfig(
            crop_size=row["crop"],
            enc_patch_size=row["patch"],
            overlap_margin=row["margin"],
            max_crops=row["max_crops"],
        )
        assert [*tiling_of(row["h"], row["w"], c)] == row["tiling"], row


@check("stitch.safetensors")
def stitching(file: Path) -> None:
    for key in keys_of(file):
        match = re.fullmatch(r"(r(\d+)_c(\d+)_g(\d+)_m(\d+))\.(features|stitched|pooled)", key)
        assert match, f"no test for {key}"
        row_count, columns, grid, margin = map(int, match.group(2, 3, 4, 5))
        c = VisionConfig(crop_size=grid * 14, overlap_margin=margin)
        tiles = tensor(file, f"{match[1]}.features").flatten(1, 2)
        stitched = stitch(tiles, (row_count, columns), c)
        if match[6] == "stitched":
            assert torch.equal(stitched, tensor(file, key))
        elif match[6] == "pooled":
            wanted = tensor(file, key).flatten(0, 1)
            assert torch.allclose(pool(stitched, grid), wanted, rtol=0, atol=1e-6)


@check("sampling.json")
def sampling(file: Path) -> None:
    vectors = file.with_suffix(".safetensors")
    for row in rows(file, {"id", "temperature", "top_p", "kept"}):
        logits, wanted = (tensor(vectors, f"{row['id']}.{part}") for part in ("logits", "probs"))
        found = [probabilities(one.numpy(), row["temperature"], row["top_p"]) for one in logits]
        assert [int((p > 0).sum()) for p in found] == row["kept"]
        assert np.allclose(np.stack(found), wanted.numpy(), rtol=0, atol=1e-6)


@check("sampling.safetensors")
def sampling_has_rows(file: Path) -> None:
    named = {row["id"] for row in json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))}
    assert {*keys_of(file)} == {f"{name}.{part}" for name in named for part in ("logits", "probs")}


@check("streaming.json")
def streaming(file: Path) -> None:
    assert "small" in FOLDERS, "the table is about the tokenizer of small"
    tokenizer = loaded("small").tokenizer
    for row in rows(file, {"text", "note", "token_ids", "max_tokens", "chunks"}):
        if row["text"] is not None:
            assert tokenizer.encode(row["text"]) == row["token_ids"]
        stream = TextStream(tokenizer.decode)
        chunks = [stream.push(token) for token in row["token_ids"][: row["max_tokens"]]]
        chunks.append(stream.finish())
        assert [chunk for chunk in chunks if chunk] == row["chunks"]


@check("outliers.json")
def outliers(file: Path) -> None:
    for row in rows(file, {"points", "kept"}):
        assert [[*p] for p in without_outliers([tuple(p) for p in row["points"]])] == row["kept"]


@check("int4.safetensors")
def int4(file: Path) -> None:
    for key in keys_of(file):
        match = re.fullmatch(r"(.+)\.(weight\.(packed|scale|zero_point)|dequantized|dequantized_bf16)", key)
        assert match, f"no test for {key}"
        wanted = tensor(file, key)
        parts = [tensor(file, f"{match[1]}.weight.{part}") for part in ("packed", "scale", "zero_point")]
        if match[2] == "dequantized":
            assert torch.equal(unpack_int4(*parts, tuple(wanted.shape)), wanted)
        elif match[2] == "dequantized_bf16":
            # The reference rounds the parts and the result; ours does not.
            found = unpack_int4(*parts, tuple(wanted.shape))
            assert torch.allclose(found, wanted.float(), rtol=2**-6, atol=2**-8 * float(found.abs().max()))


@check("size_bins.json")
def size_bins(file: Path) -> None:
    table = json.loads(file.read_text(encoding="utf-8"))
    assert set(table) == {"log2"}
    wanted = torch.tensor(table["log2"])
    assert torch.allclose(
        torch.from_numpy(size_of_bin(np.arange(len(wanted)), len(wanted), log=True)), wanted, rtol=1e-6, atol=0
    )


@check("names_legacy_model.json")
def names(file: Path) -> None:
    table = json.loads(file.read_text(encoding="utf-8"))
    for ours, row in table.items():
        assert set(row) == {"original", "shape", "original_shape"}
        renamed = our_name(row["original"])
        assert renamed == (ours.removeprefix("model."), row["shape"] != row["original_shape"])
        assert our_name(ours) == our_name(ours.removeprefix("model.")) == (ours.removeprefix("model."), False)
    if "legacy" in FOLDERS:
        c = loaded("legacy").config
        wanted = {f"model.{name}": [*shape] for name, shape in shapes(c).items()}
        assert wanted == {name: row["shape"] for name, row in table.items()}
