"""Hardware ceilings: how fast the machine reads memory and multiplies matrices."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from galago import kernels as native
from galago.system.device import pick_device, pick_threads, synchronize

READ_BYTES = 1_200_000_000
"""Far more than any cache holds; about what an int8 model of two billion weights reads for a token."""
PRODUCT_SHAPE = (740, 2048, 8192)
"""Rows, inputs and outputs: a layer of Moondream2 over an image's positions."""
BUDGET_S = 1.0
"""Spent on each measurement."""


def measure_ceilings(
    threads: int | None,
    device: str | None,
    read_bytes: int = READ_BYTES,
    shape: tuple[int, int, int] = PRODUCT_SHAPE,
    budget_s: float = BUDGET_S,
) -> dict[str, Any]:
    """{"read_gb_per_s": GB/s, "matmul_tflop_per_s": {type: Tera-operations a second}} of a device, as it sustains them.

    Types that the device cannot multiply are left out. A multiplication and its addition are two operations.
    """
    torch.set_num_threads(pick_threads(threads))
    where = pick_device(device)
    with torch.inference_mode():
        # Ones, not zeros: the system may have a single page stand for all that was never written.
        read = sustained_read([torch.ones(read_bytes // 8, dtype=torch.int64, device=where)], budget_s)
        rows, inner, outer = shape
        operations = 2 * rows * inner * outer
        products = {}
        for name, candidates in _products(shape, where).items():
            times = [t for candidate in candidates if (t := _product_seconds(candidate, where, budget_s)) is not None]
            if times:
                products[name] = operations / min(times) / 1e12
    return {"read_gb_per_s": read, "matmul_tflop_per_s": products}


def mean_seconds(call: Callable[[], object], where: torch.device, budget_s: float, least: int = 3) -> float:
    """Seconds of a call on average, after one to warm up, over as many as fit into the budget, and `least` at least.

    Not of the fastest: what it is compared with takes seconds too, and meets the machine's slower moments.
    """
    call()
    synchronize(where)
    begin, count = time.perf_counter(), 0
    while True:
        call()
        synchronize(where)
        count, spent = count + 1, time.perf_counter() - begin
        if count >= least and spent >= budget_s:
            return spent / count


def sustained_read(tensors: Sequence[torch.Tensor], budget_s: float) -> float:
    """GB/s of reading contiguous tensors one after another, as the device sustains it."""
    where = tensors[0].device
    best = native.kernels() if where.type == "cpu" else None

    def one(tensor: torch.Tensor) -> object:
        return best.read(tensor) if best else torch.sum(tensor)

    numbers = [t.reshape(-1).view(torch.int32) for t in tensors]
    return sum(t.nbytes for t in tensors) / mean_seconds(lambda: [one(t) for t in numbers], where, budget_s) / 1e9


def _products(shape: tuple[int, int, int], where: torch.device) -> dict[str, list[Callable[[], Callable[[], object]]]]:
    """By type, the ways to multiply x [rows, inner] by w [outer, inner] transposed; each prepares itself first."""
    rows, inner, outer = shape

    def floating(dtype: torch.dtype) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            x, w = (torch.randn(n, inner, device=where).to(dtype) for n in (rows, outer))
            return lambda: x @ w.T

        return prepare

    def integers() -> Callable[[], object]:
        x, w = (torch.randint(-127, 128, (n, inner), dtype=torch.int8, device=where) for n in (rows, outer))
        return lambda: torch._int_mm(x, w.T)

    def onednn() -> Callable[[], object]:
        torch.backends.quantized.engine = "onednn"
        x, w = torch.randn(rows, inner), torch.randn(outer, inner)
        scales, zeros = torch.full((outer,), 0.03), torch.zeros(outer, dtype=torch.int64)
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(w, scales, zeros, 0, torch.qint8), None)
        return lambda: torch.ops.quantized.linear_dynamic(x, packed)

    on_cpu = where.type == "cpu"
    dynamic = [onednn] if on_cpu and "onednn" in torch.backends.quantized.supported_engines else []
    return {
        "float32": [floating(torch.float32)],
        "bfloat16": [floating(torch.bfloat16)],
        # On a CPU it is many times slower than float32, and nobody's choice.
        **({} if on_cpu else {"float16": [floating(torch.float16)]}),
        "int8": [integers, *dynamic],
    }


def _product_seconds(prepare: Callable[[], Callable[[], object]], where: torch.device, budget_s: float) -> float | None:
    """Seconds of a product; None where this device or this torch has no such product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are said to go away some day
        try:
            return mean_seconds(prepare(), where, budget_s)
        except (RuntimeError, NotImplementedError, AttributeError):
            return None
