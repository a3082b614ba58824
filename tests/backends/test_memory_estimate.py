"""What a model needs is the catalogue's figure, or an estimate that does not fall short of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_moondream as tiny
import torch
from safetensors.torch import load_file

from galago import choices
from galago.backends import memory_estimate
from galago.backends.memory_estimate import OVERHEAD, canonical_name, memory_needed, precision_of, precisions_of
from galago.choices import FLOATS, KV_BYTES, LARGE, PRECISIONS, WEIGHT_BYTES, default_precision
from galago.engine.limits import Limits
from galago.errors import CheckpointError, ModelNotFound
from galago.precision import pick_precision
from galago.store import hub, packing
from galago.store.catalog import Bundled, entries, find, routes
from galago.system.device import available_memory, is_out_of_memory
from galago.system.machine import container_cores, container_memory, most_threads, usable_cores

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
    assert memory_needed("moondream2", device="cpu", profile="standard", limits=NO_CACHE) == memory["float32"] + 1
    assert memory_needed("moondream2", device="cpu", profile="optimized", limits=NO_CACHE) == memory["int8"] + 1


def test_large_models_are_quick_by_default_and_small_ones_exact(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(name: str | Path, **choice: str) -> str:
        return precision_of(str(name), device="cpu", **choice)

    for entry in (entry for entry in entries() if entry.backend == "native"):
        large = entry.parameters >= LARGE
        assert large != isinstance(entry.source, Bundled)
        assert of(entry.id) == of(entry.id, precision="auto") == ("int8" if large else "float32")
        assert of(entry.id, profile="standard") == of(entry.id, precision="float32") == "float32"
        assert of(f"{entry.id}-bf16") == "bfloat16" and of(f"{entry.id}-bf16", precision="int4") == "int4"
    assert {of(route.id) for route in routes()} == {"int8"}
    assert of(folder) == "float32" and of(folder, profile="optimized") == "int8"
    # A fine-tune is as large as its weights are.
    monkeypatch.setattr(choices, "LARGE", 1)
    assert of(folder) == "int8"
    packing.quantise_model(hub.locate(folder), "int4", tmp_path / "packed")
    assert of(tmp_path / "packed") == of(tmp_path / "packed", profile="standard") == "int4"


def test_accelerators_take_half_precision_for_large_models() -> None:
    for kind, half in {"cuda": "bfloat16", "mps": "float16"}.items():
        assert default_precision(LARGE, kind) == default_precision(1, kind, "optimized") == half
        assert default_precision(LARGE - 1, kind) == default_precision(LARGE, kind, "standard") == "float32"
        assert precision_of("moondream2", device=f"{kind}:0" if kind == "cuda" else kind) == half


def test_what_is_told_of_precisions_without_pytorch_is_true() -> None:
    for device in (CPU, torch.device("cuda"), torch.device("mps")):
        for name in PRECISIONS:
            chosen = pick_precision(name, device)
            assert KV_BYTES[name] == chosen.kv.itemsize
            assert name not in FLOATS or WEIGHT_BYTES[name] == chosen.dtype.itemsize


@pytest.mark.parametrize(("name", "precision"), MEASURED)
def test_what_was_not_measured_is_not_reckoned_too_small(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = find(name)
    figure = entry.memory[precision]
    monkeypatch.setattr(memory_estimate, "entry_of", lambda name: replace(entry, memory={}))
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
    assert (
        canonical_name("2B", device="cpu") == canonical_name("vikhyatk/moondream2-int8", device="cpu") == "moondream2"
    )
    assert canonical_name("2b-fp32", device="cpu") == "moondream2-float32"
    assert canonical_name("2b-int8", device="cpu", profile="standard") == "moondream2-int8"
    assert canonical_name("2b-fp32", device="cpu", profile="standard") == "moondream2"
    assert canonical_name("smolvlm-hybrid-int8", device="cpu") == "smolvlm-hybrid"
    assert canonical_name("2b-int8", precision="int4") == "moondream2"
    monkeypatch.chdir(folder)
    assert canonical_name(".") == canonical_name(str(folder)) == str(folder.resolve())
    assert canonical_name("nothing such") == "nothing such"


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


def cores(root: Path, group: str, quota: str, period: int = 100_000, version: int = 2) -> None:
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def test_a_limit_of_cores_holds_wherever_in_the_groups_it_is(tmp_path: Path) -> None:
    member(tmp_path, "0::/user/unit\n")
    cores(tmp_path, "", "max")
    cores(tmp_path, "user", "400000")
    cores(tmp_path, "user/unit", "max")
    assert container_cores(tmp_path) == 4
    cores(tmp_path, "user/unit", "150000")
    assert container_cores(tmp_path) == 1.5
    cores(tmp_path, "", "50000")
    assert container_cores(tmp_path) == 0.5
    assert (usable_cores(tmp_path), most_threads(tmp_path)) == (1, 1)


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_a_limit_of_cores_in_the_older_control_groups(tmp_path: Path, folder: str) -> None:
    member(tmp_path, "5:cpu,cpuacct:/task\n4:memory:/\n0::/\n")
    cores(tmp_path, f"{folder}/task", "-1", version=1)
    assert container_cores(tmp_path) is None
    cores(tmp_path, folder, "250000", version=1)
    assert container_cores(tmp_path) == 2.5


def test_a_limit_of_cores_in_a_container_that_sees_its_hosts_path(tmp_path: Path) -> None:
    member(tmp_path, "2:cpu:/docker/0123\n0::/docker/0123\n")
    cores(tmp_path, "cpu", "765000", version=1)
    assert container_cores(tmp_path) == 7.65


def test_both_kinds_of_control_groups_at_once(tmp_path: Path) -> None:
    member(tmp_path, "3:memory:/\n0::/unit\n")
    cores(tmp_path, "unified/unit", "100000")
    assert container_cores(tmp_path) == 1


def test_a_part_of_a_core_computes_nothing_by_default_and_may_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(96)), raising=False)
    member(tmp_path, "0::/\n")
    cores(tmp_path, "", "765000")
    assert (usable_cores(tmp_path), most_threads(tmp_path)) == (7, 8)
    cores(tmp_path, "", "max")
    assert (usable_cores(tmp_path), most_threads(tmp_path)) == (96, 96)


def test_threads_of_one_core_are_one_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert (usable_cores(tmp_path), most_threads(tmp_path)) == (2, 4)


def test_no_limit_and_no_control_groups(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is container_cores(tmp_path) is None
    member(tmp_path, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", "max", 1, 1)
    assert container_memory(tmp_path) is container_cores(tmp_path) is None


@pytest.mark.parametrize("line", ["", "nonsense", "0::/../..", "4:memory"])
def test_groups_that_make_no_sense_are_no_limit(tmp_path: Path, line: str) -> None:
    member(tmp_path, f"{line}\n")
    assert container_memory(tmp_path) is container_cores(tmp_path) is None


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
