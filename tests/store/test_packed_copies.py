"""Packed copies that several processes want at once, that were damaged, or whose packer was killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_moondream as tiny

import galago
from galago.checkpoint.tensors import find_damage
from galago.cli.app import main
from galago.engine.metrics import exposition
from galago.errors import CheckpointError, size_of
from galago.store import hub, packing
from galago.system.files import PART, lock_file

PACK = """
import os, sys
from pathlib import Path
os.getpid = lambda: 1  # as the first process of every container is told
from galago.store import hub
from galago.store import packing
packing.WORTH_KEEPING = 0

def progress(done, total):
    if done == total // 2:
        print("half", flush=True)
        sys.stdin.readline()

print(packing.packed_copy(hub.locate(sys.argv[1]), "int8", progress).weights[0], flush=True)
"""
Damaged = Callable[[bytes], bytes]
DAMAGE: dict[str, Damaged] = {
    "holes": lambda data: data[: len(data) // 2] + bytes(4096) + data[len(data) // 2 + 4096 :],
    "a bit": lambda data: data[:-4000] + bytes([data[-4000] ^ 1]) + data[-3999:],
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no header": lambda data: bytes(4096) + data[4096:],
}
"""Ways in which a packed copy is not what was written."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The copy that one packer alone makes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GALAGO_CACHE", str(tmp_path_factory.mktemp("alone")))
        patched.setattr(packing, "WORTH_KEEPING", 0)
        return packing.packed_copy(hub.locate(folder), "int8").weights[0].read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path))
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    return tmp_path / "packed"


