"""Numbers of changes: whoever has read all up to one misses none that is committed later.

In SQLite writers take turns, and count in the one row of galago_changes. In PostgreSQL they do not, and what began
earlier may be committed later: there the number is the transaction's own, which only grows, and nothing is read that is
as young as the oldest transaction of the server which still may write. A time would not do: clocks are set.
"""

import re
from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Text, cast, func, select, text, tuple_, update

from galago.errors import InvalidRequest, quoted
from galago.jobs.database import Transaction
from galago.jobs.schema import changes, jobs

_OWN = cast(cast(func.pg_current_xact_id(), Text), BigInteger)
_COUNTED = select(changes.c.number).scalar_subquery()
_SNAPSHOT = text(
    "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() AS s"
)
_CURSOR = re.compile(r"([0-9]{1,18})(?:-(job_[0-9a-z]{26}))?")


class Cursor(NamedTuple):
    """A place among the changes, behind all that are smaller; without an id, before all of this number. As text it is
    NUMBER or NUMBER-ID."""

    number: int
    job_id: str = ""

    def after(self) -> ColumnElement[bool]:
        """What holds for the jobs behind it."""
        return tuple_(jobs.c.change, jobs.c.id) > tuple_(self.number, self.job_id)


def number_of(tx: Transaction, is_postgres: bool) -> ColumnElement[int]:
    """The number of the changes that this transaction makes."""
    if is_postgres:
        return _OWN
    if not tx.is_numbered:
        tx.connection.execute(update(changes).values(number=changes.c.number + 1))
        tx.is_numbered = True
    return _COUNTED


def ends(tx: Transaction, is_postgres: bool) -> tuple[int, int]:
    """The number before which every change is committed or will never be, and the least that nobody has yet."""
    if is_postgres:
        oldest, following = tx.connection.execute(_SNAPSHOT).one()
        return oldest, following
    following = tx.connection.scalars(select(changes.c.number)).one() + 1
    return following, following


def read_cursor(said: str, following: int) -> Cursor:
    """The cursor of a text. Raises InvalidRequest."""
    found = _CURSOR.fullmatch(said)
    if found is None:
        raise InvalidRequest(f"after must be the id of an event (Last-Event-ID), not {quoted(said)}", "after")
    cursor = Cursor(int(found[1]), found[2] or "")
    if cursor.number > following:
        raise InvalidRequest(f"after is no event of this queue: {quoted(said)}; ask again without it", "after")
    return cursor
