"""The schema of the queue, step by step: `upgrade` runs those that a database lacks."""

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from galago.errors import JobsDatabaseError


def upgrade(connection: Connection, current: str | None, name: str) -> None:
    """Bring the tables from the revision `current` (None: there are none) to the newest, in the connection's
    transaction. Raises JobsDatabaseError if `current` is not known here; `name` names the database."""
    config = Config()
    config.set_main_option("script_location", "galago.jobs:migrations")
    config.attributes["connection"] = connection
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if current is not None and current not in known:
        raise JobsDatabaseError(
            f"the job database {name} was written by a newer Galago (its schema is {current}, this one knows up to "
            f"{known[0]}): install the newer one, or name another database"
        )
    command.upgrade(config, "head")
