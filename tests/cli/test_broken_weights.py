"""Damaged weights, and a model that gives no number, end as everything does that cannot be done."""

import math

from tiny_moondream import tensors, write


def test_weights_that_are_no_numbers(galago, photo, tmp_path):
    weights = tensors()
    weights["model.text.post_ln.weight"][7] = math.nan
    folder = write(tmp_path / "model", weights=weights)
    for command in (
        ("caption", photo, "--model", folder),
        ("detect", photo, "cat", "--model", folder, "--precision", "int8"),
        ("quantize", folder, "--to", "int8", "--out", tmp_path / "made"),
    ):
        error = galago(*command).error
        assert "tensor text.post_ln.weight: 1 of 64 values are NaN or infinite" in error
        assert error.startswith("error: model: ") and error.endswith("; copy or download it again")


def test_a_model_that_gives_no_number(galago, photo, tmp_path):
    weights = tensors()
    weights["model.text.lm_head.weight"].clamp_(-1, 1).mul_(3e38)
    folder = write(tmp_path / "model", weights=weights)
    for more in ((), ("--json",), ("--stream",)):
        ran = galago("caption", photo, "--model", folder, *more)
        assert "no number for the next token" in ran.err and ran.code == 2 and ran.out == ""
    assert "no number" in galago("detect", photo, "cat", "--model", folder).error
