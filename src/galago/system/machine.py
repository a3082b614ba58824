"""Cores, instruction sets and memory that this process may use, container limits included, without PyTorch."""

import contextlib
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

from galago.system import windows

_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
_AVX2 = {"avx2", "fma", "f16c"}
SETS = {
    "avx512-amx": (_AVX512 | {"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},),
    "avx512-vnni-bf16": (_AVX512 | {"avx512_bf16"},),
    "avx512-vnni": (_AVX512,),
    "avx2-vnni": (_AVX2 | {"avx_vnni"}, _AVX512),
    "avx2": (_AVX2,),
    "neon-i8mm": ({"asimddp", "i8mm"},),
    "neon-dotprod": ({"asimddp"},),
}
"""Sets that there are kernels for, with what Linux calls the features of a processor that they need, in each way that
it may have their instructions."""
MEMORY_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
MEMORY_V2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a control group with its limit and its usage, and the line of memory.stat with unused pages."""


def cpu_name() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _sysctl(name: str) -> str:
    """What macOS says of its machine, "" where it says nothing."""
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe_machine() -> dict[str, str]:
    return {"cpu": cpu_name(), "system": f"{platform.system()} {platform.machine()}"}


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets of this processor that there are kernels for, the best first."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # a Mac: those of today have dot products, and those of before no kernels of ours
        if platform.machine() != "arm64":
            return ()
        return ("neon-i8mm", "neon-dotprod") if _sysctl("hw.optional.arm.FEAT_I8MM") == "1" else ("neon-dotprod",)
    listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    flags = set(next(listed, "").split())
    return tuple(name for name, ways in SETS.items() if any(needed <= flags for needed in ways))


def withheld_set(running: str) -> str | None:
    """A better instruction set than the one whose kernels run, which the system keeps from this process."""
    sets = instruction_sets()
    return sets[0] if running in sets[1:] and not os.environ.get("GALAGO_KERNELS") else None


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process computes with by default: its affinity, physical cores only, and a container's limit.

    A limit of 2.5 cores gives 2: threads that share one product wait for each other, so a third, which the kernel
    would hold back half of the time, would hold back all three.
    """
    cores = set()
    for cpu in _allowed_cpus():
        try:
            # Threads of one core share its arithmetic units, and only get in each other's way.
            cores.add((root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, math.floor(min(len(cores), container_cores(root) or math.inf)))


def most_threads(root: Path = Path("/")) -> int:
    """Threads that can run at the same time: every hardware thread of the affinity, and a container's limit."""
    return max(1, math.ceil(min(len(_allowed_cpus()), container_cores(root) or math.inf)))


def _allowed_cpus() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on macOS and Windows
        return set(range(os.cpu_count() or 1))


def container_cores(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the control groups of this process allow (2.5, say); None without a limit."""
    limits = []
    for group, version in _control_groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            if version == 1:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = (int((group / name).read_text()) for name in names)
            else:
                quota, period = map(int, (group / "cpu.max").read_text().split())  # "max" is none
            if quota > 0 and period > 0:  # -1 is none
                limits.append(quota / period)
    return min(limits, default=None)


def system_memory() -> int:
    """Bytes that programs can still take: what the system has, or what is left of a container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except OSError:
        if not hasattr(os, "sysconf"):
            return windows.free_memory()
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # macOS has no simple answer
    left = container_memory()
    return free if left is None else max(0, min(free, left))


def container_memory(root: Path = Path("/")) -> int | None:
    """Bytes left of the smallest memory limit of the control groups that this process is in; None without any.

    Pages of files that were not used lately do not count: the kernel drops them first.
    """
    left = []
    for group, version in _control_groups(root, "memory"):
        limit, usage, unused = MEMORY_V1 if version == 1 else MEMORY_V2
        with contextlib.suppress(OSError, ValueError):
            most = int((group / limit).read_text())  # "max" is none
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            left.append(most - int((group / usage).read_text()) + int(stat.get(unused, 0)))
    return min(left, default=None)


def _control_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the control groups that this process is in, those further up included, and their version."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for kinds, path in (line.split(":", 2)[1:] for line in lines if line.count(":") > 1):
        if kinds and controller not in kinds.split(","):
            continue
        # The folder of several controllers is called by all of them, with or without links of their single names.
        bases = [(mounts / kinds, 1), (mounts / controller, 1)] if kinds else [(mounts, 2), (mounts / "unified", 2)]
        for base, version in dict.fromkeys(bases):
            # A limit further up holds too. Inside a container the path may be the host's; its own is then at the base.
            inside = base / path.strip("/")
            yield from ((group, version) for group in (inside, *inside.parents) if group.is_relative_to(base))
