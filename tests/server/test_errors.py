"""Whatever a client sends, it gets OpenAI's error object, with the field at fault."""

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import ask, data_url, hosting, load, sdk, serving

import galago

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
URL_FIELD = "messages.0.content.1.image_url.url"


def error_of(reply: httpx.Response, status: int) -> tuple[str, str | None]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error["code"], error["param"]


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


SETTINGS: dict[str, list[Any]] = {
    "model": [7],
    "max_tokens": [0, "3", 2.5, True],
    "max_completion_tokens": [0, -2, []],
    "temperature": [-1, 2.1, "0", False],
    "top_p": [1.5, -0.1, "1"],
    "min_p": [2, {}],
    "top_k": [-2, 1.5, "5", True],
    "repetition_penalty": [0, -1, "2"],
    "frequency_penalty": [-2.1, 3, "1", True],
    "presence_penalty": [2.5, []],
    "logit_bias": [[], {"999999999": 1}, {str(i): 1 for i in range(301)}],
    **{"logit_bias.7": [{"7": value} for value in (101, -100.5, "1", None, True)]},
    **{f"logit_bias.{token}": [{token: 1}] for token in ("x", "-1", "1.0")},
    "n": [0, 9, -1, 1.5, True, "2", []],
    "logprobs": [1, "true", {}],
    "top_logprobs": [3, 0, "3", True],
    "response_format": [7, [], "json_object"],
    "seed": ["1", 1.5, 2**64],
    "stop": [7, False, "", ["a"] * 5, {}],
    "stop.1": [["a", 7], ["a", ""]],
    "stream": [1, "true"],
    "reasoning": ["yes", {}],
    "tools": [7, {}],
    "functions": ["x"],
}
FORMS: list[tuple[dict[str, Any], str]] = [
    ({}, ".type"),
    ({"type": 7}, ".type"),
    ({"type": "xml"}, ".type"),
    ({"type": "json_schema"}, ".json_schema"),
    ({"type": "json_schema", "json_schema": {"name": "x"}}, ".json_schema.schema"),
    ({"type": "json_schema", "json_schema": {"schema": []}}, ".json_schema.schema"),
    ({"type": "json_schema", "json_schema": {"schema": {"title": "x" * 300_000}}}, ".json_schema.schema"),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages.0"),
    ({"messages": [{"content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages"),
    (user(7), "messages.0.content"),
    (user({}), "messages.0.content"),
    (user(" "), "messages"),
    (user("half \ud800"), "messages.0.content"),
    (user([{"type": "text", "text": "\udc00"}]), "messages.0.content.0.text"),
    (user([7]), "messages.0.content.0"),
    (user(["half \ud800"]), "messages.0.content.0"),
    (user([{}]), "messages.0.content.0.type"),
    (user([{"type": "text"}]), "messages.0.content.0.text"),
    (user([{"type": "text", "text": 1}]), "messages.0.content.0.text"),
    (user([{"type": "input_audio"}]), "messages.0.content.0.type"),
    (user([{"type": "image_url"}]), "messages.0.content.0.image_url"),
    (user([{"type": "image_url", "image_url": {}}]), "messages.0.content.0.image_url.url"),
    (user([{"type": "image_url", "image_url": {"url": "x", "detail": 7}}]), "messages.0.content.0.image_url.detail"),
    (user([{"type": "file"}]), "messages.0.content.0.file"),
    (user([{"type": "file", "file": "photo.png"}]), "messages.0.content.0.file"),
    (user([{"type": "file", "file": {"file_id": "file-1"}}]), "messages.0.content.0.file.file_data"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "hi"}]}, "messages"),
    ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}, *HELLO]}, "messages.0.content.0.type"),
    *(({"messages": HELLO, f.split(".")[0]: value}, f) for f, values in SETTINGS.items() for value in values),
    *(({"messages": HELLO, "logprobs": True, "top_logprobs": top}, "top_logprobs") for top in (-1, 21, 1.5, "3")),
    *(({"messages": HELLO, "response_format": form}, f"response_format{at}") for form, at in FORMS),
    ({"messages": HELLO, "stream": True, "stream_options": []}, "stream_options"),
    ({"messages": HELLO, "stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
]


@pytest.mark.parametrize(("body", "param"), WRONG)
def test_wrong_field(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert error_of(http.post(CHAT, content=json.dumps(body)), 400) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("function_call", {"name": "look"}),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
    ],
)
def test_unsupported_is_said(http: httpx.Client, field: str, value: Any) -> None:
    assert error_of(http.post(CHAT, json={"messages": HELLO, field: value}), 400) == ("unsupported_parameter", field)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"messages": NaN}', b"\xef\xbb\xbf{", b"[" * 100_000, b'{"seed": ' + b"9" * 5000]
)
def test_not_json(http: httpx.Client, body: bytes) -> None:
    assert error_of(http.post(CHAT, content=body), 400) == ("invalid_json", None)


