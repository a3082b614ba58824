"""Videos of numbered frames: each shows its number in cells that survive compression."""

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SIZE = (96, 64)
CELLS = 4
"""Rows and columns of cells: 16 bits."""
ONE, ZERO = (250, 220, 30), (20, 40, 160)


def numbered(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of a number: yellow cells are ones, blue ones zeros, the first is the least."""
    bits = [(number >> i) & 1 for i in range(CELLS**2)]
    cells = np.array([ONE if bit else ZERO for bit in bits], np.uint8).reshape(CELLS, CELLS, 3)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


def number_in(image: Image.Image) -> int:
    """The number that a picture shows."""
    cells = np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX), np.int16).reshape(-1, 3)
    # Yellow is far above blue in red and green, and below it in blue.
    assert all(abs(int(cell[0]) - int(cell[2])) > 60 for cell in cells), cells
    return sum(int(cell[0] > cell[2]) << i for i, cell in enumerate(cells))


def pictures(count: int, size: tuple[int, int] = SIZE) -> Iterable[Image.Image]:
    return (numbered(i, size) for i in range(count))


def encoded(
    images: Iterable[Image.Image],
    kind: str = "mp4",
    *,
    fps: int = 10,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: float = 0.0,
    gop: int = 25,
    **options: str,
) -> bytes:
    """A file of these images: `fps` of them a second, or each at its own of the `times`; with seconds of sound."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as container:
        stream: Any = None
        for place, image in enumerate(images):
            if stream is None:
                preset = {"preset": "ultrafast"} if codec == "libx264" else {}
                quick = {"deadline": "realtime", "cpu-used": "8"} if codec.startswith("libvpx") else preset
                stream = container.add_stream(codec, rate=fps, options={"g": str(gop), **quick})
                stream.width, stream.height, stream.pix_fmt = *image.size, pixels
                if times is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
                if sound:
                    audio = container.add_stream("aac" if kind == "mp4" else "libopus", rate=48000)
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgba" if image.mode == "RGBA" else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[place] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            _add_sound(container, audio, sound)
    return file.getvalue()


def only_sound(kind: str = "mp4", seconds: float = 1.0) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        _add_sound(container, container.add_stream("aac", rate=48000), seconds)
    return file.getvalue()


def _add_sound(container: Any, stream: Any, seconds: float) -> None:
    for start in range(0, round(seconds * 48000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def no_frames() -> bytes:
    """An MP4 with a track of pictures and none in it: the first part of a stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        container.start_encoding()
    return file.getvalue()


MATRICES = {
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
}
"""a, b, c, d of a display matrix: a point x, y is shown at ax + cy, bx + dy"""


def turned(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The same MP4, to be shown turned or mirrored as the matrix says."""
    a, b, c, d = (n << 16 for n in matrix)
    at = mp4.index(b"tkhd") + 44
    numbers = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    return mp4[:at] + data + mp4[at + 36 :]


def index_first(mp4: bytes, folder: Path) -> bytes:
    """The same MP4 with its index at the start, as for the web."""
    path = folder / "faststart.mp4"
    with av.open(io.BytesIO(mp4)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return path.read_bytes()


def animated(images: Iterable[Image.Image], kind: str, duration: int | list[int], **options: Any) -> bytes:
    """A GIF, WebP or PNG; `duration` is milliseconds, of all frames or of each."""
    file = io.BytesIO()
    first, *others = images
    first.save(file, kind, save_all=True, append_images=others, duration=duration, loop=0, **options)
    return file.getvalue()
