"""The Python face: shapes of results, sources of images, older calls."""

import io
import subprocess
import sys
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import tiny_moondream as tiny

import galago
from galago.errors import EngineClosed, InvalidImage, InvalidRequest, ModelNotFound
from galago.model import Model

SHORT = {"max_tokens": 12}


def test_importing_galago_loads_no_torch() -> None:
    code = "import sys, galago; assert galago.__all__ and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names() -> None:
    assert galago.Model is Model
    assert galago.EncodedImage.__name__ == "EncodedImage"
    assert set(galago.__all__) <= set(dir(galago))
    with pytest.raises(AttributeError):
        galago.colour  # noqa: B018


def test_load(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "mine")
    with galago.load(folder, precision="bfloat16", device="cpu", revision="2025-06-21") as model:
        assert (model.name, model.revision, model.precision, model.device) == ("mine", "2025-06-21", "bfloat16", "cpu")
        assert model.caption(tiny.IMAGE, settings=SHORT)["caption"]
        assert model.waiting == 0
    with pytest.raises(EngineClosed):
        model.caption(tiny.IMAGE)
    for wrong in ({"precision": "int3"}, {"device": "abacus"}, {"threads": 0}):
        with pytest.raises(InvalidRequest):
            galago.load(folder, **wrong)
    with pytest.raises(ModelNotFound):
        galago.load(tmp_path / "nothing")


def test_results(model: Model) -> None:
    assert [*model.caption(tiny.IMAGE, "short", settings=SHORT)] == ["caption"]
    assert [*model.query(tiny.IMAGE, "What?", settings=SHORT)] == ["answer"]
    assert [*model.query(question="What?", settings=SHORT)] == ["answer"]
    found = model.detect(tiny.IMAGE, "cat", settings={"max_objects": 2})["objects"]
    assert [[*box] for box in found] == [["x_min", "y_min", "x_max", "y_max"]] * 2
    points = model.point(tiny.IMAGE, "cat", settings={"max_objects": 3})["points"]
    assert [[*point] for point in points] == [["x", "y"]] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning(model: Model, stream: bool) -> None:
    refs = [[0.1, 0.2], (0.1, 0.2, 0.5, 0.6)]
    found = model.query(tiny.IMAGE, "What?", reasoning=True, spatial_refs=refs, stream=stream, settings=SHORT)
    assert {*found} == {"reasoning", "answer"}
    assert {*found["reasoning"]} == {"text", "grounding"}
    assert "".join(found["answer"])


def test_gaze(model: Model) -> None:
    wanted = model.detect_gaze(tiny.IMAGE, (0.5, 0.25))
    assert [*wanted["gaze"]] == ["x", "y"]
    assert model.detect_gaze(tiny.IMAGE, {"x": 0.5, "y": 0.25}) == wanted
    assert model.detect_gaze(tiny.IMAGE, [0.5, 0.25]) == wanted
    # Upstream's spelling of the accurate mode, and ours.
    face = {"x_min": 0.2, "y_min": 0.3, "x_max": 0.5, "y_max": 0.6}
    flags, settings = {"prioritize_accuracy": True}, {"seed": 1}
    theirs = model.detect_gaze(tiny.IMAGE, face=face, unstable_settings=flags, settings=settings)
    assert theirs == model.detect_gaze(tiny.IMAGE, face=(0.2, 0.3, 0.5, 0.6), settings=settings, **flags)
    assert model.detect_gaze(tiny.IMAGE, (0.5, 0.25), force_detect=True) == {"gaze": None}  # as upstream has it


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda m: m.caption(tiny.IMAGE, "huge"), "length"),
        (lambda m: m.query(tiny.IMAGE), "question"),
        (lambda m: m.query(tiny.IMAGE, " "), "question"),
        (lambda m: m.query(tiny.IMAGE, "x", spatial_refs=[0.5]), "spatial_refs"),
        (lambda m: m.query(tiny.IMAGE, "x", spatial_refs=[(0.5, 2)]), "spatial_refs"),
        (lambda m: m.query(tiny.IMAGE, "x", settings={"colour": 1}), "settings"),
        (lambda m: m.detect(tiny.IMAGE, ""), "object"),
        (lambda m: m.detect_gaze(tiny.IMAGE), "eye"),
        (lambda m: m.detect_gaze(tiny.IMAGE, 5), "eye"),
        (lambda m: m.detect_gaze(tiny.IMAGE, {"x": 1}), "eye"),
        (lambda m: m.detect_gaze(tiny.IMAGE, (0, 0), prioritize_accuracy=True), "face"),
        (lambda m: m.detect_gaze(tiny.IMAGE, (0, 0), unstable_settings={"colour": 1}), "unstable_settings"),
        (lambda m: m.batch_answer([tiny.IMAGE], []), "prompts"),
    ],
)
def test_refusals_name_the_argument(model: Model, call: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        call(model)
    assert error.value.param == param


def test_sources(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    tiny.IMAGE.save(file)
    sources = (tiny.IMAGE, file, str(file), file.read_bytes(), model.encode_image(file))
    assert len({model.caption(source, settings=SHORT)["caption"] for source in sources}) == 1
    with pytest.raises(InvalidImage):
        model.caption(tmp_path / "nothing.png")
    with pytest.raises(InvalidImage):
        model.encode_image(io.BytesIO(b"not an image").getvalue())


def test_older_calls(model: Model) -> None:
    encoded, queue = model.encode_image(tiny.IMAGE), Queue[str]()
    answer = model.answer_question(encoded, "What?", None, chat_history="", result_queue=queue, max_new_tokens=9)
    assert answer == queue.get_nowait() == model.query(encoded, "What?", settings={"max_tokens": 9})["answer"].strip()
    pairs = [tiny.IMAGE, encoded], ["What?", "Who?"]
    single = [model.answer_question(image, prompt) for image, prompt in zip(*pairs, strict=True)]
    assert model.batch_answer(*pairs, tokenizer=None) == single
