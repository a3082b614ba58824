"""Messages of Model.chat, in the forms that clients of OpenAI's API and of transformers have; and in which order."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips
import pytest
import tiny_smolvlm as tiny

from galago.errors import InvalidImage, InvalidRequest
from galago.media.clip import Clip
from galago.model import Model
from galago.request import Chat, Message

IMAGE, OTHER = tiny.picture(1), tiny.picture(2, (20, 20))
FILE = io.BytesIO()
IMAGE.save(FILE, "PNG")
BARE = base64.b64encode(FILE.getvalue()).decode()
URL = f"data:image/png;base64,{BARE}"
FILM = clips.encoded(clips.pictures(20))
CLIP = Clip((IMAGE, IMAGE), (0.0, 1.0), 2.0)
TEXT = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with tiny.open_model(tiny.write(tmp_path_factory.mktemp("tiny"))) as made:
        yield made


def said(model: Model, *messages: Any) -> Any:
    return model.chat(list(messages), settings=tiny.WARM)["answer"]


def user(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts), **more}


def plain(model: Model, *parts: Any) -> Any:
    """What is said of these as they are."""
    return said(model, Message("user", parts))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": IMAGE},
        {"type": "image", "image": FILE.getvalue()},
        {"type": "image", "image": URL},
        {"type": "image", "url": URL},
        {"type": "image", "base64": BARE},
        {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
        {"type": "image_url", "image_url": URL},
        {"type": "input_image", "image_url": URL},
        {"type": "file", "file": {"filename": "a.png", "file_data": URL}},
        {"type": "file", "file": {"file_data": FILE.getvalue()}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BARE}},
        IMAGE,
    ],
)
def test_parts_that_show_an_image(model: Model, part: Any, tmp_path: Path) -> None:
    wanted = plain(model, IMAGE, "What is this?")
    assert said(model, user(part, TEXT)) == said(model, user(part, "What is this?")) == wanted
    assert said(model, {"role": "user", "content": "What is this?", "images": [IMAGE], "name": "me"}) == wanted
    file = tmp_path / "a.png"
    file.write_bytes(FILE.getvalue())
    for where in (file, str(file)):
        assert said(model, user({"type": "image", "path": where}, TEXT)) == wanted


def test_parts_that_show_a_video(model: Model) -> None:
    wanted = model.query(FILM, "What is this?", settings=tiny.WARM)["answer"]
    url = "data:video/mp4;base64," + base64.b64encode(FILM).decode()
    for part in ({"type": "video", "video": FILM}, {"type": "video_url", "video_url": {"url": url}}):
        assert said(model, user(part, TEXT)) == wanted


def test_what_else_messages_have(model: Model) -> None:
    developer = {"role": "developer", "content": "Be brief."}
    silent = {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "annotations": []}
    wanted = said(model, Message("system", "Be brief."), Message("user", "Who?"), Message("assistant", ()), user("x"))
    assert said(model, developer, user("Who?"), silent, user("x")) == wanted


def test_tools_are_text(model: Model) -> None:
    calls = [
        {"id": "1", "function": {"name": "lamp", "arguments": {"on": "ja \u00e9"}}},
        {"function": {"name": "door"}},
    ]
    told = 'Called the tool lamp with {"on": "ja \u00e9"}.\nCalled the tool door with {}.'
    wanted = said(model, user(IMAGE, "Go."), Message("assistant", told), user("The tool answered: done\nwell"))
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    done = {"role": "tool", "content": ["done", {"type": "text", "text": "well"}], "tool_call_id": "1"}
    assert said(model, user(IMAGE, "Go."), called, done) == wanted


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hello", "messages.0"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "robot", "content": "x"}, "messages.0.role"),
        ({"role": ["user"], "content": "x"}, "messages.0.role"),
        ({"role": "user", "content": 7}, "messages.0.content"),
        ({"role": "user", "content": "x", "attachments": [URL]}, "messages.0"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "messages.0"),
        ({"role": "assistant", "tool_calls": [{"type": "function"}]}, "messages.0.tool_calls.0.function"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, "messages.0.tool_calls"),
        (user({"type": "image"}), "messages.0.content.0.image_url"),
        (user({"type": "input_audio"}), "messages.0.content.0.type"),
        (user({"text": "x"}), "messages.0.content.0.type"),
        (user({"type": "text"}), "messages.0.content.0.type"),
        (user("half \ud800"), "messages.0.content"),
    ],
)
def test_what_is_no_message(model: Model, message: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        model.chat([message, {"role": "user", "content": "x"}])
    assert raised.value.param == param and "messages" in str(raised.value)
    with pytest.raises(InvalidImage) as unread:
        model.chat([user({"type": "image", "image": b"nothing"}, TEXT)])
    assert unread.value.param == "messages.0.content.0.image"


# --- the order of training ----------------------------------------------------------------------


@pytest.mark.parametrize("shown", [(IMAGE,), (CLIP,), (IMAGE, OTHER)], ids=["image", "clip", "images"])
def test_what_is_shown_comes_before_the_text(model: Model, shown: tuple[Any, ...]) -> None:
    wanted = plain(model, *shown, "What is this?")
    assert plain(model, "What is this?", *shown) == wanted
    for messages in ([user("What is this?"), user(*shown)], [user(*shown), user("What is this?")]):
        assert said(model, *messages) == wanted


def test_an_image_between_texts_stays_and_a_clip_does_not(model: Model) -> None:
    between, first = plain(model, "Here: ", IMAGE, " What?"), plain(model, IMAGE, "Here: ", " What?")
    assert between != first
    assert plain(model, "Here: ", CLIP, " What?") == plain(model, CLIP, "Here: ", " What?")
    assert plain(model, IMAGE, "or ", OTHER) != plain(model, IMAGE, OTHER, "or ")


def test_one_turn_has_paragraphs() -> None:
    said_in = ["One.", ("Two.", IMAGE), "", "Three."]
    (turn,) = Chat(tuple(Message("user", content) for content in said_in)).messages  # type: ignore[arg-type]
    assert turn.parts == ("One.\n\nTwo.", IMAGE, "Three.")