def test_not_an_object(http: httpx.Client) -> None:
    assert error_of(http.post(CHAT, json=[1]), 400) == ("invalid_value", None)


@pytest.mark.parametrize(
    "image",
    [
        "data:image/png;base64,",
        "data:image/png;base64,aGVsbG8=",
        "data:image/png;base64,####",
        "HTTP://127.0.0.1/a.png",
        "file:///etc/hostname",
        "/etc/hostname",
        "photo.png",
        "",
    ],
)
def test_bad_image(http: httpx.Client, image: str) -> None:
    assert error_of(http.post(CHAT, json={"messages": ask("What?", image)}), 400) == ("invalid_image", URL_FIELD)


def test_file_that_is_no_image(client: openai.OpenAI) -> None:
    file = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0xLjcKJeLjz9MK"}
    messages: list[Any] = [{"role": "user", "content": [{"type": "file", "file": file}]}]
    with pytest.raises(openai.BadRequestError, match="not an image of a known format") as raised:
        client.chat.completions.create(model="any", messages=messages)
    assert (raised.value.code, raised.value.param) == ("invalid_image", "messages.0.content.0.file.file_data")


def test_truncated_image(http: httpx.Client, photo: str) -> None:
    assert error_of(http.post(CHAT, json={"messages": ask("What?", photo[:-400])}), 400)[0] == "invalid_image"


def test_several_images(client: openai.OpenAI, photo: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="any", messages=ask("What?", photo, data_url("im_40x40.png")))
    assert (raised.value.code, raised.value.param) == ("too_many_images", "messages.0.content.2.image_url.url")


@pytest.mark.parametrize("stream", [False, True])
def test_context_length(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="any", messages=ask("word " * 5000), stream=stream)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_skill_that_the_model_lacks(stream: bool) -> None:
    with serving(hosting(load("legacy"))) as url, pytest.raises(openai.InternalServerError) as raised:
        sdk(url).chat.completions.create(model="any", messages=ask("What?"), stream=stream)
    assert (raised.value.status_code, raised.value.code) == (501, "unsupported_task")
    assert raised.value.response.headers["x-should-retry"] == "false"


def test_closed_model() -> None:
    model = load("small")
    with serving(hosting(model)) as url:
        model.close()
        reply = httpx.post(url + CHAT, json={"messages": HELLO})
    assert error_of(reply, 503) == ("shutting_down", None)
    assert int(reply.headers["retry-after"]) >= 1


