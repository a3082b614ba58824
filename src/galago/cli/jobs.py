"""galago jobs"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galago.cli.options import Texts
from galago.cli.streams import print_json
from galago.errors import InvalidRequest, JobsDatabaseError, quoted, shortened
from galago.jobs import Delivery, DeliveryPage, Job, JobPage, open_store
from galago.jobs.ids import LENGTH, is_id
from galago.jobs.records import CANCELLED, DEAD, DELIVERY_STATES, FAILED, STATES
from galago.jobs.settings import default_location

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

EXAMPLES = """\b
Examples:
  galago jobs
  galago jobs list --jobs-db jobs.db --status failed --status cancelled
  galago jobs retry --failed --jobs-db postgresql://galago@box/jobs
  galago jobs deliveries --status dead --json
  galago jobs replay --dead"""
VARIABLE = "GALAGO_JOBS_DB"
PAGE = 200
"""Jobs or callbacks that are read at a time where all of a kind are meant"""
ERROR_LENGTH = 60
KINDS = {"job_": "job", "msg_": "callback"}
"""By how their ids begin"""
UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))

app = typer.Typer(rich_markup_mode=None)

JobsDbOption = Annotated[
    str | None,
    typer.Option(
        "--jobs-db",
        "--job-db",
        metavar="FILE|URL",
        help=f"The database of the jobs; by default {VARIABLE}, or else the one in the user's own folder.",
    ),
]
JobsJsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per job or callback.")]
LimitOption = Annotated[int, typer.Option(help="Show so many at most; up to 1000.")]
AfterOption = Annotated[str | None, typer.Option(metavar="ID", help="Show what comes after this one.")]


@app.callback(invoke_without_command=True)
def jobs(context: typer.Context, jobs_db: JobsDbOption = None, json: JobsJsonOption = False) -> None:
    """List the jobs of a server's database, cancel and retry them, and send their callbacks again."""
    command = context.invoked_subcommand
    if command is None:
        list_jobs(jobs_db=jobs_db, json=json)
    elif jobs_db or json:
        flag = "--jobs-db" if jobs_db else "--json"
        raise InvalidRequest(f"{flag} goes after the command: galago jobs {command} {flag}")


@app.command("list")
def list_jobs(
    status: Annotated[Texts, typer.Option(help=f"Only {', '.join(STATES)}; may be given again.")] = None,
    path: Annotated[str | None, typer.Option(help="Only those of this path, such as /v1/caption.")] = None,
    limit: LimitOption = 50,
    after: AfterOption = None,
    jobs_db: JobsDbOption = None,
    json: JobsJsonOption = False,
) -> None:
    """List jobs, the newest first. The same as `galago jobs`."""
    states = _known(status, STATES)
    with _opened(jobs_db) as store:
        page = store.page(states, path=path, after=after, limit=limit)
    _print_page(page, json)


@app.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The id of a job.")],
    jobs_db: JobsDbOption = None,
    json: JobsJsonOption = False,
) -> None:
    """Tell all about a job: its times, its result or error, and its callbacks."""
    with _opened(jobs_db) as store:
        job = _existing(store.get, id, "job_")
        told = store.deliveries.page(job_id=id, limit=1000, newest_first=False).deliveries
    if json:
        print_json(_as_json(job))
        return
    rows = [*_details(job), *(("callback", f"{one.id}  {one.event}  {one.state}  {_error(one)}") for one in told)]
    for name, text in rows:
        if text:
            typer.echo(f"{name:12}{text.rstrip()}")


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs.")],
    jobs_db: JobsDbOption = None,
    json: JobsJsonOption = False,
) -> None:
    """Cancel jobs that wait or run; whoever is called back about them is told."""
    with _opened(jobs_db) as store:

        def change(id: str) -> Job | None:
            job = store.cancel(id)
            if job is not None and job.state != CANCELLED:
                raise InvalidRequest(f"{id} cannot be cancelled any more: it is {job.state}")
            return job

        _print_changed(_change_each(ids, change, "job_"), json)


