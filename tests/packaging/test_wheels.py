"""Wheels for other machines: what is in them, and that their kernels run where they are to run."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import pytest
from checked_kernels import CAN_EMULATE, COMPILER, EMULATED, assert_arm_kernels, check_for
from instruction_sets import HERE

from galago.kernels import build as building
from galago.kernels import load
from galago.kernels.build import TARGETS, CannotBuild, build_for, digest, whole

LIBRARY = "galago/kernels/_kernels.so"
BINARIES = ("*.so", "*.so.*", "*.dylib", "*.pyd", "*.dll", "*.a", "*.o", "*.part")
MACH_O = b"\xcf\xfa\xed\xfe"


@pytest.fixture(scope="module")
def programs(root: Path) -> Iterator[Path]:
    """Where zig and hatchling are, as `make wheels` calls them."""
    folder = root / "build" / "wheels" / "venv" / "bin"
    if not (folder / "hatchling").is_file():
        pytest.skip("needs zig, which `make wheels` installs")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("ZIG_GLOBAL_CACHE_DIR", str(root / "build" / "wheels" / "zig"))
        yield folder


@pytest.fixture(scope="module", params=TARGETS)
def wheel(request: pytest.FixtureRequest, root: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for a platform."""
    folder = tmp_path_factory.mktemp("dist")
    env = {**os.environ, "GALAGO_WHEEL": request.param}
    command = [programs / "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=root, env=env, check=True)
    [made] = folder.iterdir()
    assert made.name.endswith(f"-py3-none-{request.param}.whl")
    return made


@pytest.fixture(scope="module")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels of a wheel."""
    with ZipFile(wheel) as held:
        return Path(held.extract(LIBRARY, tmp_path_factory.mktemp("unpacked")))


@pytest.mark.slow
def test_a_wheel_has_the_kernels_and_no_other_binary(wheel: Path) -> None:
    with ZipFile(wheel) as held:
        names = held.namelist()
        [described] = [held.read(name).decode() for name in names if name.endswith(".dist-info/WHEEL")]
    assert [name for name in names if any(fnmatch(name, kind) for kind in BINARIES)] == [LIBRARY]
    assert f"Tag: {'-'.join(wheel.stem.split('-')[2:])}\n" in described and "Root-Is-Purelib: false" in described


@pytest.mark.slow
def test_its_library_is_whole_of_these_sources_and_for_systems_as_old_as_its_name_says(
    wheel: Path, library: Path
) -> None:
    data = library.read_bytes()
    assert whole(library) and digest().encode() in data
    if "macosx" in wheel.name:
        assert data.startswith(MACH_O)
    else:
        needed = {tuple(map(int, version.split(b"."))) for version in re.findall(rb"GLIBC_(\d+\.\d+)", data)}
        assert data.startswith(building.ELF) and max(needed) == (2, 17)
        assert b"GLIBCXX_" not in data and b"libstdc++" not in data


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler (apt install g++)")
def test_its_kernels_give_what_plain_loops_give(wheel: Path, library: Path, tmp_path: Path) -> None:
    if "aarch64" in wheel.name:
        if not CAN_EMULATE:
            pytest.skip(EMULATED)
        assert_arm_kernels(library, tmp_path)
        return
    try:
        find = ctypes.CDLL(str(library)).galago_kernels
    except OSError:
        pytest.skip(f"needs a machine that {wheel.name} is for")
    find.restype = ctypes.POINTER(ctypes.c_char_p)  # the table begins with the name
    if best := load():
        assert find(None).contents.value == best.name.encode()
    check = check_for(str(COMPILER), tmp_path)
    for name in HERE:
        ran = subprocess.run([check, library, name], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (apt install binutils)")
def test_instruction_sets_share_only_code_that_needs_none_of_them(programs: Path, tmp_path: Path) -> None:
    """The linker keeps one copy of what libc++ throws with, of whichever set."""
    target, made = TARGETS["manylinux_2_17_x86_64"], tmp_path / "made.o"
    compiler = [programs / "python", "-m", "ziglang", "c++", "-target", target.triple]
    options = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-w", *target.sources["avx512.cpp"]]
    subprocess.run([*compiler, *options, "-c", building.HERE / "avx512.cpp", "-o", made], check=True)
    shown = subprocess.run(["objdump", "-dt", "--no-show-raw-insn", made], capture_output=True, text=True, check=True)
    shared = set(re.findall(r"^[0-9a-f]+  w.* (\S+)$", shown.stdout, re.MULTILINE))
    code = dict(re.findall(r"^[0-9a-f]+ <(\S+)>:\n((?:.+\n)*)", shown.stdout, re.MULTILINE))
    assert [name for name in shared if re.search(r"%[xyz]mm|%k\d", code.get(name, ""))] == []
    assert re.search("%zmm", "".join(code.values())) and len(shared & set(code)) < 5


def test_make_knows_all_platforms(root: Path) -> None:
    [line] = [line for line in (root / "Makefile").read_text().splitlines() if line.startswith("WHEELS := ")]
    assert line.split()[2:] == list(TARGETS)


def test_a_wheel_for_an_unknown_platform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="no wheels for win_amd64, only for manylinux_2_17_x86_64, "):
        build_for("win_amd64", tmp_path / "_kernels.so")


def test_without_zig_there_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.sys, "executable", "false")
    with pytest.raises(CannotBuild, match="false failed"):
        build_for("macosx_11_0_arm64", tmp_path / "_kernels.so")
    assert list(tmp_path.iterdir()) == []
