"""What a request gives, from the first event to Done, on a tiny random model."""

from pathlib import Path
from typing import Any

import pytest
import tiny_moondream as tiny
import torch
from safetensors.torch import save_file

import galago
from galago.errors import ContextLengthExceeded, GalagoError, InvalidRequest, UnsupportedTask
from galago.families.moondream.prompts import Coordinate
from galago.model import Model
from galago.request import (
    Caption,
    Chat,
    Detect,
    DetectGaze,
    Done,
    Event,
    GazeFound,
    Message,
    ObjectFound,
    Point,
    PointFound,
    Query,
    Reasoning,
    Request,
    Sampling,
    Skill,
    TextDelta,
)

CONTEXT = tiny.NESTED["text"]["max_context"]
IMAGE_TOKENS = 9
PREFIX = 1 + IMAGE_TOKENS


def ask(model: Model, skill: Skill, image: Any = tiny.IMAGE, *, variant: Any = None, **sampling: Any) -> list[Event]:
    return list(model.submit(Request(skill, image, Sampling(**sampling), variant)))


def text(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def done(events: list[Event]) -> Done:
    last = events[-1]
    assert isinstance(last, Done) and not any(isinstance(e, Done) for e in events[:-1])
    return last


# --- text --------------------------------------------------------------------------------------


def test_text_ends_at_max_tokens(model: Model) -> None:
    model.trim()
    end = done(ask(model, Caption(), max_tokens=7))
    assert end.finish_reason == "length"
    assert end.usage.completion_tokens == 7
    assert (end.usage.image_tokens, end.usage.cached_tokens) == (IMAGE_TOKENS, 0)
    assert end.usage.prompt_tokens == PREFIX + 5  # the template


def test_text_ends_with_the_context(model: Model) -> None:
    end = done(ask(model, Caption()))
    assert end.finish_reason == "length"
    # The last token is given out though there is no position to feed it to.
    assert end.usage.prompt_tokens + end.usage.completion_tokens == CONTEXT + 1


def test_text_ends_where_the_model_says(tmp_path: Path) -> None:
    with tiny.open_model(tiny.write(tmp_path, weights=tiny.tensors(eos_bias=1e4))) as silent:
        events = ask(silent, Query("Anything?"))
        assert text(events) == "" and done(events).finish_reason == "stop"
        assert done(events).usage.completion_tokens == 0
        assert ask(silent, Detect("cat"))[:-1] == [] and ask(silent, Point("cat"))[:-1] == []
        assert ask(silent, DetectGaze((0.5, 0.5)))[:-1] == [GazeFound(None)]


def test_text_ends_at_a_stop_string(model: Model) -> None:
    whole = text(ask(model, Caption(), **tiny.WARM))
    stop = whole[20:23]
    events = ask(model, Caption(), stop=(stop,), **tiny.WARM)
    assert text(events) == whole[: whole.index(stop)]
    assert done(events).finish_reason == "stop"
    assert done(events).usage.completion_tokens < 40


@pytest.mark.parametrize("kind", ["caption", "query"])
def test_streaming_gives_the_same(model: Model, kind: str) -> None:
    def call(stream: bool) -> Any:
        if kind == "caption":
            return model.caption(tiny.IMAGE, stream=stream, settings=tiny.WARM)["caption"]
        return model.query(tiny.IMAGE, "What is it?", stream=stream, settings=tiny.WARM)["answer"]

    pieces = list(call(True))
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == call(False)


def test_a_seed_gives_the_same_again(model: Model) -> None:
    def drawn(seed: int | None) -> str:
        return text(ask(model, Caption(), max_tokens=40, temperature=1.0, seed=seed))

    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)
    assert text(ask(model, Caption(), max_tokens=40)) == text(ask(model, Caption(), max_tokens=40, seed=9))


def test_two_requests_do_not_mix(model: Model) -> None:
    skills = (Caption("short"), Query("Who?"), Detect("cat"), Caption("long"))
    alone = [ask(model, skill, **tiny.WARM)[:-1] for skill in skills]
    runs = [model.submit(Request(skill, tiny.IMAGE, Sampling(**tiny.WARM))) for skill in skills]
    together = {i: list(runs[i])[:-1] for i in reversed(range(len(runs)))}
    assert [together[i] for i in range(len(runs))] == alone


