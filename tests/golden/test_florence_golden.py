"""Florence-2 by the transformers library: texts, parsed results and boxes are those of the golden vectors."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vectors import VECTORS, vectors

pytest.importorskip("transformers", reason="needs transformers (pip install 'galago[transformers]')")

import galago
from galago.request import Caption, Detect, Query

FOLDER = VECTORS / "florence2-tiny"
CASES = {name: json.loads((folder / "expected.json").read_text()) for name, folder in vectors(FOLDER.name).items()}
CASES = {name: case for name, case in CASES.items() if case["model"] == "a"}
LIMIT = galago.Sampling(max_tokens=32)
TOKENIZER = {
    "tokenizer_class": "BartTokenizer",
    "extra_special_tokens": {"image_token": "<image>"},
    **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
    **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
KINDS = ("pure_text", "description_with_bboxes", "description_with_polygons", "polygons", "bboxes")
PARSERS: dict[str, Any] = {kind: {} for kind in (*KINDS, "description_with_bboxes_or_polygons")}
PARSERS |= {"ocr": {"pattern": "(.+?)" + r"<loc_(\d+)>" * 8, "area_threshold": 0.0}}
PARSERS |= {"phrase_grounding": {"banned_grounding_tokens": ["the image", "it"]}}
"""What published checkpoints say beside what the golden folder has."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[galago.Model]:
    folder = tmp_path_factory.mktemp("florence") / "florence-tiny"
    shutil.copytree(FOLDER / "model_a", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    processor = {"processor_class": "Florence2Processor", "post_processor_config": PARSERS}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    with galago.load(folder, precision="float32", threads=1) as made:
        yield made


def picture(case: dict[str, Any]) -> Image.Image:
    return Image.open(FOLDER / case["picture"]).convert("RGB")


def text_of(run: galago.Run) -> str:
    return "".join(event.text for event in run if isinstance(event, galago.TextDelta))


@pytest.mark.parametrize("name", CASES)
def test_a_task_gives_what_the_reference_parses(model: galago.Model, name: str) -> None:
    case = CASES[name]
    *pieces, done = model.submit(galago.Request(Query(case["prompt"]), picture(case), sampling=LIMIT))
    said = "".join(piece.text for piece in pieces if isinstance(piece, galago.TextDelta))
    [(_, expected)] = case["parsed"].items()
    assert (said if isinstance(expected, str) else json.loads(said)) == expected
    [beams] = [
        b
        for b in case["beams"]
        if b["settings"]["max_new_tokens"] == 32
        and b["settings"].get("early_stopping")
        and b["settings"]["num_beams"] == 3
        and b["settings"]["no_repeat_ngram_size"] == 3
        and "length_penalty" not in b["settings"]
    ]
    ids = beams["sequences"][0]
    assert isinstance(done, galago.Done)
    assert done.usage.completion_tokens == len(ids) - 1
    assert (done.usage.prompt_tokens, done.usage.image_tokens) == (577 + len(case["text_ids"]), 577)
    assert done.finish_reason == ("length" if len(ids) == 33 else "stop")


def test_captions_of_three_lengths_are_three_tasks(model: galago.Model) -> None:
    image = picture(CASES["a1_caption"])
    tasks = {"short": "<CAPTION>", "normal": "<DETAILED_CAPTION>", "long": "<MORE_DETAILED_CAPTION>"}
    sizes = set()
    for length, task in tasks.items():
        caption, query = (
            [*model.submit(galago.Request(skill, image, sampling=galago.Sampling(max_tokens=4)))]
            for skill in (Caption(length), Query(task))  # type: ignore[arg-type]
        )
        assert caption[:-1] == query[:-1]
        done, other = caption[-1], query[-1]
        assert isinstance(done, galago.Done) and isinstance(other, galago.Done) and done.usage == other.usage
        sizes.add(done.usage.prompt_tokens)
    assert len(sizes) == 3


def test_objects_are_the_boxes_of_open_vocabulary_detection(model: galago.Model) -> None:
    image, found = picture(CASES["a2_od"]), []
    for name in ("cat", "a red car", "dog"):
        task = text_of(model.submit(galago.Request(Query(f"<OPEN_VOCABULARY_DETECTION>{name}"), image, sampling=LIMIT)))
        expected = json.loads(task)["bboxes"]
        run = model.submit(galago.Request(Detect(name), image, sampling=LIMIT))
        found = [event.box for event in run if isinstance(event, galago.ObjectFound)]
        pixels = [[x * image.width, y * image.height, r * image.width, b * image.height] for x, y, r, b in found]
        assert len(pixels) == len(expected) and pixels == [pytest.approx(box, abs=1) for box in expected]
    fewer = model.submit(galago.Request(Detect(name, max_objects=1), image, sampling=LIMIT))
    assert len(found) > 1 == sum(isinstance(event, galago.ObjectFound) for event in fewer)


def test_a_text_that_is_drawn_is_streamed_and_seeded(model: galago.Model) -> None:
    image = picture(CASES["a1_caption"])

    def drawn(seed: int) -> list[galago.Event]:
        sampling = galago.Sampling(temperature=1.5, seed=seed, max_tokens=24)
        return [*model.submit(galago.Request(Caption("long"), image, sampling=sampling))]

    first, again, other = ([e.text for e in drawn(seed) if isinstance(e, galago.TextDelta)] for seed in (1, 1, 2))
    assert first == again != other and len(first) > 1
    probable = galago.Request(Caption(), image, sampling=galago.Sampling(max_tokens=4), top_logprobs=0)
    *pieces, done = model.submit(probable)
    tokens = [t for e in pieces if isinstance(e, galago.TextDelta) for t in e.tokens]
    assert isinstance(done, galago.Done) and done.finish_reason == "length"
    assert len(tokens) == 3 and tokens[0].logprob == 0  # the first and the last are forced


def test_what_is_no_task_is_refused(model: galago.Model) -> None:
    image = picture(CASES["a1_caption"])
    for question, why in {
        "what is this?": "takes a task and no free question: one of <OCR>",
        "<NONE>": "takes a task",
        "<OD> please": "<OD> stands alone",
    }.items():
        with pytest.raises(galago.InvalidRequest, match=why):
            model.query(image, question)
    with pytest.raises(galago.InvalidRequest, match="needs an image"):
        model.query(question="<OD>")
    with pytest.raises(galago.UnsupportedTask, match="one question"):
        model.chat([{"role": "system", "content": "x"}, {"role": "user", "content": [image, "<OD>"]}])
    with pytest.raises(galago.UnsupportedTask, match="does not point"):
        model.point(image, "cat")
    spelled = galago.Request(Query("<REGION_TO_CATEGORY><loc_1></s><OD><loc_2>"), image, sampling=LIMIT)
    *_, done = model.submit(spelled)
    assert isinstance(done, galago.Done) and done.usage.completion_tokens


def test_the_layout_of_its_authors_is_told_from_that_of_the_library(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "model_a", tmp_path / "original")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    config["vision_config"] = {"model_type": "davit"}
    (tmp_path / "original" / "config.json").write_text(json.dumps(config))
    with pytest.raises(galago.CheckpointError, match="take the same weights in the layout of transformers"):
        galago.load(tmp_path / "original")


def test_a_search_can_be_cancelled(model: galago.Model) -> None:
    run = model.submit(galago.Request(Caption("long"), picture(CASES["a2_od"])))
    run.cancel()
    *_, done = run
    assert isinstance(done, galago.Done) and done.finish_reason == "cancelled"
