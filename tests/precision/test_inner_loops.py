"""The innermost loops of products, as they were compiled, keep their sums in registers."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from galago.kernels import kernels, load
from galago.kernels.build import LIBRARY
from galago.precision.quantise import quantise
from galago.system.device import with_threads
from galago.system.machine import usable_cores

PRODUCT = re.compile(r"vpdpbusd|vdpbf16ps|vpmaddubsw|vpmaddwd|vpdpwssd|sdot")
"""Of whole numbers or of bfloat16: what products of many rows are made of."""
SPILL = re.compile(r"%[xyz]mm.*\(%r[sb]p|\(%r[sb]p.*%[xyz]mm|q\d+.*\[(sp|x29)")
"""A vector that goes to the stack or comes from it, on x86 and on ARM."""
BRANCH = re.compile(r"(?:j\w+|b\.\w+|cbnz|tbnz)\s.*?\b([0-9a-f]+) <")
IN_MEMORY = re.compile(r"\btile<\d, true>")
"""Sums of a few rows by int4 weights: more than there are registers, which hold those of one group of inputs."""

Loop = tuple[str, list[str]]
"""The function that it is in, and its instructions."""


def innermost(listing: str) -> Iterator[Loop]:
    """The loops that hold no other, of what `objdump -d -C --no-show-raw-insn` prints."""
    for body in re.split(r"\n(?=[0-9a-f]+ <)", listing):
        name = body.partition("\n")[0]
        found = [m.groups() for m in re.finditer(r"^\s*([0-9a-f]+):\s+(.*)$", body, re.M)]
        at = {int(address, 16): i for i, (address, _) in enumerate(found)}
        loops = []
        for i, (_, line) in enumerate(found):
            if (m := BRANCH.match(line)) and at.get(int(m[1], 16), i + 1) <= i:
                loops.append((at[int(m[1], 16)], i))
        for first, last in loops:
            if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
                yield name, [line for _, line in found[first : last + 1]]


def test_products_of_many_rows_keep_their_sums_in_registers() -> None:
    if shutil.which("objdump") is None or load() is None:
        pytest.skip("needs objdump (apt install binutils), and the kernels (apt install g++)")
    listed = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(LIBRARY)], capture_output=True, text=True, check=True
    )
    seen, spilled = 0, []
    for name, loop in innermost(listed.stdout):
        products = sum(bool(PRODUCT.match(line)) for line in loop)
        if products < 4 or IN_MEMORY.search(name):
            continue
        seen += 1
        # A spilled sum is read and written for each product; constants that an instruction reads there cost little.
        if (moves := sum(bool(SPILL.search(line)) for line in loop)) > products / 2:
            spilled.append(f"{name}: {moves} of {len(loop)} instructions read or write the stack")
    assert seen > 0 and spilled == []


def took(rows: int, n: int, n_in: int, threads: int, times: int = 1) -> float:
    """Seconds of so many products of [rows, n_in] by an int8 weight [n, n_in]."""
    k = kernels()
    if k is None or usable_cores() < 2:
        pytest.skip("needs two cores, and the kernels (apt install g++)")
    weight, x = quantise(torch.randn(n, n_in), torch.zeros(n), 8), torch.randn(rows, n_in)
    w = k.weight(weight.panels, weight.total, weight.scale, weight.bias, weight.multiply, weight.n, weight.k, 8)
    with with_threads(threads):
        begin = time.perf_counter()
        for _ in range(times):
            k.gemm(x, w)
        return time.perf_counter() - begin


@pytest.mark.slow
def test_one_thread_takes_twice_as_long_as_two() -> None:
    """A product of 729 rows, the patches of a picture; both in turn."""
    one, two = zip(*((took(729, 4304, 1152, 1), took(729, 4304, 1152, 2)) for _ in range(9)), strict=True)
    assert min(one) / min(two) < 2.5


@pytest.mark.slow
def test_programs_on_the_other_cores_cost_no_more_than_those_cores() -> None:
    """Small products, as decode makes them: thousands a second, each as late as the last of its threads."""

    def steps(threads: int) -> float:
        return took(1, 4096, 1024, threads, times=4_000)

    cores = usable_cores()
    alone = min(steps(1) for _ in range(3))
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(cores - 1)]
    try:
        steps(cores)  # until they are seen to be there
        beside = min(steps(cores) for _ in range(3))
    finally:
        for other in others:
            other.kill()
            other.wait()
    print(f"one thread on a quiet machine {alone:.2f} s, all of them on a busy one {beside:.2f} s")
    assert beside < 1.2 * alone