# --- context -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "taken"),
    [(tiny.IMAGE, PREFIX + 5), (None, 1 + 5)],  # template; BOS
)
def test_prompts_up_to_the_context(model: Model, image: Any, taken: int) -> None:
    most = CONTEXT - taken
    model.trim()
    events = ask(model, Query("x" * most), image)
    assert done(events).usage == type(done(events).usage)(CONTEXT, IMAGE_TOKENS if image else 0, 0, 1)
    assert done(events).finish_reason == "length"
    with pytest.raises(ContextLengthExceeded) as error:
        model.submit(Request(Query("x" * (most + 1)), image))
    assert str(most + 1 + taken - (PREFIX if image else 0)) in str(error.value)
    assert done(ask(model, Query("short"), image, max_tokens=1)).usage.completion_tokens == 1


def test_reasoning_leaves_room_for_the_answer(model: Model) -> None:
    events = ask(model, Query("x", reasoning=True))
    assert isinstance(events[0], Reasoning) and text(events)
    assert done(events).finish_reason == "length"
    full = ask(model, Query("x" * (CONTEXT - PREFIX - 5), reasoning=True))
    assert full[:-1] == [Reasoning("", ())]
    assert done(full).finish_reason == "length" and done(full).usage.completion_tokens == 0


@pytest.mark.parametrize(("skill", "each"), [(Detect("cat"), 3), (Point("cat"), 2)])
def test_objects_up_to_the_context(model: Model, skill: Detect | Point, each: int) -> None:
    events = ask(model, skill)
    room = CONTEXT - done(events).usage.prompt_tokens
    assert done(events).finish_reason == "length"
    assert len(events) - 1 == room // each
    assert done(events).usage.completion_tokens == each * (len(events) - 1)


# --- objects -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "event"), [(Detect, ObjectFound), (Point, PointFound)])
def test_max_objects(model: Model, kind: Any, event: Any) -> None:
    few, more = ask(model, kind("cat", 2)), ask(model, kind("cat", 5))
    assert len(few) == 3 and len(more) == 6
    assert few[:-1] == more[:2] and all(isinstance(e, event) for e in few[:-1])
    assert done(few).finish_reason == "length"


# --- images ------------------------------------------------------------------------------------


def test_an_encoded_image_answers_as_the_image(model: Model) -> None:
    encoded = model.encode_image(tiny.IMAGE)
    assert model.encode_image(encoded) is encoded
    assert (encoded.size, encoded.image_tokens, encoded.positions) == (tiny.IMAGE.size, IMAGE_TOKENS, PREFIX)
    before = encoded.k.clone(), encoded.v.clone()
    for skill in (Query("What?"), Detect("cat"), DetectGaze((0.5, 0.5))):
        model.trim()
        plain, again = ask(model, skill, **tiny.WARM), ask(model, skill, encoded, **tiny.WARM)
        assert plain[:-1] == again[:-1]
        assert done(again).usage.cached_tokens == PREFIX and done(again).timings.encode_s == 0
        assert done(plain).timings.encode_s > 0
    assert torch.equal(encoded.k, before[0]) and torch.equal(encoded.v, before[1])


def test_low_detail_sees_the_whole_only(model: Model) -> None:
    wide = tiny.IMAGE.resize((tiny.IMAGE.width * 4, tiny.IMAGE.height * 2))
    whole = model.encode_image(wide, {"detail": "low"})
    assert whole.crops == 1 < model.encode_image(wide, {"detail": "high"}).crops
    assert model.caption(wide, settings={"detail": "low"}) == model.caption(whole)
    with pytest.raises(InvalidRequest, match="low or high"):
        model.caption(wide, settings={"detail": "auto"})


