"""What cannot be done ends with exit code 2 and one line that says what was wrong."""

from pathlib import Path

import pytest
from tiny_moondream import tensors, write


@pytest.fixture
def on(checkpoint: Path) -> tuple[str, str]:
    return "--model", str(checkpoint)


def test_an_image_that_is_none(galago, on, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nonsense")
    assert "broken.png" in galago("caption", broken, *on).error
    assert "No such file" in galago("caption", tmp_path / "none.png", *on).error


def test_the_other_images_go_on(galago, on, photo, tmp_path):
    ran = galago("caption", tmp_path / "none.png", photo, *on, "--max-tokens", 2, "--json")
    assert "none.png" in ran.error and [a["image"] for a in ran.json] == [str(photo)]


def test_unknown_models_are_answered_with_the_known(galago, photo):
    error = galago("caption", photo, "--model", "moondrem2").error
    assert "moondrem2" in error and "did you mean moondream2?" in error
    assert "no folder or file" in galago("caption", photo, "--model", "./nowhere").error


def test_a_missing_tensor_is_named(galago, photo, tmp_path):
    weights = tensors()
    del weights["model.text.post_ln.bias"]
    folder = write(tmp_path / "model", weights=weights)
    assert "missing tensor text.post_ln.bias" in galago("caption", photo, "--model", folder).error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("query", "PHOTO", ""), "question"),
        (("query", "PHOTO", "  "), "question"),
        (("query", "PHOTO"), "QUESTION is missing"),
        (("query", "PHOTO", "what?", "--ref", "0.5"), "--ref must be x,y or x0,y0,x1,y1"),
        (("query", "PHOTO", "what?", "--ref", "0.5,7"), "spatial_refs"),
        (("caption", "PHOTO", "--temperature", "-1"), "temperature"),
        (("caption", "PHOTO", "--max-tokens", "0"), "max_tokens"),
        (("caption", "PHOTO", "--top-p", "2"), "top_p"),
        (("caption", "PHOTO", "--length", "huge"), "'short', 'normal', 'long'"),
        (("caption", "PHOTO", "--json", "--stream"), "--stream"),
        (("caption", "PHOTO", "--precision", "int3"), "float32"),
        (("caption", "PHOTO", "--profile", "fast"), "standard or optimized"),
        (("caption", "PHOTO", "--device", "abacus"), "cpu"),
        (("caption", "PHOTO", "--threads", "0"), "threads"),
        (("caption", "PHOTO", "--revision", "1999"), "2025-06-21"),
        (("caption", "PHOTO", "--variant", "none.safetensors"), "none.safetensors"),
        (("caption",), "IMAGE"),
        (("caption", "PHOTO", "--huge"), "--huge"),
        (("detect", "PHOTO", ""), "object"),
        (("detect", "PHOTO", "cat", "--max-objects", "0"), "max_objects"),
        (("detect", "PHOTO", "PHOTO", "cat", "--draw", "one.png"), "folder"),
        (("detect", "PHOTO", "cat", "--draw", "one.xyz"), ".xyz"),
        (("gaze", "PHOTO"), "eye"),
        (("gaze", "PHOTO", "--eye", "here"), "--eye must be x,y"),
        (("gaze", "PHOTO", "--eye", "0.1,0.1", "--accurate"), "face"),
        (("paint", "PHOTO"), "paint"),
    ],
)
def test_one_line_says_what_was_wrong(galago, photo, on, args, said):
    model = () if args[0] == "paint" else on
    assert said in galago(*(photo if a == "PHOTO" else a for a in args), *model).error


def test_a_drawing_that_cannot_be_written(galago, photo, on):
    assert "cannot write" in galago("detect", photo, "cat", *on, "--draw", photo / "below-a-file.png").error


@pytest.mark.parametrize("command", [("caption", "PHOTO"), ("serve", "--port", 0)])
@pytest.mark.parametrize(("option", "said"), [("--precision", "int8"), ("--profile", "optimized"), ("--device", "cpu")])
def test_wrong_names_are_told_before_a_download(galago, photo, tmp_path, monkeypatch, command, option, said):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    args = (photo if a == "PHOTO" else a for a in command)
    assert said in galago(*args, "--model", "moondream2", option, "wrong").error


def test_what_is_not_installed_or_bundled_cannot_be_removed(galago, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path))
    assert "not installed" in galago("models", "remove", "moondream2").error
    assert "no packed copy" in galago("models", "remove", "moondream2-int8").error
    assert "part of galago" in galago("models", "remove", "scenes").error
