"""Several images for a model that takes one: refused with what helps, or shown as a numbered sheet."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from serving import serving

from galago.fleet.pool import ModelPool
from galago.media.picture import Picture, open_picture
from galago.server.app import create_app
from galago.server.contact_sheet import GAP, contact_sheet
from galago.server.settings import ServerSettings

SCENE = base64.b64encode((Path(__file__).parents[2] / "examples" / "scene.png").read_bytes()).decode()
COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "cyan"]


def plain(color: str, size: tuple[int, int] = (640, 480)) -> Picture:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return open_picture(out.getvalue())


@pytest.mark.parametrize("count", range(2, 8))
@pytest.mark.parametrize("size", [(640, 480), (300, 900), (2000, 100)])
def test_they_stand_in_reading_order(count: int, size: tuple[int, int]) -> None:
    sheet = contact_sheet([plain(color, size) for color in COLORS[:count]])
    image = sheet.decode()
    assert max(image.size) <= 1512 and sheet.size == image.size
    found: list[tuple[int, ...]] = []
    # A line through the lower part of each row, where no number stands, meets its pictures from left to right.
    for row in range(0, image.height):
        for column in range(0, image.width, GAP):
            pixel = image.getpixel((column, row))
            if pixel not in ((255, 255, 255), (0, 0, 0)) and isinstance(pixel, tuple) and pixel not in found:
                found.append(pixel)
    wanted = [Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in COLORS[:count]]
    assert [pixel for pixel in found if pixel in wanted] == wanted


URL = f"data:image/png;base64,{SCENE}"
QUESTION = "What color is the circle?"
IMAGE_PART = {"type": "image_url", "image_url": {"url": URL}}
INPUT = [{"type": "input_text", "text": QUESTION}, *[{"type": "input_image", "image_url": URL}] * 3]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}, *[IMAGE_PART] * 3]}]
    },
    "/v1/responses": {"input": [{"role": "user", "content": INPUT}]},
    "/api/generate": {"model": "scenes", "prompt": QUESTION, "images": [SCENE] * 3, "stream": False},
}


def answer_in(reply: dict[str, Any]) -> str:
    if "output" in reply:
        return str(reply["output"][0]["content"][0]["text"])
    return str(reply["response"] if "response" in reply else reply["choices"][0]["message"]["content"])


@pytest.mark.parametrize("setting", ["refuse", "sheet"])
def test_what_a_model_of_one_image_is_shown(setting: str) -> None:
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    app = create_app(pool, ServerSettings(model=("scenes",), several_images=setting))
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        replies = [client.post(path, json=body) for path, body in ASKED.items()]
    for reply in replies:
        if setting == "refuse":
            assert reply.status_code == 400 and "--several-images sheet" in reply.text
        else:
            assert answer_in(reply.json()) == "blue", reply.text
            told = "3 images were shown to the model as one sheet, numbered in reading order"
            assert reply.json()["warnings"] == [told]


def test_one_that_cannot_be_decoded_is_named() -> None:
    good = plain("red")
    cut = {"url": "data:image/png;base64," + base64.b64encode(good.data[:60]).decode()}
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": cut}] * 2}]}
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    app = create_app(pool, ServerSettings(model=("scenes",), several_images="sheet"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("messages.0.content.0")
