"""Bodies that a server open to strangers will be sent one day, each with the statuses that are an answer to it."""

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms

CHAT, CAPTION, QUERY, DETECT, POINT = "/v1/chat/completions", "/v1/caption", "/v1/query", "/v1/detect", "/v1/point"
BAD = frozenset({400})
ODD = frozenset({200})
"""unusual, and yet in order"""
EITHER = frozenset({200, 400})


@dataclass(frozen=True)
class Hostile:
    name: str
    path: str
    body: bytes
    statuses: frozenset[int] = BAD


def bodies() -> list[Hostile]:
    """All of them, the same each time."""
    return [*truncated(), *mutated(), *bombs(), *not_images(), *odd_images(), *urls(), *not_json(), *wrong_json()]


def chat(url: Any, **more: Any) -> bytes:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 4, **more}).encode()


def with_image(name: str, data: bytes, statuses: frozenset[int] = BAD, mime: str = "image/png") -> Iterator[Hostile]:
    """The same image for a skill of each dialect, by turns of its name."""
    url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    settings = {"settings": {"max_tokens": 4}}
    each = (
        (CHAT, chat(url)),
        (CAPTION, json.dumps({"image_url": url, "length": "short", **settings}).encode()),
        (POINT, json.dumps({"image_url": url, "object": "circle", "settings": {"max_objects": 1}}).encode()),
    )
    path, body = each[zlib.crc32(name.encode()) % len(each)]
    yield Hostile(name, path, body, statuses)


# --- images -----------------------------------------------------------------------------------


def picture(size: tuple[int, int] = (80, 60)) -> Image.Image:
    """Noise, which no format stores in a few bytes."""
    return Image.frombytes("RGB", size, random.Random(5).randbytes(3 * size[0] * size[1]))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def truncated() -> Iterator[Hostile]:
    for kind in KINDS:
        whole = encoded(picture(), kind)
        for tenths in range(9):
            cut = len(whole) * tenths // 10
            yield from with_image(f"{kind} cut at {tenths}0 %", whole[: max(cut, 1)])


