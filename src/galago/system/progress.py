"""Progress callbacks, and progress bars."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called with (done, total): bytes of a download, tensors, images."""


@contextmanager
def progress_bar(title: str, *, of_bytes: bool = False, stays: bool = False) -> Iterator[Progress]:
    """A progress bar on standard error if that is a terminal; it is cleared at the end unless it `stays`."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    counts = (rich.TaskProgressColumn(), rich.MofNCompleteColumn())
    done = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if of_bytes else counts
    with rich.Progress(
        *(rich.TextColumn("{task.description}"), rich.BarColumn(), *done, rich.TimeRemainingColumn()),
        console=console,
        disable=not console.is_terminal,
        transient=not stays,
        # On a terminal what is printed comes above the bar; a file or pipe gets it as it is.
        redirect_stdout=bool(sys.stdout) and sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