def test_routes(client: openai.OpenAI, http: httpx.Client) -> None:
    assert error_of(http.get("/v1/nothing"), 404) == ("not_found", None)
    for path in ("/v1/completions", "/v1/messages/"):
        other = http.post(path, json={})
        assert error_of(other, 404) == ("not_found", None)
        assert other.json()["error"]["message"].endswith("use /v1/chat/completions")
    assert "twice" in http.post(f"/v1{CHAT}", json={}).json()["error"]["message"]
    for path in ("audio/transcriptions", "images/generations", "moderations", "files", "batches", "rerank"):
        assert error_of(http.post(f"/v1/{path}", content=b"not JSON"), 404) == ("not_found", None)
    wrong = http.get(CHAT)
    assert error_of(wrong, 405) == ("method_not_allowed", None)
    assert wrong.headers["allow"] == "POST"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("no/such")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_embeddings_are_not_offered(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        client.embeddings.create(model="any", input="a cat")
    assert (raised.value.status_code, raised.value.code) == (501, "unsupported_task")
    for path in ("/embeddings", "/v1/embeddings"):
        refused = http.post(path, content=b"not JSON")
        assert error_of(refused, 501) == ("unsupported_task", None)
        assert refused.headers["x-should-retry"] == "false"
        assert error_of(http.get(path), 405) == ("method_not_allowed", None)


def test_strict_names(model: galago.Model) -> None:
    with serving(hosting(load("small"), strict_model_names=True)) as url:
        client = sdk(url)
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(model="gpt-4o-mini", messages=ask("What?"))
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
        named = client.chat.completions.create(model=model.name, messages=ask("What?"), max_tokens=1)
    assert named.model == model.name


def test_body_limit() -> None:
    with serving(hosting(load("small"), body_limit_mb=1000 / (1 << 20))) as url:
        body = b"[" + b" " * 1000 + b"]"
        assert error_of(httpx.post(url + CHAT, content=body), 413) == ("request_too_large", None)
        # Sent in pieces there is no Content-Length to judge by.
        assert error_of(httpx.post(url + CHAT, content=iter([body[:600], body[600:]])), 413)[0] == "request_too_large"
        assert error_of(httpx.post(url + CHAT, content=body[:-3] + b"]"), 400) == ("invalid_value", None)


def test_failures_that_are_not_ours() -> None:
    """A bug in a route, and the framework's own validation, still answer with an error object."""
    app = hosting(load("small"))

    @app.get("/typed")
    async def typed(number: int) -> int:
        return 1 // number

    with serving(app) as url:
        assert error_of(httpx.get(f"{url}/typed?number=x"), 400) == ("invalid_value", "number")
        failed = httpx.get(f"{url}/typed?number=0")
    assert error_of(failed, 500) == ("generation_failed", None)
    assert failed.headers["x-should-retry"] == "false"
    assert "division" not in failed.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_image", "image", "video", "file", "refusal"]) | JSON},
    optional={
        "text": JSON,
        "image_url": st.fixed_dictionaries({"url": JSON}) | JSON,
        "source": st.fixed_dictionaries({"data": JSON}) | JSON,
        "file": st.fixed_dictionaries({"file_data": JSON}) | JSON,
        "detail": JSON,
    },
)
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON,
        "content": st.lists(PART, max_size=2) | JSON,
    },
    optional={"images": JSON, "image": JSON, "tool_calls": st.lists(st.fixed_dictionaries({"function": JSON})) | JSON},
)
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "model": st.text(),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "n": st.integers(1, 3),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "top_k": st.integers(-1, 2**40),
    "repetition_penalty": st.floats(0.1, 10),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 500).map(str), st.floats(-100, 100), max_size=3),
    "response_format": st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object"])})
    | st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": st.fixed_dictionaries({"schema": JSON})}),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=4),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "reasoning": st.booleans(),
}
# Either the messages or the settings may be off, so that many a request gets past the other's checks.
BODY = st.fixed_dictionaries({"max_tokens": st.just(2), "messages": st.lists(TURN, max_size=3) | JSON}) | (
    st.fixed_dictionaries(
        {"max_tokens": st.just(2), "messages": st.just(HELLO)},
        optional={name: right | right | JSON for name, right in RIGHT.items()},
    )
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(body=BODY | JSON)
def test_no_body_breaks_the_server(http: httpx.Client, body: Any) -> None:
    reply = http.post(CHAT, content=json.dumps(body).encode())
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 400:
        error_of(reply, 400)
    else:
        assert "error" not in reply.text
