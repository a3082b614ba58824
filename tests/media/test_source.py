"""Images and videos are the same wherever they come from."""

import base64
import io
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.datastructures import UploadFile
from websites import served

from galago.errors import InvalidImage, InvalidRequest, InvalidVideo
from galago.media.fetch import fetch
from galago.media.image import load_image
from galago.media.load import load_media
from galago.media.video import load_clip

PICTURE = io.BytesIO()
clips.numbered(5).save(PICTURE, "PNG")


def frames(source: Any) -> list[Image.Image]:
    return list(load_clip(source).frames)


def image(source: Any) -> list[Image.Image]:
    return [load_image(source)]


KINDS = [
    pytest.param(image, PICTURE.getvalue(), InvalidImage, id="image"),
    pytest.param(frames, clips.encoded(clips.pictures(20)), InvalidVideo, id="video"),
]
Load = Callable[[Any], list[Image.Image]]


def numbers(images: list[Image.Image]) -> list[int]:
    return [clips.number_in(image) for image in images]


@pytest.mark.parametrize(("load", "data", "error"), KINDS)
def test_wherever_it_comes_from(load: Load, data: bytes, error: type[InvalidRequest], tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    inline = "data:text/plain;base64," + base64.b64encode(data).decode()
    with path.open("rb") as file, served(data) as url:
        found = [np.asarray(load(s)) for s in (path, str(path), data, io.BytesIO(data), file, f"{url}/a.txt", inline)]
    assert all(np.array_equal(one, found[0]) for one in found) and numbers(load(data)) in ([5], [0, 19])


@pytest.mark.parametrize(("load", "data", "error"), KINDS)
def test_out_of_a_pipe(load: Load, data: bytes, error: type[InvalidRequest], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeding = threading.Thread(target=pipe.write_bytes, args=(data,))
    feeding.start()
    assert numbers(load(pipe)) == numbers(load(data))
    feeding.join()


@pytest.mark.parametrize(("load", "data", "error"), KINDS)
def test_what_cannot_be_had(load: Load, data: bytes, error: type[InvalidRequest], monkeypatch: Any) -> None:
    monkeypatch.setitem(fetch.__kwdefaults__, "max_bytes", len(data) - 1)
    with served(data) as url:
        for source, said in (
            (f"{url}/clip.mp4", "clip.mp4 is larger than"),
            (f"{url}/none", "none: the server answered 404"),
            ("http://", "cannot fetch http"),
            ("/none.mp4", "cannot read /none.mp4: No such file"),
            ("data:,hello", "must look like data:"),
            ("ftp://host/a", "cannot read ftp://host/a: the .* must be a path, an http://, https:// or data: URL"),
            ("rtsp://host/a", "cannot read rtsp://host/a: the .* must be a path"),
            ("file:///a.png", "cannot read file:///a.png: .* or an open file; give the path itself"),
            ("", "is an empty text; it must be a path"),
            (base64.b64encode(data).decode() * 9, "; base64 is written as data:"),
            (7, "must be a path, an http://, https:// or data: URL, bytes or an open file, not int"),
        ):
            with pytest.raises(error, match=said) as told:
                load(source)
            assert type(told.value) is error and "\n" not in str(told.value)


class Named:
    """As os.PathLike is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


class Unseekable(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self.rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.rest.readinto(buffer)


class OnlyRead:
    def __init__(self, data: Any) -> None:
        self.data = data

    def read(self, size: int = -1) -> Any:
        return self.data


@pytest.mark.parametrize(("load", "data", "error"), KINDS)
def test_what_is_nearly_a_file(load: Load, data: bytes, error: type[InvalidRequest], tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(data)
    upload = UploadFile(tempfile.SpooledTemporaryFile(max_size=10))  # noqa: SIM115
    upload.file.write(data)
    piped = io.BufferedReader(Unseekable(data))
    with (
        path.open("rb") as file,
        path.open() as text,
        path.open("r+b") as whole,
        tempfile.NamedTemporaryFile() as named,
    ):
        named.write(data)
        memory = mmap.mmap(whole.fileno(), 0)
        file.read(7)
        same = [bytearray(data), memoryview(data), memory, Named(path), file, text, named, upload, piped]
        for kind in [*same, OnlyRead(data), OnlyRead(bytearray(data)), Unseekable(data)]:
            assert numbers(load(kind)) == numbers(load(data)), kind
        memory.close()


async def _later(size: int = -1) -> bytes:
    return b""


@pytest.mark.parametrize(("load", "data", "error"), KINDS)
def test_what_is_no_file_after_all(load: Load, data: bytes, error: type[InvalidRequest], tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(data)
    with path.open("rb") as closed:
        pass
    with path.open("ab") as written:
        for source, said in (
            (closed, "closed file"),
            (written, "cannot be read from this BufferedWriter"),
            (io.StringIO("hello"), "it holds text; open it for reading bytes"),
            (OnlyRead("hello"), "it holds text"),
            (OnlyRead(7), "it gives a int"),
            (SimpleNamespace(read=_later), "it gives a coroutine; give the bytes that are in it"),
            (
                torch.zeros(3, 20, 30),
                r"a uint8 array \[height, width, 3\], .* not a Tensor of torch.float32 \[3, 20, 30\]",
            ),
            ([1, 2], "not list"),
            (None, "not NoneType"),
        ):
            with pytest.raises(error, match=said) as told:
                load(source)
            assert "\n" not in str(told.value)


def test_arrays() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for array in (picture, picture[:, ::-1], np.asfortranarray(picture), picture[::2]):
        assert np.array_equal(np.asarray(load_image(array)), array)
        assert np.array_equal(np.asarray(load_media(array, lambda: None)), array)
    four = np.zeros((2, 2, 4), np.uint8)
    for wrong in (picture[..., 0], picture / 255, picture.transpose(2, 0, 1), picture[:0], four):
        with pytest.raises(InvalidImage, match=r"a uint8 array \[height, width, 3\], or what Image.fromarray makes of"):
            load_image(wrong)
