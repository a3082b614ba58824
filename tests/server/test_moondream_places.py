"""Moondream's REST API: pictures and places where other programs put them."""

import json
from typing import Any

import httpx
import pytest
from moondream_wire import QUESTION, error_of


@pytest.mark.parametrize(
    "key", ["image", "images", "image_url", "list", "object", "base64 beside nulls", "with blanks", "percent-encoded"]
)
def test_a_picture_under_another_key_is_looked_at(http: httpx.Client, body: dict[str, Any], key: str) -> None:
    """It was left out without a word, and the question answered blind."""
    url = body["image_url"]
    ways: dict[str, dict[str, Any]] = {
        "list": {"images": [url]},
        "object": {"image_url": {"url": url}},
        "base64 beside nulls": {"image": {"url": None, "base64": url.partition(",")[2]}, "image_url": None},
        "with blanks": {"image_url": f" data:image/png; base64,{url.partition(',')[2]}\n"},
        "percent-encoded": {"image_url": url.replace("+", "%2B").replace("/", "%2F").replace("%2F", "/", 1)},
    }
    asked = {"question": QUESTION, "object": "person", "settings": {"max_tokens": 5, "max_objects": 1}}
    for path in ("/v1/query", "/v1/caption", "/v1/detect"):
        wanted = http.post(path, json=asked | {"image_url": url}).json()
        found = http.post(path, json=asked | ways.get(key, {key: url})).json()
        for member in ("answer", "caption", "objects"):
            assert found.get(member) == wanted.get(member), (path, found)
        assert found["metrics"]["input_tokens"] == wanted["metrics"]["input_tokens"]


@pytest.mark.parametrize("skill", ["query", "caption", "detect"])
@pytest.mark.parametrize("where", ["photo", "data", "file", "link", "question"])
def test_a_picture_where_nobody_looks_is_refused(
    http: httpx.Client, body: dict[str, Any], skill: str, where: str
) -> None:
    url = body.pop("image_url")
    given: dict[str, tuple[dict[str, Any], str]] = {
        "photo": ({"photo": url}, "photo"),
        "data": ({"input": {"data": url.partition(",")[2]}}, "input.data"),
        "file": ({"files": [{"content": url}]}, "files.0.content"),
        "link": ({"picture": "https://example.org/a.jpeg"}, "picture"),
        "question": ({"question": url}, "question"),
    }
    reply = http.post(f"/v1/{skill}", json=body | given[where][0])
    assert error_of(reply, 400) == ("invalid_value", given[where][1])
    assert "give it as image_url" in reply.json()["error"]


def test_what_a_route_needs_is_said(http: httpx.Client, body: dict[str, Any]) -> None:
    for image in ({}, {"image_url": None}, {"images": []}):
        reply = http.post("/v1/caption", json={"settings": {}} | image)
        assert error_of(reply, 400) == ("invalid_value", "image_url")
        assert "data: URL" in reply.json()["error"]
    two = body | {"images": [body["image_url"]]}
    assert error_of(http.post("/v1/query", json=two), 400)[0] == "too_many_images"
    assert error_of(http.post("/v1/query", json=body | {"image_url": ""}), 400) == ("invalid_image", "image_url")


def test_places_as_the_replies_have_them(http: httpx.Client, body: dict[str, Any]) -> None:
    def answer(refs: list[Any]) -> str:
        asked = body | {"spatial_refs": refs, "settings": {"max_tokens": 8}}
        return str(http.post("/v1/query", json=asked).json()["answer"])

    box = {"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}
    assert answer([{"x": 0.5, "y": 0.25}, box]) == answer([[0.5, 0.25], [0.1, 0.2, 0.3, 0.4]])
    gaze = body | {"unstable_settings": {"prioritize_accuracy": True}, "settings": {"seed": 3}}
    faces = [[0.1, 0.2, 0.6, 0.7], [0.6, 0.7, 0.1, 0.2], {"x_min": 0.6, "y_min": 0.2, "x_max": 0.1, "y_max": 0.7}]
    found = [http.post("/v1/detect_gaze", json=gaze | {"face": face}).json()["gaze"] for face in faces]
    assert found[0] == found[1] == found[2] is not None


def test_settings_that_python_has(http: httpx.Client, body: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    asked = body | {"settings": {"json_schema": schema, "max_tokens": 40}}
    assert json.loads(http.post("/v1/query", json=asked).json()["answer"])["n"] in (1, 2)
    whole, parts = (
        http.post("/v1/query", json=body | {"settings": {"detail": detail, "max_tokens": 8}}).json()
        for detail in ("low", "high")
    )
    assert whole["answer"] != parts["answer"]


def test_blanks_around_a_name(http: httpx.Client, body: dict[str, Any]) -> None:
    one = {"settings": {"max_objects": 1}}
    for path in ("/v1/detect", "/v1/point"):
        plain, blank = (http.post(path, json=body | one | {"object": name}).json() for name in ("person", " person \n"))
        assert plain.get("objects") == blank.get("objects") and plain.get("points") == blank.get("points")
