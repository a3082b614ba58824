"""The instruction sets that the kernels are written for, and those of this machine."""

from typing import Any

import pytest

from galago.kernels import load

ALL = ("avx512-amx", "avx512-vnni-bf16", "avx512-vnni", "avx2", "neon-dotprod")
HERE = [name for name in ALL if load(name)]
WITH_ATTENTION = [name for name in HERE if (found := load(name)) and found.has_attention]
"""Those whose kernels have attention of all to all; others leave it to torch."""

built = pytest.mark.skipif(load() is None, reason="needs the kernels, which a C++ compiler makes (apt install g++)")


def or_skipped(params: list[Any]) -> list[Any]:
    """The parameters; where this machine has none, one that is skipped and says why."""
    why = "needs a processor with AVX-512 and BF16, whose kernels have attention of all to all"
    if not HERE:
        why = "needs the kernels, which a C++ compiler makes (apt install g++)"
    return params or [pytest.param(("none", "none"), marks=pytest.mark.skip(reason=why), id="none")]
