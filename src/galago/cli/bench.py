"""galago bench"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from galago.choices import check_device, check_precision
from galago.cli.options import ForceOption
from galago.cli.streams import print_json
from galago.errors import InvalidRequest, quoted
from galago.request import Detail
from galago.store.catalog import entries, with_precision
from galago.store.hub import check_models
from galago.system.outputs import check_outputs, write_text

if TYPE_CHECKING:
    from galago.lab.bench.results import BenchResult

EXAMPLES = """\b
Examples:
  galago bench
  galago bench --random --precision float32 --precision int8 --threads 2
  galago bench moondream2 --image 1024x768 --tokens 32 --rounds 3 --save today.json
  galago bench smolvlm2-500m-int8 --random --image 8x512x512
  galago bench moondream2 --compare yesterday.json --plot speed.svg"""


def bench(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Names of `galago models`, folders or weights files.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="A precision to measure; may be given again. By default what other commands take."),
    ] = None,
    image: Annotated[
        str, typer.Option(metavar="[Nx]WxH", help="The size of the image in pixels, or of a clip of N frames.")
    ] = "378x378",
    detail: Annotated[
        str, typer.Option(metavar="low|high", help="low sees a large image as a whole only, as other engines do.")
    ] = "high",
    tokens: Annotated[int, typer.Option(min=1, help="New tokens of text.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads that compute; by default all cores.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Captions that each process makes.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each case, the cases taking turns.")] = 1,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights of the true shapes: nothing is downloaded.")
    ] = False,
    ceilings: Annotated[
        bool, typer.Option(help="Measure what the machine reaches on a plain read and plain products.")
    ] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per case.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this file.")] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show ratios to the results saved in this file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the results.")] = None,
    force: ForceOption = False,
) -> None:
    """Measure speed and memory: each model and precision in a process of its own."""
    from galago.lab.bench.case import BenchCase, parse_clip_size
    from galago.lab.bench.results import read_results
    from galago.lab.bench.run import BenchPlan, run_bench

    # What can be wrong is looked at before minutes are spent.
    frames, width, height = parse_clip_size(image)
    if detail not in ("low", "high"):
        raise InvalidRequest(f"--detail must be low or high, not {quoted(detail)}", "detail")
    saved = None if compare is None else read_results(compare)
    for chosen in precision or []:
        check_precision(chosen)
    check_device(device)
    check_models(models or [])
    check_outputs([path for path in (save, plot) if path], [compare, *(models or [])], force)
    cases = []
    for model, named in _locate_models(models, random):
        wanted: list[str | None] = [*dict.fromkeys(precision or [])]
        for name in wanted or [named]:
            seen = cast(Detail, detail)
            cases.append(BenchCase(model, name, width, height, frames, tokens, runs, threads, device, seen))
    with _step_bar("Measuring") as tell:
        outcome = run_bench(BenchPlan(tuple(cases), rounds, ceilings, random), tell)
    for failure in outcome.failures:
        typer.echo(f"error: {failure}", err=True)
    if outcome.results:
        _output_results(outcome.results, saved, json, save, plot)
    if outcome.failures:
        raise typer.Exit(2)


def _locate_models(models: list[str] | None, random: bool) -> list[tuple[str, str | None]]:
    """For each model what to load, and the precision in its name where that would be lost otherwise.

    Downloads or makes what is missing, so that no child process has to.
    """
    if not random:
        from galago.store.checkpoint_folder import is_onnx
        from galago.store.hub import locate

        chosen = list(dict.fromkeys(models or [entries()[0].id]))
        for model in chosen:
            if not is_onnx(model):  # which is a folder that is here
                locate(model)
        return [(model, None) for model in chosen]
    from galago.lab.bench.random import default_random_model, ensure_random_checkpoint

    found = []
    for model in dict.fromkeys(models or [default_random_model()]):
        with _step_bar(f"Making random weights for {model}") as tell:
            folder = ensure_random_checkpoint(model, lambda done, total: tell(done, total, ""))
        found.append((str(folder), with_precision(model)[1]))
    return found


def _output_results(
    results: "list[BenchResult]", saved: "list[BenchResult] | None", json: bool, save: Path | None, plot: Path | None
) -> None:
    if save is not None:
        from galago.lab.bench.results import save_results

        save_results(results, save)
    if plot is not None:
        from galago.lab.bench.plot import plot_results
        from galago.lab.bench.results import same_work

        write_text(plot_results(results, same_work(results[0], saved or [])), plot)
    if json:
        for result in results:
            print_json(result)
        return
    from rich.console import Console

    from galago.lab.bench.table import render_results

    # Only a terminal has a width that the table must keep to.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
    console.print(render_results(results, saved))


@contextmanager
def _step_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    hidden = not console.is_terminal
    # Drawn when there is something new, not by a clock: that would take time from what is measured.
    with Progress(
        *columns, console=console, disable=hidden, transient=True, auto_refresh=False, redirect_stdout=False
    ) as bar:
        task = bar.add_task(title, total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title} {what}".rstrip(), refresh=True)

        yield tell
