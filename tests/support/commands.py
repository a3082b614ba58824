"""Commands as processes that are sent signals when they have said something."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from select import select
from typing import Any

PATIENCE = 60
"""Seconds after which a test gives up."""
TERMINAL = {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "200"}


class Command:
    """A process in a group of its own, whose standard error is that of a terminal as far as it can tell."""

    def __init__(self, *args: object, program: tuple[str, ...] = ("-m", "galago.cli.app"), **env: object) -> None:
        def heed_all() -> None:
            # What a shell runs in the background inherits that they are ignored.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)

        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, args)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | TERMINAL | {name: str(value) for name, value in env.items()},
            preexec_fn=heed_all,
            start_new_session=True,
        )
        self.said = b""

    def until(self, text: str) -> None:
        """Read its standard error until it holds this."""
        assert self.process.stderr is not None
        while text.encode() not in self.said:
            assert select([self.process.stderr], [], [], PATIENCE)[0], f"no {text!r} came: {self.said.decode()}"
            piece = os.read(self.process.stderr.fileno(), 65536)
            assert piece, f"it ended without {text!r}: {self.said.decode()}"
            self.said += piece

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """The exit code, and all of its standard error. None of its group is left."""
        _, rest = self.process.communicate(timeout=PATIENCE)
        self.said += rest
        assert members(self.process.pid) == []
        return self.process.returncode, self.said.decode()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in [self.process.pid, *members(self.process.pid)]:
            if self.process.poll() is None or process != self.process.pid:
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def members(session: int) -> list[int]:
    """The processes of a session that still run."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, sess, state in rows if sess == str(session) and not state.startswith("Z")]


def files_in(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
