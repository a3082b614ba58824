"""The tables of the queue, the same for SQLite and PostgreSQL.

Their names begin with galago_, since they may lie in a database that is also another application's. Times are seconds
since 1970. There are no foreign keys: SQLite checks them only where it is told to, and would then empty tables that a
migration makes anew; `expire` removes what belongs together.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0001"
"""The revision of migrations/versions that makes the tables below."""
VERSION_TABLE = "galago_schema"

metadata = MetaData()

jobs = Table(
    "galago_jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("image_path", Text),
    Column("priority", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("claims", Integer, nullable=False),
    Column("change", BigInteger, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("leased_by", Text),
    Column("lease_until", Double),
    Column("result", Text),
    Column("error", Text),
    Column("error_is_permanent", Boolean, nullable=False),
    Column("idempotency_key", Text),
    Column("callback_url", Text),
    Column("external_id", Text),
    Column("extra", Text),
    Column("keep_s", Double),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("expires_at", Double),
    UniqueConstraint("idempotency_key", name="galago_jobs_idempotency_key"),
)
Index("galago_jobs_claim", jobs.c.state, jobs.c.priority.desc(), jobs.c.id)
Index("galago_jobs_due", jobs.c.state, jobs.c.not_before)
Index("galago_jobs_change", jobs.c.change, jobs.c.id)
Index("galago_jobs_external_id", jobs.c.external_id)
Index("galago_jobs_expires_at", jobs.c.expires_at)

changes = Table(
    # One row, of which SQLite alone makes use (numbers.py).
    "galago_changes",
    metadata,
    Column("number", BigInteger, nullable=False),
)

inputs = Table(
    # Apart from the jobs: SQLite writes a whole row whenever a part of it changes, and these may have megabytes.
    "galago_job_inputs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("body", Text, nullable=False),
    Column("image", LargeBinary),
)

deliveries = Table(
    "galago_deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("url", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Double),
    Column("leased_by", Text),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("created_at", Double, nullable=False),
    Column("delivered_at", Double),
    UniqueConstraint("job_id", "sequence", name="galago_deliveries_sequence"),
)
Index("galago_deliveries_next", deliveries.c.state, deliveries.c.next_at)
