"""How long jobs and callbacks wait, how often they are tried, and how much of them is kept."""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from galago.errors import JobsDatabaseError


@dataclass(frozen=True)
class Backoff:
    """Waits that double: `first_s` seconds after the first attempt, `most_s` at most.

    Each is lengthened by a random part of up to `jitter` of it, so that what failed together is not tried together.
    """

    first_s: float
    most_s: float
    jitter: float = 0.2

    def delay_s(self, attempts: int) -> float:
        """Seconds to wait after so many attempts, of which there was at least one."""
        # 2.0**1024 is no float; no wait needs more than 63 doublings.
        nominal = min(self.most_s, self.first_s * 2.0 ** min(attempts - 1, 63))
        return nominal * (1 + self.jitter * random.random())


@dataclass(frozen=True)
class QueueSettings:
    """What a person may set of a queue. Times are in seconds, sizes in bytes."""

    retry: Backoff = field(default_factory=lambda: Backoff(5, 600))
    """Between attempts of a job."""
    redelivery: Backoff = field(default_factory=lambda: Backoff(5, 4 * 3600))
    """Between attempts of a callback."""
    max_deliveries: int = 15
    """Attempts of a callback before it is dead: with the waits above about 14 hours."""
    keep_s: float | None = 7 * 86400
    """How long a finished job is kept that does not say so itself; None: for ever."""
    max_body_bytes: int = 32 << 20
    max_image_bytes: int = 10 << 20
    patience_s: float = 10
    """How long a locked SQLite file or an unreachable PostgreSQL is waited for."""


def default_location(make: bool = True) -> Path:
    """The database of who names none: jobs.db in galago's folder of the user's XDG_STATE_HOME, which is made if it is
    not there, unless `make` is False. Raises JobsDatabaseError."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = Path(os.path.expanduser(base), "galago")
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise JobsDatabaseError(f"cannot make the folder {folder} for jobs: {why}; --jobs-db names a file") from error
    return folder / "jobs.db"
