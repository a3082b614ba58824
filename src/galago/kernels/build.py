"""Compiles the kernels: run when the package is built, or by hand with `python src/galago/kernels/build.py`.

The library depends on neither Python nor torch, so one build serves every version of both. CXX names a compiler
other than the first that is found; GALAGO_NO_KERNELS=1 leaves the kernels out. What goes into wheels is compiled by
zig, which brings the headers and libraries of every system that it compiles for (see TARGETS).
"""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).parent
LIBRARY = HERE / "_kernels.so"
ELF = b"\x7fELF"
TICK_S = 0.02
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"]
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_X86 = {
    "amx.cpp": [*_AVX512, "-mavx512bf16"],
    "avx512bf16.cpp": [*_AVX512, "-mavx512bf16"],
    "avx512.cpp": _AVX512,
    "avx2vnni.cpp": [*_AVX2, "-mavxvnni"],
    "avx2vnni512.cpp": [*_AVX2, "-mavx512vl", "-mavx512vnni"],
    "avx2.cpp": _AVX2,
    "dispatch.cpp": [],
    "pool.cpp": [],
}
_ARM = {
    "neoni8mm.cpp": ["-march=armv8.2-a+dotprod+i8mm"],
    "neon.cpp": ["-march=armv8.2-a+dotprod"],
    "dispatch.cpp": [],
    "pool.cpp": [],
}
SOURCES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}


def _zig_arm(cpu: str) -> dict[str, list[str]]:
    """`cpu` has products of four bytes, as zig names it."""
    return _ARM | {"neon.cpp": [f"-mcpu={cpu}"], "neoni8mm.cpp": [f"-mcpu={cpu}+i8mm"]}


@dataclass(frozen=True)
class Target:
    """Machines that a wheel is for."""

    triple: str
    """processor, system and its oldest version, as zig names them"""
    sources: dict[str, list[str]]
    """the files, and the flags of each as zig takes them"""


TARGETS = {
    "manylinux_2_17_x86_64": Target("x86_64-linux-gnu.2.17", _X86),
    "manylinux_2_17_aarch64": Target("aarch64-linux-gnu.2.17", _zig_arm("generic+v8_2a+dotprod")),
    "macosx_11_0_arm64": Target("aarch64-macos.11.0", _zig_arm("apple_m1")),
}
"""By the platform in the wheel's name."""


def digest() -> str:
    """Of the sources, this file included."""
    files = sorted(f for f in HERE.iterdir() if f.suffix in (".cpp", ".h") or f.name == Path(__file__).name)
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:32]


class CannotBuild(Exception):
    """Why there are no kernels; torch's are used instead."""


def build(library: Path = LIBRARY, machine: str | None = None) -> Path:
    """Compile the kernels for this kind of processor, by default this machine's own. Raises CannotBuild."""
    if os.environ.get("GALAGO_NO_KERNELS", "0") not in ("", "0"):
        raise CannotBuild("GALAGO_NO_KERNELS is set")
    if sys.platform not in ("linux", "darwin"):
        raise CannotBuild(f"there are no kernels for {sys.platform}")
    machine = (machine or platform.machine()).lower()
    if machine not in SOURCES:
        raise CannotBuild(f"there are no kernels for {machine} processors")
    return _compile(library, _compiler(), SOURCES[machine])


def build_for(platform_tag: str, library: Path) -> Path:
    """Compile the kernels for a wheel of this platform, one of TARGETS, by zig. Raises CannotBuild."""
    if platform_tag not in TARGETS:
        raise CannotBuild(f"there are no wheels for {platform_tag}, only for {', '.join(TARGETS)}")
    target = TARGETS[platform_tag]
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", target.triple]
    return _compile(library, compiler, target.sources, ["-s"])


def _compile(library: Path, compiler: list[str], sources: dict[str, list[str]], links: Sequence[str] = ()) -> Path:
    """`links` are flags for the linker alone. Raises CannotBuild."""
    if not os.access(library.parent, os.W_OK):
        raise CannotBuild(f"cannot write in {library.parent}")
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread", "-w"]
    flags.append(f'-DGALAGO_SOURCES="{digest()}"')
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder, name).with_suffix(".o")) for name in sources]
        commands = [
            [*compiler, *flags, *options, "-c", str(HERE / name), "-o", to]
            for (name, options), to in zip(sources.items(), objects, strict=True)
        ]
        _run(commands, folder)
        linked = str(Path(folder, "linked.so"))
        _run([[*compiler, "-shared", "-pthread", *links, "-o", linked, *objects]], folder)
        try:
            _put(Path(linked), library)
        except OSError as error:
            raise CannotBuild(f"cannot write {library}: {error.strerror}") from error
    return library


def _put(linked: Path, library: Path) -> None:
    """In one step, so that a running process keeps the library that it has mapped; of two builders one comes last.

    By itself, since files.py cannot be imported where the package is only being built.
    """
    data = linked.read_bytes()
    handle, name = tempfile.mkstemp(prefix="_kernels.", suffix=".part", dir=library.parent)
    try:
        with os.fdopen(handle, "wb") as fresh:
            fresh.write(data)
            if data.startswith(ELF):
                fresh.write(hashlib.sha256(data).digest())
            fresh.flush()
            os.fsync(handle)
        shutil.copymode(linked, name)
        os.replace(name, library)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def whole(library: Path) -> bool:
    """Whether a library is as it was built: to load one that was cut off kills the process.

    On Linux its SHA-256 follows it, which the loader does not look at. macOS's are signed, and checked by the system.
    """
    data = library.read_bytes()
    return not data.startswith(ELF) or hashlib.sha256(data[:-32]).digest() == data[-32:]


def _compiler() -> list[str]:
    """The command of the compiler, as CXX or the system has it."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise CannotBuild(f"CXX names {chosen[0]}, which is not a program")
        return chosen
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise CannotBuild("no C++ compiler was found")


def _run(commands: list[list[str]], folder: str) -> None:
    """Run commands side by side, as many as there are cores; what they keep for a while is in the folder.

    When this is interrupted they end too, with all that they started. Raises CannotBuild.
    """
    running: set[subprocess.Popen[str]] = set()
    starting, over = threading.Lock(), False

    def run(command: list[str]) -> None:
        with starting:
            if over:
                return
            pipe, kept = subprocess.PIPE, {**os.environ, "TMPDIR": folder}
            # A group of its own: a compiler is several programs.
            process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=kept, process_group=0)
            running.add(process)
        out, error = process.communicate()
        if process.returncode:
            said = (error or out).strip()[-400:] or f"exit code {process.returncode}, without a word"
            raise CannotBuild(f"{command[0]} failed: {said}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            left = [pool.submit(run, command) for command in commands]
            # Not a wait without end: a signal that comes just as it begins would be heeded only when it is over.
            while left:
                time.sleep(TICK_S)
                for job in [job for job in left if job.done()]:
                    job.result()  # raises what went wrong
                    left.remove(job)
        except BaseException:
            with starting:
                over = True
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            raise


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        print(build())
    except CannotBuild as why:
        sys.exit(f"warning: {why}; the kernels are left out, and torch's are used, which are slower")
