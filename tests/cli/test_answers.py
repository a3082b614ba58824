"""What the commands print for a model of random weights: shapes and agreement, not meaning."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def on(checkpoint: Path) -> tuple[str, str]:
    return "--model", str(checkpoint)


def test_caption_prints_text_and_the_same_as_json(galago, photo, on):
    plain = galago("caption", photo, *on, "--max-tokens", 5)
    assert plain.code == 0 and plain.err == ""
    [answer] = galago("caption", photo, *on, "--max-tokens", 5, "--json").json
    assert answer["image"] == str(photo) and answer["caption"].strip() == plain.out.removesuffix("\n")


def test_a_stream_prints_the_same_text(galago, photo, on):
    whole = galago("caption", photo, *on, "--max-tokens", 12).out
    assert galago("caption", photo, *on, "--max-tokens", 12, "--stream").out.strip() == whole.strip()


def test_several_images_are_told_apart(galago, photo, on, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 30), "red").save(other)
    answers = galago("caption", photo, other, *on, "--max-tokens", 3, "--json").json
    assert [a["image"] for a in answers] == [str(photo), str(other)]
    assert [f"{p}: " in galago("caption", photo, other, *on, "--max-tokens", 3).out for p in (photo, other)]


def test_query_takes_the_question_last_and_images_may_be_left_out(galago, photo, on):
    [answer] = galago("query", photo, "what?", *on, "--max-tokens", 3, "--json").json
    assert set(answer) == {"image", "answer"}
    [answer] = galago("query", "what?", *on, "--max-tokens", 3, "--json").json
    assert set(answer) == {"answer"}


def test_query_with_reasoning_and_references(galago, photo, on):
    asked = "query", photo, "what?", *on, "--max-tokens", 6, "--reasoning", "--ref", "0.5,0.5", "--ref", "0,0,1,1"
    [answer] = galago(*asked, "--json").json
    assert set(answer) == {"image", "answer", "reasoning"} and set(answer["reasoning"]) == {"text", "grounding"}
    assert galago(*asked).out.startswith("(")


def test_detect_prints_pixels_and_shares_of_the_image(galago, photo, on):
    [answer] = galago("detect", photo, "cat", *on, "--max-objects", 2, "--json").json
    table = galago("detect", photo, "cat", *on, "--max-objects", 2).out.splitlines()
    assert table[0] == f"{len(answer['objects'])} x cat"
    for box, line in zip(answer["objects"], table[2:], strict=True):
        values = [float(v) for v in line.split()[1:]]
        assert values[4:] == pytest.approx(list(box.values()), abs=1e-4)
        assert values[:4] == pytest.approx([v * s for v, s in zip(values[4:], (120, 90) * 2, strict=True)], abs=0.6)


def test_point_has_points(galago, photo, on):
    [answer] = galago("point", photo, "cat", *on, "--max-objects", 1, "--json").json
    assert all(set(p) == {"x", "y"} for p in answer["points"])


@pytest.mark.parametrize("how", [("--eye", "0.4,0.5"), ("--face", "0.2,0.2,0.6,0.6", "--accurate", "--seed", "1")])
def test_gaze_is_a_point_or_nothing(galago, photo, on, how):
    [answer] = galago("gaze", photo, *how, *on, "--json").json
    assert answer["gaze"] is None or set(answer["gaze"]) == {"x", "y"}
    assert galago("gaze", photo, *how, *on).out.startswith("looks at ")


def test_standard_input_is_an_image(galago, photo, on, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    [piped] = galago("caption", "-", *on, "--max-tokens", 5, "--json").json
    [read] = galago("caption", photo, *on, "--max-tokens", 5, "--json").json
    assert piped == {**read, "image": "-"}


def test_drawings_of_one_image_and_of_several(galago, photo, on, tmp_path):
    one = tmp_path / "new" / "found.png"
    ran = galago("detect", photo, "cat", *on, "--draw", one)
    assert ran.code == 0 and ran.err == f"wrote {one}\n"
    with Image.open(one) as drawn:
        assert drawn.size == (120, 90)
    many = tmp_path / "drawings"
    assert galago("point", photo, photo, "cat", *on, "--draw", many).code == 0
    assert sorted(f.name for f in many.iterdir()) == ["photo-2.png", "photo.png"]
    assert galago("gaze", photo, "--eye", "0.1,0.1", *on, "--draw", tmp_path / "gaze.jpg").code == 0


def test_models_lists_the_catalogue(galago):
    from galago.store.catalog import entries, routes

    ids = [*(e.id for e in entries()), *(r.id for r in routes())]
    assert [m["id"] for m in galago("models", "--json").json] == ids
    said = galago("models").out
    assert all(name in said for name in ids)
    assert "images, video: smolvlm2-500m or smolvlm2-256m" in said


def test_json_keeps_letters_readable(galago, photo, on, tmp_path):
    named = tmp_path / "größe.png"
    named.write_bytes(photo.read_bytes())
    ran = galago("caption", named, *on, "--max-tokens", 1, "--json")
    assert "größe.png" in ran.out and json.loads(ran.out)["image"] == str(named)
