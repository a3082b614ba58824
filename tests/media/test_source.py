"""Images and videos are the same wherever they come from."""

import base64
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest
from PIL import Image
from websites import served

from galago.errors import InvalidImage, InvalidRequest, InvalidVideo
from galago.media.fetch import fetch
from galago.media.image import load_image
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
            (7, "must be a path, a URL, bytes or an open file, not int"),
        ):
            with pytest.raises(error, match=said) as told:
                load(source)
            assert type(told.value) is error and "\n" not in str(told.value)
