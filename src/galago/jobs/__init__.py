"""A queue of jobs that outlives the processes that work it: requests kept in SQLite or PostgreSQL, and their callbacks.

`open_store` opens it. SQLAlchemy and Alembic are imported only then, so that what runs no jobs waits for neither.
"""

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING

from galago.errors import JobsDatabaseError
from galago.jobs.records import Callback, Counts, Delivery, DeliveryPage, Job, JobInput, JobPage, NewJob, no_callbacks
from galago.jobs.settings import Backoff, QueueSettings

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

__all__ = [
    "Backoff", "Callback", "Counts", "Delivery", "DeliveryPage", "Job", "JobInput", "JobPage", "NewJob",
    "QueueSettings", "open_store",
]  # fmt: skip


def open_store(
    location: str | PathLike[str],
    *,
    settings: QueueSettings = QueueSettings(),
    callbacks: Callable[[Job], list[Callback]] = no_callbacks,
    clock: Callable[[], float] | None = None,
    must_exist: bool = False,
) -> "JobStore":
    """Open the queue at `location` and bring its schema up to date: the path of an SQLite file, which is made if it is
    not there, or a URL (sqlite:///..., postgresql://...).

    `callbacks` is asked after each change of a job's state what is now to be sent about it. It gets the job as it now
    is, inside the transaction of the change, so it must be quick and leave the store alone; what it returns is kept
    together with the change or not at all. A queued job with attempts is one that waits for its next. `clock` gives
    seconds since 1970; by default it is the system's for SQLite and the database's for PostgreSQL. With `must_exist` a
    database without a queue is an error, and stays as it is. Raises JobsDatabaseError, of one sentence, where the
    database cannot be used or what it needs is not installed, and InvalidRequest for a URL of another kind.
    """
    try:
        from galago.jobs.database import open_database
        from galago.jobs.store import JobStore

        return JobStore(open_database(location, settings.patience_s, clock, must_exist), settings, callbacks)
    except ModuleNotFoundError as error:
        extra = "postgres" if error.name == "psycopg" else "jobs"
        raise JobsDatabaseError(f"this job database needs {error.name}: pip install 'galago[{extra}]'") from error
