"""The `galago` command: its subcommands, and how errors are printed.

Commands import torch when they run, so that help answers at once.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from galago.cli import (
    batch,
    bench,
    caption,
    config,
    detect,
    doctor,
    eval,
    export,
    gaze,
    jobs,
    models,
    point,
    quantize,
    query,
    serve,
    show,
    watch,
    worker,
)
from galago.cli.streams import output_error, prepare_streams
from galago.errors import MAX_MESSAGE, GalagoError, shortened
from galago.system.signals import BROKEN_PIPE_CODE, catch_stop_signals, exit_code, exit_process

FAILURE_CODE = 2

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
for module in (
    caption,
    query,
    detect,
    point,
    gaze,
    watch,
    batch,
    serve,
    worker,
    config,
    bench,
    eval,
    quantize,
    export,
    show,
    doctor,
):
    app.command(epilog=module.EXAMPLES)(getattr(module, module.__name__.rpartition(".")[2]))
app.add_typer(models.app, name="models")
app.add_typer(jobs.app, name="jobs", epilog=jobs.EXAMPLES)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from galago.version import INSTALLED

    typer.echo(f"galago {INSTALLED}" if INSTALLED else "galago, run from a source tree that is not installed")
    raise typer.Exit


@app.callback()
def galago(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Compact vision-language models on the machine that you have."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 2 for what could not be done, 130, 143 or 129 after a signal.

    141 where whoever reads the output has gone, as `head` does: nothing is said then.
    """
    code = 0
    with catch_stop_signals() as heard:
        try:
            code = _run_command(args)
        except BaseException:
            # A signal in the middle of an import may come out as an error of that import.
            if not heard:
                raise
    return exit_code(heard[0]) if heard else code


def _run_command(args: Sequence[str] | None) -> int:
    try:
        code = app(args=args, prog_name="galago", standalone_mode=False)
        # The code of an Exit, or what the command returned: nothing.
        code = code if isinstance(code, int) else 0
        return _fail_output(full) if (full := output_error()) else code
    except (GalagoError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        # no_args_is_help raises the whole help text.
        helps = isinstance(error, typer.TyperException) and message.lstrip().startswith("Usage:")
        return _fail(message if helps else f"error: {shortened(' '.join(message.splitlines()), MAX_MESSAGE)}")
    except (KeyboardInterrupt, typer.Abort):
        return exit_code(signal.SIGINT)
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # to which typer has this answer
            return BROKEN_PIPE_CODE
        raise
    except OSError:
        if (full := output_error()) is None:
            raise
        return _fail_output(full)


def _fail_output(why: OSError) -> int:
    if isinstance(why, BrokenPipeError):
        return BROKEN_PIPE_CODE
    return _fail(f"error: cannot write to standard output: {why.strerror or why}")


def _fail(message: str) -> int:
    try:
        typer.echo(message, err=True)
    except (OSError, ValueError):
        # What cannot be told can be seen from the code, which would be another if the interpreter tried to tell it too.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return FAILURE_CODE


def run(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process; unexpected errors are printed as one line too."""
    prepare_streams()
    try:
        code = main(args)
    except OSError as error:
        code = _fail(f"error: {error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        code = _fail(f"error: a fault of galago's, in {Path(place.filename).name} line {place.lineno}: {what}")
    exit_process(code)


if __name__ == "__main__":
    run()
