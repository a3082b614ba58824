"""Facts for `galago doctor`: the machine, which models it can run, and what keeps them slower than they could be."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from galago.backends.memory_estimate import memory_needed, precision_of
from galago.errors import size_of
from galago.fleet.default_model import MEMORY_SHARE, choose_default_model, photo_models, recommend
from galago.store.catalog import entries
from galago.store.hub import cache_folder, installed
from galago.system.machine import (
    container_cores,
    container_memory,
    cpu_name,
    instruction_sets,
    most_threads,
    system_memory,
    usable_cores,
    withheld_set,
)
from galago.version import INSTALLED

COMPILERS = ("c++", "g++", "clang++")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Advice:
    """What is slow or does not work, and the command that mends it, where there is one."""

    what: str
    command: str | None = None


@dataclass(frozen=True)
class TorchFacts:
    """What PyTorch reports, or why it cannot be imported."""

    version: str | None = None
    error: str | None = None
    device: str = "cpu"
    device_name: str | None = None
    threads: int = 1
    memory: int | None = None
    """bytes that are free on the device, where that is none of the CPU's"""
    kernels: str | None = None
    """the instruction set of our kernels that run, on a CPU"""


def diagnose() -> dict[str, Any]:
    """All that was found, as a JSON object. Takes about as long as importing PyTorch."""
    torch, here = _inspect_torch(), installed()
    free = system_memory()
    budget = int(MEMORY_SHARE * (free if torch.memory is None else torch.memory))
    kind = torch.device.partition(":")[0]
    need = partial(memory_needed, device=kind)
    best = recommend(budget, None, need)
    return {
        "galago": INSTALLED,
        "python": platform.python_version(),
        "pytorch": torch.version,
        "pytorch_error": torch.error,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": {
            "name": cpu_name(),
            "cores": usable_cores(),
            "hardware_threads": most_threads(),
            "machine_threads": os.cpu_count(),
            "container_cores": container_cores(),
            "compute_threads": min(torch.threads, usable_cores()) if torch.version else None,
            "instruction_sets": list(instruction_sets()),
        },
        "device": torch.device,
        "device_name": torch.device_name,
        "kernels": torch.kernels,
        "memory": {
            "free_bytes": free,
            "container_bytes": container_memory(),
            "device_free_bytes": torch.memory,
            "for_models_bytes": budget,
        },
        "disk": [_disk_facts(what, folder) for what, folder in _cache_folders().items()],
        "models": [
            {
                "id": entry.id,
                "installed": entry.id in here,
                "needs": {name: need(entry.id, precision=name) for name in entry.precisions},
                "fits": [name for name in entry.precisions if need(entry.id, precision=name) <= budget],
            }
            for entry in entries()
        ],
        "recommended": {"model": best[1], "precision": precision_of(best[1], device=kind)} if best else None,
        "default": choose_default_model(budget, options={"device": kind}).name,
        "advice": [{"what": a.what, "command": a.command} for a in _advice(torch, budget, best and best[0].id)],
    }


def _inspect_torch() -> TorchFacts:
    try:
        torch = import_module("torch")
        from galago.kernels import kernels
        from galago.system.device import available_memory, pick_device
    except Exception as error:  # missing, or a library that it needs is
        return TorchFacts(error=f"{type(error).__name__}: {error}".splitlines()[0])
    device = pick_device(None)
    found = kernels() if device.type == "cpu" else None
    return TorchFacts(
        version=torch.__version__,
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        memory=None if device.type == "cpu" else available_memory(device),
        kernels=found.name if found else None,
    )


def _cache_folders() -> dict[str, Path]:
    from huggingface_hub import constants

    return {"downloads": Path(constants.HF_HUB_CACHE), "packed copies": cache_folder()}


def _disk_facts(what: str, folder: Path) -> dict[str, Any]:
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    writable = os.access(there, os.W_OK)
    return {"what": what, "folder": str(folder), "free_bytes": shutil.disk_usage(there).free, "writable": writable}


def _advice(torch: TorchFacts, budget: int, best: str | None) -> Iterator[Advice]:
    if torch.version is None:
        what = "PyTorch cannot be imported; without it only what `galago export` wrote runs"
        yield Advice(f"{what} ({torch.error})", "pip install torch")
    else:
        yield from _speed_advice(torch)
    if best is None:
        yield Advice(f"no model for photographs fits in {size_of(budget)} of memory: end other programs, or allow more")
    elif not set(installed()) & {entry.id for entry in photo_models()}:
        yield Advice("no model for photographs is installed", f"galago models pull {best}")
    for disk in (_disk_facts(what, folder) for what, folder in _cache_folders().items()):
        if not disk["writable"]:
            variable = "HF_HOME" if disk["what"] == "downloads" else "GALAGO_CACHE"
            yield Advice(f"{disk['folder']} cannot be written ({disk['what']})", f"export {variable}=/another/folder")
    if find_spec("av") is None:
        yield Advice("videos cannot be read but animated GIF, WebP and PNG", "pip install av")


def _speed_advice(torch: TorchFacts) -> Iterator[Advice]:
    chosen, sets = os.environ.get("GALAGO_KERNELS", ""), instruction_sets()
    if torch.device == "cpu":
        if Path("/dev/nvidia0").exists():
            what = f"there is an NVIDIA GPU that this PyTorch ({torch.version}) does not use"
            yield Advice(what, "pip install --force-reinstall torch" if "+cpu" in str(torch.version) else "nvidia-smi")
        if torch.kernels is None:
            yield _kernel_advice(chosen, sets)
        elif chosen and sets and torch.kernels != sets[0]:
            yield Advice(f"GALAGO_KERNELS keeps to {chosen}, and this processor has {sets[0]}", "unset GALAGO_KERNELS")
        elif refused := withheld_set(torch.kernels):
            yield Advice(f"the system keeps this processor's {refused} from programs: {torch.kernels} is used")
    if torch.threads < usable_cores():
        what = f"PyTorch computes with {torch.threads} of {usable_cores()} cores"
        limiting = [name for name in THREAD_VARIABLES if name in os.environ]
        yield Advice(what, f"unset {' '.join(limiting)}" if limiting else f"galago serve --threads {usable_cores()}")


def _kernel_advice(chosen: str, sets: tuple[str, ...]) -> Advice:
    slow = "galago's own kernels do not run, and PyTorch's are slower in int8 and int4"
    if chosen:
        return Advice(f"{slow}: GALAGO_KERNELS is {chosen}", "unset GALAGO_KERNELS")
    if not sets:
        return Advice(f"{slow}: this processor has none of the instruction sets that they need")
    build = f"{sys.executable} {Path(__file__).parents[1] / 'kernels' / 'build.py'}"
    if not any(map(shutil.which, COMPILERS)):
        compiler = "xcode-select --install" if sys.platform == "darwin" else "apt install g++"
        return Advice(
            f"{slow}: they were not built, as there is no C++ compiler; a wheel of galago has them",
            f"{compiler} && {build}",
        )
    return Advice(f"{slow}: they were not built, or are damaged or of another version", build)
