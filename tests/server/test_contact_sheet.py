"""Several images for a model that takes one: refused with what helps, or shown as a numbered sheet."""

import base64
import io
from pathlib import Path

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


@pytest.mark.parametrize("path", ["openai", "ollama"])
def test_what_a_model_of_one_image_is_shown(path: str) -> None:
    url_part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{SCENE}"}}
    asked = {"type": "text", "text": "What color is the circle?"}
    openai = {"messages": [{"role": "user", "content": [asked, url_part, url_part, url_part]}]}
    ollama = {"model": "scenes", "prompt": asked["text"], "images": [SCENE] * 3, "stream": False}
    place, body = ("/v1/chat/completions", openai) if path == "openai" else ("/api/generate", ollama)
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    for setting in ("refuse", "sheet"):
        app = create_app(pool, ServerSettings(model=("scenes",), several_images=setting))
        with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
            reply = client.post(place, json=body)
        pool = ModelPool(keep_alive=None, options={"device": "cpu"})
        if setting == "refuse":
            assert reply.status_code == 400 and "--several-images sheet" in reply.text
        else:
            assert reply.status_code == 200, reply.text
            told = reply.json()
            said = told["choices"][0]["message"]["content"] if path == "openai" else told["response"]
            assert said == "blue"
            if path == "openai":
                assert told["warnings"] == ["3 images were shown to the model as one sheet, numbered in reading order"]


def test_one_that_cannot_be_decoded_is_named() -> None:
    good = plain("red")
    cut = {"url": "data:image/png;base64," + base64.b64encode(good.data[:60]).decode()}
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": cut}] * 2}]}
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    app = create_app(pool, ServerSettings(model=("scenes",), several_images="sheet"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("messages.0.content.0")