@pytest.fixture
def packer(folder: Path, cache: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that packs, and stops when it is half done until it reads a line."""
    begun: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command, pipe = [sys.executable, "-c", PACK, str(folder)], subprocess.PIPE
        begun.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def names(cache: Path) -> list[str]:
    """What lies in the cache, but for its lock."""
    return sorted(name for name in os.listdir(cache) if name != ".lock")


def copy(folder: Path) -> Path:
    return packing.packed_copy(hub.locate(folder), "int8", lambda done, total: None).weights[0]


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_copy_is_made_anew(
    folder: Path, cache: Path, alone: bytes, how: Damaged, caplog: pytest.LogCaptureFixture
) -> None:
    kept = copy(folder)
    kept.write_bytes(how(alone))
    with galago.load(folder, precision="int8") as model:
        answer = model.query(question="why?", settings={"max_tokens": 8})
    assert kept.read_bytes() == alone
    assert names(cache) == [kept.name]
    assert f"{kept} is made anew: " in caplog.text
    assert f'galago_packed_copies_remade_total{{model="{folder.name}",precision="int8"}}' in exposition().decode()
    with galago.load(folder, precision="int8") as model:
        assert model.query(question="why?", settings={"max_tokens": 8}) == answer


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model_of_its_own_is_refused(folder: Path, tmp_path: Path, how: Damaged) -> None:
    weights = packing.quantise_model(hub.locate(folder), "int8", tmp_path / "made", lambda done, total: None)
    weights.write_bytes(how(weights.read_bytes()))
    with pytest.raises(CheckpointError, match=r"^made: .*model\.safetensors (is damaged|is empty|has no checksum)"):
        galago.load(weights.parent)


def test_of_two_with_one_process_id_one_packs_and_the_other_waits(
    folder: Path, cache: Path, alone: bytes, packer: Callable[[], subprocess.Popen[str]]
) -> None:
    first = packer()
    assert first.stdout and first.stdout.readline() == "half\n"
    second = packer()
    assert second.stderr and "waits for process 1 on " in second.stderr.readline()
    told, error = first.communicate("go on\n", timeout=60)
    assert (first.returncode, error) == (0, "")
    also, error = second.communicate(timeout=60)
    assert (second.returncode, error) == (0, "")
    assert told == also, "it did not pack"
    assert Path(told.strip()).read_bytes() == alone
    assert names(cache) == [Path(told.strip()).name]


def test_one_that_waits_can_be_interrupted(cache: Path, packer: Callable[[], subprocess.Popen[str]]) -> None:
    with lock_file(cache / ".lock", lambda who: None):
        second = packer()
        assert second.stderr and "waits for" in second.stderr.readline()
        second.send_signal(signal.SIGINT)
        _, error = second.communicate(timeout=60)
    assert "KeyboardInterrupt" in error


def test_what_a_killed_packer_left_is_deleted_by_the_next(
    folder: Path, cache: Path, alone: bytes, packer: Callable[[], subprocess.Popen[str]]
) -> None:
    first = packer()
    assert first.stdout and first.stdout.readline() == "half\n"
    second = packer()
    assert second.stderr and "waits for" in second.stderr.readline()
    assert len(names(cache)) == 1, "what the first writes is left alone"
    first.kill()
    first.communicate()
    assert len(names(cache)) == 1, "left behind"
    told, error = second.communicate("go on\n", timeout=60)
    assert (second.returncode, error) == (0, "")
    assert Path(told.split()[-1]).read_bytes() == alone
    assert names(cache) == [Path(told.split()[-1]).name]


def test_threads_that_want_one_copy_make_it_once(
    folder: Path, cache: Path, alone: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    make = packing._make
    monkeypatch.setattr(packing, "_make", lambda *args: (made.append(args), make(*args)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(copy(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4 and len(set(found)) == len(made) == 1
    assert found[0].read_bytes() == alone


def test_a_whole_copy_in_a_folder_that_cannot_be_written_is_used(folder: Path, cache: Path) -> None:
    """As in an image whose cache was filled when it was built."""
    kept = copy(folder)
    cache.chmod(0o555)
    (cache / ".lock").unlink()
    try:
        assert copy(folder) == kept
        assert names(cache) == os.listdir(cache) == [kept.name]
    finally:
        cache.chmod(0o755)


@pytest.mark.parametrize("how", ["a file where the folder should be", "no folder can be made there"])
def test_without_a_cache_that_can_be_written_it_packs_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """As in a container whose file system is read-only."""
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    with galago.load(folder, precision="int8") as model:
        answer = model.query(question="why?", settings={"max_tokens": 8})
        assert not any("packed copy" in said for said in model.fallbacks)
    place = tmp_path / "no" if how.startswith("a file") else Path("/proc/none")
    if how.startswith("a file"):
        place.write_text("")
    monkeypatch.setenv("GALAGO_CACHE", str(place))
    caplog.clear()
    with galago.load(folder, precision="int8") as model:
        assert model.query(question="why?", settings={"max_tokens": 8}) == answer
        [said] = [text for text in model.fallbacks if "packed copy" in text]
    assert said.startswith(f"no packed copy can be kept in {place / 'packed'} (") and "in memory" in said
    assert said in caplog.text


def test_a_user_without_a_home_is_answered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run --user 12345` makes one."""
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with galago.load(folder, precision="int8") as model:
        assert model.query(question="why?", settings={"max_tokens": 2})["answer"]
        assert "in memory" in model.fallbacks[-1]


def test_what_a_killed_packer_left_goes_also_where_nothing_is_packed_any_more(folder: Path, cache: Path) -> None:
    kept = copy(folder)
    half = cache / f".{kept.name}.0123456789abcdef{PART}"
    half.write_bytes(b"half")
    with lock_file(cache / ".lock", lambda who: None):
        assert copy(folder) == kept and half.exists(), "somebody packs here"
        assert main(["models", "remove", "./none"]) == 2 and half.exists()
    assert copy(folder) == kept
    assert not half.exists()
    half.write_bytes(b"half")
    main(["models", "remove", str(folder)])
    assert names(cache) == []


def test_the_copies_of_a_folder_are_removed_and_those_of_one_that_is_gone_are_listed(
    folder: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: str) -> tuple[int, str, str]:
        code = main(["models", *args])
        return code, *capsys.readouterr()

    # Of one name, which is one of the catalogue too.
    mine, other = (Path(shutil.copytree(folder, tmp_path / name / "moondream2")) for name in ("a", "b"))
    kept = {made: copy(made) for made in (mine, other)}
    file = packing.packed_copy(hub.locate(other / "model.safetensors"), "int4", lambda done, total: None).weights[0]
    assert run()[1].count("moondream2 ") >= 1 and "of what is gone" not in run()[1]
    assert run("remove", "moondream2")[0] == 2, "it is not installed, and the folders' copies are theirs"
    monkeypatch.chdir(mine.parent)
    code, out, _ = run("remove", "./moondream2")
    assert (code, out) == (0, f"./moondream2: {size_of(len(kept[other].read_bytes()))} freed, packed copies in int8\n")
    assert not kept[mine].exists() and (mine / "model.safetensors").is_file()
    for name in ("./moondream2", ".."):
        code, _, error = run("remove", name)
        assert code == 2 and f"no packed copy of {Path(name)}" in error

    shutil.rmtree(other)
    rows = [json.loads(line) for line in run("--json")[1].splitlines()]
    told = {row["id"]: row for row in rows if "packed_copies" in row}
    assert {name: row["packed_copies"] for name, row in told.items()} == {
        str(other): ["int8"],
        str(other / "model.safetensors"): ["int4"],
    }
    assert told[str(other)] == {
        "id": str(other), "packed_copies": ["int8"], "installed": False, "bytes": kept[other].stat().st_size,
    }  # fmt: skip
    assert f"{other} " in run()[1] and "of what is gone" in run()[1]
    assert run("remove", str(other))[0] == 0
    assert not kept[other].exists() and not file.exists() and names(cache) == []


def test_copies_of_an_earlier_version_are_listed_and_removed_by_name(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir()
    kept = cache / "my-finetune-int4-0123456789abcdef.safetensors"
    kept.write_bytes(b"it does not say what it is of")
    assert main(["models"]) == 0
    assert re.search(r"my-finetune +0\.0 MB +packed copies in int4 of what is gone", capsys.readouterr().out)
    assert main(["models", "remove", "my-finetune"]) == 0 and not kept.exists()


def test_a_model_of_its_own_says_nothing_of_folders(folder: Path, tmp_path: Path) -> None:
    weights = packing.quantise_model(hub.locate(folder), "int8", tmp_path / "made", lambda done, total: None)
    assert str(folder.parent).encode() not in weights.read_bytes()


def test_a_full_disk_is_told_and_nothing_stays(folder: Path, cache: Path) -> None:
    """A file may not grow past a limit here, which comes as the same kind of error."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*too large; GALAGO_CACHE names another folder"):
            copy(folder)
        assert names(cache) == []
        with pytest.raises(CheckpointError, match="cannot write"):
            packing.quantise_model(hub.locate(folder), "int8", cache.parent / "made", lambda done, total: None)
        assert not (cache.parent / "made").exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert find_damage(copy(folder)) is None


def test_what_another_quantize_made_meanwhile_stays(folder: Path, tmp_path: Path) -> None:
    """One that fails deletes its own, not the whole folder that it began."""
    out = tmp_path / "deep" / "out"

    def other(done: int, total: int) -> None:
        (out / "notes.txt").write_text("mine")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packing.quantise_model(hub.locate(folder), "int8", out, other)
    assert os.listdir(out) == ["notes.txt"]
