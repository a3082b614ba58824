"""GET /v1/jobs/events: whoever follows the jobs hears of each, goes without leaving anything, and holds up no stop."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from guarded import PATIENCE, Process, Wire, endless
from jsonschema import Draft202012Validator
from serving import serving

from galago.errors import JobsDatabaseError
from galago.fleet.pool import ModelPool
from galago.jobs import NewJob, open_store
from galago.jobs.store import JobStore
from galago.server import job_events
from galago.server.app import create_app
from galago.server.settings import ServerSettings
from galago.server.streaming import Silence

EVENTS = "/v1/jobs/events"
NEW = NewJob("/v1/caption", "{}")
GET = b"GET /v1/jobs/events HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """The queue of the server, as another process has it."""
    with closing(open_store(tmp_path / "jobs.db")) as store:
        yield store


@pytest.fixture
def url(tmp_path: Path, store: JobStore) -> Iterator[str]:
    """A server, which leaves jobs of the path /add_job alone: it has no images of meme-search's."""
    settings = ServerSettings(model=("scenes",), jobs_db=str(tmp_path / "jobs.db"))
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, settings, silence=Silence(later=0.2))) as address:
        yield address


class Stream:
    """The events of a stream, one after the other."""

    def __init__(self, reply: httpx.Response) -> None:
        self.reply, self._lines = reply, reply.iter_lines()

    def block(self) -> dict[str, str]:
        """The fields up to the next empty line; comments have no name."""
        fields: dict[str, str] = {}
        while line := next(self._lines):
            name, _, value = line.partition(": ")
            fields[name.strip(":")] = value
        return fields

    def event(self) -> dict[str, Any]:
        """The next event, past what keeps the stream alive."""
        while "data" not in (fields := self.block()):
            pass
        return {**fields, "data": json.loads(fields["data"])}

    def events_of(self, job_id: str, last: str) -> list[dict[str, Any]]:
        """The events of a job until this one."""
        found = []
        while not found or found[-1]["event"] != last:
            if (event := self.event())["data"]["id"] == job_id:
                found.append(event)
        return found


@contextmanager
def following(url: str, **more: Any) -> Iterator[Stream]:
    with httpx.stream("GET", f"{url}{EVENTS}", timeout=PATIENCE, **more) as reply:
        assert reply.status_code == 200, reply.read()
        yield Stream(reply)


def test_changes_are_told_as_they_come(url: str, store: JobStore) -> None:
    store.add(NewJob("/add_job", "{}"))
    with following(url) as stream:
        assert stream.reply.headers["content-type"].startswith("text/event-stream")
        assert [*stream.block()] == ["id"], "from where on to go, before there is any event"
        job, _ = store.add(NewJob("/add_job", "{}", delay_s=100))
        event = stream.event()
        assert (event["event"], event["data"]) == ("job.queued", httpx.get(f"{url}/v1/jobs/{job.id}").json())
        store.cancel(job.id)
        event = stream.event()
        assert (event["event"], event["data"]["id"], event["data"]["status"]) == ("job.cancelled", job.id, "cancelled")
        assert [*stream.block()] == [""], "a comment while there is nothing to tell"
    document = httpx.get(f"{url}/openapi.json").json()
    schema = {"$ref": "#/components/schemas/Job", "components": document["components"]}
    Draft202012Validator(schema).validate(event["data"])
    assert EVENTS in document["paths"]


def test_what_the_server_carries_out_is_told(url: str) -> None:
    with following(url) as stream:
        assert stream.block()
        job = httpx.post(f"{url}/v1/jobs", json={"path": "/v1/query", "question": "Hi?"}).json()
        assert (job["max_attempts"], job["next_attempt_at"]) == (3, job["created_at"])
        last = stream.events_of(job["id"], "job.done")[-1]["data"]
        assert last == httpx.get(f"{url}/v1/jobs/{job['id']}").json() and last["result"] and not last["next_attempt_at"]


@pytest.mark.parametrize("by", ["header", "query"])
def test_whoever_comes_again_misses_nothing(url: str, store: JobStore, by: str) -> None:
    ids = [store.add(NewJob("/add_job", "{}"))[0].id for _ in range(3)]
    with following(url) as stream:
        start = stream.block()["id"]
    for one in ids:
        store.cancel(one)

    def again(cursor: str) -> Any:
        # A browser comes again to the address of the first time, with the header.
        return {"headers": {"Last-Event-ID": cursor}, "params": {"after": "0"}} if by == "header" else {
            "params": {"after": cursor}, "headers": {"Last-Event-ID": ""},
        }  # fmt: skip

    with following(url, **again(start)) as stream:
        events = [stream.event() for _ in ids]
    assert [event["data"]["id"] for event in events] == ids
    with following(url, **again(events[0]["id"])) as stream:
        assert [stream.event() for _ in ids[1:]] == events[1:]