def mutated() -> Iterator[Hostile]:
    for kind in KINDS:
        whole = encoded(picture(), kind)
        for seed in range(12):
            chance = random.Random(f"{kind}{seed}")
            data = bytearray(whole)
            for _ in range(1 + seed * 3):
                data[chance.randrange(len(data) if seed % 2 else 64)] = chance.randrange(256)
            yield from with_image(f"{kind} with wrong bytes {seed}", bytes(data), EITHER)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *extra: bytes, bits: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join((b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")))


def bombs() -> Iterator[Hostile]:
    nothing = zlib.compress(b"")
    for width, height in ((10_000, 10_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 7), (7, 0)):
        yield from with_image(f"PNG head of {width} x {height}", png(width, height, nothing))
    yield from with_image("PNG of 100 megapixels", png(10_000, 10_000, zlib.compress(bytes(10_001 * 10_000), 9)))
    yield from with_image(
        "PNG of one bit 100 megapixels", png(10_000, 10_000, zlib.compress(bytes(1251 * 10_000)), bits=1)
    )
    text = zlib.compress(bytes(200 << 20), 9)
    small = zlib.compress(bytes(9 * 8))
    # Neither is looked at.
    yield from with_image("PNG with a text of 200 MB", png(8, 8, small, chunk(b"zTXt", b"a\0\0" + text)), ODD)
    yield from with_image("PNG with a profile of 200 MB", png(8, 8, small, chunk(b"iCCP", b"a\0\0" + text)), ODD)
    yield from with_image("PNG with more pixels than its size", png(8, 8, zlib.compress(bytes(50 << 20))), EITHER)
    gif = (
        b"GIF89a"
        + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0)
    )
    yield from with_image("GIF of 65535 squared", gif + b"\x02\x02\x4c\x01\x00\x3b")
    jpeg = bytearray(encoded(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    yield from with_image("JPEG of 65500 squared", bytes(jpeg))
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**30, 2**30)
    yield from with_image("BMP of 2^30 squared", bytes(bmp))
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6
    yield from with_image("WebP of 2^24 squared", webp)
    tiff = bytearray(encoded(Image.new("L", (8, 8)), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(
            struct.pack("<HH", tag, 4) if struct.pack("<HH", tag, 4) in tiff else struct.pack("<HH", tag, 3)
        )
        tiff[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 2**30)
    yield from with_image("TIFF of 2^30 squared", bytes(tiff))
    yield from with_image("PPM of 10^9 squared", b"P6 1000000000 1000000000 255\n" + bytes(64))


def not_images() -> Iterator[Hostile]:
    for name, data in {
        "text": b"hello",
        "a zero": b"\0",
        "zeros": bytes(5000),
        "HTML": b"<html><img src=x></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n",
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>",
        "ZIP": b"PK\x03\x04" + bytes(60),
        "ELF": b"\x7fELF" + bytes(60),
        "gzip": b"\x1f\x8b\x08" + bytes(60),
        "MP4": b"\0\0\0\x18ftypisom" + bytes(60),
        "PSD": b"8BPS\0\x01" + bytes(60),
        "ICO": b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0\x68\x04\0\0\x16\0\0\0" + bytes(60),
        "FLI": bytes(4) + b"\x11\xaf" + bytes(120),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    }.items():
        yield from with_image(f"{name} for an image", data)


def odd_images() -> Iterator[Hostile]:
    small = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = [Image.new("P", (40, 30), n) for n in range(30)]
    for name, data in {
        "1 x 1": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "1 x 2000": encoded(Image.new("RGB", (1, 2000)), "PNG"),
        "2000 x 1": encoded(Image.new("RGB", (2000, 1)), "PNG"),
        "CMYK": encoded(small.convert("CMYK"), "JPEG"),
        "16 bit": encoded(Image.new("I;16", (40, 30), 40_000), "PNG"),
        "one bit": encoded(small.convert("1"), "PNG"),
        "grey with alpha": encoded(small.convert("LA"), "PNG"),
        "all transparent": encoded(Image.new("RGBA", (40, 30)), "PNG"),
        "palette": encoded(small.convert("P"), "PNG", transparency=0),
        "animated GIF": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated WebP": encoded(small, "WEBP", save_all=True, append_images=[small.rotate(90)]),
        "turned by EXIF": encoded(small, "JPEG", exif=exif),
        "with a profile": encoded(small, "JPEG", icc_profile=profile),
        "with a broken profile": encoded(small, "JPEG", icc_profile=b"no profile" * 50),
        "progressive": encoded(small, "JPEG", progressive=True),
        "float TIFF": encoded(Image.new("F", (40, 30), 0.5), "TIFF"),
    }.items():
        yield from with_image(name, data, ODD)
    yield from with_image("JPEG said to be PNG", encoded(small, "JPEG"), ODD)
    yield from with_image("PNG said to be HTML", encoded(small, "PNG"), ODD, mime="text/html")
    yield from with_image("PNG with more behind it", encoded(small, "PNG") + b"\0" * 100_000, ODD)


# --- URLs -------------------------------------------------------------------------------------


def urls() -> Iterator[Hostile]:
    files = (
        *("file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "../../../etc/passwd", "~/.ssh/id_rsa"),
        *("\\\\host\\share\\a.png", "C:\\a.png", "/proc/self/environ", "file://localhost/etc/passwd", "/dev/zero"),
    )
    schemes = ("ftp://127.0.0.1/a", "gopher://127.0.0.1:25/x", "javascript:alert(1)", "blob:x", "dict://x", "data:,x")
    private = (
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "[::]", "0.0.0.0"),
        *("10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "[fe80::1]", "[fd00::1]"),
        *("[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]", "[64:ff9b::7f00:1]", "224.0.0.1", "255.255.255.255"),
        *("user:pass@127.0.0.1", "example.com@127.0.0.1", "127.0.0.1:22", "127.0.0.1:0", "127.0.0.1:99999"),
    )
    odd = ("http://", "http:///a", "http:/127.0.0.1", "https://\u2460\u2461\u2466.0.0.1/", "http://[::1", "http://a b/")
    base64s = ("data:image/png;base64,####", "data:image/png;base64,", "data:image/png,abc", "AAAA", "=" * 99, " ")
    for url in (*files, *schemes, *(f"http://{host}/latest/meta-data" for host in private), *odd, *base64s, ""):
        yield Hostile(f"the URL {url}", CHAT, chat(url))
    for url in files:
        yield Hostile(f"the image {url}", CAPTION, json.dumps({"image_url": url}).encode())
    for value in (7, None, True, [], {}, {"url": "x"}, [1]):
        yield Hostile(f"the URL {value}", CHAT, chat(value))


# --- JSON -------------------------------------------------------------------------------------


def not_json() -> Iterator[Hostile]:
    good = chat("data:image/png;base64," + base64.b64encode(encoded(picture(), "PNG")).decode())
    for path in (CHAT, DETECT):
        for name, body in {
            "nothing": b"",
            "half": good[: len(good) // 2],
            "NaN": b'{"messages": [], "temperature": NaN}',
            "Infinity": b'{"messages": [], "temperature": -Infinity}',
            "an array 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
            "an object 50,000 deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            "a number of 100,000 digits": b'{"seed": ' + b"9" * 100_000 + b"}",
            "Latin-1": '{"question": "für"}'.encode("latin-1"),
            "UTF-16": '{"question": "a"}'.encode("utf-16"),
            "a byte order mark": b"\xef\xbb\xbf{}",
            "a form": b"question=a&image=b",
            "single quotes": b"{'messages': []}",
            "two objects": b"{}{}",
            "a comment": b"{/* */}",
            "an array": b"[]",
            "a string": b'"a"',
            "null": b"null",
            "random bytes": random.Random(3).randbytes(4000),
        }.items():
            yield Hostile(f"{name} to {path}", path, body)


def wrong_json() -> Iterator[Hostile]:
    def hello(**more: Any) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": "hello"}], **more}).encode()

    long = "word " * 200_000
    yield Hostile("a text of a million letters", CHAT, hello(messages=[{"role": "user", "content": long}]))
    yield Hostile("10,000 turns", CHAT, hello(messages=[{"role": "user", "content": "hello there"}] * 10_000))
    yield Hostile(
        "10,000 parts", CHAT, hello(messages=[{"role": "user", "content": [{"type": "text", "text": "a b"}] * 10_000}])
    )
    yield Hostile("a stop of a megabyte", CHAT, hello(stop="a" * (1 << 20), max_tokens=2), EITHER)
    # All that is wrong with them would take gigabytes to tell.
    yield Hostile("300,000 biases", CHAT, hello(logit_bias={f"x{i}": "a" for i in range(300_000)}))
    yield Hostile("a million wrong parts", CHAT, hello(messages=[{"role": "user", "content": [7] * 1_000_000}]))
    yield Hostile("a million wrong tools", CHAT, hello(tools=[7] * 1_000_000, tool_choice="required"))
    yield Hostile("1e999", CHAT, b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}')
    for name, value in {
        "max_tokens": -2, "temperature": "hot", "top_p": 7, "seed": 2**70, "stop": [[]], "n": 10**9, "stream": "yes",
        "messages": {}, "logprobs": 3, "stream_options": 7,
    }.items():  # fmt: skip
        yield Hostile(
            f"{name} of {value!r}",
            CHAT,
            hello(**{name: value, "stream": value if name == "stream" else name == "stream_options"}),
        )
    url = "data:image/png;base64," + base64.b64encode(encoded(picture(), "PNG")).decode()
    for path, more in (
        (QUERY, {}),
        (QUERY, {"question": 7}),
        (QUERY, {"question": long}),
        (QUERY, {"question": "a", "spatial_refs": [[2, 3]]}),
        (QUERY, {"question": "a", "settings": {"variant": "../../../etc/passwd"}}),
        (QUERY, {"question": "a", "settings": {"variant": "/etc/passwd"}}),
        (QUERY, {"question": "a", "settings": []}),
        (CAPTION, {"length": "endless"}),
        (CAPTION, {"settings": {"temperature": -1}}),
        (DETECT, {}),
        (DETECT, {"object": ""}),
        (DETECT, {"object": long}),
        (DETECT, {"object": "a", "settings": {"max_objects": 10**12}}),
        (POINT, {"object": ["a"]}),
        (POINT, {"object": "a", "settings": {"max_objects": 0}}),
    ):
        what = json.dumps(more)[:60]
        # Any number of objects may be asked for: the context bounds what comes.
        statuses = ODD if "1000000000000" in what else BAD
        yield Hostile(f"{what} to {path}", path, json.dumps({"image_url": url, **more}).encode(), statuses)
