"""What tests of Moondream's REST API have in common."""

import httpx

QUESTION = "How many people are in the image?"


def error_of(reply: httpx.Response, status: int) -> tuple[str, str | None]:
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert set(body) == {"error", "status", "code", "param"}
    assert body["error"]
    return body["code"], body["param"]