def test_an_image_encoded_by_another_model_is_refused(model: Model, tmp_path: Path) -> None:
    # The same folder name, another checkpoint.
    with tiny.open_model(tiny.write(tmp_path / model.name, weights=tiny.tensors(seed=5))) as other:
        assert other.name == model.name
        foreign = other.encode_image(tiny.IMAGE)
    with pytest.raises(InvalidRequest, match="encoded by") as error:
        model.query(foreign, "What?")
    assert error.value.param == "image"


def test_an_image_encoded_in_another_precision_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path)
    with tiny.open_model(folder) as full, galago.load(folder, precision="bfloat16") as half:
        with pytest.raises(InvalidRequest, match="encoded by"):
            full.caption(half.encode_image(tiny.IMAGE))
        assert half.precision == "bfloat16" and full.precision == "float32"


@pytest.mark.parametrize(
    ("skill", "image", "param"),
    [
        (Caption(), None, "image"),
        (Detect("cat"), None, "image"),
        (Point("cat"), None, "image"),
        (DetectGaze((0.5, 0.5)), None, "image"),
        (Query("x", spatial_refs=((0.5, 0.5),)), None, "spatial_refs"),
        (Caption(), "photo.jpg", "image"),
    ],
)
def test_what_needs_an_image(model: Model, skill: Skill, image: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        model.submit(Request(skill, image))
    assert error.value.param == param


# --- variants ----------------------------------------------------------------------------------


def test_lora_variant(tmp_path: Path) -> None:
    save_file(tiny.lora(), tmp_path / "v.safetensors")
    variant = str(tmp_path / "v.safetensors")
    with tiny.open_model(tiny.write(tmp_path / "m")) as model:
        plain, adapted = (text(ask(model, Query("x"), variant=v, **tiny.WARM)) for v in (None, variant))
        assert plain != adapted
        encoded = model.encode_image(tiny.IMAGE, {"variant": variant})
        assert encoded.variant == variant
        assert model.query(encoded, "x", settings=tiny.WARM | {"variant": variant})["answer"] == adapted
        for image, wrong in ((encoded, None), (model.encode_image(tiny.IMAGE), variant)):
            with pytest.raises(InvalidRequest) as error:
                model.query(image, "x", settings={"variant": wrong})
            assert error.value.param == "variant"
        # Gaze is never adapted.
        gaze = DetectGaze((0.2, 0.8))
        wanted = ask(model, gaze)[0]
        for image in (tiny.IMAGE, model.encode_image(tiny.IMAGE)):
            assert ask(model, gaze, image, variant=variant)[0] == wanted
        with pytest.raises(InvalidRequest, match="no LoRA"):
            model.caption(tiny.IMAGE, settings={"variant": str(tmp_path / "nothing.pt")})


def test_a_folder_of_variants_is_not_left(tmp_path: Path) -> None:
    folder = tmp_path / "variants"
    folder.mkdir()
    save_file(tiny.lora(), folder / "mine.safetensors")
    save_file(tiny.lora(), tmp_path / "outside.safetensors")
    with tiny.open_model(tiny.write(tmp_path / "m"), variants=folder) as model:
        assert model.caption(tiny.IMAGE, settings={"variant": "mine.safetensors", "max_tokens": 3})["caption"]
        for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), ".", ""):
            with pytest.raises(InvalidRequest, match="no LoRA"):
                model.caption(tiny.IMAGE, settings={"variant": name})


# --- what revisions lack -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skill", "image", "variant", "says"),
    [
        (Query("x", reasoning=True), tiny.IMAGE, None, "reasoning"),
        (Query("x", spatial_refs=((0.5, 0.5),)), tiny.IMAGE, None, "spatial"),
        (Query("x"), None, None, "without an image"),
        (Chat((Message("user", "x"),)), None, None, "without an image"),
        (Caption(), tiny.IMAGE, "some.pt", "LoRA"),
    ],
)
def test_legacy_lacks(legacy: Model, skill: Skill, image: Any, variant: str | None, says: str) -> None:
    with pytest.raises(UnsupportedTask, match=says) as error:
        legacy.submit(Request(skill, image, variant=variant))
    assert "2025-01-09" in str(error.value)


