"""The captioning application's job API: its bodies and callbacks byte for byte, and images that cannot be read."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import requests
from PIL import Image

from galago.errors import GenerationFailed, InvalidImage, InvalidRequest
from galago.jobs import Backoff, Job, QueueSettings
from galago.jobs.meme_search import (
    MODELS,
    AddJob,
    ImageFailure,
    ModelId,
    Unprocessable,
    callback_base,
    describe_test,
    permanent_message,
    read_add_job,
    read_image,
    read_remove_id,
)
from galago.jobs.telling import callbacks
from galago.server.dialect import read
from galago.server.dialects import ROUTES
from galago.store.catalog import entry_of

# Recorded from the application's own generator.
ADDED = (
    b'{"image_core_id": 7, "image_path": "./app/do_not_remove.jpg", "model": "test", "attempt_id": 31, '
    b'"callback_token": "tok-31"}'
)
TOKENS_31 = '"attempt_id": 31, "callback_token": "tok-31"}}'
TOKENS_32 = '"attempt_id": 32, "callback_token": "tok-32"}}'
RECORDED = [
    ("/status_receiver", '{"data": {"image_core_id": 7, "status": 1, ' + TOKENS_31),
    ("/status_receiver", '{"data": {"image_core_id": 7, "status": 2, ' + TOKENS_31),
    (
        "/description_receiver",
        '{"data": {"image_core_id": 7, "description": "Test description for do_not_remove", ' + TOKENS_31,
    ),
    ("/status_receiver", '{"data": {"image_core_id": 7, "status": 3, ' + TOKENS_31),
]
RECORDED_FAILURE = [
    (
        "/status_receiver",
        '{"data": {"image_core_id": 8, "status": 5, "error_message": "Image file not found: ./nope.jpg", ' + TOKENS_32,
    ),
    (
        "/description_receiver",
        '{"data": {"image_core_id": 8, "description": "Error: Image file not found: ./nope.jpg", ' + TOKENS_32,
    ),
]
RECORDED_REMOVAL = [
    ("/status_receiver", '{"data": {"image_core_id": 10, "status": 0, "attempt_id": 34, "callback_token": "t"}}')
]


BASE = "http://app:3000/image_cores"


def told(added: AddJob, state: str, **more: Any) -> list[tuple[str, str]]:
    """Receivers and bodies of the callbacks of a change."""
    fields = {field.name: None for field in dataclasses.fields(Job)} | {"attempts": 0, "error_is_permanent": False}
    job = Job(
        **fields | {"path": "/add_job", "state": state, "callback_url": BASE, "extra": added.model_dump_json()} | more
    )
    return [(callback.url.removeprefix(BASE), callback.body) for callback in callbacks(job)]


def done(added: AddJob, text: str) -> list[tuple[str, str]]:
    return told(added, "done", result=json.dumps({"description": text}))


def job(**changed: Any) -> AddJob:
    return AddJob(
        **{"image_core_id": 8, "image_path": "./nope.jpg", "attempt_id": 32, "callback_token": "tok-32"} | changed
    )


# --- callbacks ---


def test_the_recorded_callbacks_of_a_job_byte_for_byte() -> None:
    one = read_add_job(ADDED)
    assert [
        *told(one, "queued"),
        *told(one, "running", attempts=1),
        *done(one, describe_test(one)),
    ] == RECORDED


def test_another_attempt_is_not_told() -> None:
    assert told(job(), "queued", attempts=1) == told(job(), "running", attempts=2) == []


def test_the_recorded_callbacks_of_a_failure_byte_for_byte(tmp_path: Path) -> None:
    with pytest.raises(ImageFailure) as raised:
        read_image(tmp_path, job().image_path)
    message = permanent_message(job(), raised.value)
    assert told(job(), "failed", attempts=1, error=message, error_is_permanent=True) == RECORDED_FAILURE


def test_the_last_of_three_attempts_is_told() -> None:
    error = str(GenerationFailed("it broke"))
    (_, status), (_, description) = told(job(), "failed", attempts=3, error=error)
    message = json.loads(status)["data"]["error_message"]
    assert message == "Max retries (3) exceeded. Last error: it broke"
    assert json.loads(description)["data"]["description"] == f"Error: {message}"
    assert [Backoff(5, 600, jitter=0).delay_s(attempts) for attempts in (1, 2)] == [5, 10]
    assert QueueSettings().retry == Backoff(5, 600)


def test_the_recorded_callback_of_a_removal_byte_for_byte() -> None:
    one = job(image_core_id=10, attempt_id=34, callback_token="t")
    assert told(one, "cancelled") == RECORDED_REMOVAL


@pytest.mark.parametrize("text", ["Ein Café", '"quoted" \\ / \n\t\x00\x7f', "\U0001f98a ☕ \u2028", "</script>", ""])
def test_texts_are_written_as_the_applications_own_client_writes_them(text: str) -> None:
    (_, told), _ = done(job(), text)
    data = {"image_core_id": 8, "description": text, "attempt_id": 32, "callback_token": "tok-32"}
    theirs = requests.Request("POST", "http://127.0.0.1/", json={"data": data}).prepare().body
    assert told.encode() == theirs


def test_an_application_of_before_the_tokens_is_told_none() -> None:
    one = read_add_job(b'{"image_core_id": 7, "image_path": "a.jpg", "model": "moondream2"}', legacy=True)
    assert [*told(one, "queued"), *done(one, "A cat.")] == [
        ("/status_receiver", '{"data": {"image_core_id": 7, "status": 1}}'),
        ("/description_receiver", '{"data": {"image_core_id": 7, "description": "A cat."}}'),
        ("/status_receiver", '{"data": {"image_core_id": 7, "status": 3}}'),
    ]


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:3000/image_cores"),
        ({"APP_PORT": "3010"}, "http://127.0.0.1:3010/image_cores"),
        ({"GEN_URL": "http://app:3000/", "APP_PORT": "1"}, "http://app:3000/image_cores"),
    ],
)
def test_where_callbacks_go(environ: dict[str, str], url: str) -> None:
    assert callback_base(environ) == url


# --- bodies ---


def test_a_body_may_have_digits_for_numbers_other_fields_and_no_model() -> None:
    body = {"image_core_id": "7", "image_path": "a.jpg", "attempt_id": "31", "callback_token": "t", "more": [1]}
    one = read_add_job(json.dumps(body).encode())
    assert (one.image_core_id, one.attempt_id, one.model) == (7, 31, "Florence-2-base")


WHOLE = {"image_core_id": 7, "image_path": "a.jpg", "model": "test", "attempt_id": 31, "callback_token": "t"}
WITHOUT = {name: value for name, value in WHOLE.items() if name != "attempt_id"}
INT = "Input should be a valid integer, unable to parse string as an integer"
CHOICES = (
    "Input should be 'test', 'Florence-2-base', 'Florence-2-large', 'SmolVLM-256M-Instruct', 'SmolVLM-500M-Instruct', "
    "'moondream2' or 'moondream2-int8'"
)


@pytest.mark.parametrize(
    ("body", "kind", "where", "message", "given"),
    [
        (WHOLE | {"model": "gpt"}, "literal_error", ["model"], CHOICES, "gpt"),
        (WHOLE | {"model": None}, "literal_error", ["model"], CHOICES, None),
        (WHOLE | {"image_core_id": "x"}, "int_parsing", ["image_core_id"], INT, "x"),
        (WHOLE | {"image_path": 7}, "string_type", ["image_path"], "Input should be a valid string", 7),
        (WITHOUT, "missing", ["attempt_id"], "Field required", WITHOUT),
    ],
)
def test_a_wrong_body_is_told_in_the_form_of_fastapi(
    body: dict[str, Any], kind: str, where: list[str], message: str, given: object
) -> None:
    with pytest.raises(Unprocessable) as raised:
        read_add_job(json.dumps(body).encode())
    (told,) = raised.value.body["detail"]
    assert list(told) == ["type", "loc", "msg", "input", "url"]
    assert (told["type"], told["loc"], told["msg"], told["input"]) == (kind, where, message, given)
    assert told["url"].endswith(f"/v/{kind}")
    assert raised.value.param == where[0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{",
        b"{}",
        b'{"image_path": "\\ud800"}',
        b'{"image_core_id": NaN, "attempt_id": 1e999}',
        json.dumps(WHOLE | {"image_core_id": 2**63}).encode(),
        json.dumps(WHOLE | {"image_path": "a\0.jpg"}).encode(),
        b'{"a":' * 5000,
    ],
)
def test_whatever_is_sent_is_answered_in_json(body: bytes) -> None:
    with pytest.raises(Unprocessable) as raised:
        read_add_job(body)
    assert json.loads(json.dumps(raised.value.body, allow_nan=False))["detail"]
    with pytest.raises(Unprocessable):
        read_add_job(body, legacy=True)


def test_the_id_of_a_removal() -> None:
    assert read_remove_id("42") == 42
    with pytest.raises(Unprocessable) as raised:
        read_remove_id("all")
    assert raised.value.body == {
        "detail": [{"type": "int_parsing", "loc": ["path", "image_core_id"], "msg": INT, "input": "all"}]
    }


# --- models ---


def test_every_name_is_known_to_the_catalogue_or_is_the_test() -> None:
    assert [*MODELS] == [*get_args(ModelId)]
    assert {name for name, asked in MODELS.items() if asked is None} == {"test"}
    ours = {name: entry.id for name, asked in MODELS.items() if asked and (entry := entry_of(asked.model))}
    assert ours == {
        "SmolVLM-256M-Instruct": "smolvlm-256m",
        "SmolVLM-500M-Instruct": "smolvlm-500m",
        "moondream2": "moondream2",
        "moondream2-int8": "moondream2",
        "Florence-2-base": "florence-2-base",
        "Florence-2-large": "florence-2-large",
    }


def test_what_models_are_asked() -> None:
    for name, asked in MODELS.items():
        if asked is not None:
            route = ROUTES[asked.path]
            assert asked.member in route.gives.__annotations__, name
            read(route.body, json.dumps({**asked.fields, "image_url": "AAAA"}).encode())
    moondream, smolvlm = MODELS["moondream2-int8"], MODELS["SmolVLM-256M-Instruct"]
    assert moondream and (moondream.path, moondream.fields) == ("/v1/caption", {"length": "short"})
    assert smolvlm and smolvlm.fields["question"] == "Can you describe this image?"


# --- images ---


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "memes"
    (folder / "library").mkdir(parents=True)
    Image.new("RGB", (5, 4), "red").save(folder / "library" / "red.png")
    Image.new("RGB", (5, 4), "blue").save(tmp_path / "outside.png")
    return folder


def refusal(root: Path, path: str) -> str:
    with pytest.raises(ImageFailure) as raised:
        read_image(root, path)
    message = permanent_message(job(), raised.value)
    assert message == str(raised.value)
    return message


@pytest.mark.parametrize(
    "path", ["library/red.png", "./library/red.png", "/library/red.png", "library/../library/red.png"]
)
def test_an_image_below_the_root_is_read(root: Path, path: str) -> None:
    assert read_image(root, path) == (root / "library" / "red.png").read_bytes()


def test_links_inside_the_root_and_of_the_root_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to(root / "library" / "red.png")
    (root.parent / "root").symlink_to(root)
    assert read_image(root.parent / "root", "link.png") == (root / "library" / "red.png").read_bytes()


def test_nothing_leads_out_of_the_root(root: Path) -> None:
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "folder").symlink_to(root.parent)
    (root.parent / "memes-private").mkdir()
    (root.parent / "memes-private" / "a.png").write_bytes((root.parent / "outside.png").read_bytes())
    ways = ["../outside.png", "library/../../outside.png", "link.png", "folder/outside.png", "../memes-private/a.png"]
    for path in [*ways, "../not-there.png", "folder/not-there.png"]:
        assert refusal(root, path) == f"Image path leads out of the image folder: {path}"
    assert refusal(root, str(root.parent / "outside.png")).startswith("Image file not found: /")


@pytest.mark.parametrize("path", ["nope.jpg", "library/red.png/more", "", ".", "library", "a\0b"])
def test_what_is_no_file_is_not_found(root: Path, path: str) -> None:
    assert refusal(root, path) == f"Image file not found: {path}"


def test_files_that_are_too_large(root: Path) -> None:
    png = (root / "library" / "red.png").read_bytes()
    (root / "full.png").write_bytes(png.ljust(10 * 2**20, b"\0"))
    (root / "over.png").write_bytes(png.ljust(10 * 2**20 + 1, b"\0"))
    (root / "huge.png").touch()
    os.truncate(root / "huge.png", 2**40 + 2**19)
    assert len(read_image(root, "full.png")) == 10 * 2**20
    assert refusal(root, "over.png") == "Image file too large: 10.0MB exceeds 10MB limit"
    assert refusal(root, "huge.png") == "Image file too large: 1048576.5MB exceeds 10MB limit"


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x18ftypmp42" + bytes(40)])
def test_files_that_are_no_images(root: Path, data: bytes) -> None:
    (root / "broken.png").write_bytes(data)
    assert refusal(root, "broken.png") == "Invalid or corrupt image file: broken.png"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    assert refusal(root, "pipe.png") == "Invalid or corrupt image file: pipe.png"


def test_images_that_cannot_be_read_say_why(root: Path) -> None:
    (root / "circle.png").symlink_to("circle.png")
    assert refusal(root, "circle.png").startswith("Cannot read image file: circle.png - ")
    assert refusal(root, "a" * 300).endswith(" - File name too long")
    Image.new("RGB", (5, 4)).save(root / "bomb.bmp")
    bomb = bytearray((root / "bomb.bmp").read_bytes())
    bomb[18:26] = (20_000).to_bytes(4, "little") * 2
    (root / "bomb.bmp").write_bytes(bomb)
    assert refusal(root, "bomb.bmp").startswith("Cannot read image file: bomb.bmp - it has 20000 x 20000 pixels")


def test_sentences_of_errors_that_come_later() -> None:
    assert permanent_message(job(), InvalidImage("the image cannot be decoded: x")) == (
        "Invalid or corrupt image file: ./nope.jpg"
    )
    assert permanent_message(job(), InvalidRequest("too long", "prompt")) == "too long"