@app.command()
def retry(
    ids: Annotated[Texts, typer.Argument(metavar="ID...", help="Ids of jobs.", show_default=False)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
    jobs_db: JobsDbOption = None,
    json: JobsJsonOption = False,
) -> None:
    """Queue failed or cancelled jobs again, as if they were new."""
    if bool(ids) == failed:
        raise InvalidRequest("name the jobs by their ids, or all that failed by --failed")
    with _opened(jobs_db) as store:
        if ids:
            _print_changed(_change_each(ids, store.retry, "job_"), json)
        else:
            _print_count(_change_all(store.page, FAILED, store.retry), "jobs queued again", json)


@app.command()
def deliveries(
    job: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this job.")] = None,
    status: Annotated[Texts, typer.Option(help=f"Only {', '.join(DELIVERY_STATES)}; may be given again.")] = None,
    limit: LimitOption = 50,
    after: AfterOption = None,
    jobs_db: JobsDbOption = None,
    json: JobsJsonOption = False,
) -> None:
    """List callbacks, the newest first."""
    states = _known(status, DELIVERY_STATES)
    with _opened(jobs_db) as store:
        if job is not None:
            _existing(store.get, job, "job_")
        page = store.deliveries.page(states, job_id=job, after=after, limit=limit)
    _print_page(page, json)


@app.command()
def replay(
    ids: Annotated[Texts, typer.Argument(metavar="ID...", help="Ids of callbacks.", show_default=False)] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    jobs_db: JobsDbOption = None,
    json: JobsJsonOption = False,
) -> None:
    """Send callbacks again that were delivered or given up, from their first attempt on."""
    if bool(ids) == dead:
        raise InvalidRequest("name the callbacks by their ids, or all that were given up by --dead")
    with _opened(jobs_db) as store:
        if ids:
            _print_changed(_change_each(ids, store.deliveries.replay, "msg_"), json)
        else:
            replayed = _change_all(store.deliveries.page, DEAD, store.deliveries.replay)
            _print_count(replayed, "callbacks to be sent again", json)


@contextmanager
def _opened(location: str | None) -> "Iterator[JobStore]":
    """The queue that is meant. Raises JobsDatabaseError where there is none, and makes none."""
    from galago.jobs.telling import callbacks

    named = location or os.environ.get(VARIABLE, "").strip()
    try:
        store = open_store(named or default_location(make=False), callbacks=callbacks, must_exist=True)
    except JobsDatabaseError as error:
        raise error if named else JobsDatabaseError(f"{error}; --jobs-db or {VARIABLE} names another") from error
    try:
        yield store
    finally:
        store.close()


def _known(given: Texts, states: Sequence[str]) -> Sequence[str]:
    if unknown := next((one for one in given or () if one not in states), None):
        raise InvalidRequest(f"--status must be {', '.join(states[:-1])} or {states[-1]}, not {quoted(unknown)}")
    return given or states


def _existing(get: Callable[[str], Any], id: str, prefix: str) -> Any:
    """What `get` gives for an id. Raises InvalidRequest if there is none."""
    if not is_id(id, prefix):
        raise InvalidRequest(
            f"{quoted(id)} is not the id of a {KINDS[prefix]}: {prefix} and {LENGTH} letters and digits"
        )
    if (found := get(id)) is None:
        raise InvalidRequest(f"there is no {KINDS[prefix]} {id}")
    return found


def _change_each(ids: Iterable[str], change: Callable[[str], Any], prefix: str) -> Iterator[Any]:
    """What was changed, one after the other; those that could not be are told of, and the exit code is 2 then."""
    failed = False
    for id in dict.fromkeys(ids):
        try:
            yield _existing(change, id, prefix)
        except InvalidRequest as error:
            typer.echo(f"error: {error}", err=True)
            failed = True
    if failed:
        raise typer.Exit(2)


def _change_all(page: Callable[..., Any], state: str, change: Callable[[str], Any]) -> Iterator[Any]:
    """Change all that are in a state, the oldest first; what comes into it meanwhile may be left out."""
    after = None
    while True:
        found = page([state], after=after, limit=PAGE, newest_first=False)
        for one in _members(found):
            try:
                changed = change(one.id)
            except InvalidRequest:  # another has changed it since it was read
                continue
            if changed is not None:
                yield changed
        if (after := found.after) is None:
            return


def _members(page: JobPage | DeliveryPage) -> Sequence[Job | Delivery]:
    return page.jobs if isinstance(page, JobPage) else page.deliveries


def _as_json(one: Job | Delivery) -> dict[str, Any]:
    from galago.jobs.telling import job_json

    return job_json(one) if isinstance(one, Job) else asdict(one)


def _print_changed(changed: Iterable[Job | Delivery], json: bool) -> None:
    for one in changed:
        if json:
            print_json(_as_json(one))
        else:
            typer.echo(f"{one.id}: {one.state}")


def _print_count(changed: Iterable[Job | Delivery], what: str, json: bool) -> None:
    count = 0
    try:
        for count, one in enumerate(changed, 1):  # noqa: B007
            if json:
                print_json(_as_json(one))
    finally:  # where it breaks off too, these were changed
        if not json:
            typer.echo(f"{what}: {count}")


def _print_page(page: JobPage | DeliveryPage, json: bool) -> None:
    """A table or JSON on standard output; on standard error where it goes on."""
    found = _members(page)
    if json:
        for one in found:
            print_json(_as_json(one))
    elif found:
        job_of = () if isinstance(page, JobPage) else ("JOB",)
        kind = "PATH" if isinstance(page, JobPage) else "EVENT"
        rows = [("ID", *job_of, "STATUS", kind, "ATTEMPTS", "AGE", "ERROR"), *map(_row, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            typer.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        typer.echo("none", err=True)
    if page.after is not None:
        typer.echo(f"there are more: --after {page.after}", err=True)


def _row(one: Job | Delivery) -> tuple[str, ...]:
    if isinstance(one, Job):
        told: tuple[str, ...] = (one.id, one.state, one.path, f"{one.attempts}/{one.max_attempts}")
    else:
        told = (one.id, one.job_id, one.state, one.event, str(one.attempts))
    return (*told, _age(time.time() - one.created_at), shortened(_error(one), ERROR_LENGTH))


def _error(one: Job | Delivery) -> str:
    return " ".join(((one.error if isinstance(one, Job) else one.last_error) or "").split())


def _age(seconds: float) -> str:
    size, unit = next((u for u in UNITS if seconds >= u[0]), UNITS[-1])
    return f"{max(0, int(seconds // size))}{unit}"


def _details(job: Job) -> list[tuple[str, str]]:
    return [
        ("id", job.id),
        ("status", job.state),
        ("path", job.path),
        ("attempts", f"{job.attempts} of {job.max_attempts}"),
        ("priority", str(job.priority)),
        ("added", _time(job.created_at)),
        ("started", _time(job.started_at)),
        ("finished", _time(job.finished_at)),
        ("kept till", _time(job.expires_at)),
        ("worker", job.leased_by or ""),
        ("calls back", job.callback_url or ""),
        ("error", _error(job)),
        ("result", job.result or ""),
    ]


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")
