"""The head of a GGUF file: its fields, and which tensors it has. The weights themselves llama.cpp reads."""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galago.checkpoint.tensors import Damaged
from galago.errors import CheckpointError, quoted

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of numbers, by how struct calls them."""
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 30: (1, 2),
}  # fmt: skip
"""Types of tensors: so many values take so many bytes. Of others only the beginning is known."""
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
}  # fmt: skip
"""What general.file_type says of how the weights are stored."""


@dataclass(frozen=True)
class GGUFHead:
    """What a file says of its model."""

    fields: Mapping[str, Any]
    parameters: int
    """values of all tensors"""

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    @property
    def precision(self) -> str:
        """How most weights are stored, such as Q4_K_M."""
        return FILE_TYPES.get(self.fields.get("general.file_type", -1), "GGUF")

    def of_text(self, name: str, default: int) -> int:
        """A whole number that the architecture has, such as block_count; the largest where each layer has its own."""
        value = self.fields.get(f"{self.architecture}.{name}", default)
        return int(max(value, default=default) if isinstance(value, list) else value)


def read_head(path: Path) -> GGUFHead:
    """Read what stands before the weights. Raises CheckpointError for a file that is none, or is cut off."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != MAGIC:
                raise Damaged(f"{path} is not a GGUF file: it begins with {quoted(data[:4])}")
            return _Reader(data, path).head()
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise Damaged(f"{path} is damaged, or not all of it is there") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise Damaged(f"{path} is empty") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 4

    def head(self) -> GGUFHead:
        version = self._number("I")
        if version not in VERSIONS:
            raise CheckpointError(f"{self._path} is GGUF version {version}; 2 and 3 are read")
        tensors, count = self._number("Q"), self._number("Q")
        fields = {self._string(): self._value(self._number("I")) for _ in range(count)}
        parameters, ends = 0, [0]
        for _ in range(tensors):
            self._string()
            values = math.prod(self._number("Q") for _ in range(self._number("I")))
            kind, offset = self._number("I"), self._number("Q")
            per, size = BLOCKS.get(kind, (1, 0))
            parameters += values
            ends.append(offset + values // per * size)
        align = fields.get("general.alignment", 32)
        if -(-self._at // align) * align + max(ends) > len(self._data):
            raise Damaged(f"{self._path} is cut off: it has {len(self._data):,} bytes, and its tensors go on")
        return GGUFHead(fields, parameters)

    def _number(self, kind: str) -> Any:
        [value] = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value

    def _string(self) -> str:
        size = self._number("Q")
        if size > len(self._data) - self._at:
            raise IndexError
        self._at += size
        return self._data[self._at - size : self._at].decode("utf-8", "surrogateescape")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(SCALARS[kind]) if kind in SCALARS else self._unknown(kind)
        kind, count = self._number("I"), self._number("Q")
        if kind in SCALARS:
            size = struct.calcsize(f"<{SCALARS[kind]}")
            if size * count > len(self._data) - self._at:
                raise IndexError
            self._at += size * count
            return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self._data, self._at - size * count))
        return [self._value(kind) for _ in range(count)]

    def _unknown(self, kind: int) -> None:
        raise Damaged(f"{self._path} is damaged: it has a field of the unknown type {kind}")
