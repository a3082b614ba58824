"""Moondream's own Python client against `galago serve` with the bundled model: answers that mean something."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from PIL import Image
from serving import NO_CLIENT

from galago.lab.eval.places import iou
from galago.lab.eval.scenes.draw import scene_at
from galago.lab.eval.scenes.ranges import V1

md = pytest.importorskip("moondream", reason=NO_CLIENT)

# The picture is scene 1396 of seed 7, so the truth about it is known.
THINGS = {thing.name: thing for thing in scene_at(7, 1396, V1).things}
CIRCLE = THINGS["circle"]
QUESTION = "What color is the circle?"
YELLOW = [f"yellow {thing.name}" for thing in THINGS.values() if thing.color == "yellow"]
COUNT = "How many yellow shapes are there?"  # the model was taught to think about counts alone


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "galago.cli.app", "serve", "scenes", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(said for said in process.stderr if said.startswith("listening"))
            yield line.split()[2]
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.fixture(params=["/v1", "/v1/", ""])
def any_client(address: str, request: pytest.FixtureRequest) -> Any:
    return md.vl(endpoint=address + request.param)


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return md.vl(endpoint=f"{address}/v1", api_key="unused", model="moondream3-preview")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.open(Path(__file__).parents[2] / "examples" / "scene.png")


def shapes_in(text: str) -> set[str]:
    return {name for name in THINGS if name in text}


def test_every_address_that_users_give(any_client: Any, image: Image.Image) -> None:
    assert any_client.query(image, QUESTION)["answer"].strip() == CIRCLE.color
    assert any_client.chat([{"role": "user", "content": "hello"}], settings={"max_tokens": 2})["message"]


@pytest.mark.parametrize("length", ["short", "normal", "long"])
def test_caption(client: Any, image: Image.Image, length: str) -> None:
    whole = client.caption(image, length=length)["caption"]
    pieces = list(client.caption(image, length=length, stream=True)["caption"])
    assert len(shapes_in(whole)) >= 2, whole
    assert len(pieces) > 1 and "" not in pieces
    assert "".join(pieces) == whole


def test_query(client: Any, image: Image.Image) -> None:
    assert client.query(image, QUESTION) == {"answer": CIRCLE.color}
    assert "".join(client.query(image, QUESTION, stream=True)["answer"]).strip() == CIRCLE.color
    assert client.query(question=QUESTION)["answer"]  # without an image it can only guess


def test_image_is_encoded_once_for_many_questions(client: Any, image: Image.Image) -> None:
    encoded = client.encode_image(image)
    assert client.query(encoded, QUESTION) == client.query(image, QUESTION)


def test_settings(client: Any, image: Image.Image) -> None:
    whole = client.caption(image, length="long")["caption"]
    cut = client.caption(image, length="long", settings={"max_tokens": 3, "temperature": 0.0, "top_p": 1.0})["caption"]
    assert whole.startswith(cut) and cut != whole
    everything = client.detect(image, "shape")["objects"]
    assert len(client.detect(image, "shape", settings={"max_objects": 1})["objects"]) == 1 < len(everything)


def test_reasoning(client: Any, image: Image.Image) -> None:
    reply = client.query(image, COUNT, reasoning=True)
    text, grounding = reply["reasoning"]["text"], reply["reasoning"]["grounding"]
    assert reply["answer"].strip() == "2"
    first = grounding[0]
    assert text[first["start_idx"] : first["end_idx"]].strip() in YELLOW
    ((x, y),) = first["points"]
    square = THINGS["square"].box
    assert square[0] < x < square[2] and square[1] < y < square[3]
    streamed = "".join(client.query(image, COUNT, reasoning=True, stream=True)["answer"])
    assert streamed == reply["answer"]


def test_spatial_refs(client: Any, image: Image.Image) -> None:
    for name in ("circle", "square"):
        asked = client.query(image, "What color is this?", spatial_refs=[list(THINGS[name].box)])
        assert asked["answer"].strip() == THINGS[name].color


def test_detect(client: Any, image: Image.Image) -> None:
    (box,) = client.detect(image, "circle")["objects"]
    assert iou((box["x_min"], box["y_min"], box["x_max"], box["y_max"]), CIRCLE.box) > 0.5


def test_point(client: Any, image: Image.Image) -> None:
    (point,) = client.point(image, "circle")["points"]
    assert CIRCLE.box[0] < point["x"] < CIRCLE.box[2]
    assert CIRCLE.box[1] < point["y"] < CIRCLE.box[3]


def test_chat(client: Any, image: Image.Image) -> None:
    shown = {"type": "image_url", "image_url": {"url": client.encode_image(image).image_url}}
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, shown]}]
    reply = client.chat(messages, settings={"temperature": 0.0, "max_tokens": 20})
    assert reply["message"]["content"].strip() == CIRCLE.color
    assert reply["finish_reason"] == "stop"
    assert "".join(client.chat(messages, stream=True)["message"]).strip() == CIRCLE.color
    counting = [{"role": "user", "content": [{"type": "text", "text": COUNT}, shown]}]
    thought = client.chat(counting, reasoning=True)["message"]
    assert thought["content"].strip() == "2"
    assert any(name in thought["reasoning"] for name in YELLOW)


def test_errors_are_raised(client: Any, image: Image.Image) -> None:
    def status(call: Any) -> int:
        with pytest.raises(HTTPError) as raised:
            call()
        with raised.value as reply:
            assert b'"error"' in reply.read()
        return raised.value.code

    assert status(lambda: client.caption(image, length="tiny")) == 400
    assert status(lambda: next(client.caption(image, length="tiny", stream=True)["caption"])) == 400
    assert status(lambda: client.query(image, " ")) == 400
    assert status(lambda: next(client.query(image, " ", stream=True)["answer"])) == 400
    assert status(lambda: client.query(image, QUESTION, spatial_refs=[[2, 2]])) == 400
    assert status(lambda: client.detect(image, "")) == 400
    assert status(lambda: client.point(image, "circle", settings={"max_objects": 0})) == 400
    assert status(lambda: client.point(image, "circle", spatial_refs=[[0.5, 0.5]])) == 501
    assert status(lambda: client.segment(image, "circle")) == 501
    assert status(lambda: next(client.segment(image, "circle", stream=True))) == 501
    assert status(lambda: client.chat([])) == 400
