"""What clients of other servers put into a chat request: pictures in many places, conditions, and what does no harm."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import tiny_smolvlm as tiny
from serving import hosting, sdk, serving

from galago.model import Model
from galago.request import Chat, Message, Request, Sampling, TextDelta

CHAT = "/v1/chat/completions"
QUESTION = "What is this?"
WARM: dict[str, Any] = {"temperature": 1.0, "seed": 7, "max_tokens": 12}
ONE, OTHER = tiny.picture(1), tiny.picture(2, (20, 20))


def encoded(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


BARE, SECOND = encoded(ONE), encoded(OTHER)
URL = f"data:image/png;base64,{BARE}"


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """It takes several images, and what it writes depends on all that it is shown."""
    return tiny.open_model(tiny.write(tmp_path_factory.mktemp("seer")))


@pytest.fixture(scope="module")
def at(seer: Model) -> Iterator[str]:
    with serving(hosting(seer)) as address:
        yield address


def said(model: Model, *messages: Message, detail: Any = "high") -> str:
    run = model.submit(Request(Chat(messages), sampling=Sampling(**WARM), detail=detail))
    return "".join(e.text for e in run if isinstance(e, TextDelta))


def reply(at: str, *messages: Any, **more: Any) -> httpx.Response:
    return httpx.post(at + CHAT, json={"messages": list(messages), **WARM, **more}, timeout=60)


def content(at: str, *messages: Any, **more: Any) -> str:
    found = reply(at, *messages, **more)
    assert found.status_code == 200, found.text
    return str(found.json()["choices"][0]["message"]["content"])


def user(given: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": given, **more}


def text(words: str = QUESTION) -> dict[str, Any]:
    return {"type": "text", "text": words}


PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "image_url", "image_url": URL},
    {"type": "image_url", "image_url": {"url": URL, "detail": ""}},
    {"type": "image_url", "url": URL},
    {"type": "image_url", "image": BARE, "media_type": "image/png"},
    {"type": "input_image", "image_url": URL, "detail": "auto"},
    {"type": "image", "image": URL},
    {"type": "image", "url": URL},
    {"type": "image", "base64": BARE},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BARE}},
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"type": "image", "data": BARE, "mimeType": "image/png"},
    {"type": "image_url", "image_url": {"url": f" data:image/png; base64,{BARE}\n"}},
    {"type": "image_url", "image_url": {"url": URL.replace("+", "%2B").replace("=", "%3D")}},
]


@pytest.mark.parametrize("part", PARTS)
def test_an_image_as_clients_of_other_servers_write_a_part(at: str, seer: Model, part: dict[str, Any]) -> None:
    assert content(at, user([part, text()])) == said(seer, Message("user", (ONE, QUESTION)))


@pytest.mark.parametrize(
    "beside",
    [
        {"images": [BARE]},
        {"images": [URL]},
        {"images": URL},
        {"images": [{"url": URL}]},
        {"image": BARE},
        {"image_url": URL},
        {"image_url": {"url": URL}},
        {"images": [], "image": None, "image_url": BARE},
    ],
)
def test_an_image_beside_the_content(at: str, seer: Model, beside: dict[str, Any]) -> None:
    """As Ollama's clients send it: in the message, in the whole request, or in a part that is text."""
    wanted = said(seer, Message("user", (ONE, QUESTION)))
    assert content(at, user(QUESTION, **beside)) == wanted
    assert content(at, user(QUESTION), **beside) == wanted
    assert content(at, user([text() | beside])) == wanted
    assert content(at, user("Who?"), {"role": "assistant", "content": "I."}, user(QUESTION), **beside) == said(
        seer, Message("user", "Who?"), Message("assistant", "I."), Message("user", (ONE, QUESTION))
    )


def test_images_beside_no_content_are_described(at: str) -> None:
    described = content(at, user([PARTS[0], text("Describe what you see in this image.")]))
    for nothing in (None, "", [], " "):
        assert content(at, user(nothing, images=[BARE])) == described


