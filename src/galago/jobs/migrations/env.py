"""Run by Alembic, with the connection that `upgrade` gives it."""

from alembic import context

from galago.jobs.schema import VERSION_TABLE, metadata

if hasattr(context, "config"):  # it has none where this is only imported, to see whether that works
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()
