"""The database of meme-search's own generator: its jobs are taken over, and can still be looked at as before.

Its table `jobs` becomes a view of the same columns, which holds what is not done yet. A migration that makes
galago_jobs anew has to drop that view first; it is made at each start.
"""

import logging
from collections.abc import Callable

from sqlalchemy import Connection, bindparam, inspect, text

from galago.jobs.database import Database
from galago.jobs.meme_search import PATH, AddJob

log = logging.getLogger(__name__)
LIMIT = 500
"""Rows that are taken over at a time"""
COLUMNS = ("id", "image_core_id", "image_path", "model", "attempt_id", "callback_token")
VIEW = f"""
CREATE VIEW jobs AS SELECT
    rowid AS id,
    json_extract(extra, '$.image_core_id') AS image_core_id,
    image_path,
    json_extract(extra, '$.model') AS model,
    CASE state WHEN 'running' THEN attempts - 1 ELSE attempts END AS retry_count,
    json_extract(extra, '$.attempt_id') AS attempt_id,
    json_extract(extra, '$.callback_token') AS callback_token
FROM galago_jobs WHERE path = '{PATH}' AND state IN ('queued', 'running')"""


def take_over(database: Database, add: Callable[[AddJob, str], object]) -> int:
    """Give each job of an old table `jobs` to `add`, with a key that no other has, and put a view in its place; returns
    how many there were. A job that is added and then not removed is added again, with the same key.

    Does nothing for PostgreSQL, which the old generator did not have, and for a table `jobs` of another kind.
    """
    if database.is_postgres:
        return 0
    taken = 0
    while rows := _old_jobs(database):
        for id, job in rows.items():
            add(job, f"meme-search job {id} of image {job.image_core_id}, attempt {job.attempt_id}: {job.image_path}")
        with database.write() as tx:
            gone = text("DELETE FROM jobs WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
            tx.connection.execute(gone, {"ids": list(rows)})
        taken += len(rows)
    with database.write() as tx:
        if _columns(tx.connection) and not tx.connection.scalar(text("SELECT count(*) FROM jobs")):
            tx.connection.execute(text("DROP TABLE jobs"))
        if not inspect(tx.connection).has_table("jobs"):
            tx.connection.execute(text(VIEW))
    if taken:
        log.info("%d jobs of meme-search's generator are taken over", taken)
    return taken


def _old_jobs(database: Database) -> dict[int, AddJob]:
    """Some of the jobs of an old table, by id. Who has no image of the application's cannot be told of."""
    with database.read() as tx:
        known = _columns(tx.connection)
        if not known:
            return {}
        query = text(f"SELECT {', '.join(known)} FROM jobs WHERE image_core_id IS NOT NULL ORDER BY id LIMIT {LIMIT}")
        rows = [dict(row._mapping) for row in tx.connection.execute(query)]
    return {row.pop("id"): AddJob.model_validate(row) for row in rows}


def _columns(connection: Connection) -> list[str]:
    """Which of COLUMNS the old table has: before May 2026 the last two were not there. Empty where it is none."""
    found = inspect(connection)
    if "jobs" not in found.get_table_names():
        return []
    there = {column["name"] for column in found.get_columns("jobs")}
    return [name for name in COLUMNS if name in there] if there >= {*COLUMNS[:4]} else []
