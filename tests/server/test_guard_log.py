"""What the log tells of a request, and what it does not."""

import base64
import io
import json
import logging
import re

import pytest
import tiny_moondream as tiny
from fastapi import FastAPI
from fastapi.testclient import TestClient
from guarded import opened

from galago.errors import InvalidRequest
from galago.server import errors, openai_reply
from galago.server.guard.logs import set_up, with_failures, with_log

SECRET = "who is the person in the blue coat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("logged") / "tiny")


@pytest.fixture
def written():
    """What is logged, as JSON lines or as text; loggers are put back."""
    root, ours = logging.getLogger(), logging.getLogger("galago")
    before = (root.handlers, root.level, ours.level)
    stream = io.StringIO()

    def begin(form):
        set_up(form, stream=stream)
        return stream

    yield begin
    root.handlers = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def asked(**more):
    return {"question": SECRET, "image_url": tiny_image(), "settings": {"max_tokens": 3}, **more}


def tiny_image():
    file = io.BytesIO()
    tiny.IMAGE.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line_without_its_content(folder, written):
    stream = written("json")
    with opened(folder) as http:
        reply = http.post("/v1/query", json=asked())
        http.get("/v1/models/tiny")
        http.get("/no/such/route")
    query, model, missing = lines(stream)
    assert (query["method"], query["path"], query["status"], query["gone"]) == ("POST", "/v1/query", 200, False)
    assert (query["model"], query["images"], query["tokens"]) == ("tiny", 1, 3)
    assert query["prompt_tokens"] > 3 and query["seconds"] > 0
    assert query["bytes_in"] == len(reply.request.content) and query["bytes_out"] == len(reply.content)
    assert query["id"] == reply.headers["x-request-id"]
    assert model["path"] == "/v1/models/{name:path}"
    assert missing["status"] == 404
    assert "blue coat" not in stream.getvalue() and "base64" not in stream.getvalue()


def test_content_is_told_when_asked_for_but_never_an_image(folder, written):
    stream = written("json")
    with opened(folder, log_content=True) as http:
        http.post("/v1/query", json=asked())
    (line,) = lines(stream)
    assert SECRET in line["content"]
    assert "base64" not in stream.getvalue()


@pytest.mark.parametrize("given", ["abc-1.2:3", "a" * 128])
def test_a_sane_id_is_kept(folder, written, given):
    stream = written("text")
    with opened(folder, api_keys=("k",)) as http:
        for path in ("/health", "/v1/models", "/none"):
            assert http.get(path, headers={"X-Request-Id": given}).headers["x-request-id"] == given
    told = stream.getvalue().splitlines()
    assert len(told) == 3 and all(line.endswith(f" id={given}") for line in told)


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, 'x" status=200', "é".encode("latin-1")])
def test_an_id_that_is_not_sane_is_replaced(folder, written, given):
    stream = written("text")
    with opened(folder) as http:
        made = http.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"]
        assert made != http.get("/health").headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert len(stream.getvalue().splitlines()) == 2


def test_text_lines_hold_what_was_sent_within_quotes(folder, written):
    stream = written("text")
    with opened(folder) as http:
        http.get("/x%0aWARNING%20forged%20status=200%1b[2J")
    (line,) = stream.getvalue().splitlines()
    assert " status=404 " in line and 'path="/x\\nWARNING forged status=200\\u001b[2J"' in line
    assert line.split()[1:4] == ["INFO", "request", "method=GET"]


def test_what_nobody_foresaw_is_an_error_with_an_id_and_one_traceback(written):
    stream = written("json")
    app = FastAPI()
    app.add_middleware(with_failures, reply=errors.replies(openai_reply.error_body, {}))
    app.add_middleware(with_log)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a detail for the log")

    reply = TestClient(app, raise_server_exceptions=True).get("/broken")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "generation_failed")
    assert "a detail" not in reply.text
    failed, line = lines(stream)
    assert failed["traceback"].count("RuntimeError: a detail for the log") == 1
    assert failed["id"] == line["id"] == reply.headers["x-request-id"]
    assert (line["status"], line["path"]) == (500, "/broken")


def test_a_log_of_another_form_is_refused():
    with pytest.raises(InvalidRequest, match="text or json"):
        set_up("xml")  # type: ignore[arg-type]
