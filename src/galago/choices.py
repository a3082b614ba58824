"""Names of precisions, profiles and devices, checked without PyTorch.

PyTorch takes seconds to import, and a mistyped name should not.
"""

import re

from galago.errors import InvalidRequest, quoted

FLOATS = ("float32", "bfloat16", "float16")
BITS = {"int8": 8, "int4": 4}
PRECISIONS = (*FLOATS, *BITS)
PROFILES = ("standard", "optimized")
WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.515625}
"""Bytes of a weight of a linear map, its scales included."""
KV_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2, "int4": 2}
"""Bytes of a number among keys and values."""
LARGE = 100_000_000
"""Parameters from which on a model runs in what is quickest for its device, where nobody says in what."""
DEVICE = r"auto|cpu|mps|cuda(:\d+)?"


def check_precision(name: str | None) -> None:
    if name not in (None, "auto", *PRECISIONS):
        raise InvalidRequest(f"unknown precision {quoted(name)}; use {', '.join(PRECISIONS)}", "precision")


def check_profile(name: str | None) -> None:
    if name not in (None, *PROFILES):
        raise InvalidRequest(f"unknown profile {quoted(name)}; use {' or '.join(PROFILES)}", "profile")


def default_precision(parameters: int, device: str, profile: str | None = None) -> str:
    """The precision of a model with so many parameters on cpu, cuda or mps, where none is named.

    `standard` is float32 wherever the model runs; `optimized` is int8 on a CPU, bfloat16 on CUDA and float16 on MPS.
    Without a profile large models (from LARGE on) are optimized, and small ones, which are quick anyway, standard.
    """
    if profile == "standard" or (profile is None and parameters < LARGE):
        return "float32"
    return {"cpu": "int8", "mps": "float16"}.get(device, "bfloat16")


def check_device(name: str | None) -> None:
    """Raise InvalidRequest unless it names a device, whether or not this machine has it."""
    if name is not None and not re.fullmatch(DEVICE, name):
        raise InvalidRequest(f"unknown device {quoted(name)}; use auto, cpu, cuda or mps", "device")


def check_threads(count: int | None) -> None:
    if count is not None and count < 1:
        raise InvalidRequest("threads must be at least 1", "threads")
