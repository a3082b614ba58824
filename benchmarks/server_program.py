"""A server that is a program of its own, as benchmarks and tests start one."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def server_program(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process of `galago serve` at a free port with these arguments, and its address, once its models are loaded.

    It is told to stop at the end. Raises RuntimeError, with what it said, if it ends before it answers.
    """
    command = [sys.executable, "-m", "galago.server", "--port", "0", *arguments]
    said: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"listening on (\S+)", line):
                    break
            else:
                raise RuntimeError("".join(said))
            # So that it never waits for a reader.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, found[1]
        finally:
            process.terminate()
