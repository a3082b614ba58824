"""Building the kernels: with a compiler, without one, and for a processor that is not this one."""

import ctypes
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checked_kernels import CAN_EMULATE, COMPILER, CROSS, EMULATED, assert_arm_kernels, check_for
from commands import Command
from instruction_sets import ALL, HERE

import galago
from galago.kernels import build as building
from galago.kernels.build import CannotBuild, build, digest

OURS = building.SOURCES.get(platform.machine().lower(), {})
"""What is compiled for this processor."""
no_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler (apt install g++)")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "GALAGO_NO_KERNELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None or not OURS:
        pytest.skip("needs a C++ compiler (apt install g++), and an x86-64 or ARM processor")
    made = tmp_path_factory.mktemp("built") / "_kernels.so"
    # What `make` has built of these sources is what would be built again.
    return Path(shutil.copy(building.LIBRARY, made)) if galago.kernels.load() else build(made)


def test_a_library_knows_its_sources(library: Path) -> None:
    sources = ctypes.CDLL(str(library)).galago_sources
    sources.restype = ctypes.c_char_p
    assert sources().decode() == digest()
    assert [f.name for f in library.parent.iterdir()] == [library.name]


def test_every_instruction_set_gives_what_plain_loops_give(library: Path, tmp_path: Path) -> None:
    assert COMPILER is not None
    check = check_for(COMPILER, tmp_path)
    found = 0
    for name in ALL:
        ran = subprocess.run([check, library, name], capture_output=True, text=True)
        assert ran.returncode == 0 or (ran.returncode, ran.stdout) == (2, "no such kernels\n"), ran.stdout
        found += ran.returncode == 0
    assert found or not ctypes.CDLL(str(library)).galago_kernels(None)


@pytest.mark.slow
@pytest.mark.skipif("avx512-vnni-bf16" not in HERE, reason="needs a processor with AVX-512 and BF16")
def test_emulated_tiles_give_what_plain_loops_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the code for AMX is tested on processors that have none."""
    assert COMPILER is not None
    monkeypatch.setenv("CXX", f"{COMPILER} -DGALAGO_EMULATED_TILES")
    made = build(tmp_path / "_kernels.so")
    ran = subprocess.run([check_for(COMPILER, tmp_path), made, "avx512-amx"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.skipif("avx512-amx" not in HERE, reason="needs a processor with AMX, and Linux")
def test_where_the_system_keeps_tiles_from_a_process_it_has_the_next_best() -> None:
    """Linux gives them to none whose stack for signals has no room for their registers."""
    program = (
        "import ctypes, json, logging\n"
        "class Stack(ctypes.Structure):\n"
        "    _fields_ = [('at', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]\n"
        "room = ctypes.create_string_buffer(6000)\n"
        "stack = Stack(ctypes.addressof(room), 0, 6000)\n"
        "assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0\n"
        "import torch\n"
        "from galago.kernels import load\n"
        "from galago.precision.quantised import fallbacks\n"
        "print(json.dumps([load().name, fallbacks(torch.device('cpu'), 8)]))\n"
    )
    clean = {name: value for name, value in os.environ.items() if name != "GALAGO_KERNELS"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [
        "avx512-vnni-bf16",
        ["the system keeps avx512-amx from this process: avx512-vnni-bf16 is used"],
    ]


@pytest.mark.slow
@pytest.mark.skipif(not CAN_EMULATE, reason=EMULATED)
def test_an_arm_processor_gives_what_plain_loops_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", CROSS)
    assert_arm_kernels(build(tmp_path / "_kernels.so", "aarch64"), tmp_path)


@no_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (apt install binutils)")
@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(set(OURS) - {"dispatch.cpp", "pool.cpp"}))
def test_the_linker_shares_no_code_between_instruction_sets(source: str, tmp_path: Path) -> None:
    """It keeps one copy of a weak symbol, which may be made of instructions that the processor does not have."""
    assert COMPILER is not None
    made = tmp_path / "made.o"
    options = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-w", *OURS[source]]
    subprocess.run([COMPILER, *options, "-c", str(building.HERE / source), "-o", str(made)], check=True)
    listed = subprocess.run(["nm", "-C", str(made)], capture_output=True, text=True, check=True)
    assert "_kernels" in listed.stdout
    assert [line for line in listed.stdout.splitlines() if " W " in line] == []


@no_compiler
def test_two_builders_at_once_leave_one_whole_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one process id, as in two containers that share the package; and one of them fails while it writes."""
    monkeypatch.setattr(building, "SOURCES", {platform.machine().lower(): {"pool.cpp": []}})
    monkeypatch.setattr(os, "getpid", lambda: 1)
    names: list[str] = []
    replace = os.replace

    def other_first(name: str, to: Path) -> None:
        names.append(name)
        if len(names) == 1:
            build(tmp_path / "_kernels.so")
        if len(names) == 3:
            raise OSError(28, "No space left on device")
        replace(name, to)

    monkeypatch.setattr(os, "replace", other_first)
    made = build(tmp_path / "_kernels.so")
    assert len(set(names)) == 2
    assert building.whole(made) and os.listdir(tmp_path) == ["_kernels.so"]
    assert made.stat().st_mode & 0o777 == 0o777 & ~umask()
    with pytest.raises(CannotBuild, match="No space left"):
        build(tmp_path / "_kernels.so")
    assert building.whole(made) and os.listdir(tmp_path) == ["_kernels.so"]


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


