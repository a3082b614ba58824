"""Jobs, their inputs, and deliveries of callbacks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "galago_jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("image_path", sa.Text),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("claims", sa.Integer, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("leased_by", sa.Text),
        sa.Column("lease_until", sa.Double),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("error_is_permanent", sa.Boolean, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("callback_url", sa.Text),
        sa.Column("external_id", sa.Text),
        sa.Column("extra", sa.Text),
        sa.Column("keep_s", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.UniqueConstraint("idempotency_key", name="galago_jobs_idempotency_key"),
    )
    op.create_index("galago_jobs_claim", "galago_jobs", ["state", sa.text("priority DESC"), "id"])
    op.create_index("galago_jobs_due", "galago_jobs", ["state", "not_before"])
    op.create_index("galago_jobs_change", "galago_jobs", ["change", "id"])
    op.create_index("galago_jobs_external_id", "galago_jobs", ["external_id"])
    op.create_index("galago_jobs_expires_at", "galago_jobs", ["expires_at"])
    changes = op.create_table("galago_changes", sa.Column("number", sa.BigInteger, nullable=False))
    op.bulk_insert(changes, [{"number": 0}])
    op.create_table(
        "galago_job_inputs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("image", sa.LargeBinary),
    )
    op.create_table(
        "galago_deliveries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.Double),
        sa.Column("leased_by", sa.Text),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("delivered_at", sa.Double),
        sa.UniqueConstraint("job_id", "sequence", name="galago_deliveries_sequence"),
    )
    op.create_index("galago_deliveries_next", "galago_deliveries", ["state", "next_at"])


def downgrade() -> None:
    for table in ("galago_deliveries", "galago_job_inputs", "galago_changes", "galago_jobs"):
        op.drop_table(table)
