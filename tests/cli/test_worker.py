"""galago worker: processes that carry out jobs and answer nobody."""

import base64
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import Command
from guarded import endless
from postgres import new_database, serving_postgres
from receiver import Receiver, receiving

from galago.jobs import NewJob, open_store
from galago.jobs.store import JobStore
from galago.jobs.telling import callbacks

PICTURE = base64.b64encode((Path(__file__).parents[2] / "examples" / "scene.png").read_bytes()).decode()
ASKED = {"image_url": PICTURE, "question": "What color is the circle?"}
ENDLESS = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 90_000}
TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def postgres() -> Iterator[str]:
    """A database that can be closed to everybody but its superuser."""
    with serving_postgres("fsync=off") as server:
        yield new_database(server)


def add(store: JobStore, receiver: Receiver, path: str = "/v1/query", body: Any = ASKED) -> str:
    return store.add(NewJob(path, json.dumps(body), callback_url=f"{receiver.url}/told"))[0].id


def events(receiver: Receiver, job_id: str) -> list[str]:
    told = [json.loads(one.body) for one in receiver.taken]
    return [one["type"] for one in told if one["data"]["id"] == job_id]


def worker(*args: object, **env: object) -> Command:
    return Command("worker", *args, "--allow-callback-host", "127.0.0.1", **env)


@pytest.mark.slow
def test_two_workers_do_each_job_once_and_tell_of_it(tmp_path: Path, receiver: Receiver) -> None:
    database, settings = tmp_path / "jobs.db", tmp_path / "galago.toml"
    settings.write_text('model = "scenes"\nmax_batch_size = 2\nport = 9000\n')
    with (
        closing(open_store(database, callbacks=callbacks)) as store,
        worker("scenes", "--jobs-db", database) as first,
        worker("--config", settings, GALAGO_JOBS_DB=database) as second,
    ):
        for command in (first, second):
            command.until(f"working the jobs of {database} with scenes (float32)\n")
        ids = [add(store, receiver) for _ in range(8)]
        receiver.wait_for(3 * len(ids))
        done = [store.get(job_id) for job_id in ids]
        assert [(job.state, job.claims, json.loads(job.result or "{}")["answer"]) for job in done if job] == [
            ("done", 1, "blue")
        ] * len(ids)
        assert all(events(receiver, one) == ["job.queued", "job.started", "job.done"] for one in ids)
        first.send(TERM)
        second.send(INT)
        assert (first.ended()[0], second.ended()[0]) == (0, 130)


def test_a_stop_gives_back_what_is_under_way(tmp_path: Path, receiver: Receiver) -> None:
    database = tmp_path / "jobs.db"
    with (
        closing(open_store(database, callbacks=callbacks)) as store,
        worker(endless(tmp_path / "model"), "--jobs-db", database, "--max-batch-size", 1) as command,
    ):
        begun, waiting = (add(store, receiver, "/v1/chat/completions", ENDLESS) for _ in range(2))
        receiver.wait_for(3)
        command.send(TERM)
        code, said = command.ended()
        assert code == 0 and "Traceback" not in said and "cut off" not in said, said
        found = [store.get(job_id) for job_id in (begun, waiting)]
        assert [(job.state, job.claims, job.leased_by) for job in found if job] == [
            ("queued", 1, None), ("queued", 0, None)
        ]  # fmt: skip


def test_a_database_that_goes_away_is_told_of_and_worked_again_when_it_is_back(
    postgres: str, receiver: Receiver
) -> None:
    name = postgres.partition("?")[0].rpartition("/")[2]
    location = postgres.replace("postgres@", "postgres:secret@")
    with (
        worker("scenes", "--jobs-db", location) as command,
        psycopg.connect(postgres.replace(f"/{name}", "/postgres"), autocommit=True) as server,
    ):
        command.until("with scenes (float32)")
        assert f"/{name}" in command.said.decode() and "secret" not in command.said.decode()
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        command.until("ERROR the job queue: the job database")
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        with closing(open_store(postgres, callbacks=callbacks)) as store:
            job_id = add(store, receiver)
            receiver.wait_for(3)
        assert events(receiver, job_id)[-1] == "job.done"
        command.send(TERM)
        code, said = command.ended()
    assert code == 0 and "Traceback" not in said and "secret" not in said, said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--jobs-db", "mysql://me:secret@box/jobs"), "postgresql://USER@HOST/DATABASE, not mysql://..."),
        (("--jobs-db", "nowhere/jobs.db"), "check that its folder exists"),
        (("--webhook-secret", "short"), "secret"),
        (("--meme-search", "--image-root", "nowhere"), "--image-root"),
    ],
)
def test_a_queue_that_cannot_be_worked(
    galago: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    error = galago("worker", "scenes", *args).error
    assert said in error and "me:" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--host", "--port", "--api-key", "--cors-origin", "--max-connections"])
def test_it_has_no_flags_of_http(galago: Any, flag: str) -> None:
    assert "No such option" in galago("worker", "scenes", flag, "1").error
