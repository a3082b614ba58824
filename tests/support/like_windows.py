"""Makes this process look to galago as one on Windows does, as far as that can be had on another system.

Run as a program: imports every module of galago, and prints as JSON which they are and what one question gave.
"""

import ctypes
import importlib
import json
import mmap
import os
import pkgutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

MODULES = ("curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
OS_NAMES = """
chown chroot confstr fchdir fdatasync fstatvfs posix_fadvise posix_fallocate posix_spawn statvfs ctermid fchmod fchown
fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getsid getuid initgroups killpg
lchown lockf major minor mkfifo mknod nice openpty pathconf pread preadv pwrite pwritev readv register_at_fork
sched_getaffinity sched_setaffinity sched_yield sendfile setgid setpgid setpriority setsid setuid sync sysconf tcgetpgrp
ttyname uname wait wait3 wait4 writev O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC SEEK_DATA WNOHANG
"""
SIGNAL_NAMES = """
SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH pthread_kill
pthread_sigmask setitimer sigwait alarm pause siginterrupt
"""
MMAP_NAMES = "madvise MADV_DONTNEED PROT_READ PROT_WRITE MAP_PRIVATE MAP_SHARED"
EXTRAS = {"ray"}
"""What a module of ours may need that the tests do without."""
OTHERS = """
torch torch.utils._pytree numpy PIL.Image safetensors.torch tokenizers huggingface_hub fastapi uvicorn
uvicorn.protocols.http.h11_impl jinja2 h11 httpx typer rich.console rich.progress prometheus_client llguidance
anyio.to_thread asyncio concurrent.futures multiprocessing subprocess tempfile shutil av onnx onnxruntime
torch.distributed.elastic.timer transformers.modeling_utils transformers.processing_utils
transformers.models.auto.image_processing_auto transformers.models.auto.tokenization_auto ray.data ray.serve
"""
"""What galago imports: its own ways on Windows are its own to test."""
UNIX_FOLDERS = ("/proc", "/sys", "/dev")


class Kernel32:
    """Two calls of the library kernel32, for a machine with 3 GB free and a process of 1 GB that had 2."""

    def __init__(self, name: str) -> None:
        assert name == "kernel32"

        def get_current_process() -> int:
            return -1

        self.GetCurrentProcess = get_current_process

    def GlobalMemoryStatusEx(self, status: Any) -> int:
        found = status._obj
        assert found.length == ctypes.sizeof(found) == 64
        found.free_physical = 3 << 30
        return 1

    def K32GetProcessMemoryInfo(self, process: ctypes.c_void_p, counters: Any, size: int) -> int:
        found = counters._obj
        assert ctypes.c_ssize_t(process.value or 0).value == -1 and size == ctypes.sizeof(found) == 72
        found.used, found.peak = 1 << 30, 2 << 30
        return 1


def pretend() -> None:
    """Take away what Windows lacks; what other packages need of it they have imported before."""
    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]  # an import of it raises ModuleNotFoundError
    for owner, names in ((os, OS_NAMES), (signal, SIGNAL_NAMES), (mmap, MMAP_NAMES)):
        for name in names.split():
            owner.__dict__.pop(name, None)
    ctypes.WinDLL = Kernel32  # type: ignore[attr-defined]
    sys.addaudithook(no_unix_folders)


def no_unix_folders(event: str, args: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str | bytes | os.PathLike):
        path = os.fsdecode(args[0])
        if path.startswith(UNIX_FOLDERS) and path != os.devnull:
            raise FileNotFoundError(2, "there is no such folder on Windows", path)


def main(picture: str) -> None:
    for package in OTHERS.split():
        with suppress(ModuleNotFoundError):  # an extra that is not installed
            importlib.import_module(package)
    pretend()
    import galago

    modules = pkgutil.walk_packages(galago.__path__, "galago.")
    # Neither programs nor the library, which is no module.
    names = [module.name for module in modules if "._" not in module.name]
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
    from galago.system.device import memory_in_use
    from galago.system.machine import system_memory
    from galago.system.signals import STOP_SIGNALS

    with galago.load("scenes") as model:
        answer = model.query(Path(picture), "What color is the circle?")["answer"]
        used = memory_in_use(importlib.import_module("torch").device("cpu"))
        facts = {"answer": answer, "kernels": model.kernels, "free": system_memory(), "used": [used.used, used.peak]}
    print(json.dumps({"modules": names, "stopping": [number.name for number in STOP_SIGNALS], **facts}))


if __name__ == "__main__":
    main(sys.argv[1])
