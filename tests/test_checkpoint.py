"""Reading checkpoints tensor by tensor."""

import re
from pathlib import Path

import pytest
import torch

from galago.checkpoint import read_tensors, write_tensors

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux: memory is read from /proc")
def test_what_was_read_leaves_memory(tmp_path):
    weights = {f"{n}.weight": torch.full((1 << 21,), float(n)) for n in range(8)}
    biases = {f"{n}.bias": torch.full((4,), float(n)) for n in range(8)}
    names = [f"{n}.{part}" for n in range(8) for part in ("weight", "bias")]
    both = weights | biases
    file = tmp_path / "model.safetensors"
    write_tensors(file, {n: (both[n].dtype, tuple(both[n].shape)) for n in names}, [(n, both[n]) for n in names])

    before, most, read = mapped(), 0, []
    pairs = read_tensors([file])
    for (_, weight), (_, bias) in zip(pairs, pairs, strict=True):
        # A model's loader waits for the bias, then reads both.
        read.append((weight.sum() / len(weight), bias[0]))
        most = max(most, mapped() - before)
    assert [(float(w), float(b)) for w, b in read] == [(n, n) for n in range(8)]
    assert most < 4 * weights["0.weight"].nbytes


def mapped() -> int:
    """Bytes of files in this process's memory."""
    found = re.search(r"RssFile:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024
