"""What differs between CPU, CUDA and MPS, in one place.

PyTorch is imported where it is needed: models of other backends run without it.
"""

import contextlib
import ctypes
import errno
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, Union

from galago.choices import check_device
from galago.errors import InvalidRequest, quoted
from galago.system import windows
from galago.system.machine import container_cores, most_threads, system_memory, usable_cores

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
NO_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "out of memory")
"""What a RuntimeError of torch says when memory runs out."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use now and at the peak, and what is counted."""

    used: int
    peak: int
    of: str


@dataclass(frozen=True)
class Processor:
    """The processor, as the device of a model that runs without PyTorch."""

    type: str = "cpu"
    index: None = None

    def __str__(self) -> str:
        return self.type


CPU = Processor()
Device = Union["torch.device", Processor]


def device_of(name: str) -> Device:
    """The device of this name, as facts have it."""
    if name == CPU.type:
        return CPU
    import torch

    return torch.device(name)


def pick_device(name: str | None = None) -> "torch.device":
    """The named device ('cpu', 'cuda', 'cuda:1', 'mps'), or the best there is.

    Raises InvalidRequest if it is not available.
    """
    import torch

    check_device(name)
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise InvalidRequest(f"device {quoted(name)} is not available on this machine; use auto or cpu", "device")
    return device


def device_here(name: str | None = None) -> Device:
    """The same as pick_device where PyTorch is installed; else the processor, and nothing else is available."""
    check_device(name)
    try:
        return pick_device(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        if name not in (None, "auto", "cpu"):
            raise InvalidRequest(f"device {quoted(name)} needs PyTorch: pip install torch", "device") from error
        return CPU


def pick_threads(n: int | None = None) -> int:
    """How many threads compute: n, but no more than can run at a time here; without n those of `usable_cores`."""
    # torch knows the machine's cores, not what a container or an affinity leaves of them.
    return min(default_threads(), usable_cores()) if n is None else min(n, most_threads())


def default_threads() -> int:
    """As many threads as PyTorch gives to the thread that calls, or one for each core where it was never imported."""
    torch = _imported_torch()
    return int(torch.get_num_threads()) if torch else usable_cores()


def _imported_torch() -> ModuleType | None:
    """PyTorch, if anything has imported it: else no model of it can be here."""
    return sys.modules.get("torch")


def threads_warning(n: int | None) -> str | None:
    """A warning where more threads are wanted than can run at a time; None otherwise."""
    if n is None or n <= (most := most_threads()):
        return None
    who = "the container's limit allows" if container_cores() else "this process may use"
    return f"threads: {most} compute, fewer than were asked for: {who} no more at a time, and others would only wait"


_threads_lock = threading.Lock()


def use_threads(n: int) -> None:
    """Let torch and our kernels compute with n threads in this thread; others keep theirs.

    torch has a number for each thread, but gives to one that begins the number that was set last, wherever that
    was: so what it gave before is set once more.
    """
    torch = _imported_torch()
    if torch is None or n == torch.get_num_threads():
        return
    with _threads_lock:
        given = _in_new_thread(torch.get_num_threads)
        torch.set_num_threads(n)
        _in_new_thread(lambda: torch.set_num_threads(given))


def _in_new_thread(call: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


@contextlib.contextmanager
def with_threads(n: int) -> Iterator[None]:
    """Compute with n threads inside the block; see use_threads."""
    before = default_threads()
    use_threads(n)
    try:
        yield
    finally:
        use_threads(before)


@contextlib.contextmanager
def computing(n: int) -> Iterator[None]:
    """Compute with n threads inside the block, for a model's answers: nothing is kept for gradients."""
    use_threads(n)
    torch = _imported_torch()
    with torch.inference_mode() if torch else contextlib.nullcontext():
        yield


def available_memory(device: Device) -> int:
    """Bytes that can still be taken: on a CPU what the system has, or what is left of a container's limit."""
    if device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(str(device)) - torch.cuda.memory_allocated(str(device))
        return int(torch.cuda.mem_get_info(str(device))[0]) + kept
    if device.type == "mps":
        import torch

        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return system_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the system ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error) if isinstance(error, RuntimeError) else ""
    torch = _imported_torch()
    own = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return own or isinstance(error, MemoryError) or any(text in said for text in NO_MEMORY)


def return_memory(device: Device) -> None:
    """Hand memory that is kept for later back to the system: the allocator's on an accelerator, the C library's."""
    empty_cache(device)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def synchronize(device: Device) -> None:
    """Wait until the device has done all work given to it, so that a clock read now is true."""
    if device.type == "cpu":
        return
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(str(device))
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: Device) -> None:
    """Hand memory that the allocator keeps in reserve back to the system."""
    if device.type == "cpu":
        return
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def memory_in_use(device: Device) -> MemoryUse:
    """Memory in use on the device."""
    if device.type == "cuda":
        import torch

        used, peak = torch.cuda.memory_allocated(str(device)), torch.cuda.max_memory_allocated(str(device))
        return MemoryUse(used, peak, f"tensors on {device}")
    if device.type == "mps":
        import torch

        used = torch.mps.current_allocated_memory()
        return MemoryUse(used, used, "tensors on mps, whose peak is not told")
    # Linux counts into ru_maxrss what the parent had when it started this process; its status file does not.
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = {line[:5]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return MemoryUse(found["VmRSS"], max(found["VmHWM"], found["VmRSS"]), "resident memory of the process")
    if resource is None:
        return MemoryUse(*windows.resident_memory(), "resident memory of the process")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return MemoryUse(peak, peak, "resident memory of the process at its peak; this system does not tell it now")
