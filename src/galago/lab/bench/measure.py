"""Measuring one case, in a child process."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

import galago
from galago.backends.backend import NATIVE
from galago.backends.memory_estimate import model_entry, precision_of
from galago.backends.native import Native
from galago.choices import BITS
from galago.families.family import LoadedModel
from galago.families.work import Work
from galago.lab.bench.case import BenchCase
from galago.lab.bench.ceilings import sustained_read
from galago.lab.bench.processes import ChildMessage
from galago.media.clip import Clip
from galago.request import Caption, Done, Query, Request, Sampling
from galago.store import hub
from galago.store.packing import packed_copy
from galago.system.device import CPU, memory_in_use
from galago.system.machine import usable_cores

READ_S = 0.3
"""Spent after each caption on reading the weights."""
FOLLOW_UP = "What is on the left?"
"""Asked about each image after its caption: what the cache of images saves."""


def warm_files(case: BenchCase) -> None:
    """Pack the weights if that was not done yet, and read their files into the system's cache.

    Both would make the process that measures unlike those that come later; a process of many gigabytes that ran
    before may have driven the files out of memory, and the disk is not what is measured.
    """
    entry = model_entry(case.model)
    paths: Sequence[Path] = hub.files_of(entry) or ()
    if entry.backend == NATIVE:
        files = hub.locate(case.model)
        wanted = precision_of(case.model, precision=case.precision, device=case.device)
        paths = packed_copy(files, wanted, lambda done, total: None).weights if wanted in BITS else files.weights
    else:  # what it keeps between loads is its own matter
        galago.load(case.model, precision=case.precision, device=case.device, threads=case.threads).close()
    chunk = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(chunk):
                pass


def measure_case(case: BenchCase, started: float, tell: Callable[[ChildMessage], None]) -> None:
    """Load a model and caption images with it, telling `loaded`, a `run` for each caption, and `end`.

    The first run has `ready_s` too, when the first image was encoded, and the peaks of memory. `started` is when
    the process was started, on the monotonic clock, which all processes share. Each run has `read_gb_per_s`, how
    fast a plain read of the weights is that its decode steps had to read: right after them, since a virtual
    machine's share of the memory's speed changes within seconds.
    """
    with galago.load(case.model, precision=case.precision, device=case.device, threads=case.threads) as model:
        load_s = time.monotonic() - started
        torch.set_num_threads(model.threads)  # for what this thread reads
        backend, seen = model.backend, ((case.width, case.height), case.frames, case.detail)
        work = cast(LoadedModel, backend.model).work(*seen) if isinstance(backend, Native) else None
        tell(
            {
                "event": "loaded",
                "load_s": load_s,
                "model": model.name,
                "precision": model.precision,
                "device": model.device,
                "cores": usable_cores(),
                "threads": model.threads,
                "torch": f"{torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
                "kernels": model.kernels,
                **(_work_facts(work) if work else {}),
            }
        )
        weights = work.decode if work else ()
        for number in range(case.runs):
            before = time.monotonic() - started
            run = _time_caption(model, case, number)
            first = {}
            if number == 0:
                # Of one image: the cache keeps those of further ones.
                first = {"ready_s": before + run["encode_s"], **_peak_memory(model)}
            read = {"read_gb_per_s": sustained_read(weights, READ_S)} if weights else {}
            tell({"event": "run", **run, **first, **read})
        tell({"event": "end", "peak_of_all_bytes": _peak_rss()})


def _work_facts(work: Work) -> ChildMessage:
    """`crops`, `decode_bytes` a step, `prefill_flop` a position, `encode_flop` an image or clip."""
    read = sum(t.nbytes for t in work.decode)
    return {"crops": work.crops, "decode_bytes": read, "prefill_flop": work.prefill, "encode_flop": work.encode}


def _peak_memory(model: "galago.Model") -> dict[str, int]:
    device, peaks = torch.device(model.device), {"peak_rss_bytes": _peak_rss()}
    return peaks if device.type == "cpu" else peaks | {"peak_device_bytes": memory_in_use(device).peak}


def _peak_rss() -> int:
    """Of this process, and on Linux of a llama-server that it started, which holds the model."""
    peak = memory_in_use(CPU).peak
    for status in _child_statuses():
        peak += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return peak


def _child_statuses() -> Iterator[str]:
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            yield Path(f"/proc/{child}/status").read_text()


def _noise_input(case: BenchCase, number: int) -> Image.Image | Clip:
    # Another image each time, so that no cache of images has it already; the same ones for every case.
    shape = (max(1, case.frames), case.height, case.width, 3)
    images = [Image.fromarray(p) for p in np.random.default_rng(number).integers(0, 256, shape, np.uint8)]
    return Clip(tuple(images), tuple(map(float, range(case.frames))), case.frames) if case.frames else images[0]


def _run(model: "galago.Model", request: Request) -> Done:
    return next(event for event in model.submit(request) if isinstance(event, Done))


def _time_caption(model: "galago.Model", case: BenchCase, number: int) -> ChildMessage:
    shown = _noise_input(case, number)
    done = _run(model, Request(Caption("normal"), shown, Sampling(max_tokens=case.tokens), detail=case.detail))
    again = _run(model, Request(Query(FOLLOW_UP), shown, Sampling(max_tokens=1), detail=case.detail)).timings
    times, made = done.timings, done.usage.completion_tokens
    # The first token comes from the prompt's last position. After the last one nothing is computed, unless the
    # model had to say that it was the last.
    steps = made if done.finish_reason == "stop" else made - 1
    return {
        "encode_s": times.encode_s,
        "prefill_s": times.prefill_s,
        # Not Timings.ttft_s, which waits for text to show: random tokens may make none.
        "ttft_s": times.encode_s + times.prefill_s,
        "again_s": again.encode_s + again.prefill_s,
        "decode_s": times.decode_s,
        "decode_tokens_per_s": steps / times.decode_s if steps > 0 else None,
        "total_s": times.total_s,
        "tokens": made,
        "prompt_tokens": done.usage.prompt_tokens,
    }
