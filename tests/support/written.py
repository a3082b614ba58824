"""Image files written by hand, sample by sample: no library stands between the pixels and what is read of them."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

Samples = np.ndarray
"""[height, width, channels] of whole numbers or floats"""


def packed(samples: Samples, bits: int, order: str = ">") -> bytes:
    """Rows of samples of so many bits, padded to whole bytes; floats and 16 bits and more in this byte order."""
    if samples.dtype.kind == "f":
        return samples.astype(f"{order}f{bits // 8}").tobytes()
    if bits >= 8:
        return samples.astype(f"{order}{'i' if samples.min() < 0 else 'u'}{bits // 8}").tobytes()
    each = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(each.reshape(len(samples), -1), axis=1).tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: Samples,
    bits: int = 8,
    *,
    palette: Sequence[int] | None = None,
    transparent: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """`transparent` is what tRNS holds; `before` and `after` are chunks around the image data."""
    height, width, channels = samples.shape
    kind = 3 if palette is not None else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = (
        [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        if interlaced
        else [(0, 0, 1, 1)]
    )
    rows = b""
    for y, x, down, across in passes:
        part = samples[y::down, x::across]
        if part.size:
            rows += b"".join(b"\0" + packed(row[None], bits) for row in part)
    made = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    if palette is not None:
        made += chunk(b"PLTE", bytes(palette))
    if transparent is not None:
        made += chunk(b"tRNS", transparent)
    return made + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def tiff(
    samples: Samples,
    bits: int = 8,
    *,
    photometric: int | None = None,
    order: str = "<",
    planar: bool = False,
    deflated: bool = False,
    rows: int | None = None,
    tags: Mapping[int, Sequence[int]] = {},
) -> bytes:
    """`rows` are those of a strip; `tags` are further ones, of 16 bits each. 0 of a grey is black unless told."""
    height, width, channels = samples.shape
    kind = {"f": 3, "i": 2}.get(samples.dtype.kind, 1)
    rows = rows or height
    planes = [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]
    strips = [packed(p[top : top + rows], bits, order) for p in planes for top in range(0, height, rows)]
    if deflated:
        strips = [zlib.compress(strip) for strip in strips]
    entries: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [8 if deflated else 1],
        262: [photometric if photometric is not None else 1 if channels < 3 else 2],
        277: [channels],
        278: [rows],
        284: [2 if planar else 1],
        339: [kind] * channels,
        **tags,
    }
    ends = np.cumsum([8, *map(len, strips)]).tolist()
    long = {273: ends[:-1], 279: [len(strip) for strip in strips]}
    wide, body = b"", b""
    at = ends[-1]
    places = at + 2 + 12 * (len(entries) + len(long)) + 4
    for tag in sorted({**entries, **long}):
        values, size = (long[tag], "I") if tag in long else (entries[tag], "H")
        data = struct.pack(f"{order}{len(values)}{size}", *values)
        if len(data) > 4:
            wide, data = wide + data, struct.pack(f"{order}I", places + len(wide))
        body += struct.pack(f"{order}HHI", tag, 4 if size == "I" else 3, len(values)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, at)
    count = struct.pack(f"{order}H", len(entries) + len(long))
    return head + b"".join(strips) + count + body + bytes(4) + wide


def pnm(magic: str, samples: Samples, most: int | None = None, comment: str = "") -> bytes:
    """P1 to P6; `most` is the value of white."""
    height, width, _ = samples.shape
    head = f"{magic}\n{comment}{width} {height}\n" + (f"{most}\n" if most else "")
    if magic in ("P1", "P2", "P3"):
        text = "\n".join(" ".join(map(str, row.reshape(-1).tolist())) for row in samples)
        return (head + text + "\n").encode()
    return head.encode() + packed(samples, 1 if magic == "P4" else 8 if most and most < 256 else 16)


def pfm(samples: Samples, order: str = "<") -> bytes:
    """Grey, rows from below; a scale below 0 tells the little end first."""
    height, width, _ = samples.shape
    return f"Pf\n{width} {height}\n{'-' if order == '<' else ''}1.0\n".encode() + packed(samples[::-1], 32, order)


def bmp(
    samples: Samples,
    bits: int,
    *,
    palette: Sequence[Sequence[int]] = (),
    masks: Sequence[int] = (),
    upside: bool = False,
) -> bytes:
    """Samples are indices, packed pixels of 16 bits, or BGR(A); with masks its header is the fifth version's."""
    height, width, _ = samples.shape
    raw = samples if upside else samples[::-1]
    line = -(-width * bits // 32) * 4
    rows = b"".join(packed(row[None], min(bits, 8) if bits != 16 else 16, "<").ljust(line, b"\0") for row in raw)
    size = 124 if masks else 40
    colours = b"".join(bytes((b, g, r, 0)) for r, g, b in palette)
    offset = 14 + size + len(colours)
    info = struct.pack(
        "<IiiHHIIiiII", size, width, -height if upside else height, 1, bits, 3 if masks else 0, len(rows), 0, 0,
        len(palette), 0,
    )  # fmt: skip
    if masks:
        info += struct.pack("<4I", *masks).ljust(size - 40, b"\0")
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + info + colours + rows


def gif(
    samples: Samples,
    palette: Sequence[Sequence[int]],
    *,
    transparent: int | None = None,
    local: bool = False,
    canvas: tuple[int, int] | None = None,
    at: tuple[int, int] = (0, 0),
) -> bytes:
    """Indices below 128, in codes of 8 bits that are cleared before they grow; `canvas` is width, height, `at` x, y."""
    height, width, _ = samples.shape
    table = b"".join(map(bytes, palette)).ljust(3 * 128, b"\0")
    wide, high = canvas or (width, height)
    made = b"GIF89a" + struct.pack("<HHBBB", wide, high, 0 if local else 0xF6, 0, 0) + (b"" if local else table)
    if transparent is not None:
        made += b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    made += b"," + struct.pack("<HHHHB", *at, width, height, 0x86 if local else 0) + (table if local else b"")
    flat = samples.reshape(-1).tolist()
    codes = bytes(code for i, index in enumerate(flat) for code in ([128] if i % 100 == 0 else []) + [index]) + b"\x81"
    blocks = b"".join(bytes([len(codes[i : i + 255])]) + codes[i : i + 255] for i in range(0, len(codes), 255))
    return made + b"\x07" + blocks + b"\0;"


def tga(samples: Samples, *, upside: bool = True, footer: bool = False) -> bytes:
    """Grey, BGR or BGRA of 8 bits; `upside` has the first row first."""
    height, width, channels = samples.shape
    kind = 3 if channels == 1 else 2
    flags = (0x20 if upside else 0) | (8 if channels == 4 else 0)
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, width, height, 8 * channels, flags)
    rows = (samples if upside else samples[::-1]).astype(np.uint8).tobytes()
    return head + rows + (bytes(8) + b"TRUEVISION-XFILE.\0" if footer else b"")


def ico(*pictures: tuple[int, int, bytes]) -> bytes:
    """Width, height and the file of each: a PNG, or what stands in a BMP behind its first 14 bytes, with a mask."""
    at, entries = 6 + 16 * len(pictures), b""
    for width, height, data in pictures:
        entries += struct.pack("<BBBBHHII", width % 256, height % 256, 0, 0, 1, 32, len(data), at)
        at += len(data)
    return struct.pack("<HHH", 0, 1, len(pictures)) + entries + b"".join(data for *_, data in pictures)
