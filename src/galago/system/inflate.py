"""Decompressing HTTP bodies, within a bound."""

import zlib

CODINGS = ("gzip", "deflate")
"""Content codings that are unpacked here."""


class TooLarge(ValueError):
    """The body would be larger than the bound."""


def parse_codings(header: str) -> list[str]:
    """The codings of a Content-Encoding header, in the order in which they were applied."""
    names = [name.strip().lower().removeprefix("x-") for name in header.split(",")]
    return [name for name in names if name not in ("", "identity")]


def inflate(data: bytes, most: int) -> bytes:
    """Decompress gzip or deflate (zlib's format) data of at most `most` bytes.

    No more than that is ever unpacked. Raises TooLarge, and ValueError for what is damaged, ends early or goes on.
    """
    # 32 more than the window's bits: both formats, told apart by their heads.
    unpacking = zlib.decompressobj(zlib.MAX_WBITS + 32)
    try:
        made = unpacking.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(made) > most:
        raise TooLarge(f"larger than {most} bytes")
    if not unpacking.eof:
        raise ValueError("it ends early")
    # Members could be millions, each of which would move all that follows it.
    if unpacking.unused_data:
        raise ValueError("something follows its end")
    return made
