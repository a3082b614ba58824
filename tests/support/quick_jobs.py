"""The `galago` command with a queue in a hurry: what is lost or fails is taken up again in seconds, not in minutes."""

import sys
from functools import partial

from galago.cli.app import run
from galago.jobs import Backoff, QueueSettings, worker
from galago.server import job_work

worker.LEASE_S, worker.RENEW_S, worker.TIMEOUT, worker.MARGIN_S = 3.0, 0.5, 2.0, 2.0
SOON = Backoff(0.02, 0.2)
job_work.QueueSettings = partial(QueueSettings, retry=SOON, redelivery=SOON, max_deliveries=100)  # type: ignore[misc, assignment]

if __name__ == "__main__":
    run(sys.argv[1:])
