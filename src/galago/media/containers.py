"""Frames of MP4, WebM and their kin, through PyAV.

FFmpeg is given an open file and no name, and reads only formats that hold their frames themselves: with a
playlist a stranger could have it open other files and hosts.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from galago.errors import UnsupportedTask
from galago.media.image import load_image
from galago.media.timeline import Timeline, Unreadable, VideoLimits

if TYPE_CHECKING:
    from av import CodecContext, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf")
"""FFmpeg's names of them."""
HEAD = 400
"""Bytes at the beginning that tell a file of one of them."""
BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"wide", b"free", b"skip", b"pnot")
"""What a file of MP4's kin begins with (ISO 14496-12, and QuickTime's older ones)."""
STILL = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
"""Brands of images that are kept so too (ISO 23008-12)."""
STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG's programme stream
)
PACKETS = ((0, 188), (4, 192))
"""Of transport streams: where the first begins that has its mark, 0x47, and the way to the next."""
TO_THE_END = ("matroska", "asf")
"""Those whose length is most often told from 0 on the file's own clock, at whatever time that begins."""
INDEXED = ("mov", "matroska")
"""Those that know where their key frames are."""
SEEK_S = 2.0
"""Key frames nearer than this are walked to."""
CUT_S = 1.0
"""A file that ends so much before it says is cut off."""
SAME_S = 1e-6


def is_video(head: bytes) -> bool:
    """Whether a file that begins with these bytes, HEAD of them if it is not shorter, is of one of the formats."""
    if head[4:8] in BOXES:
        return head[4:8] != b"ftyp" or head[8:12] not in STILL
    if (head[:4], head[8:12]) == (b"RIFF", b"AVI "):
        return True
    return head.startswith(STARTS) or any(head[at::step][:3] == b"\x47" * 3 for at, step in PACKETS)


