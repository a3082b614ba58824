"""What differs between CPU, CUDA and MPS, in one place."""

import contextlib
import ctypes
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from galago.errors import InvalidRequest


@dataclass(frozen=True)
class Memory:
    """Bytes in use now and at the peak: resident memory on a CPU, the allocator's on an accelerator."""

    used: int
    peak: int


def pick_device(name: str | None = None) -> torch.device:
    """The named device ('cpu', 'cuda', 'cuda:1', 'mps'), or the best there is.

    Raises InvalidRequest if it is not available.
    """
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidRequest(f"unknown device {name!r}; use auto, cpu, cuda or mps", "device") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise InvalidRequest(f"device {name!r} is not available on this machine; use auto or cpu", "device")
    return device


def usable_cores() -> int:
    """Cores that this process may use: its affinity, physical cores only, and a container's limit."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        try:
            # Threads of one core share its arithmetic units, and only get in each other's way.
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    limit = float(len(cores))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            limit = min(limit, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    return max(1, round(limit))


def return_memory(device: torch.device) -> None:
    """Hand memory that is kept for later back to the system: the allocator's on an accelerator, the C library's."""
    empty_cache(device)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work given to it, so that a clock read now is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Hand memory that the allocator keeps in reserve back to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def memory(device: torch.device) -> Memory:
    """Memory in use on the device."""
    if device.type == "cuda":
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        return Memory(used, used)
    # Linux counts into ru_maxrss what the parent had when it started this process; its status file does not.
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = {line[:5]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return Memory(found["VmRSS"], max(found["VmHWM"], found["VmRSS"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Memory(peak, peak)
