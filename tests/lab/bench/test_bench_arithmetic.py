"""Bytes and operations, against numbers worked out by hand from the published sizes."""

import pytest
import torch
from tiny_moondream import config

import galago
from galago.families.moondream.config import REVISIONS, make_config
from galago.families.moondream.image import crop_count
from galago.families.moondream.weights import encode_flop
from galago.kernels import kernels
from galago.lab.bench.ceilings import measure_ceilings

REVISION = REVISIONS["2025-06-21"]
FULL = make_config({}, REVISION)


@pytest.mark.parametrize(("size", "crops"), [((378, 378), 1), ((200, 300), 1), ((1024, 768), 13)])
def test_crops(size, crops):
    assert crop_count(FULL.vision, *size) == crops


@pytest.mark.parametrize(("precision", "each"), [("float32", 4), ("bfloat16", 2), ("int8", 1), ("int4", 0.515625)])
def test_a_decode_step_reads_the_blocks_and_the_head(precision, each):
    if not kernels() and precision.startswith("int"):
        pytest.skip("needs the kernels: torch's products keep int4 as int8 (apt install g++)")
    with galago.load("scenes", precision=precision, device="cpu") as model:
        c = model.backend.model.config.text
        step = sum(t.nbytes for t in model.backend.model.work((112, 112), 0, "high").decode)
    block = c.dim * c.qkv_dim + c.dim * c.dim + 2 * c.dim * c.ff_dim
    whole = each * (c.n_layers * block + c.vocab_size * c.dim)
    assert whole <= step <= 1.1 * whole  # scales and the like; panels are filled up


def test_the_tower_sees_every_crop_and_the_projection_one():
    c = make_config(config()["config"], REVISION)
    tower = 16 * 3 * 14 * 14 + 3 * 16 * 16 + 16 * 16 + 2 * 16 * 16
    projection = 32 * 16 + 16 * 64
    assert encode_flop(c, 1) == 2 * 9 * (tower + projection)
    assert encode_flop(c, 5) == 2 * 9 * (5 * tower + projection)


def test_ceilings_of_a_small_piece_of_work():
    threads = torch.get_num_threads()
    found = measure_ceilings(threads, "cpu", read_bytes=80_000, shape=(32, 64, 64), budget_s=0)
    assert found["read_gb_per_s"] > 0
    assert {"float32", "bfloat16", "int8"} <= set(found["matmul_tflop_per_s"])
    assert all(speed > 0 for speed in found["matmul_tflop_per_s"].values())