@no_compiler
def test_cxx_chooses_the_compiler_and_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{COMPILER} -include no-such-header.h")
    with pytest.raises(CannotBuild, match=r"no-such-header\.h"):
        build(tmp_path / "_kernels.so")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CXX", shutil.which("false") or "false", "false failed: exit code 1"),
        ("CXX", "no-such-compiler", "CXX names no-such-compiler"),
        ("CXX", os.devnull, "is not a program"),
        ("PATH", "", "no C++ compiler was found"),
        ("GALAGO_NO_KERNELS", "1", "GALAGO_NO_KERNELS is set"),
    ],
)
def test_why_there_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(CannotBuild, match=re.escape(said)):
        build(tmp_path / "_kernels.so")
    assert list(tmp_path.iterdir()) == []


def test_a_processor_without_kernels(tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="no kernels for riscv64 processors"):
        build(tmp_path / "_kernels.so", "riscv64")


@no_compiler
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="cannot write"):
        build(tmp_path / "nowhere" / "_kernels.so")


def test_a_library_that_is_damaged_or_of_other_sources_is_refused(library: Path, tmp_path: Path) -> None:
    package = tmp_path / "galago"
    shutil.copytree(Path(galago.__file__).parent, package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    shutil.copy(library, package / "kernels" / "_kernels.so")
    tried = "import galago.kernels; print(galago.kernels.kernels() is not None)"

    def run() -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "GALAGO_KERNELS": ""}
        return subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True, env=env, check=True)

    whole = run()
    assert (whole.stdout, whole.stderr) == ("True\n", "")
    data = library.read_bytes()
    # Such a library would end the process when it is loaded; one with a hole would compute nonsense.
    (package / "kernels" / "_kernels.so").write_bytes(data[: len(data) // 2])
    damaged = run()
    assert damaged.stdout == "False\n" and "damaged" in damaged.stderr
    (package / "kernels" / "_kernels.so").write_bytes(data[:4096] + bytes(4096) + data[8192:])
    assert not building.whole(package / "kernels" / "_kernels.so") and building.whole(library)
    (package / "kernels" / "_kernels.so").write_bytes(data)
    with (package / "kernels" / "gemm.h").open("a") as source:
        source.write("// changed\n")
    stale = run()
    assert stale.stdout == "False\n" and "built from other sources" in stale.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_compilers_too_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    """The compiler is one that never ends, in a process that it starts."""
    begun, folder = tmp_path / "begun", tmp_path / "temporary"
    os.mkfifo(begun)
    folder.mkdir()
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\nmktemp > {begun}\nsleep 1000 &\nwait\n")
    compiler.chmod(0o755)
    with Command(program=(building.__file__,), CXX=compiler, TMPDIR=folder) as command:
        # Open until each compiler that begins has said so and the pipe has no writer left.
        assert Path(begun.read_text().split()[0]).is_relative_to(folder)
        command.send(number)
        code, said = command.ended()
    assert (code, said) == (128 + number, "")
    assert list(folder.iterdir()) == []
