"""A library of kernels compared with plain loops by check_kernels.cpp, on this processor or an emulated one."""

import shutil
import subprocess
import sys
from pathlib import Path

from galago.kernels.build import HERE

SOURCE = Path(__file__).parents[1] / "precision" / "check_kernels.cpp"
COMPILER = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
CAN_EMULATE = bool(shutil.which(CROSS) and shutil.which(EMULATOR))
EMULATED = "needs a compiler and an emulator (apt install g++-aarch64-linux-gnu qemu-user)"


def check_for(compiler: str, folder: Path) -> Path:
    """The program that compares kernels with plain loops."""
    made = folder / "check"
    # Without contraction, so that the plain loops round as they are written.
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", f"-I{HERE}"]
    links = [] if sys.platform == "darwin" else ["-ldl"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(made), *links], check=True)
    return made


def assert_arm_kernels(library: Path, folder: Path) -> None:
    """Emulated ARM processors that have what the kernels need get from them what plain loops give; others get none."""
    check = check_for(CROSS, folder)
    asked = subprocess.run([CROSS, "-print-file-name=libc.so.6"], capture_output=True, text=True, check=True)
    system = Path(asked.stdout.strip()).resolve().parents[1]

    def run(cpu: str, name: str) -> subprocess.CompletedProcess[str]:
        command = [EMULATOR, "-cpu", cpu, "-L", system, check, library, name]
        return subprocess.run(command, capture_output=True, text=True)

    for cpu, name in (("max", "neon-i8mm"), ("max", "neon-dotprod"), ("cortex-a76", "neon-dotprod")):
        assert (ran := run(cpu, name)).returncode == 0, ran.stdout + ran.stderr
    # Without dot products, as a Raspberry Pi 4, or without products of squares: the kernels are not offered.
    for cpu, name in (("cortex-a72", "neon-dotprod"), ("cortex-a76", "neon-i8mm")):
        assert run(cpu, name).stdout == "no such kernels\n"
