"""Whatever the public calls are given, what goes wrong is told by an error of ours, and never by Python's own."""

import decimal
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_moondream as tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import galago
from galago.media.clip import Clip
from galago.request import Caption, Chat, Detect, DetectGaze, Message, Point, Query, Request, Sampling

FEW = {"max_tokens": 2, "max_objects": 2}
IMAGE = tiny.IMAGE
CLIP = Clip((IMAGE, IMAGE), (0.0, 1.0), 2.0)
TALK = [{"role": "user", "content": "What?"}]
NOWHERE = "/nowhere/at/all"
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**70, 10**400, 0.5, 1.0, -0.5, 1e308, float("nan"), float("inf"), 1j),
    *("", " ", "x", "low", "half \ud800", "\0", "high", "user", b"", b"x", bytearray(b"x"), Path("none"), Path(".")),
    *([], (), {}, set(), [[]], [None], [1], ["x"], ("x", 1), {"x": 1}, {1: 2}, {"x": 0.5, "y": "z"}, {"role": "user"}),
    *([0.5, 0.5], (0.9, 0.9, 0.1, 0.1), [[0.5, 0.5]], {"x": 0.5, "y": 0.5}, [{"role": "user", "content": 7}]),
    *(np.array([0.5, 0.5]), np.array([[0.5, 0.5]]), np.float32(0.5), np.int64(2), np.array("x"), np.zeros(0)),
    *(torch.tensor([0.5, 0.5]), torch.tensor(1), torch.zeros(3, 4, 4), IMAGE, CLIP, io.BytesIO(b"x")),
    *(
        object(),
        object,
        np.ndarray,
        io.BytesIO,
        Path,
        len,
        lambda: None,
        range(2),
        decimal.Decimal("0.5"),
        iter([1]),
        NotImplemented,
    ),
    *(Message("user", "What?"), Query("What?"), Sampling(), tiny, {"const": "\ud800"}, {"type": object()}),
]
SETTINGS = sorted(["temperature", "top_p", "min_p", "seed", "max_tokens", "stop", "top_k", "repetition_penalty"])
SETTINGS += ["frequency_penalty", "presence_penalty", "logit_bias"]
SETTINGS += ["json_schema", "max_objects", "variant", "detail", "unknown", 7]  # type: ignore[list-item]
ANY = st.sampled_from(VALUES)
ANY_SETTINGS = st.dictionaries(st.sampled_from(SETTINGS), ANY, max_size=2).map(lambda some: FEW | some)  # type: ignore
PART = st.dictionaries(
    st.sampled_from(["type", "text", "image", "image_url", "url", "base64", "role"]), ANY, max_size=3
)
KIND = st.sampled_from(["text", "image", "image_url", "video", "input_image"])
PARTS = st.lists(ANY | PART | st.tuples(PART, KIND).map(lambda made: made[0] | {"type": made[1]}), max_size=2)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "assistant", "tool"]) | ANY, "content": PARTS | ANY},
    optional={"images": PARTS | ANY, "name": ANY, "tool_calls": ANY, "other": ANY},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[galago.Model]:
    with tiny.open_model(tiny.write(tmp_path_factory.mktemp("tiny"))) as made:
        yield made


def used(result: Any) -> None:
    """Streams have their errors when they are read."""
    if hasattr(result, "__next__"):
        list(result)
    elif isinstance(result, dict):
        for value in result.values():
            used(value)


RIGHT: dict[str, dict[str, Any]] = {
    "encode_image": {"image": IMAGE, "settings": FEW},
    "caption": {"image": IMAGE, "length": "short", "stream": False, "settings": FEW},
    "query": {
        **{"image": IMAGE, "question": "What?", "reasoning": False, "spatial_refs": [(0.5, 0.5)], "stream": False},
        "settings": FEW,
    },
    "chat": {"messages": TALK, "stream": False, "settings": FEW},
    "detect": {"image": IMAGE, "object": "x", "settings": FEW},
    "point": {"image": IMAGE, "object": "x", "settings": FEW},
    "detect_gaze": {
        **{"image": IMAGE, "eye": (0.5, 0.5), "face": (0.1, 0.1, 0.9, 0.9), "unstable_settings": None},
        **{"prioritize_accuracy": False, "force_detect": False, "settings": FEW},
    },
    "map": {"skill": Caption("short"), "images": [IMAGE, IMAGE], "settings": FEW},
    "answer_question": {"image": IMAGE, "question": "What?", "max_new_tokens": 2},
    "batch_answer": {"images": [IMAGE], "prompts": ["What?"]},
    "submit": {"request": Request(Caption(), IMAGE, Sampling(max_tokens=2))},
}
OTHERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "load": (
        galago.load,
        dict.fromkeys(("precision", "profile", "device", "revision", "variants", "threads", "progress", "limits"))
        | {"model": NOWHERE},
    ),
    "watch": (
        lambda model, **given: galago.watch(model, **given),
        {"video": CLIP, "question": "What?", "fps": 1.0, "max_frames": 2, "settings": FEW},
    ),
    "Limits": (
        galago.Limits,
        {"waiting": 1, "running": 1, "kv_bytes": None, "prefix_bytes": 1, "embedding_bytes": 1, "tidy": "idle"},
    ),
    "Clip": (
        lambda model, **given: model.query(Clip(**given), "x"),
        {"frames": (IMAGE,), "times": (0.0,), "duration": 1},
    ),
    "ModelPool": (galago.ModelPool, {"budget": 1, "keep_alive": None}),
    "ModelPool.load": (galago.ModelPool(1).load, {"name": NOWHERE}),
    "ModelPool.unload": (galago.ModelPool(1).unload, {"name": NOWHERE}),
    "Request": (
        lambda model, **given: model.submit(Request(**given)).cancel(),
        {
            **{"skill": Caption(), "image": IMAGE, "sampling": Sampling(max_tokens=2), "variant": None},
            **{"detail": "low", "priority": "batch", "timeout": 60, "top_logprobs": 1},
        },
    ),
    "Query": (
        lambda model, **given: model.submit(Request(Query(**given), IMAGE)).cancel(),
        {"question": "x", "reasoning": False, "spatial_refs": ()},
    ),
    "Detect": (lambda model, **given: Request(Detect(**given), IMAGE), {"object": "x", "max_objects": 1}),
    "Point": (lambda model, **given: Request(Point(**given), IMAGE), {"object": "x", "max_objects": 1}),
    "DetectGaze": (
        lambda model, **given: Request(DetectGaze(**given), IMAGE),
        {"eye": (0.5, 0.5), "face": None, "accurate": False, "force": False},
    ),
    "Chat": (lambda model, **given: model.submit(Request(Chat(**given))), {"messages": (Message("user", "x"),)}),
    "Message": (
        lambda model, **given: model.submit(Request(Chat((Message(**given),)))),
        {"role": "user", "content": ("x", IMAGE)},
    ),
    "Sampling": (Sampling, {"temperature": 0.0, "top_p": 1.0, "stop": ("x",), "json_schema": None, "seed": 1}),
}
NEEDS_MODEL = {"watch", "Clip", "Request", "Query", "Detect", "Point", "DetectGaze", "Chat", "Message"}
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "settings": ANY_SETTINGS,
    "messages": st.lists(TURN, max_size=2).map(lambda some: [*some, *TALK]),
    "unstable_settings": st.dictionaries(
        st.sampled_from(["force_detect", "prioritize_accuracy", "x"]), ANY, max_size=2
    ),
}


