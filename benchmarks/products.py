"""What products and attention of many rows reach with each set of kernels, beside PyTorch's own on the same machine.

    python benchmarks/products.py --threads 2
    python benchmarks/products.py --rows 8 16 --sets avx512-amx avx2

Shapes are those of Moondream2 and of SmolVLM's vision tower. Products: tera-operations a second by int8 weights, beside
oneDNN's dynamic int8 linear, in which the rows are quantised too; weights change from call to call, 100 MB of them, so
that they come from memory. Attention: milliseconds, beside PyTorch's in bfloat16. The sets take turns, and of each the
best of all rounds counts.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from galago.kernels import Kernels, load
from galago.precision.quantise import quantise
from galago.system.machine import SETS, cpu_name

PRODUCTS = {"vision qkv": (1152, 3456), "vision fc1": (1152, 4304), "vision fc2": (4304, 1152)} | {
    "text qkv": (2048, 6144),
    "text fc1": (2048, 8192),
    "text fc2": (8192, 2048),
}
ATTENTION = {"Moondream2's vision": (16, 729, 72), "its text": (32, 735, 64), "SmolVLM's vision": (12, 1024, 64)}
IN_ALL = 100_000_000


def best_of(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the quickest of so many calls of each, which take turns."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            found[name] = min(found[name], time.perf_counter() - begin)
    return found


def products(n_in: int, n_out: int, rows: int, sets: dict[str, Kernels]) -> dict[str, Callable[[], object]]:
    """For each set, and oneDNN, a call that multiplies the rows by one weight after another."""
    copies = max(2, IN_ALL // (n_in * n_out))
    x, weight = torch.randn(rows, n_in), torch.randn(n_out, n_in) * 0.02
    one = quantise(weight, torch.zeros(n_out), 8)
    kept = [dataclasses.replace(one, panels=one.panels.clone()) for _ in range(copies)]
    calls: dict[str, Callable[[], object]] = {}
    for name, k in sets.items():
        handles = [k.weight(w.panels, w.total, w.scale, w.bias, w.multiply, w.n, w.k, 8) for w in kept]
        calls[name] = partial(lambda k, handles: [k.gemm(x, h) for h in handles], k, handles)
    scale, zero = torch.full((n_out,), 0.001, dtype=torch.float64), torch.zeros(n_out, dtype=torch.int64)
    quantised = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
    packed = [torch.ops.quantized.linear_prepack(quantised, torch.zeros(n_out)) for _ in range(copies)]
    calls["oneDNN"] = lambda: [torch.ops.quantized.linear_dynamic(x, w, True) for w in packed]
    return calls


def attention(heads: int, t: int, dim: int, sets: dict[str, Kernels]) -> dict[str, Callable[[], object]]:
    q, k, v = torch.randn(3, 1, t, heads, dim).transpose(2, 3)
    calls: dict[str, Callable[[], object]] = {
        name: partial(kernels.attention, q, k, v, int8=True) for name, kernels in sets.items()
    }
    halves = [x.bfloat16() for x in (q, k, v)]
    calls["PyTorch"] = partial(F.scaled_dot_product_attention, *halves)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [name for name in SETS if load(name)]
    parser.add_argument("--sets", nargs="+", choices=here, default=here)
    parser.add_argument("--rows", nargs="+", type=int, default=[729])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.quantized.engine = "onednn"
    sets = {name: found for name in args.sets if (found := load(name))}
    columns = [*sets, "PyTorch"]
    print(f"{cpu_name()}, {args.threads} threads\n\n| | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for rows in args.rows:
        for what, (n_in, n_out) in PRODUCTS.items():
            calls = products(n_in, n_out, rows, sets)
            done = 2 * rows * n_in * n_out * max(2, IN_ALL // (n_in * n_out)) / 1e12
            figures = (f"{done / seconds:.2f}" for seconds in best_of(calls, args.rounds).values())
            print(f"| {what}, {rows} x {n_in} x {n_out}, Top/s | {' | '.join(figures)} |", flush=True)
    for what, (heads, t, dim) in ATTENTION.items():
        took = best_of(attention(heads, t, dim, sets), 4 * args.rounds)
        figures = (f"{took[name] * 1e3:.1f}" if name in took else "-" for name in columns)
        print(f"| attention, {what}, {heads} x {t} x {dim}, ms | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
