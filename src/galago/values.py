"""The plain values that requests are made of, and checks of them."""

import re
from typing import Any

from galago.errors import InvalidRequest

Box = tuple[float, float, float, float]
"""x_min, y_min, x_max, y_max"""
Spot = tuple[float, float]
"""x, y"""


def is_number(value: Any) -> bool:
    """Whether it is a number; True and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and 1.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool)


_HALVES = re.compile("[\ud800-\udfff]")


def is_text(value: Any) -> bool:
    """Whether it is a text of whole characters: half of a surrogate pair, which JSON can spell, no tokenizer takes."""
    return isinstance(value, str) and (value.isascii() or not _HALVES.search(value))


def check(holds: Any, param: str, allowed: str) -> None:
    if not holds:
        raise InvalidRequest(f"{param} must be {allowed}", param)
