"""How much memory there is on Windows, which has a way of its own. Not yet run there."""

import ctypes
from ctypes import c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX"""

    _fields_ = (
        ("length", c_uint32), ("load_percent", c_uint32), ("physical", c_uint64), ("free_physical", c_uint64),
        ("page_file", c_uint64), ("free_page_file", c_uint64), ("virtual", c_uint64), ("free_virtual", c_uint64),
        ("free_extended", c_uint64),
    )  # fmt: skip


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS"""

    _fields_ = (
        ("size", c_uint32), ("page_faults", c_uint32), ("peak", c_size_t), ("used", c_size_t),
        ("quotas", c_size_t * 4), ("page_file", c_size_t), ("peak_page_file", c_size_t),
    )  # fmt: skip


def free_memory() -> int:
    """Bytes of physical memory that programs can still take. Raises OSError where Windows does not tell."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not _kernel32().GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("Windows does not tell how much memory is free")
    return int(status.free_physical)


def resident_memory() -> tuple[int, int]:
    """Bytes of physical memory that this process has now, and at its peak. Raises OSError as free_memory does."""
    kernel32, counters = _kernel32(), _ProcessMemory(size=ctypes.sizeof(_ProcessMemory))
    kernel32.GetCurrentProcess.restype = c_void_p
    process = c_void_p(kernel32.GetCurrentProcess())
    if not kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        raise OSError("Windows does not tell how much memory this process takes")
    return int(counters.used), int(counters.peak)


def _kernel32() -> Any:
    return ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]  # not elsewhere
