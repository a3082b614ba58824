"""What a model needs is the catalogue's figure, or an estimate that does not fall short of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_moondream as tiny
import torch
from safetensors.torch import load_file

from galago import hub, needs, packing
from galago.catalog import entries, find
from galago.engine.limits import Limits
from galago.errors import CheckpointError, ModelNotFound
from galago.needs import OVERHEAD, memory_needed, one_name, precisions_of
from galago.nn.device import available_memory, container_memory, is_out_of_memory

CPU = torch.device("cpu")
NO_CACHE = Limits(prefix_bytes=0, embedding_bytes=0, kv_bytes=1)
"""With it what is needed is the peak and a byte."""
MEASURED = [(e.id, p) for e in entries() for p in e.memory]


@pytest.mark.parametrize(("name", "precision"), MEASURED)
def test_the_catalogues_figure_however_the_precision_is_asked_for(name: str, precision: str) -> None:
    figure = find(name).memory[precision]
    assert memory_needed(f"{name}-{precision}", device="cpu", limits=NO_CACHE) == figure + 1
    assert memory_needed(name, precision=precision, device="cpu", limits=NO_CACHE) == figure + 1
    assert memory_needed(f"{name}-int8", precision=precision, device="cpu", limits=NO_CACHE) == figure + 1, (
        "the argument goes first"
    )


def test_what_caches_and_keys_and_values_may_hold_is_counted() -> None:
    figure, limits = find("moondream2").memory["int8"], Limits(prefix_bytes=5, embedding_bytes=7, kv_bytes=11)
    assert memory_needed("moondream2-int8", device="cpu", limits=limits) == figure + 23
    usual = Limits()
    # Keys and values of 2048 positions, in 24 layers of 2048 numbers each, in bfloat16.
    kv = 2 * 24 * 2048 * 2048 * 2
    needed = figure + usual.prefix_bytes + usual.embedding_bytes + kv
    assert memory_needed("moondream2-int8", device="cpu") == needed


def test_the_profile_decides_as_it_does_for_a_load() -> None:
    memory = find("moondream2").memory
    assert memory_needed("moondream2", device="cpu", limits=NO_CACHE) == memory["float32"] + 1
    assert memory_needed("moondream2", device="cpu", profile="optimized", limits=NO_CACHE) == memory["int8"] + 1


@pytest.mark.parametrize(("name", "precision"), MEASURED)
def test_what_was_not_measured_is_not_reckoned_too_small(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = find(name)
    figure = entry.memory[precision]
    monkeypatch.setattr(needs, "lookup", lambda name: replace(entry, memory={}))
    assert figure <= memory_needed(f"{name}-{precision}", device="cpu", limits=NO_CACHE) < 1.3 * figure + OVERHEAD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny"))


def test_a_folder_is_reckoned_from_its_weights(folder: Path, tmp_path: Path) -> None:
    count = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    for precision, size in {"float32": 4, "bfloat16": 2, "int8": 1}.items():
        needed = memory_needed(str(folder), precision=precision, device="cpu", limits=NO_CACHE)
        assert needed >= count * size + OVERHEAD
        assert needed == pytest.approx(1.1 * count * size + OVERHEAD, abs=2)
    packing.quantise_model(hub.locate(folder), "int4", tmp_path / "packed")
    packed = tmp_path / "packed"
    assert memory_needed(str(packed), limits=NO_CACHE) >= (packed / "model.safetensors").stat().st_size + OVERHEAD
    assert precisions_of(str(packed)) == ("int4",)
    assert "int8" in precisions_of(str(folder))


def test_what_cannot_be_reckoned_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="did you mean scenes"):
        memory_needed("scnes", limits=NO_CACHE)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        memory_needed(str(tmp_path), limits=NO_CACHE)


def test_one_model_has_one_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one_name("2B", device="cpu") == one_name("vikhyatk/moondream2-fp32", device="cpu") == "moondream2"
    assert one_name("2b-int8", device="cpu") == "moondream2-int8"
    assert one_name("2b-int8", device="cpu", profile="optimized") == "moondream2"
    assert one_name("2b-int8", precision="int4") == "moondream2"
    monkeypatch.chdir(folder)
    assert one_name(".") == one_name(str(folder)) == str(folder.resolve())
    assert one_name("nothing such") == "nothing such"


# --- memory that there is ----------------------------------------------------------------------


def group(folder: Path, limit: str, used: int, unused: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{'' if version == 2 else 'total_'}inactive_file {unused}\n")


def member(root: Path, text: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_the_smallest_limit_of_all_groups_counts(tmp_path: Path) -> None:
    member(tmp_path, "0::/user/unit\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "user/unit", "1000", 300, 50)
    assert container_memory(tmp_path) == 750
    group(top / "user", "900", 600, 0)
    assert container_memory(tmp_path) == 300
    group(top / "user", "max", 600, 0)
    assert container_memory(tmp_path) == 750


def test_in_a_container_that_sees_its_hosts_path(tmp_path: Path) -> None:
    member(tmp_path, "0::/docker/0123\n")
    group(tmp_path / "sys/fs/cgroup", "2000", 500, 0)
    assert container_memory(tmp_path) == 1500


def test_the_older_control_groups(tmp_path: Path) -> None:
    member(tmp_path, "5:cpu,cpuacct:/\n4:memory:/task\n1:name=systemd:/\n0::/\n")
    group(tmp_path / "sys/fs/cgroup/memory/task", "1000", 400, 100, version=1)
    assert container_memory(tmp_path) == 700


def test_no_limit_and_no_control_groups(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None
    member(tmp_path, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", "max", 1, 1)
    assert container_memory(tmp_path) is None


@pytest.mark.parametrize("line", ["", "nonsense", "0::/../..", "4:memory"])
def test_groups_that_make_no_sense_are_no_limit(tmp_path: Path, line: str) -> None:
    member(tmp_path, f"{line}\n")
    assert container_memory(tmp_path) is None


def test_this_machine_has_memory() -> None:
    assert 0 < available_memory(CPU) < 1 << 60


def test_memory_that_runs_out_is_known_from_other_errors() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as real:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(real.value)
    with pytest.raises(MemoryError) as plain:
        bytearray(1 << 62)
    assert is_out_of_memory(plain.value)
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(KeyboardInterrupt())
