"""Jobs over HTTP: carried out in the background, called back, and there after a restart."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from guarded import PATIENCE
from jsonschema import Draft202012Validator
from receiver import receiving
from server_program import server_program
from serving import serving
from standardwebhooks import Webhook

from galago.errors import JobsDatabaseError
from galago.fleet.pool import ModelPool
from galago.jobs import open_store
from galago.jobs.store import JobStore
from galago.server.app import create_app
from galago.server.settings import ServerSettings

PICTURE = (Path(__file__).parents[2] / "examples" / "scene.png").read_bytes()
ASKED = {"path": "/v1/query", "image_url": base64.b64encode(PICTURE).decode(), "question": "What color is the circle?"}
SECRET = base64.b64encode(bytes(range(32))).decode()


def app(folder: Path, **more: Any) -> Any:
    settings = ServerSettings(
        model=("scenes",),
        jobs_db=str(folder / "jobs.db"),
        allow_callback_hosts=("127.0.0.1",),
        webhook_secret=SECRET,
        **more,
    )
    return create_app(ModelPool(keep_alive=None, options={"device": "cpu"}), settings)


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(app(tmp_path)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def finished(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE
    while job["status"] in ("queued", "running"):
        assert time.monotonic() < end, job
        job = http.get(f"/v1/jobs/{job['id']}").json()
    return job


def test_a_job_is_carried_out_and_called_back(http: httpx.Client) -> None:
    with receiving() as receiver:
        added = http.post("/v1/jobs", json=ASKED | {"callback_url": f"{receiver.url}/done"})
        assert added.status_code == 202 and added.headers["location"] == f"/v1/jobs/{added.json()['id']}"
        job = finished(http, added.json())
        assert (job["status"], job["error"], job["result"]["answer"]) == ("done", None, "blue")
        receiver.wait_for(3)
        told = [signed(one) for one in receiver.received]
    assert [one["type"] for one in told] == ["job.queued", "job.started", "job.done"]
    assert told[-1]["data"] == job
    assert http.get("/v1/jobs?status=done").json()["data"] == [job]


def test_callbacks_of_a_job_are_told_and_sent_again(http: httpx.Client) -> None:
    with receiving() as receiver:
        job = finished(http, http.post("/v1/jobs", json=ASKED | {"callback_url": receiver.url}).json())
        receiver.wait_for(3)
        end = time.monotonic() + PATIENCE
        told: list[Any] = []
        while [one["state"] for one in told] != ["delivered"] * 3:
            assert time.monotonic() < end, told
            listed = http.get(f"/v1/jobs/{job['id']}/deliveries").json()
            told = listed["data"]
        assert [(one["sequence"], one["event"]) for one in told] == [
            (1, "job.queued"), (2, "job.started"), (3, "job.done"),
        ]  # fmt: skip
        assert all(one["last_status"] == 200 and one["job_id"] == job["id"] and "body" not in one for one in told)
        schema = {"$ref": "#/components/schemas/JobDeliveryList", **http.get("/openapi.json").json()}
        Draft202012Validator(schema).validate(listed)
        again = http.post(f"/v1/jobs/deliveries/{told[0]['id']}/replay")
        assert (again.status_code, again.json()["id"], again.json()["state"]) == (200, told[0]["id"], "pending")
        assert receiver.wait_for(4)[-1].headers["webhook-id"] == told[0]["id"]
    for reply in (http.get("/v1/jobs/x/deliveries"), http.post("/v1/jobs/deliveries/x/replay")):
        assert reply.status_code == 404 and "x" in reply.json()["error"]["message"]


def signed(request: Any) -> Any:
    return Webhook(SECRET).verify(request.body, request.headers)


def test_a_key_makes_two_jobs_one(http: httpx.Client) -> None:
    first, second = (http.post("/v1/jobs", json=ASKED | {"idempotency_key": "a"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]
    other = http.post("/v1/jobs", json=ASKED | {"idempotency_key": "a", "question": "Why?"})
    assert other.status_code == 400


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"path": None}, 400, "path"),
        ({"path": "/v1/nothing"}, 400, "path"),
        ({"path": "/v1/segment"}, 400, "path"),
        ({"question": None}, 400, "question"),
        ({"priority": 1001}, 400, "priority"),
        ({"callback_url": "http://10.0.0.1/x"}, 400, "callback_url"),
        ({"callback_url": "ftp://example.org"}, 400, "callback_url"),
        ({"expires_after": -1}, 400, "expires_after"),
    ],
)
def test_what_can_never_be_carried_out_is_refused_at_once(
    http: httpx.Client, more: dict[str, Any], status: int, param: str
) -> None:
    reply = http.post("/v1/jobs", json=ASKED | more)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text
    assert http.get("/v1/jobs").json()["data"] == []


def test_a_picture_that_cannot_be_read_fails_for_good(http: httpx.Client) -> None:
    job = finished(http, http.post("/v1/jobs", json=ASKED | {"image_url": "data:image/png;base64,AAAA"}).json())
    assert (job["status"], job["attempts"], job["error"]["permanent"]) == ("failed", 1, True)
    assert "known format" in job["error"]["message"]
    again = http.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 200 and finished(http, again.json())["status"] == "failed"
    assert http.post("/v1/jobs/job_none/retry").status_code == 404


def test_jobs_are_there_after_a_restart(tmp_path: Path) -> None:
    with serving(app(tmp_path)) as url:
        ids = [httpx.post(f"{url}/v1/jobs", json=ASKED | {"max_tokens": i + 1}).json()["id"] for i in range(20)]
        cancelled = httpx.delete(f"{url}/v1/jobs/{ids[-1]}").json()
    with serving(app(tmp_path)) as url, httpx.Client(base_url=url) as http:
        ended = [finished(http, http.get(f"/v1/jobs/{one}").json()) for one in ids]
    assert [job["result"]["answer"] for job in ended[:-1]] == ["blue"] * 19
    # It may have been carried out already.
    assert ended[-1]["status"] == cancelled["status"] in ("cancelled", "done")


@pytest.mark.parametrize(
    ("query", "param"), [("status=late", "status"), ("limit=x", "limit"), ("limit=0", "limit"), ("after=x", "after")]
)
def test_a_list_that_cannot_be(http: httpx.Client, query: str, param: str) -> None:
    reply = http.get(f"/v1/jobs?{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert param in reply.json()["error"]["message"]


def test_a_stop_does_not_wait_for_a_slow_receiver(tmp_path: Path) -> None:
    """What it was about to say is said after the next start."""
    with receiving(share=1, ways=("slow",)) as receiver:
        with serving(app(tmp_path)) as url:
            httpx.post(f"{url}/v1/jobs", json=ASKED | {"callback_url": receiver.url})
            with receiver.changed:
                assert receiver.changed.wait_for(lambda: bool(receiver.received), PATIENCE)
        store = open_store(tmp_path / "jobs.db")
        first = store.deliveries.page(newest_first=False).deliveries[0]
        assert (first.state, first.attempts, first.last_error) == ("pending", 1, None)
        store.close()


def test_a_database_that_is_away_is_said_so(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise JobsDatabaseError("the job database jobs.db was locked")

    monkeypatch.setattr(JobStore, "get", away)
    reply = http.get("/v1/jobs/job_1")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "jobs_database")
    assert "was locked" in reply.json()["error"]["message"] and "retry-after" in reply.headers


def test_what_asks_a_model_for_nothing_is_no_job(http: httpx.Client) -> None:
    reply = http.post("/v1/jobs", json={"path": "/api/generate", "model": "scenes"})
    assert reply.status_code == 400 and "must ask a model for something" in reply.json()["error"]["message"]


def test_without_a_queue_it_says_how_to_have_one() -> None:
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("scenes",)))) as url:
        for reply in (httpx.post(f"{url}/v1/jobs", json=ASKED), httpx.get(f"{url}/v1/jobs/x")):
            assert reply.status_code == 501 and "--jobs" in reply.json()["error"]["message"]


def test_what_cannot_be_a_queue_ends_the_program_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database, whatever its name is, and long enough to be looked at")
    command = [sys.executable, "-m", "galago.server", "--port", "0", "--jobs-db", str(tmp_path / "notes.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
    assert "notes.txt" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """What it worked on is taken up again once its lease is over."""
    served = ("-m", "scenes", "--jobs-db", str(tmp_path / "jobs.db"), "--allow-callback-host", "127.0.0.1")
    with receiving() as receiver:
        with server_program(*served) as (process, url), httpx.Client(base_url=url) as http:
            more = ASKED | {"callback_url": receiver.url}
            ids = [http.post("/v1/jobs", json=more | {"max_tokens": i + 1}).json()["id"] for i in range(20)]
            while not http.get("/v1/jobs?status=done").json()["data"]:
                pass
            process.kill()
        with server_program(*served) as (process, url), httpx.Client(base_url=url) as http:
            ended = [finished(http, http.get(f"/v1/jobs/{one}").json()) for one in ids]
            assert [job["result"]["answer"] for job in ended] == ["blue"] * 20
            end = time.monotonic() + PATIENCE
            while http.get("/health").json()["queue"]["callbacks"]["pending"]:
                assert time.monotonic() < end
    for one in ids:
        told = [event for taken in receiver.taken if (event := json.loads(taken.body))["data"]["id"] == one]
        kinds = list(dict.fromkeys(event["type"] for event in told))
        assert kinds == ["job.queued", "job.started", "job.done"]