def test_more_than_a_page_is_told(url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "PAGE", 2)
    ids = [store.add(NewJob("/add_job", "{}"))[0].id for _ in range(5)]
    with following(url, params={"after": "0"}) as stream:
        assert [stream.event()["data"]["id"] for _ in ids] == ids


@pytest.mark.parametrize(
    "more", [{"params": {"after": "x"}}, {"params": {"after": ""}}, {"headers": {"Last-Event-ID": "9" * 18}}]
)
def test_a_cursor_of_nothing_is_refused(url: str, more: Any) -> None:
    reply = httpx.get(f"{url}{EVENTS}", **more)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "after"), reply.text


def test_without_a_queue_and_for_head_there_is_no_stream(url: str) -> None:
    assert httpx.head(f"{url}{EVENTS}").status_code == 200
    with serving(create_app(ModelPool(keep_alive=None, options={"device": "cpu"}))) as other:
        reply = httpx.get(f"{other}{EVENTS}")
    assert reply.status_code == 501 and "--jobs" in reply.json()["error"]["message"]


def test_those_that_left_make_room(url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that went before anything was told."""
    monkeypatch.setattr(job_events, "MAX_STREAMS", 2)
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    looks: list[None] = []
    last_change = JobStore.last_change

    def look(store: JobStore) -> int:
        looks.append(None)
        return last_change(store)

    monkeypatch.setattr(JobStore, "last_change", look)
    monkeypatch.setattr(job_events, "LOOK_S", 0.001)
    for _ in range(3):
        with ExitStack() as stack:
            streams = [until_open(url, stack) for _ in range(2)]
            reply = httpx.get(f"{url}{EVENTS}")
            assert (reply.status_code, "2 clients" in reply.json()["error"]["message"]) == (429, True)
            assert all(stream.block() for stream in streams)  # and these go on
        wire = Wire(address)
        wire.send(GET)
        wire.close()
    with ExitStack() as stack:
        until_open(url, stack)
    end = time.monotonic() + PATIENCE
    while True:  # until nobody looks any more
        before = len(looks)
        for _ in range(20):
            httpx.get(f"{url}/v1/jobs")
        if len(looks) == before:
            break
        assert time.monotonic() < end
    assert looks


def until_open(url: str, stack: ExitStack) -> Stream:
    """A stream, once those that left are noticed."""
    end = time.monotonic() + PATIENCE
    while True:
        reply = stack.enter_context(httpx.stream("GET", f"{url}{EVENTS}", timeout=PATIENCE))
        if reply.status_code == 200:
            stream = Stream(reply)
            stream.block()
            return stream
        assert reply.status_code == 429 and time.monotonic() < end
        reply.close()


def test_a_database_that_is_away_for_a_while_ends_no_stream(
    url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with following(url) as stream:
        stream.block()
        last_change, changes = JobStore.last_change, JobStore.changes
        asked = threading.Event()

        def fail(*_: Any) -> Any:
            asked.set()
            raise JobsDatabaseError("the job database is away")

        monkeypatch.setattr(JobStore, "last_change", fail)
        monkeypatch.setattr(JobStore, "changes", fail)
        assert asked.wait(PATIENCE)
        job, _ = store.add(NewJob("/add_job", "{}"))
        stream.block()
        monkeypatch.setattr(JobStore, "changes", changes)
        monkeypatch.setattr(JobStore, "last_change", last_change)
        assert stream.event()["data"]["id"] == job.id


def test_a_stop_ends_the_streams_at_once(tmp_path: Path) -> None:
    """Their last bytes say that they are whole, and nothing waits for the end of the time that a stop has."""
    folder = endless(tmp_path / "tiny")
    grace = 10 * PATIENCE
    with Process("--model", folder, "--jobs-db", tmp_path / "jobs.db", "--grace-s", str(grace)) as server:
        with ExitStack() as stack:
            wires = [stack.enter_context(closing(Wire(("127.0.0.1", server.port)))) for _ in range(3)]
            for wire in wires:
                wire.send(GET)
                while not wire.line().startswith(b"id:"):
                    pass
            server.stop()
            assert all(wire.rest().endswith(b"0\r\n\r\n") for wire in wires)
        assert server.ended() == 0
        assert "stopped: 3 requests finished, 0 cancelled" in server.said[-1]
        assert "Traceback" not in "".join(server.said)
