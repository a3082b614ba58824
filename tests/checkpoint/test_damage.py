"""What is not as it was written is found when it is opened."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from galago.checkpoint import tensors as checkpoint
from galago.checkpoint.tensors import CHECKSUM, find_damage, metadata, write_tensors


def written(file: Path, about: dict[str, str] | None = None) -> bytes:
    """A file of a few pages, whose size is no whole number of them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randint(0, 256, (3 * checkpoint.PAGE + 13,), generator=generator, dtype=torch.uint8),
        "b": torch.randn(5000, generator=generator),
        "none": torch.empty(0),
    }
    write_tensors(file, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}, tensors.items(), about)
    assert all(torch.equal(t, tensors[n]) for n, t in load_file(file).items())
    return file.read_bytes()


def test_what_is_whole_is_found_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    written(file, {"said": "of itself"})
    assert find_damage(file) is None
    assert metadata(file)["said"] == "of itself"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99, 1.0])
def test_any_bit_that_turned_is_found(tmp_path: Path, share: float) -> None:
    file = tmp_path / "a.safetensors"
    data = bytearray(written(file))
    for bit in range(8):
        at = round(share * (len(data) - 1))
        data[at] ^= 1 << bit
        file.write_bytes(data)
        assert find_damage(file), (at, bit)
        data[at] ^= 1 << bit


def test_holes_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    data = written(file)
    chance = random.Random(0)
    for size in (1, 512, 4096, checkpoint.PAGE, 2 * checkpoint.PAGE):
        begin = chance.randrange(1000, len(data) - size)
        hole = data[:begin] + bytes(size) + data[begin + size :]
        file.write_bytes(hole)
        assert hole == data or find_damage(file), (begin, size)


def test_pages_that_changed_places_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    data = written(file)
    page = checkpoint.PAGE
    file.write_bytes(data[:page] + data[2 * page : 3 * page] + data[page : 2 * page] + data[3 * page :])
    assert find_damage(file)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 20, 300, -1, -5000])
def test_one_that_is_cut_off_is_found(tmp_path: Path, size: int) -> None:
    file = tmp_path / "a.safetensors"
    data = written(file)
    file.write_bytes(data[:size])
    assert find_damage(file)
    file.write_bytes(data + b"more")
    assert find_damage(file)


def test_one_without_a_checksum_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    data = written(file)
    renamed = CHECKSUM.replace("checksum", "chicksum")
    file.write_bytes(data.replace(CHECKSUM.encode(), renamed.encode()))
    assert find_damage(file) == "a.safetensors has no checksum"


def test_the_checksum_is_what_it_is_described_as(tmp_path: Path) -> None:
    """Of two machines, whatever pieces they read it in."""
    import hashlib

    file = tmp_path / "a.safetensors"
    data = written(file)
    told = metadata(file)[CHECKSUM].encode()
    plain = data.replace(told, b"0" * 64)
    whole = len(plain) // checkpoint.PAGE * checkpoint.PAGE
    sums = [
        np.frombuffer(plain[begin : begin + checkpoint.PAGE], "<i8").sum().tobytes()
        for begin in range(0, whole, checkpoint.PAGE)
    ]
    assert hashlib.sha256(b"".join(sums) + plain[whole:]).hexdigest().encode() == told
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][CHECKSUM].encode() == told


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """A file may not grow past a limit here, which comes as the same kind of error."""
    import resource

    file = tmp_path / "a.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (checkpoint.PAGE, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            written(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []
