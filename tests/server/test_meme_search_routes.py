"""meme-search's job API over HTTP: what the application sends, and what it is called back with."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copy
from typing import Any

import httpx
import pytest
from guarded import PATIENCE
from receiver import Received, Receiver, receiving
from serving import serving

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

PICTURE = Path(__file__).parents[2] / "examples" / "scene.png"
ADD = {"image_core_id": 7, "image_path": "./app/do_not_remove.jpg", "model": "test", "attempt_id": 31}
ADD |= {"callback_token": "tok-31"}
QUEUED = {"status": "Job added to queue"}
INT = "Input should be a valid integer, unable to parse string as an integer"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "memes"
    (folder / "app").mkdir(parents=True)
    copy(PICTURE, folder / "app" / "do_not_remove.jpg")
    return folder


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@contextmanager
def application(root: Path, receiver: Receiver, **more: Any) -> Iterator[httpx.Client]:
    """A client of a server that stands in for the application's generator."""
    settings = {
        "jobs_db": str(root.parent / "jobs.db"),
        "callback_url": f"{receiver.url}/image_cores",
        "job_delay": 0.2,
    }
    fixed = ServerSettings(model=("scenes",), meme_search=True, image_root=str(root), **settings | more)
    app = create_app(ModelPool(keep_alive=None, options={"device": "cpu"}), fixed)
    with serving(app) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        yield client


def told(received: Sequence[Received]) -> list[tuple[str, str]]:
    return [(one.path, one.body.decode()) for one in received]


def status(state: int, tokens: str, id: int = 7, more: str = "") -> tuple[str, str]:
    data = f'{{"data": {{"image_core_id": {id}, "status": {state}, {more}{tokens}}}}}'
    return "/image_cores/status_receiver", data


def description(text: str, tokens: str, id: int = 7) -> tuple[str, str]:
    data = f'{{"data": {{"image_core_id": {id}, "description": "{text}", {tokens}}}}}'
    return "/image_cores/description_receiver", data


TOKENS = '"attempt_id": 31, "callback_token": "tok-31"'


def test_a_job_from_queued_to_done(root: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """The example that was recorded from the application's own generator, byte for byte."""
    caplog.set_level("INFO", "galago")
    with application(root, receiver, job_delay=1) as http:
        assert http.get("/").json() == {"status": "HELLO WORLD"}
        reply = http.post("/add_job", json=ADD)
        assert (reply.status_code, reply.json()) == (200, QUEUED)
        assert http.get("/check_queue").json() == {"queue_length": 1}
        receiver.wait_for(4)
        assert http.get("/check_queue").json() == {"queue_length": 0}
    assert told(receiver.received) == [
        status(1, TOKENS),
        status(2, TOKENS),
        description("Test description for do_not_remove", TOKENS),
        status(3, TOKENS),
    ]
    assert {one.headers["content-type"] for one in receiver.received} == {"application/json"}
    for sender in ("status_sender", "description_sender"):
        assert f"{sender} successfully delivered" in caplog.text


def test_a_missing_image_fails_for_good(root: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    body = {"image_core_id": 8, "image_path": "./nope.jpg", "model": "test", "attempt_id": 32, "callback_token": "t"}
    with application(root, receiver) as http:
        assert http.post("/add_job", json=body).json() == QUEUED
        receiver.wait_for(4)
    message, tokens = "Image file not found: ./nope.jpg", '"attempt_id": 32, "callback_token": "t"'
    assert told(receiver.received) == [
        status(1, tokens, 8),
        status(2, tokens, 8),
        status(5, tokens, 8, f'"error_message": "{message}", '),
        description(f"Error: {message}", tokens, 8),
    ]
    assert "permanently failed" in caplog.text and message in caplog.text


def test_a_job_that_waits_is_removed(root: Path, receiver: Receiver) -> None:
    with application(root, receiver, job_delay=3600) as http:
        http.post("/add_job", json=ADD)
        http.post("/add_job", json=ADD | {"image_core_id": 9})
        http.post("/add_job", json=ADD | {"attempt_id": 32})
        assert http.get("/check_queue").json() == {"queue_length": 3}
        for _ in range(2):  # the second time there is none
            reply = http.delete("/remove_job/7")
            assert (reply.status_code, reply.json()) == (200, {"status": "Job removed from queue"})
            assert http.get("/check_queue").json() == {"queue_length": 1}
        receiver.wait_for(5)
    second = '"attempt_id": 32, "callback_token": "tok-31"'
    of_image = [one for one in told(receiver.received) if '"image_core_id": 7' in one[1]]
    assert [one for one in of_image if '"attempt_id": 31' in one[1]] == [status(1, TOKENS), status(0, TOKENS)]
    assert [one for one in of_image if '"attempt_id": 32' in one[1]] == [status(1, second), status(0, second)]


def test_a_job_that_runs_is_removed(root: Path, receiver: Receiver) -> None:
    """Its result is thrown away: nothing is sent after the 0."""
    with application(root, receiver, job_delay=0) as http:
        http.post("/add_job", json=ADD)
        receiver.wait_for(2)  # it runs for a second from now on
        http.delete("/remove_job/7")
        http.post("/add_job", json=ADD | {"image_core_id": 8})
        receiver.wait_for(7)  # the 0, and those of the other, which began later
    of_image = [one for one in told(receiver.received) if '"image_core_id": 7' in one[1]]
    assert of_image == [status(1, TOKENS), status(2, TOKENS), status(0, TOKENS)]


@pytest.mark.parametrize("model", ["Florence-2-base", "SmolVLM-256M-Instruct", "moondream2-int8"])
def test_the_loaded_model_answers_for_those_that_are_not_here(root: Path, receiver: Receiver, model: str) -> None:
    with application(root, receiver) as http:
        assert http.post("/add_job", json=ADD | {"model": model}).json() == QUEUED
        receiver.wait_for(4)
        assert http.get("/health").json()["meme_search"][model] == "scenes"
    path, body = told(receiver.received)[2]
    assert path == "/image_cores/description_receiver"
    assert "circle" in json.loads(body)["data"]["description"].lower()


@pytest.mark.parametrize(
    ("body", "loc", "type"),
    [
        (ADD | {"model": "gpt"}, ["model"], "literal_error"),
        (ADD | {"model": None}, ["model"], "literal_error"),
        (ADD | {"image_core_id": "x"}, ["image_core_id"], "int_parsing"),
        ({name: value for name, value in ADD.items() if name != "attempt_id"}, ["attempt_id"], "missing"),
        ("{", [], "json_invalid"),
        ("", [], "json_invalid"),
    ],
)
def test_a_wrong_body_is_told_as_fastapi_does(
    root: Path, receiver: Receiver, body: Any, loc: list[str], type: str
) -> None:
    with application(root, receiver) as http:
        reply = http.post("/add_job", content=body if isinstance(body, str) else json.dumps(body))
        assert reply.status_code == 422
        (detail,) = reply.json()["detail"]
        assert (detail["loc"], detail["type"]) == (loc, type)
        assert http.get("/check_queue").json() == {"queue_length": 0}


def test_other_refusals_are_told_as_fastapi_does(root: Path, receiver: Receiver) -> None:
    with application(root, receiver) as http:
        for method, path in (("GET", "/add_job"), ("POST", "/check_queue"), ("GET", "/remove_job/7")):
            reply = http.request(method, path)
            assert (reply.status_code, reply.json()) == (405, {"detail": "Method Not Allowed"}), path
        reply = http.get("/jobs")
        assert reply.status_code == 404 and reply.json()["detail"] == "Not Found"
        reply = http.delete("/remove_job/all")
        assert reply.status_code == 422
        where = ["path", "image_core_id"]
        assert reply.json() == {"detail": [{"type": "int_parsing", "loc": where, "msg": INT, "input": "all"}]}


def test_an_application_of_before_the_tokens(root: Path, receiver: Receiver) -> None:
    old = {"image_core_id": 7, "image_path": "app/do_not_remove.jpg", "model": "test"}
    with application(root, receiver, meme_search_legacy=True) as http:
        assert http.post("/add_job", json=old).json() == QUEUED
        receiver.wait_for(4)
    assert told(receiver.received)[0][1] == '{"data": {"image_core_id": 7, "status": 1}}'


@pytest.mark.slow
def test_a_receiver_that_is_down_is_told_later_and_in_order(root: Path) -> None:
    with receiving(share=0.2, ways=("status", "close"), seed=9) as receiver:  # which fails the third
        with application(root, receiver, job_delay=0) as http:
            http.post("/add_job", json=ADD)
            receiver.wait_for(4, PATIENCE)
        assert [one.failed for one in receiver.received] == [None, None, "status", None, None]
        assert [body for _, body in told(receiver.taken)] == [
            status(1, TOKENS)[1],
            status(2, TOKENS)[1],
            description("Test description for do_not_remove", TOKENS)[1],
            status(3, TOKENS)[1],
        ]


def test_the_file_has_the_columns_that_the_application_looks_for(root: Path, receiver: Receiver) -> None:
    with application(root, receiver, job_delay=3600) as http:
        http.post("/add_job", json=ADD)
        with sqlite3.connect(root.parent / "jobs.db") as connection:
            rows = connection.execute("SELECT attempt_id, callback_token, image_path, model, retry_count FROM jobs")
            assert rows.fetchall() == [(31, "tok-31", "./app/do_not_remove.jpg", "test", 0)]


@pytest.mark.parametrize("is_old", [True, False])
def test_a_file_of_the_application_is_upgraded_and_its_jobs_run(root: Path, receiver: Receiver, is_old: bool) -> None:
    more = "" if is_old else ", retry_count INTEGER DEFAULT 0, attempt_id INTEGER, callback_token TEXT"
    with sqlite3.connect(root.parent / "jobs.db") as connection:
        connection.execute(
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, image_core_id INTEGER, image_path TEXT NOT NULL, "
            f"model TEXT NOT NULL{more})"
        )
        rows = [(7, "app/do_not_remove.jpg", "test"), (8, "app/nope.jpg", "test"), (9, "app/do_not_remove.jpg", "blip")]
        connection.executemany("INSERT INTO jobs (image_core_id, image_path, model) VALUES (?, ?, ?)", rows)
        if not is_old:
            connection.execute("UPDATE jobs SET attempt_id = 30 + image_core_id, callback_token = 't'")
    connection.close()
    with application(root, receiver, job_delay=0) as http:
        receiver.wait_for(12)
        assert http.get("/check_queue").json() == {"queue_length": 0}
    # A second start finds nothing more to upgrade.
    with application(root, receiver, job_delay=0) as http:
        assert http.get("/check_queue").json() == {"queue_length": 0}
    assert len(receiver.received) == 12
    ends = {
        data["image_core_id"]: data
        for path, body in told(receiver.received)
        if "description" in (data := json.loads(body)["data"])
    }
    assert ends[7]["description"] == "Test description for do_not_remove"
    assert ends[8]["description"] == "Error: Image file not found: app/nope.jpg"
    assert ends[9]["description"].startswith("Error: there is no model 'blip'; there are test, ")
    assert {data.get("callback_token") for data in ends.values()} == ({None} if is_old else {"t"})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image-root", "/no/such/folder"], "/no/such/folder"),
        (["--callback-url", "ftp://app/"], "callback-url"),
        (["--job-delay", "-1"], "job-delay"),
        (["--job-db", "/no/such/folder/jobs.db"], "/no/such/folder/jobs.db"),
    ],
)
def test_wrong_flags_end_the_program_with_one_line(root: Path, flags: list[str], words: str) -> None:
    command = [sys.executable, "-m", "galago.server", "--port", "0", "--meme-search", "--image-root", str(root)]
    command += ["--job-db", str(root.parent / "jobs.db"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ})
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