def test_several_images_beside_the_content(at: str, seer: Model) -> None:
    wanted = said(seer, Message("user", (ONE, OTHER, QUESTION)))
    assert content(at, user(QUESTION, images=[BARE, SECOND])) == wanted
    assert content(at, user([{"type": "image", "image": SECOND}, text()], images=[BARE])) == wanted


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [user(URL)]}, "messages.0.content"),
        ({"messages": [user(BARE)]}, "messages.0.content"),
        ({"messages": [user([URL, QUESTION])]}, "messages.0.content.0"),
        ({"messages": [user(QUESTION, attachments=[{"url": URL}])]}, "messages.0.attachments.0.url"),
        ({"messages": [user(QUESTION, photo="https://example.org/a.JPG?size=2")]}, "messages.0.photo"),
        ({"messages": [user([text() | {"inline_data": {"data": BARE}}])]}, "messages.0.content.0.inline_data.data"),
        ({"messages": [user(QUESTION)], "image_data": [{"data": BARE, "id": 1}]}, "image_data.0.data"),
        ({"messages": [{"role": "system", "content": "x", "images": [BARE]}, user("x")]}, "messages.0.images.0"),
        ({"messages": [{"role": "assistant", "content": "x", "image": URL}, user("x")]}, "messages.0.image"),
        ({"messages": [{"role": "assistant", "content": "x"}], "images": [URL]}, "images.0"),
        ({"messages": [user(QUESTION, images=[None])]}, "messages.0.images.0"),
        ({"messages": [user(QUESTION, images=7)]}, "messages.0.images"),
        ({"messages": [user([{"type": "image"}])]}, "messages.0.content.0.image_url"),
        ({"messages": [user([{"type": "image", "source": {"type": "file"}}])]}, "messages.0.content.0.source.url"),
    ],
)
def test_no_image_is_left_out_without_a_word(at: str, body: dict[str, Any], param: str) -> None:
    found = httpx.post(at + CHAT, json=body)
    assert found.status_code == 400, found.text
    assert (found.json()["error"]["code"], found.json()["error"]["param"]) == ("invalid_value", param)


def test_what_only_speaks_of_an_image_is_a_question(at: str) -> None:
    link = "https://example.org/a.png"
    assert reply(at, user(f"What is behind {link}?")).status_code == 200
    assert reply(at, user(link), metadata={"icon": URL}).status_code == 200
    # Open WebUI keeps what it shows beside the message too.
    assert reply(at, user([PARTS[0], text()], files=[{"type": "image", "url": URL}])).status_code == 200


# --- whose turn it is ---------------------------------------------------------------------------


def test_messages_of_one_side_are_one_turn(at: str, seer: Model) -> None:
    """The question first and the picture second asks about the picture, and is no wish for a description."""
    wanted = said(seer, Message("user", (ONE, QUESTION)))
    assert content(at, user(QUESTION), user([PARTS[0]])) == wanted
    assert content(at, user([PARTS[0]]), user(QUESTION)) == wanted
    assert content(at, user(QUESTION), user(None, images=[BARE])) == wanted
    both = Message("user", (ONE, OTHER, QUESTION))
    assert content(at, user([PARTS[0]]), user("", images=[SECOND]), user(QUESTION)) == said(seer, both)
    whole = [Message("system", "Be brief.\n\nBe kind."), Message("user", "One.\n\nTwo.")]
    split = [*({"role": role, "content": one} for role in ("system", "developer") for one in ["Be brief."])]
    split[1]["content"] = "Be kind."
    assert content(at, *split, user("One."), user("Two.")) == said(seer, *whole)


def test_the_question_before_the_picture_asks_the_same(at: str, seer: Model) -> None:
    wanted = said(seer, Message("user", (ONE, QUESTION)))
    assert content(at, user([text(), PARTS[0]])) == wanted
    assert content(at, user([text(), PARTS[0], text(" ")])) == said(seer, Message("user", (ONE, QUESTION, " ")))