def test_legacy_does_the_rest(legacy: Model) -> None:
    for skill in (Caption(), Query("x"), Detect("x"), Point("x"), DetectGaze((0.5, 0.5))):
        assert len(ask(legacy, skill, max_tokens=5)) > 1
    with pytest.raises(InvalidRequest, match="long") as error:
        legacy.caption(tiny.IMAGE, "long")
    assert error.value.param == "length"


# --- prompts inside requests -------------------------------------------------------------------


def test_chat_is_a_query(model: Model) -> None:
    one = Chat((Message("user", "What is it?"),))
    assert text(ask(model, one, **tiny.WARM)) == text(ask(model, Query("What is it?"), **tiny.WARM))
    more = Chat((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    transcript = Query("Question: a\n\nAnswer: b\n\nQuestion: c")
    assert text(ask(model, more, **tiny.WARM)) == text(ask(model, transcript, **tiny.WARM))


def test_control_tokens_in_a_question_are_text(model: Model) -> None:
    marker, plain = ask(model, Query("<|md_reserved_4|>"), max_tokens=5), ask(model, Query("x" * 17), max_tokens=5)
    assert done(marker).usage.prompt_tokens == done(plain).usage.prompt_tokens


def test_places_are_put_in_by_position(tmp_path: Path) -> None:
    m = tiny.load(tiny.write(tmp_path))
    coord, size = m.config.tokens.coord_id, m.config.tokens.size_id
    assert coord is not None and size is not None
    found = m.embed((1, coord, Coordinate(0.5), size))
    wte = m.weights.text.wte
    assert torch.equal(found[[0, 1, 3]], wte[[1, coord, size]])
    assert not torch.equal(found[2], wte[coord])


def test_reasoning_with_places(model: Model) -> None:
    refs = ((0.1, 0.2, 0.6, 0.9), (0.5, 0.5))
    events = ask(model, Query("x", reasoning=True, spatial_refs=refs), max_tokens=10)
    assert isinstance(events[0], Reasoning)
    assert done(events).usage.prompt_tokens == PREFIX + 3 + 3 + 2 + 1 + 2
    assert done(events).usage.completion_tokens == 20  # both parts have a limit of their own


# --- gaze --------------------------------------------------------------------------------------


def test_accurate_gaze(model: Model) -> None:
    skill = DetectGaze(face=(0.2, 0.2, 0.6, 0.6), accurate=True)
    model.trim()
    first, again, other = (ask(model, skill, seed=seed) for seed in (1, 1, 2))
    assert first[0] == again[0] != other[0]
    usage = done(first).usage
    each = PREFIX + len("\n\nPoint:") + 2 + len(" gaze\n\n")
    assert usage.prompt_tokens == 20 * each and usage.image_tokens == 20 * IMAGE_TOKENS
    assert usage.cached_tokens == 18 * PREFIX  # both views are seen once
    with pytest.raises(InvalidRequest) as error:
        ask(model, skill, model.encode_image(tiny.IMAGE))
    assert error.value.param == "image"


# --- cancelling --------------------------------------------------------------------------------


def test_cancel_and_go_on(model: Model) -> None:
    run = model.submit(Request(Point("cat", 1000), tiny.IMAGE))
    events = [next(run)]
    run.cancel()
    events += run
    # The worker may have been done by then.
    assert done(events).finish_reason in ("cancelled", "length")
    assert text(ask(model, Caption(), max_tokens=5))


def test_leaving_a_stream_frees_the_model(model: Model) -> None:
    pieces = model.caption(tiny.IMAGE, stream=True, settings=tiny.WARM)["caption"]
    next(pieces)
    pieces.close()
    assert list(pieces) == []
    assert text(ask(model, Caption(), max_tokens=5))


def test_errors_are_ours(model: Model) -> None:
    bad = {"temperature": -1, "top_p": 2, "max_tokens": 0, "colour": 1, "max_objects": 0, "variant": 3}
    for name, value in bad.items():
        with pytest.raises(GalagoError):
            model.detect(tiny.IMAGE, "cat", settings={name: value})
