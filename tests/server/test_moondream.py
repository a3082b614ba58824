"""Moondream's REST API on the wire: replies, streams, errors, hostile bodies."""

import json
import threading
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moondream_wire import QUESTION, error_of
from serving import GOLDEN, hosting, load, serving

import galago
from galago.engine.limits import Limits
from galago.request import Query, Request, Sampling

SKILLS = ("caption", "query", "detect", "point", "detect_gaze", "segment")


def data_lines(text: str) -> list[str]:
    *events, end = text.split("\n\n")
    assert end == ""
    assert all(e.startswith("data: ") and "\n" not in e for e in events)
    return [e.removeprefix("data: ") for e in events]


@pytest.fixture
def opened(model: galago.Model) -> galago.EncodedImage:
    return model.encode_image(GOLDEN / "small" / "images" / "im_500x120.png")


def test_reply_of_a_text_skill(http: httpx.Client, model: galago.Model, opened: Any, body: dict[str, Any]) -> None:
    limit = {"max_tokens": 5}
    reply = http.post("/v1/caption", json=body | {"length": "short", "settings": limit}).json()
    assert reply["caption"] == model.caption(opened, "short", settings=limit)["caption"]
    assert reply["request_id"] and reply["finish_reason"] == "length"
    metrics, stats = reply["metrics"], reply["_stats"]
    assert set(metrics) == {"input_tokens", "output_tokens", "prefill_time_ms", "decode_time_ms", "ttft_ms"}
    assert metrics["output_tokens"] == stats["tokens"] == 5
    assert metrics["input_tokens"] > 25  # the image
    assert set(stats) == {"tokens", "duration", "tokens_per_sec"}


def test_lengths_are_told_apart(http: httpx.Client, body: dict[str, Any]) -> None:
    def caption(length: str | None) -> str:
        return str(http.post("/v1/caption", json=body | {"length": length}).json()["caption"])

    assert caption(None) == caption("normal") != caption("short")


def test_points_and_boxes(http: httpx.Client, model: galago.Model, opened: Any, body: dict[str, Any]) -> None:
    two = {"max_objects": 2}
    boxes = model.detect(opened, "person", settings=two)["objects"]
    found = http.post("/v1/detect", json=body | {"settings": two}).json()
    assert [set(box) for box in found["objects"]] == [{"x_min", "y_min", "x_max", "y_max"}] * len(boxes)
    inside = [{name: min(max(value, 0), 1) for name, value in box.items()} for box in boxes]
    assert found["objects"] == [pytest.approx(box, abs=1e-5) for box in inside]
    assert len(boxes) == 2

    pointed = http.post("/v1/point", json=body | {"settings": two, "spatial_refs": []}).json()
    points = model.point(opened, "person", settings=two)["points"]
    assert pointed["points"] == [pytest.approx(point, abs=1e-5) for point in points]
    assert pointed["count"] == len(points) == 2


def test_gaze(http: httpx.Client, golden: Any, body: dict[str, Any]) -> None:
    for case in ("gaze_0", "gaze_0_force", "gaze_accurate"):
        args = golden[f"im_500x120.{case}"]["args"]
        flags = {name: args.get(name) for name in ("force_detect", "prioritize_accuracy")}
        asked = body | {"face": args.get("face"), "unstable_settings": flags, "settings": {"seed": 1234}}
        eyes = [None] if "eye" not in args else [args["eye"], dict(zip("xy", args["eye"], strict=True))]
        for eye in eyes:
            found = http.post("/v1/detect_gaze", json=asked | {"eye": eye}).json()["gaze"]
            assert found == golden[f"im_500x120.{case}"]["output"]["gaze"], case


def test_question_without_an_image(http: httpx.Client, golden: Any) -> None:
    case = golden["text_only.query_0"]
    asked = {"question": case["args"]["question"], "settings": {"max_tokens": 24}}
    assert http.post("/v1/query", json=asked).json()["answer"] == case["output"]["answer"]


def test_reasoning(http: httpx.Client, golden: Any, body: dict[str, Any]) -> None:
    expected = golden["im_500x120.query_reasoning_0"]["output"]
    asked = body | {"reasoning": True, "settings": {"max_tokens": 40}}
    reply = http.post("/v1/query", json=asked).json()
    assert reply["answer"] == expected["answer"]
    assert reply["reasoning"]["text"] == expected["reasoning"]["text"]
    first, *rest = map(json.loads, data_lines(http.post("/v1/query", json=asked | {"stream": True}).text))
    assert first == {"reasoning": reply["reasoning"], "completed": False}
    assert "".join(event.get("chunk", "") for event in rest) == reply["answer"]
    assert "reasoning" not in http.post("/v1/query", json=body | {"reasoning": False}).json()


