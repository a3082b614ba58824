"""galago watch, asked of drawn clips whose truth is known, and answered by the bundled model."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import clips
import pytest
from PIL import Image, ImageDraw
from told import Told
from websites import served

import galago as package
from galago.batch.each import IN_FLIGHT as AT_ONCE
from galago.batch.watch import Span, spans
from galago.errors import InvalidRequest, InvalidVideo
from galago.media.clip import Clip
from galago.request import Query

SIZE = (192, 192)


def circle(color: str | None, shift: int = 0) -> Image.Image:
    """A circle on white, or nothing but a green square at its side."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((16, 130, 60, 174), fill=(40, 160, 70))
    if color:
        draw.ellipse((70 + shift, 40, 140 + shift, 110), fill=color)
    return image


def clip_of(folder: Path, colors: list[str | None], name: str = "clip.mp4") -> Path:
    """A second of each, ten frames a second; what is there moves a little."""
    path = folder / name
    path.write_bytes(clips.encoded(circle(c, i) for c in colors for i in range(10)))
    return path


@pytest.fixture(scope="module")
def red(tmp_path_factory) -> Path:
    """A red circle is there from 3 s to 9 s."""
    return clip_of(tmp_path_factory.mktemp("red"), [None] * 3 + ["red"] * 6 + [None] * 3)


def seconds(text: str) -> float:
    minutes, _, left = text.rpartition(":")
    return 60 * float(minutes) + float(left)


def test_when_the_answer_is_yes(galago, red):
    ran = galago("watch", red, "Is there a red circle?", "--fps", 2, "-m", "scenes")
    assert (ran.code, ran.err) == (0, "")
    [line] = ran.out.splitlines()
    span, answer = line.split(" ")
    start, end = map(seconds, span.split("\u2013"))
    assert answer == "yes" and 3 <= start <= 3.6 and 9 <= end <= 9.6


def test_whole_seconds(galago, red):
    assert galago("watch", red, "Is there a red circle?").out.splitlines() == ["0:03\u20130:10 yes"]


def test_each_frame_as_json(galago, red):
    answers = galago("watch", red, "Is there a red circle?", "--json").json
    assert len(answers) == 12 and all(set(a) == {"time", "answer"} for a in answers)
    for answer in answers:
        assert answer["answer"].lower() == ("yes" if 3 <= answer["time"] < 9 else "no"), answers


def test_what_is_never_so(galago, red):
    assert galago("watch", red, "Is there a purple star?").out.splitlines() == ["0:00\u20130:12 no"]


def test_spans_of_other_answers(galago, tmp_path):
    clip = clip_of(tmp_path, ["red"] * 4 + ["blue"] * 4)
    lines = galago("watch", clip, "What color is the circle?").out.splitlines()
    assert [line.split(" ")[1] for line in lines] == ["red", "blue"]
    (_, change), (again, end) = (map(seconds, line.split(" ")[0].split("\u2013")) for line in lines)
    assert change == again == pytest.approx(4, abs=1) and end == 8


def test_a_gif_from_standard_input_and_a_bound(galago, monkeypatch):
    frames = [circle(c) for c in ("red", "blue", "red", "blue")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(clips.animated(frames, "GIF", 1000))))
    [only] = galago("watch", "-", "What color is the circle?", "--max-frames", 1, "--json").json
    assert only["answer"] in ("red", "blue")


def test_a_url(galago, red):
    with served(red.read_bytes()) as url:
        assert galago("watch", f"{url}/red.mp4", "Is there a red circle?").out.splitlines() == ["0:03\u20130:10 yes"]
        assert "answered 404" in galago("watch", f"{url}/none", "Is there a red circle?").error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("NONE", "what?"), "No such file"),
        (("TEXT", "what?"), "notes.txt is not a video"),
        (("CLIP", " "), "question"),
        (("CLIP",), "QUESTION"),
        (("CLIP", "what?", "--fps", 0), "fps"),
        (("CLIP", "what?", "--max-frames", 1000), "1..512"),
        (("CLIP", "what?", "--temperature", -1), "temperature"),
        (("CLIP", "what?", "--model", "moondrem2"), "did you mean moondream2?"),
    ],
)
def test_one_line_says_what_was_wrong(galago, red, tmp_path, args, said):
    (tmp_path / "notes.txt").write_text("hello")
    places = {"NONE": tmp_path / "none.mp4", "TEXT": tmp_path / "notes.txt", "CLIP": red}
    assert said in galago("watch", *(places.get(a, a) for a in args)).error


def test_an_interrupt_ends_it(tmp_path):
    frames = (circle("red", i % 40) for i in range(512))
    (tmp_path / "long.mp4").write_bytes(clips.encoded(frames, fps=1))

    def heed_interrupts() -> None:
        # What a shell runs in the background inherits that they are ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", "galago.cli.app", "watch", str(tmp_path / "long.mp4"), "Is there a circle?"]
    with subprocess.Popen(
        [*command, "--json", "--max-frames", "512", "-m", "scenes"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ, preexec_fn=heed_interrupts,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith('{"time": 0.0')
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().splitlines()
        assert (process.wait(), process.stderr.read()) == (130, "")
    assert len(rest) < 511


# --- in Python -------------------------------------------------------------------------------


def told_clip(count: int) -> Clip:
    frames = tuple(Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(count))
    return Clip(frames, tuple(map(float, range(count))), float(count))


def test_frames_are_asked_about_together_and_told_in_their_order():
    model = Told(lambda request: str(request.image.getpixel((0, 0))[0]))
    answers = list(package.watch(model, told_clip(40), "which?", settings={"max_tokens": 3, "detail": "low"}))
    assert answers == [(float(i), str(i)) for i in range(40)]
    assert model.most == AT_ONCE and model.under_way == 0
    assert {(r.skill, r.sampling.max_tokens, r.detail) for r in model.requests} == {(Query("which?"), 3, "low")}


def test_leaving_early_cancels_the_rest():
    model = Told(lambda request: "yes")
    answers = package.watch(model, told_clip(40), "which?")
    assert next(answers) == (0.0, "yes")
    answers.close()
    assert model.cancelled == model.under_way == AT_ONCE - 1


def test_what_is_wrong_is_told_before_anything_is_asked():
    model = Told(lambda request: "yes")
    for wrong, error in (
        ((b"hello", "what?"), InvalidVideo),
        ((told_clip(1), " "), InvalidRequest),
    ):
        with pytest.raises(error):
            package.watch(model, *wrong)
    with pytest.raises(InvalidRequest, match="unknown setting"):
        package.watch(model, told_clip(1), "what?", settings={"speed": 1})
    assert not model.requests


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([], []),
        (["Yes", "yes.", "Yes, two of them"], [Span(0, 3, "yes")]),
        (["No", "Yes", "no people", "No"], [Span(0, 1, "no"), Span(1, 2, "yes"), Span(2, 4, "no")]),
        (["A red car.", "a red  car", "Nobody"], [Span(0, 2, "A red car."), Span(2, 3, "Nobody")]),
    ],
)
def test_equal_answers_become_spans(answers, wanted):
    told = ((float(i), answer) for i, answer in enumerate(answers))
    assert list(spans(told, float(len(answers)))) == wanted


def test_a_span_is_told_as_soon_as_it_is_over():
    def answers():
        yield 0.0, "red"
        yield 1.0, "blue"
        raise AssertionError("asked on")

    assert next(spans(answers(), 9.0)) == Span(0, 1, "red")