def read_timeline(file: BinaryIO, limits: VideoLimits) -> Timeline:
    """When each frame is shown, from the heads of all packets; nothing is decoded. Raises Unreadable."""
    with _open(file, limits) as (container, stream):
        begin, length = (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
        if container.format.name.startswith(TO_THE_END) and length > begin:
            length -= begin
        if length > limits.seconds:
            raise Unreadable(f"is {length:.0f} s long; {limits.seconds:g} are allowed")
        stamps: set[int] = set()
        keys: set[int] = set()
        ends: dict[int, int] = {}
        broken = False
        try:
            for packet in container.demux():
                stamp = packet.dts if packet.pts is None else packet.pts
                broken |= packet.is_corrupt
                if stamp is None or packet.is_corrupt or packet.is_discard:
                    continue
                index = packet.stream_index
                ends[index] = max(ends.get(index, stamp), stamp + (packet.duration or 0))
                if index == stream.index:
                    stamps.add(stamp)
                    if packet.is_keyframe:
                        keys.add(stamp)
                if len(stamps) > limits.frames:
                    raise Unreadable(f"has more than {limits.frames} frames")
        except _import_av().FFmpegError:
            broken = True
        if not stamps:
            return Timeline((), 0.0)
        bases = {s.index: float(s.time_base or 0) for s in container.streams}
        reached = max(end * bases[i] for i, end in ends.items())
        cut = begin + length - reached > CUT_S
        return _timeline(stamps, keys, ends[stream.index], stream, broken or cut)


def _timeline(stamps: set[int], keys: set[int], end: int, stream: "VideoStream", cut: bool) -> Timeline:
    first, last, base = min(stamps), max(stamps), stream.time_base
    assert base is not None
    if end <= last and len(stamps) > 1:
        # Nothing is said of how long the last one is shown.
        end = last + round((last - first) / (len(stamps) - 1))
    times = [float((stamp - first) * base) for stamp in sorted(stamps)]
    return Timeline(times, float((end - first) * base), [float((k - first) * base) for k in sorted(keys)], first, cut)


def read_frames(
    file: BinaryIO, timeline: Timeline, places: Sequence[int], limits: VideoLimits
) -> Iterator[tuple[float, Image.Image]]:
    """The frames at these places of the timeline, each with its time; what cannot be decoded is left out.

    Where a key frame lies between one and the next, decoding goes on from there.
    """
    with _open(file, limits) as (container, stream):
        indexed = container.format.name.startswith(INDEXED)
        decoder = _decoder(stream)
        decoded, at = _decode(container, stream, decoder, timeline.origin), 0.0
        for done, place in enumerate(places):
            wanted = timeline.times[place]
            before = bisect_right(timeline.keys, wanted + SAME_S)
            key = timeline.keys[before - 1] if before else 0.0
            if sought := indexed and key - at > SEEK_S:
                assert stream.time_base is not None
                # Where this fails, what comes next is not what is wanted, or it is walked to.
                with suppress(_import_av().FFmpegError):
                    container.seek(timeline.origin + round(key / stream.time_base), stream=stream)
                decoder.flush_buffers()
                decoded = _decode(container, stream, decoder, timeline.origin)
            found = next((f for f in decoded if f[0] >= wanted - SAME_S), None)
            if sought and (found is None or found[0] > wanted + SAME_S):
                # The file's index is wrong.
                yield from read_frames(file, replace(timeline, keys=()), places[done:], limits)
                return
            if found is None:
                return
            at = found[0]
            yield at, _to_image(found[1], limits)


def _decode(
    container: "InputContainer", stream: "VideoStream", decoder: Any, origin: int
) -> Iterator[tuple[float, "VideoFrame"]]:
    """Frames from here on, with their times. What is damaged is left out."""
    base = stream.time_base
    assert base is not None
    with suppress(_import_av().FFmpegError):
        for packet in container.demux(stream):
            found: Sequence[VideoFrame] = ()
            # After a damaged piece the next key frame mends the picture.
            with suppress(_import_av().FFmpegError):
                found = decoder.decode(packet if packet.size else None)
            for frame in found:
                if frame.pts is not None and not frame.is_corrupt:
                    yield float((frame.pts - origin) * base), frame


def _decoder(stream: "VideoStream") -> "CodecContext":
    """The stream's own, or where the frames are transparent, one that sees that."""
    own = stream.codec_context
    if stream.metadata.get("alpha_mode") != "1" or own.name not in ("vp8", "vp9"):
        return own
    decoder = _import_av().CodecContext.create("libvpx" if own.name == "vp8" else "libvpx-vp9", "r")
    decoder.options = own.options
    return decoder


def _import_av() -> Any:
    try:
        import av
    except ImportError:
        raise UnsupportedTask("videos are read by PyAV: pip install 'galago[video]'") from None
    return av


@contextmanager
def _open(file: BinaryIO, limits: VideoLimits) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The file from its start, and the stream of pictures in it."""
    av = _import_av()
    file.seek(0)
    pixels = {"max_pixels": str(limits.pixels)}
    only = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        container = av.open(file, "r", options=pixels, container_options=only, metadata_errors="replace")
    except av.FFmpegError as error:
        raise Unreadable("is not a video of a known format (MP4, WebM, MKV, AVI, ...), or lacks its index") from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise Unreadable(f"has no pictures{', only sound' if container.streams.audio else ''}")
        stream = streams[0]
        if stream.codec_context is None:
            raise Unreadable("is encoded in a way that cannot be decoded")
        _check(stream.codec_context.width, stream.codec_context.height, limits)
        stream.codec_context.options = pixels
        yield container, stream


def _check(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.pixels:
        raise Unreadable(f"has {width} x {height} pixels; {limits.pixels / 1e6:g} million are allowed")


def _to_image(frame: "VideoFrame", limits: VideoLimits) -> Image.Image:
    _check(frame.width, frame.height, limits)
    alpha = any(part.is_alpha for part in frame.format.components)
    image = Image.fromarray(frame.to_ndarray(format="rgba" if alpha else "rgb24"))
    return load_image(_turn_upright(image, frame), max_pixels=limits.pixels)


def _turn_upright(image: Image.Image, frame: "VideoFrame") -> Image.Image:
    """Turned and mirrored as the display matrix says: a point x, y is shown at ax + cy, bx + dy."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(Image.Transpose.TRANSPOSE)
        across, down = c, b
    if across < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if down < 0:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image