def test_spatial_refs_are_part_of_the_question(http: httpx.Client, model: Any, opened: Any, body: Any) -> None:
    refs = [[0.5, 0.25], [0.1, 0.2, 0.3, 0.4]]
    few = {"max_tokens": 8}
    reply = http.post("/v1/query", json=body | {"spatial_refs": refs, "settings": few}).json()
    assert reply["answer"] == model.query(opened, QUESTION, spatial_refs=refs, settings=few)["answer"]
    plain = http.post("/v1/query", json=body | {"settings": few}).json()
    assert reply["metrics"]["input_tokens"] > plain["metrics"]["input_tokens"]


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/query"])
def test_stream(http: httpx.Client, body: dict[str, Any], path: str) -> None:
    asked = body | {"settings": {"max_tokens": 12}}
    whole = http.post(path, json=asked).json()
    reply = http.post(path, json=asked | {"stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    *pieces, last = map(json.loads, data_lines(reply.text))
    assert all(set(piece) == {"chunk", "completed"} and piece["completed"] is False for piece in pieces)
    assert "".join(piece["chunk"] for piece in pieces) == whole.get("caption", whole.get("answer"))
    assert last["completed"] is True and "chunk" not in last
    assert last["finish_reason"] == whole["finish_reason"]
    assert last["metrics"]["output_tokens"] == last["stats"]["tokens"] == 12


@pytest.mark.parametrize(
    ("path", "one", "several"), [("/v1/detect", "object", "objects"), ("/v1/point", "point", "points")]
)
def test_what_is_found_is_streamed_too(
    http: httpx.Client, body: dict[str, Any], path: str, one: str, several: str
) -> None:
    asked = body | {"object": "person", "settings": {"max_objects": 3}}
    whole = http.post(path, json=asked).json()
    reply = http.post(path, json=asked | {"stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    *pieces, last = map(json.loads, data_lines(reply.text))
    assert [piece[one] for piece in pieces] == whole[several] and len(pieces) > 0
    assert last["completed"] is True and last["finish_reason"] == whole["finish_reason"]


def test_other_ways_to_say_the_same(http: httpx.Client, body: dict[str, Any]) -> None:
    """Station's: no prefix, `obj`, settings beside the fields, bare base64; nulls and what nobody knows."""
    few = {"max_tokens": 4}
    expected = http.post("/v1/query", json=body | {"settings": few}).json()["answer"]
    unknown = dict.fromkeys(["model", "timeout", "reasoning", "spatial_refs", "stream"]) | {"user": 1, "length": 7}
    for path, other in [
        ("/query", {"settings": few}),
        ("//v1//query", {"settings": few}),
        ("/v1/query", {"settings": None, **few}),
        ("/v1/query", {"max_tokens": 9, "settings": few}),
        ("/v1/query", {"settings": few | {"temperature": None, "anything": 1}, **unknown}),
        ("/v1/query", {"settings": few, "timeout": 600, "image_url": body["image_url"].partition(",")[2]}),
    ]:
        assert http.post(path, json=body | other).json()["answer"] == expected, (path, other)
    one = {"settings": {"max_objects": 1}}
    named = http.post("/detect", json=body | one | {"object": None, "obj": "person"}).json()["objects"]
    assert named == http.post("/v1/detect", json=body | one).json()["objects"]


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "caption": [
        ({"length": "tiny"}, "length"),
        ({"length": 3}, "length"),
        ({"image_url": None}, "image_url"),
        ({"image_url": {"url": 7}}, "image_url.url"),
        ({"image_url": 7}, "image_url"),
        ({"image_url": None, "image": {"x": 1}}, "image.url"),
        ({"settings": {"detail": "x"}}, "settings.detail"),
        ({"settings": {"json_schema": "x"}}, "settings.json_schema"),
        ({"stream": 1}, "stream"),
        ({"model": 7}, "model"),
        *(({"timeout": value}, "timeout") for value in (0, -1, "3", True, 10**400)),
        *(({"settings": value}, "settings") for value in ([], "x", 1)),
        *(({"settings": {"max_tokens": value}}, "settings.max_tokens") for value in (0, "3", 2.5, True)),
        *(({"settings": {"temperature": value}}, "settings.temperature") for value in (-1, 3, "0", [])),
        *(({"settings": {"top_p": value}}, "settings.top_p") for value in (-0.1, 2, "1", 10**400)),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": "x", "settings": None}, "top_p"),
    ],
    "query": [
        ({"question": None}, "question"),
        ({"question": " "}, "question"),
        ({"question": ["x"]}, "question"),
        ({"question": "\ud800"}, "question"),
        ({"reasoning": "yes"}, "reasoning"),
        ({"spatial_refs": "x"}, "spatial_refs"),
        ({"spatial_refs": [[0.5, 0.5], [0.1]]}, "spatial_refs.1"),
        ({"spatial_refs": [[0.5, True]]}, "spatial_refs.0.1"),
        ({"spatial_refs": [[0.5, 10**400]]}, "spatial_refs.0.1"),
        ({"spatial_refs": [[0.5, 0.5]], "image_url": None}, "spatial_refs"),
    ],
    "detect": [
        ({"object": None}, "object"),
        ({"object": ""}, "object"),
        ({"object": 7}, "object"),
        ({"object": None, "obj": 7}, "obj"),
        ({"settings": {"max_objects": 0}}, "settings.max_objects"),
        ({"settings": {"max_objects": "1"}}, "settings.max_objects"),
        ({"max_objects": False}, "max_objects"),
    ],
    "point": [({"object": None}, "object"), ({"image_url": None}, "image_url"), ({"spatial_refs": {}}, "spatial_refs")],
    "detect_gaze": [
        ({"eye": None}, "eye"),
        ({"eye": [0.5]}, "eye"),
        ({"eye": {"x": 0.5}}, "eye.y"),
        ({"eye": {"x": 0.5, "y": "0.5"}}, "eye.y"),
        ({"eye": [0.5, 1.5]}, "eye.1"),
        ({"face": [0, 0, 1]}, "face"),
        ({"unstable_settings": {"prioritize_accuracy": True}}, "face"),
        ({"unstable_settings": {"force_detect": 1}}, "unstable_settings.force_detect"),
    ],
}


@pytest.mark.parametrize("skill", WRONG)
def test_wrong_field(http: httpx.Client, body: dict[str, Any], skill: str) -> None:
    for change, param in WRONG[skill]:
        reply = http.post(f"/v1/{skill}", content=json.dumps(body | change).encode())
        assert error_of(reply, 400) == ("invalid_value", param), change
        assert reply.json()["status"] == "error"
        assert param.split(".")[0] in reply.json()["error"], change


@pytest.mark.parametrize("image", ["", "data:image/png;base64,aGVsbG8=", "file:///etc/hostname", "http://127.0.0.1/a"])
def test_bad_image(http: httpx.Client, body: dict[str, Any], image: str) -> None:
    assert error_of(http.post("/v1/caption", json=body | {"image_url": image}), 400) == ("invalid_image", "image_url")


def test_files_of_the_server_are_not_variants(http: httpx.Client, body: dict[str, Any]) -> None:
    reply = http.post("/v1/query", json=body | {"settings": {"variant": "/etc/hostname"}})
    assert error_of(reply, 400) == ("unsupported_parameter", "settings.variant")


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"question": NaN}', b"[" * 100_000])
def test_not_json(http: httpx.Client, skill: str, raw: bytes) -> None:
    assert error_of(http.post(f"/v1/{skill}", content=raw), 400) == ("invalid_json", None)


def test_what_the_model_lacks(http: httpx.Client, body: dict[str, Any]) -> None:
    assert error_of(http.post("/v1/segment", json=body | {"stream": True}), 501)[0] == "unsupported_task"
    assert error_of(http.post("/v1/point", json=body | {"spatial_refs": [[0.5, 0.5]]}), 501)[0] == "unsupported_task"
    with serving(hosting(load("legacy"))) as url:
        for asked in ({"reasoning": True}, {"spatial_refs": [[0.5, 0.5]]}, {"image_url": None}):
            reply = httpx.post(f"{url}/v1/query", json=body | asked | {"stream": True})
            assert error_of(reply, 501)[0] == "unsupported_task", asked


def test_wrong_method(http: httpx.Client) -> None:
    reply = http.get("/v1/caption")
    assert error_of(reply, 405) == ("method_not_allowed", None)
    assert reply.headers["allow"] == "POST"


def test_too_long_a_question(http: httpx.Client) -> None:
    reply = http.post("/v1/query", json={"question": "word " * 5000, "stream": True})
    assert error_of(reply, 400)[0] == "context_length_exceeded"


def test_body_limit_and_strict_names(body: dict[str, Any]) -> None:
    bounds = {"body_limit_mb": 1000 / (1 << 20), "strict_model_names": True}
    with serving(hosting(load("small"), **bounds)) as url:
        assert error_of(httpx.post(f"{url}/v1/caption", content=b" " * 1001), 413) == ("request_too_large", None)
        asked = {"question": QUESTION, "model": "moondream3-preview"}
        assert error_of(httpx.post(f"{url}/v1/query", json=asked), 404) == ("model_not_found", "model")


def test_time_limit(http: httpx.Client, body: dict[str, Any]) -> None:
    before = http.get("/v1/stats").json()["timeouts"]
    reply = http.post("/v1/caption", json=body | {"timeout": 1e-6})
    assert error_of(reply, 504)[0] == "timeout"
    assert reply.json()["status"] == "timeout"
    assert http.get("/v1/stats").json()["timeouts"] == before + 1


def test_time_limit_of_the_server(body: dict[str, Any]) -> None:
    with serving(hosting(load("small"), timeout=1e-6)) as url:
        assert error_of(httpx.post(f"{url}/v1/caption", json=body), 504)[0] == "timeout"
        chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        assert httpx.post(f"{url}/v1/chat/completions", json=chat).json()["error"]["code"] == "timeout"
        own = httpx.post(f"{url}/v1/caption", json=body | {"timeout": 3600, "settings": {"max_tokens": 1}})
        assert own.status_code == 200
        assert httpx.get(f"{url}/v1/stats").json()["default_timeout"] == 1e-6


def test_full_queue(body: dict[str, Any]) -> None:
    """One runs, none may wait."""
    model, reached, go_on = load("small", limits=Limits(waiting=0, running=1)), threading.Event(), threading.Event()
    here = threading.current_thread()

    def hold() -> None:
        if threading.current_thread() is not here:  # the engine's thread
            reached.set()
            go_on.wait(60)

    with serving(hosting(model)) as url:
        run = model.submit(Request(Query("hello"), None, Sampling(max_tokens=4)))
        run.watch(hold)
        assert reached.wait(60)
        reply = httpx.post(f"{url}/v1/caption", json=body | {"stream": True})
        assert httpx.get(f"{url}/v1/stats").json()["max_queue_size"] == 0
        go_on.set()
        list(run)
        assert httpx.post(f"{url}/v1/caption", json=body | {"settings": {"max_tokens": 1}}).status_code == 200
    assert error_of(reply, 429) == ("queue_full", None)
    assert reply.json()["status"] == "rejected"
    assert int(reply.headers["retry-after"]) >= 1


def test_stats(http: httpx.Client, model: galago.Model, body: dict[str, Any]) -> None:
    before = http.get("/v1/stats").json()
    http.post("/v1/caption", json=body | {"settings": {"max_tokens": 1}})
    after = http.get("/v1/stats").json()
    assert before["default_timeout"] == 24 * 60 * 60, "a number also where there is no limit"
    members = {"workers", "queue_size", "max_queue_size", "processing", "timeouts", "default_timeout"}
    assert set(after) == members | {"model", "status", "requests_processed", "models"}
    assert (after["model"], after["status"], after["max_queue_size"]) == (model.name, "running", Limits().waiting)
    assert after["requests_processed"] == before["requests_processed"] + 1
    assert after["models"][model.name]["skills"]["caption"]["done"] >= 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
REF = st.lists(st.floats(0, 1) | st.integers(0, 1), min_size=2, max_size=4)
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "object": st.text(min_size=1, max_size=4),
    "question": st.text(min_size=1, max_size=4),
    "length": st.sampled_from(["short", "normal", "long"]),
    "stream": st.booleans(),
    "spatial_refs": st.lists(REF, max_size=2),
    "eye": REF | st.fixed_dictionaries({"x": st.floats(0, 1), "y": st.floats(0, 1)}),
    "face": REF,
    "timeout": st.floats(1, 100),
    "unstable_settings": st.fixed_dictionaries({}, optional={"force_detect": JSON}),
}
SETTINGS = st.fixed_dictionaries(
    {"max_tokens": st.just(2), "max_objects": st.just(1)}, optional={"temperature": st.floats(0, 2), "top_p": JSON}
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    skill=st.sampled_from(SKILLS),
    fields=st.fixed_dictionaries({"settings": SETTINGS}, optional={k: r | r | r | JSON for k, r in RIGHT.items()}),
    anything=st.none() | JSON,
    with_image=st.booleans(),
)
def test_no_body_breaks_the_server(
    http: httpx.Client, photo: str, skill: str, fields: dict[str, Any], anything: Any, with_image: bool
) -> None:
    sent = anything if anything is not None else fields | ({"image_url": photo} if with_image else {})
    reply = http.post(f"/v1/{skill}", content=json.dumps(sent).encode())
    assert reply.status_code in (200, 400, 501, 504), (
        reply.text
    )  # the last where what was drawn is a time of next to none
    if reply.status_code == 200:
        assert "error" not in reply.text
    else:
        error_of(reply, reply.status_code)
