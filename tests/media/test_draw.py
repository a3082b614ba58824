"""Drawings mark what was found and leave the original alone."""

import numpy as np
import pytest
from PIL import Image

from galago.media.draw import COLOUR, draw_findings


@pytest.mark.parametrize("size", [(3, 3), (200, 100), (1600, 900)])
def test_nothing_to_draw_is_a_copy(size):
    image = Image.new("RGB", size, "gray")
    copy = draw_findings(image)
    assert copy is not image and np.array_equal(np.asarray(copy), np.asarray(image))


def test_a_box_is_an_outline_and_the_original_stays():
    image = Image.new("RGB", (100, 100))
    drawn = draw_findings(image, boxes=[(0.2, 0.2, 0.8, 0.8)])
    assert drawn.getpixel((20, 50)) == COLOUR and drawn.getpixel((50, 50)) == (0, 0, 0)
    assert image.getpixel((20, 50)) == (0, 0, 0)


def test_a_point_and_a_gaze():
    drawn = draw_findings(Image.new("RGB", (101, 101)), points=[(0.5, 0.2)], gazes=[((0.1, 0.9), (0.9, 0.9))])
    assert drawn.getpixel((50, 20)) == COLOUR
    assert drawn.getpixel((50, 90)) == COLOUR and drawn.getpixel((90, 90)) == COLOUR


@pytest.mark.parametrize("box", [(-1.0, -1.0, 2.0, 2.0), (0.9, 0.9, 0.1, 0.1), (0.5, 0.5, 0.5, 0.5)])
@pytest.mark.parametrize("size", [(1, 1), (40, 30)])
def test_boxes_past_the_edge_inside_out_or_empty(box, size):
    assert draw_findings(Image.new("L", size), boxes=[box], points=[box[:2]], label="a very long label").size == size
