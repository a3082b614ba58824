"""The bundled model answers truly about drawn pictures, through every face."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import ask, hosting, sdk, serving
from typer.testing import CliRunner

import galago
from galago.cli.app import app, main
from galago.lab.eval.places import iou
from galago.lab.eval.scenes.draw import scene_at
from galago.lab.eval.scenes.ranges import V1

EXAMPLE = Path(__file__).parents[2] / "examples" / "scene.png"
# The picture is scene 1396 of seed 7, so the truth about it is known.
SCENE = scene_at(7, 1396, V1)
CIRCLE = next(thing for thing in SCENE.things if thing.name == "circle")

FLOOR = {
    "color": 95, "shape": 94, "presence": 94, "count5": 92, "count": 92, "relation": 82, "background": 97, "read": 86,
    "letter": 92, "look": 94, "shade": 95, "texture": 80, "refer": 88, "caption-precision": 90, "caption-recall": 90,
    "detect": 94, "detect-crops": 94, "point": 93, "point-recall": 93, "gaze": 94,
}  # fmt: skip
"""Percent: a few points below what the model reaches on these scenes in int8, which moves a little by kernel."""


@pytest.mark.slow
def test_the_gate(tmp_path: Path) -> None:
    """The quick evaluation that guards the bundled model's answers."""
    out = tmp_path / "gate.jsonl"
    least = [part for name, percent in FLOOR.items() for part in ("--min", f"{name}={percent}")]
    gate = ["eval", "scenes", "--precision", "int8", "--count", "300", "--seed", "777", "--out", str(out), *least]
    assert main(gate) == 0


def test_cannot_answer_blind(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["eval", "scenes", "--precision", "int8", "--count", "30", "--blank", "--json"])
    assert told.exit_code == 0
    scores = json.loads(told.stdout)
    # Not "point", the share of what was pointed at: blind, the model points at next to nothing.
    for measure in ("color", "shape", "count5", "caption-precision", "detect", "point-recall"):
        assert 100 * scores["measures"][measure]["share"] > 0.9 * FLOOR[measure], measure
        assert 100 * scores["blank_measures"][measure]["share"] < FLOOR[measure] / 2, measure


def test_example_is_the_scene() -> None:
    with Image.open(EXAMPLE) as image:
        assert image.convert("RGB").tobytes() == SCENE.image.tobytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_example_in_each_precision(precision: str) -> None:
    with galago.load(precision=precision) as model:
        image = model.encode_image(EXAMPLE)
        assert model.query(image, "What color is the circle?")["answer"].strip() == CIRCLE.color
        (box,) = model.detect(image, "circle")["objects"]
        assert iou(tuple(box.values()), CIRCLE.box) > 0.5
        assert [model.detect(image, name)["objects"] for name in ("circle ", " circle\n")] == [[box], [box]]
        (point,) = model.point(image, "circle")["points"]
        assert CIRCLE.box[0] < point["x"] < CIRCLE.box[2]
        assert CIRCLE.box[1] < point["y"] < CIRCLE.box[3]


def test_command_line(tmp_path: Path) -> None:
    run = CliRunner()
    asked = run.invoke(app, ["query", str(EXAMPLE), "What color is the circle?"])
    assert (asked.exit_code, asked.stdout.strip()) == (0, CIRCLE.color)
    drawn = tmp_path / "out.png"
    found = run.invoke(app, ["detect", str(EXAMPLE), "circle", "--json", "--draw", str(drawn)])
    (box,) = json.loads(found.stdout)["objects"]
    assert iou(tuple(box.values()), CIRCLE.box) > 0.5
    assert Image.open(drawn).convert("RGB").tobytes() != SCENE.image.tobytes()


def test_openai_client() -> None:
    url = "data:image/png;base64," + base64.b64encode(EXAMPLE.read_bytes()).decode()
    messages: list[Any] = ask("What color is the circle?", url)
    with galago.load() as served, serving(hosting(served)) as address:
        client = sdk(address)
        whole = client.chat.completions.create(model="scenes", messages=messages)
        pieces = client.chat.completions.create(model="scenes", messages=messages, stream=True)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        # The question first, the picture second, and Ollama's way.
        asked, seen = ({"role": "user", "content": [part]} for part in messages[0]["content"])
        beside = [{"role": "user", "content": "What color is the circle?", "images": [url.partition(",")[2]]}]
        for others in ([asked, seen], [seen, asked], beside):
            other = client.chat.completions.create(model="scenes", messages=others)  # type: ignore[arg-type]
            assert other.choices[0].message.content == whole.choices[0].message.content
    assert (whole.choices[0].message.content or "").strip() == CIRCLE.color
    assert streamed == whole.choices[0].message.content
