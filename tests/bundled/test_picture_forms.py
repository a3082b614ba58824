"""The bundled model sees the example in whatever form it comes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import picture_forms
import pytest
from PIL import Image

import galago
from galago.cli.app import main
from galago.media.image import load_image

NEAR = 2
"""Pixels that a side may move."""


@pytest.fixture(scope="module")
def model() -> Iterator[galago.Model]:
    with galago.load() as model:
        yield model


def boxes(model: galago.Model, source: object) -> np.ndarray:
    """[n, 4] of the circle, in pixels of the picture as it is shown."""
    found = model.detect(source, picture_forms.OBJECT)["objects"]  # type: ignore[arg-type]
    height, width = picture_forms.SCENE.shape[:2]
    return np.array([list(box.values()) for box in found]) * [width, height, width, height]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_however_it_lies_in_its_file(model: galago.Model, kind: str) -> None:
    upright = picture_forms.saved(picture_forms.SCENE, kind)
    expected = boxes(model, upright)
    assert len(expected) == 1
    for orientation in picture_forms.AWAY:
        data = picture_forms.turned(kind, orientation)
        found = boxes(model, data)
        assert found.shape == expected.shape and np.abs(found - expected).max() <= NEAR, orientation
        if orientation in (3, 6):
            assert model.query(data, picture_forms.QUESTION) == model.query(upright, picture_forms.QUESTION)


def test_all_forms_show_the_scene() -> None:
    """As far as few colours let them; benchmarks/results/picture-forms.md has what the model says of each."""
    for form in picture_forms.forms():
        scene = picture_forms.GREY if form.grey else picture_forms.SCENE
        off = np.abs(np.asarray(load_image(form.data)).astype(int) - scene)
        assert off.mean() < 25, f"{form.name}: {off.mean():.1f}"


def test_drawings_are_upright(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "on-its-side.jpg").write_bytes(picture_forms.turned("JPEG", 6))
    for name in ("drawn.png", "drawn.jpg"):
        args = ["detect", str(tmp_path / "on-its-side.jpg"), picture_forms.OBJECT, "--draw", str(tmp_path / name)]
        assert main(args) == 0
        with Image.open(tmp_path / name) as drawn:
            height, width = picture_forms.SCENE.shape[:2]
            assert drawn.size == (width, height) and not drawn.getexif().get(274)
            off = np.abs(np.asarray(drawn.convert("RGB")).astype(int) - picture_forms.SCENE).max(-1)
            assert (off > 60).mean() < 0.05  # all but the drawn lines is the scene
