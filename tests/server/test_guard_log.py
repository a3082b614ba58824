"""What the log tells of a request, and what it does not."""

import base64
import io
import json
import logging
import re
from contextlib import closing

import pytest
import tiny_moondream as tiny
from fastapi import FastAPI
from fastapi.testclient import TestClient
from guarded import Wire, opened, running
from serving import hosting

from galago.errors import InvalidRequest
from galago.server import errors, openai
from galago.server.guard.connection import HEAD_LIMIT, Timeouts
from galago.server.guard.logs import configure_logging
from galago.server.guard.record import RecordMiddleware
from galago.server.guard.stopping import InFlight

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
        configure_logging(form, stream=stream)
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
    reply = errors.make_error_reply(openai.error_body, {})
    app.add_middleware(RecordMiddleware, in_flight=InFlight(), reply=reply)

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


HALF = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\n"
OWN_ANSWERS = {
    "a body that does not come": (HALF + b"Content-Length: 9\r\n\r\n{", 408, "request_timeout", True),
    "a broken body": (HALF + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400, "invalid_value", True),
    "no request": (b"nonsense\r\n\r\n", 400, "invalid_value", False),
    "a head that does not come": (HALF, 408, "request_timeout", False),
    "a head without end": (HALF + b"X: " + b"x" * 2 * HEAD_LIMIT, 431, "head_too_large", False),
}


@pytest.mark.parametrize(("sent", "status", "code", "asked"), OWN_ANSWERS.values(), ids=OWN_ANSWERS)
def test_what_the_connection_itself_answers_is_told(folder, written, sent, status, code, asked):
    stream = written("json")
    app = hosting(tiny.open_model(folder))
    with running(app, Timeouts(head=0.5, body=0.5)) as address, closing(Wire(address)) as wire:
        app.state.startup.result()
        wire.send(sent)
        replied, _, body = wire.reply()
        assert (replied, json.loads(body)["error"]["code"]) == (status, code)
        assert wire.rest() == b""
    (line,) = [line for line in lines(stream) if line["message"] in ("request", "refused")]
    assert (line["status"], line["code"], line["bytes_out"]) == (status, code, len(body))
    if asked:
        assert (line["message"], line["path"], line["gone"]) == ("request", "/v1/query", False)
    else:
        assert line["message"] == "refused" and "path" not in line


def test_a_log_of_another_form_is_refused():
    with pytest.raises(InvalidRequest, match="text or json"):
        configure_logging("xml")  # type: ignore[arg-type]