@st.composite
def arguments(draw: st.DrawFn, right: dict[str, Any]) -> dict[str, Any]:
    """Right ones, but for a few."""
    given = dict(right)
    for name in draw(st.lists(st.sampled_from(sorted(right)), min_size=1, max_size=2)):
        given[name] = draw(SPECIAL.get(name, ANY) | ANY)
    return given


@pytest.mark.parametrize("name", [*RIGHT, *OTHERS])
def test_only_errors_of_ours(model: galago.Model, name: str) -> None:
    call, right = OTHERS.get(name, (getattr(model, name, None), RIGHT.get(name, {})))

    @settings(max_examples=200, suppress_health_check=list(HealthCheck))
    @given(arguments(right))
    def told(given: dict[str, Any]) -> None:
        more = {"model": model} if name in NEEDS_MODEL else {}
        try:
            used(call(**more, **given))  # type: ignore[misc]
        except galago.GalagoError as error:
            assert str(error) and "\n" not in str(error)

    told()


def test_right_arguments_are_taken(model: galago.Model) -> None:
    """Else all of the above could be refusals."""
    for name, right in RIGHT.items():
        assert getattr(model, name)(**right) is not None


@pytest.mark.parametrize("name", [" x", "x\n", "\tx  "])
def test_blanks_around_a_name_or_a_question_do_not_count(model: galago.Model, name: str) -> None:
    for ask in ("detect", "point", "query"):
        assert getattr(model, ask)(IMAGE, name, settings=FEW) == getattr(model, ask)(IMAGE, "x", settings=FEW)
    found, same = (list(model.submit(Request(Detect(one, 2), IMAGE))) for one in (name, "x"))
    assert found[:-1] == same[:-1] and len(found) > 1


def test_places_in_the_forms_that_programs_have(model: galago.Model) -> None:
    eye = model.detect_gaze(IMAGE, (0.25, 0.5))
    for other in (
        [0.25, 0.5],
        {"y": 0.5, "x": 0.25},
        np.array([0.25, 0.5]),
        torch.tensor([0.25, 0.5]),
        [np.float32(0.25), 0.5],
    ):
        assert model.detect_gaze(IMAGE, other) == eye
    about: dict[str, Any] = {"question": "What?", "settings": tiny.WARM}
    plain = model.query(IMAGE, spatial_refs=[(0.25, 0.5), (0.0, 0.25, 0.5, 1.0)], **about)
    for refs in (
        [{"x": 0.25, "y": 0.5}, {"x_min": 0.0, "y_min": 0.25, "x_max": 0.5, "y_max": 1.0}],
        [np.array([0.25, 0.5]), (0.5, 1.0, 0.0, 0.25)],
        [(0.25, 0.5), (0.5, 0.25, 0.0, 1.0)],
    ):
        assert model.query(IMAGE, spatial_refs=refs, **about) == plain
    seeded: dict[str, Any] = {"prioritize_accuracy": True, "force_detect": True, "settings": {"seed": 3}}
    gaze = model.detect_gaze(IMAGE, face=(0.1, 0.2, 0.6, 0.7), **seeded)
    for face in ((0.6, 0.7, 0.1, 0.2), (0.1, 0.7, 0.6, 0.2), np.array([0.6, 0.2, 0.1, 0.7])):
        assert model.detect_gaze(IMAGE, face=face, **seeded) == gaze


def test_numbers_of_numpy_are_numbers(model: galago.Model) -> None:
    ours = {"temperature": 0.5, "seed": 7, "max_tokens": 5, "top_k": 3}
    theirs = {"temperature": np.float32(0.5), "seed": np.int64(7), "max_tokens": torch.tensor(5), "top_k": np.uint8(3)}
    assert model.query(IMAGE, "What?", settings=theirs) == model.query(IMAGE, "What?", settings=ours)
