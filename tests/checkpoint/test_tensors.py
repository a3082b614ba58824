"""Reading checkpoints tensor by tensor."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_moondream
import tiny_smolvlm
import torch

import galago
from galago.checkpoint.tensors import read_tensors, write_tensors
from galago.errors import CheckpointError

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


# --- files that are not what their names say ----------------------------------------------------

TENSORS = {"a.weight": torch.arange(600.0).view(20, 30), "a.bias": torch.ones(20)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1015025832\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Access denied</body></html>"


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        list(read_tensors([file]))
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.pt"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (POINTER, "is a git-LFS pointer, which stands for the file; run `git lfs pull`"),
        (PAGE, "is an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML text"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        (b"", "is empty or holds zeros"),
        (bytes(4096), "is empty or holds zeros"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert says in refused(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["as now", "as before 2020"])
def test_a_pickle_that_was_cut_or_changed_is_refused_in_one_line(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    assert {name: t.tolist() for name, t in read_tensors([file])} == {n: t.tolist() for n, t in TENSORS.items()}
    for share in (0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99):
        file.write_bytes(whole[: int(share * len(whole))])
        refused(file)
    chance = random.Random(0)
    for _ in range(60):
        at = chance.randrange(min(len(whole), 700))
        file.write_bytes(whole[:at] + bytes([chance.randrange(256)]) + whole[at + 1 :])
        try:
            assert all(isinstance(t, torch.Tensor) for _, t in read_tensors([file]))
        except CheckpointError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({0: torch.ones(3)}, "a key is of type int"),
        ({("a", "b"): torch.ones(3)}, "a key is of type tuple"),
        ({"state_dict": {"a": torch.ones(3)}, "epoch": 3}, "state_dict is of type dict; save the state dict alone"),
        ({"a": 3}, "a is of type int"),
        ([torch.ones(3)], "but of type list"),
        (torch.ones(3), "but of type Tensor"),
        ({"a": torch.ones(3).to_sparse()}, "tensor a is sparse"),
        ({"a": torch.ones(3, device="meta")}, "without values"),
    ],
)
def test_a_pickle_of_something_else_says_what_it_holds(tmp_path: Path, held: Any, says: str) -> None:
    torch.save(held, tmp_path / "model.pt")
    assert says in refused(tmp_path / "model.pt")


def test_parameters_are_read_as_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.nn.Parameter(torch.ones(3))}, tmp_path / "model.pt")
    [(_, tensor)] = read_tensors([tmp_path / "model.pt"])
    assert not tensor.requires_grad


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn])
@pytest.mark.parametrize("family", [tiny_moondream, tiny_smolvlm])
def test_whole_numbers_under_the_names_of_weights_are_refused(tmp_path: Path, family: Any, dtype: torch.dtype) -> None:
    """They stand for others by a scheme, and which that is no one told."""
    weights = family.tensors()
    name = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    weights[name] = weights[name].to(dtype)
    folder = family.write(tmp_path / "model", weights=weights)
    with pytest.raises(CheckpointError, match=r"tensor \S*mlp\.fc1\.weight is of type"):
        galago.load(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"tensor \S*mlp\.fc1\.weight is of type"):
        galago.load(folder, device="cpu", precision="int8")
