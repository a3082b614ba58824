"""The bundled model of clips tells what happens in them, and in which order, through every face."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from clips import encoded
from PIL import Image
from serving import hosting, sdk, serving
from typer.testing import CliRunner

import galago
from galago.cli.app import app
from galago.lab.eval.motion.draw import clip_at
from galago.lab.eval.motion.things import DIRECTIONS, DrawnClip
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip
from galago.model import Model

EXAMPLE = Path(__file__).parents[2] / "examples" / "clip.mp4"
FLOOR = {"direction": 96, "object": 96, "order": 95, "count": 82, "speed": 92, "moving": 96}
"""Percent: a few points below what the model reaches on these clips in int8, which moves a little by kernel."""
# The video is clip 533 of seed 7, so the truth about it is known.
MOVES = next(t for t in clip_at(7, 533).things if t.direction)
BACK = {DIRECTIONS[name]: name for name in DIRECTIONS}


@pytest.fixture(scope="module")
def model() -> Model:
    return galago.load("motion", precision="int8")


def one_moves(count: int) -> list[DrawnClip]:
    """Clips of a series in each of which just one thing moves, and moves all in view."""
    found = []
    for index in range(1000):
        drawn = clip_at(8, index)
        if drawn.story == "moves" and sum(bool(t.direction) for t in drawn.things) == 1:
            found.append(drawn)
        if len(found) == count:
            break
    return found


def video(frames: list[Image.Image]) -> bytes:
    """An H.264 file of these frames, one a second; its sides are even."""
    width, height = (side // 2 * 2 for side in frames[0].size)
    return encoded([f.crop((0, 0, width, height)) for f in frames], fps=1)


def direction(drawn: DrawnClip) -> str:
    return next(t.direction for t in drawn.things if t.direction)


def opposite(name: str) -> str:
    x, y = DIRECTIONS[name]
    return BACK[-x, -y]


@pytest.mark.slow
def test_the_gate() -> None:
    """What is told of clips, and that of shuffled ones neither the way nor the order can be told."""
    asked = ["eval", "motion", "--precision", "int8", "--count", "120", "--seed", "777", "--shuffle-frames", "--json"]
    ran = CliRunner().invoke(app, asked)
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    whole, shuffled = ({k: 100 * m["share"] for k, m in told[v].items()} for v in ("measures", "shuffled_measures"))
    assert {k: v for k, v in whole.items() if v < FLOOR[k]} == {}
    # Half is right by chance: the line on which a thing moves is seen, and there are two ways along it.
    assert shuffled["direction"] < 65 and shuffled["order"] < 65, shuffled
    # What moves is still seen.
    assert shuffled["object"] > 60 and shuffled["count"] > 60, shuffled


def test_a_video_file_backwards_goes_the_other_way(model: Model) -> None:
    """Through encoding, decoding and sampling: the same pictures in the other order."""
    right, asked = 0, one_moves(12)
    for drawn in asked:
        frames = list(drawn.clip.frames)
        for order, wanted in ((frames, direction(drawn)), (frames[::-1], opposite(direction(drawn)))):
            clip = load_clip(video(order), FrameSampling())
            assert len(clip.frames) == len(frames)
            right += str(model.query(clip, "Which way does the moving shape go?")["answer"]).strip() == wanted
    assert right >= 0.85 * 2 * len(asked), right


def test_a_frame_alone_does_not_move(model: Model) -> None:
    """An image is no clip: things are seen, no movement is."""
    drawn = one_moves(1)[0]
    still = load_clip(video([drawn.clip.frames[0]] * 6), FrameSampling())
    assert str(model.query(still, "Is anything moving?")["answer"]).strip() == "no"


def test_command_line() -> None:
    """The lines of docs/media.md."""
    run = CliRunner()
    for question, answer in (("What moves?", MOVES.phrase), ("Which way does it go?", MOVES.direction)):
        asked = run.invoke(app, ["query", "-m", "motion", str(EXAMPLE), question])
        assert (asked.exit_code, asked.stdout.strip()) == (0, answer), asked.output


def test_openai_client(model: Model) -> None:
    drawn = one_moves(1)[0]
    url = "data:video/mp4;base64," + base64.b64encode(video(list(drawn.clip.frames))).decode()
    parts: list[Any] = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": "Which way does the moving shape go?"},
    ]
    with serving(hosting(model)) as address:
        for order in (parts, parts[::-1]):
            told = sdk(address).chat.completions.create(model="motion", messages=[{"role": "user", "content": order}])
            assert (told.choices[0].message.content or "").strip() == direction(drawn)