def test_nothing_said_is_nothing(at: str) -> None:
    asked = user(QUESTION)
    for quiet in ({"role": "system", "content": None}, {"role": "assistant", "content": None}, {"role": "system"}):
        assert reply(at, quiet, asked).status_code == 200


# --- what does no harm --------------------------------------------------------------------------


def test_content_as_a_list_of_strings(at: str) -> None:
    assert content(at, user([QUESTION])) == content(at, user(QUESTION))


def test_no_limit_of_ones_own(at: str) -> None:
    for more in ({"max_tokens": -1}, {"max_completion_tokens": -1, "max_tokens": 3}):
        tokens = reply(at, user(QUESTION), **more).json()["usage"]["completion_tokens"]
        assert tokens == 3 if "max_completion_tokens" in more else tokens > 12


def test_each_image_has_a_detail_of_its_own(at: str, seer: Model) -> None:
    def part(image: str, detail: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}", "detail": detail}}

    tokens = {}
    for details in (("low", "high"), ("high", "low"), ("low", "low"), ("high", "high")):
        asked = user([part(BARE, details[0]), part(SECOND, details[1]), text()])
        found = reply(at, asked)
        assert found.status_code == 200, found.text
        tokens[details] = found.json()["usage"]["prompt_tokens_details"]["image_tokens"]
        whole = said(seer, Message("user", (ONE, OTHER, QUESTION)), detail=details)
        assert found.json()["choices"][0]["message"]["content"] == whole
    # The first is seen in 9 frames, the other in 17; both in one where they are seen as a whole.
    assert tokens == {
        ("low", "high"): 18 * tiny.TOKENS,
        ("high", "low"): 10 * tiny.TOKENS,
        ("low", "low"): 2 * tiny.TOKENS,
        ("high", "high"): 26 * tiny.TOKENS,
    }


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("blob:https://example.org/7a1", "blob: URLs"),
        ("ftp://example.org/a.png", "ftp: URLs"),
        ("/home/me/a.png", "path of a file"),
        ("/tmp/a/b", "path of a file"),
        ("~/a.png", "path of a file"),
        ("C:\\me\\a.png", "path of a file"),
        ("my photo.jpg", "path of a file"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(at: str, where: str, words: str) -> None:
    found = reply(at, user([{"type": "image_url", "image_url": where}, text()]))
    error = found.json()["error"]
    assert (found.status_code, error["code"]) == (400, "invalid_image")
    assert words in error["message"] and "data: URL" in error["message"]


# --- conditions ---------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    ],
)
def test_a_schema_wherever_clients_put_it(at: str, form: dict[str, Any]) -> None:
    found = sdk(at).chat.completions.create(
        model="any",
        messages=[user(QUESTION)],
        max_tokens=40,
        response_format=form,  # type: ignore[arg-type, list-item]
    )
    jsonschema.validate(json.loads(found.choices[0].message.content or ""), SCHEMA)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"json_schema": SCHEMA}, "response_format"),
        ({"guided_json": SCHEMA}, "response_format"),
        ({"guided_choice": ["yes", "no"]}, "response_format"),
        ({"format": "json"}, "response_format"),
        ({"grammar": "root ::= [0-9]+"}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "response_format"),
        ({"system": "Be brief."}, "role system"),
        ({"instructions": "Be brief."}, "role system"),
        ({"stop_sequences": ["x"]}, "use stop"),
    ],
)
def test_no_condition_is_left_out_without_a_word(at: str, condition: dict[str, Any], words: str) -> None:
    found = reply(at, user(QUESTION), **condition)
    error = found.json()["error"]
    assert (found.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] in (*condition, "response_format")
    assert words in error["message"]
    assert reply(at, user(QUESTION), **dict.fromkeys(condition, "")).status_code == 200
