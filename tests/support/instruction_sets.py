"""The instruction sets that the kernels are written for, and those of this machine."""

from typing import Any

import pytest

from galago.kernels import load

ALL = ("avx512-amx", "avx512-vnni-bf16", "avx512-vnni", "avx2-vnni", "avx2", "neon-i8mm", "neon-dotprod")
HERE = [name for name in ALL if load(name)]
HALVES = ("avx512-amx", "avx512-vnni-bf16")
"""Those with products in bfloat16. Attention takes from all keys what they share, in these for int8 alone."""

built = pytest.mark.skipif(load() is None, reason="needs the kernels, which a C++ compiler makes (apt install g++)")


def or_skipped(params: list[Any]) -> list[Any]:
    """The parameters; where this machine has none, one that is skipped and says why."""
    why = "needs the kernels, which a C++ compiler makes (apt install g++)"
    return params or [pytest.param(("none", "none"), marks=pytest.mark.skip(reason=why), id="none")]
