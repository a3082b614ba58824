"""Starting a child process and reading its messages."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from galago.errors import GalagoError
from galago.system.signals import defer_signals

ChildMessage = dict[str, Any]


class ChildFailed(GalagoError):
    """A measurement that came to nothing, with the child's own reason."""

    code = "measurement_failed"


def child_command(task: ChildMessage) -> list[str]:
    """The command line of a child. -P: a file of the folder that we are in is not to stand for a module."""
    return [sys.executable, "-P", "-m", "galago.lab.bench.child", json.dumps(task)]


def run_child(command: Sequence[str], tell: Callable[[ChildMessage], None]) -> None:
    """Run a command to its end, and call `tell` with each message as it comes.

    The child is killed when `tell` raises or this is interrupted. Raises ChildFailed.
    """
    failure: str | None = None
    # A file, not a pipe: nobody reads it while the child runs.
    with tempfile.TemporaryFile() as errors:
        child: subprocess.Popen[bytes] | None = None
        try:
            with defer_signals():
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
            assert child.stdout is not None
            with child.stdout as told:
                for line in told:
                    message = json.loads(line)
                    if message["event"] == "failed":
                        failure = message["error"]
                    else:
                        tell(message)
            child.wait()
        except BaseException:
            if child is not None:
                child.kill()
                child.wait()
            raise
        if failure is None and child.returncode != 0:
            failure = _exit_reason(child.returncode, errors)
    if failure is not None:
        raise ChildFailed(failure)


def _exit_reason(code: int, errors: BinaryIO) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "; perhaps it needed more memory than there is" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    errors.seek(0)
    said = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return said[-1] if said else f"its process ended with exit code {code}"
