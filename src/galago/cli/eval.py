"""galago eval"""

import json as jsonlib
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galago.cli.options import ForceOption, ModelOptions, expand_groups
from galago.cli.streams import print_json
from galago.errors import InvalidRequest, quoted
from galago.store.hub import check_models
from galago.system.outputs import check_outputs, is_ours, write_text
from galago.system.progress import progress_bar

if TYPE_CHECKING:
    from galago.lab.eval.case import Task
    from galago.lab.eval.report import EvalRun

EXAMPLES = """\b
Examples:
  galago eval list
  galago eval scenes --count 300 --min color=90 --min detect=85
  galago eval scenes -m moondream2-int8 --blank
  galago eval scenes -m ./my-finetune --range 2
  galago eval motion --seed 777 --shuffle-frames
  galago eval vqav2 -m moondream2-int8 --data ~/vqav2 --count 1000 --out vqav2.jsonl
  galago eval scenes --compare scenes scenes-int8 --plot precision.svg
  galago eval --compare monday.jsonl tuesday.jsonl"""


@expand_groups
def eval(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="One of `galago eval list`, or a Python file with a TASK.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the data set lies; `galago eval list` tells its files.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="So many scenes, clips, images or questions, drawn by the seed; else all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the series of scenes, or of what is drawn from a data set.")] = 20261,
    range: Annotated[
        int | None,
        typer.Option(metavar="1|2", help="Of what the scenes may hold; 2 is wider. Default: the bundled model's."),
    ] = None,
    blank: Annotated[
        bool, typer.Option("--blank", help="Ask the same about grey images too: what is guessed without looking.")
    ] = False,
    shuffle: Annotated[
        bool,
        typer.Option(
            "--shuffle-frames", help="Ask the same about clips in random order too: what is told without time."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Keep every answer; the same command goes on where one was ended."),
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            metavar="MEASURE=PERCENT",
            help="End with exit code 1 below (of B, if compared); may be given again.",
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two models, or files of answers, side by side with a paired test."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the scores.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    force: ForceOption = False,
    *,
    loading: ModelOptions,
) -> None:
    """Measure how well a model answers, on drawn scenes and on data sets that you have."""
    from galago.lab.eval import tasks

    if task == "list":
        for name in tasks.task_names():
            known = tasks.load_task(name)
            typer.echo(f"{name:12}{known.about}" + (f"\n{'':12}needs {known.files}" if known.files else ""))
        return
    files = [Path(c) for c in compare or () if c.endswith(".jsonl")]
    if compare is not None and len(files) == 2 and task is None:
        from galago.lab.eval.journal import read_journal

        task = str(read_journal(files[0])[0]["task"])
    if task is None:
        raise InvalidRequest("which task? `galago eval list` names them", "task")
    views = [name for name, wanted in (("blank", blank), ("shuffled", shuffle)) if wanted]
    if compare is not None and views:
        option = "--blank" if blank else "--shuffle-frames"
        raise InvalidRequest(f"--compare and {option} exclude each other", views[0])
    what = _TaskPart(task, tasks.load_task(task).within(range), data, count, seed)
    if shuffle and not what.task.clips:
        raise InvalidRequest(f"--shuffle-frames is for tasks about clips; {task} asks about images", "shuffle_frames")
    loading = replace(loading, model=loading.model or what.task.model)
    wanted = _parse_minimums(what.task, least or [])
    sides = list(compare or ())
    loading.check()
    check_models([side for side in sides if not side.endswith(".jsonl")])
    answers = _answer_files(out, sides, views)
    written = [*answers, *map(_summary_path, answers), *([plot] if plot else [])]
    check_outputs(written, [data, task, loading.model, *sides], force)
    if compare is not None:
        runs = [_compared_run(what, side, out, loading, place) for place, side in enumerate(sides)]
    else:
        runs = [_ask_model(what, loading, view, out) for view in ("", *views)]
    _output_scores(what.task, runs, compare is not None, json, plot)
    _check_minimums(runs[-1] if compare is not None else runs[0], wanted)


@dataclass(frozen=True)
class _TaskPart:
    """A task, and which part of its data."""

    name: str
    task: "Task"
    data: Path | None
    count: int | None
    seed: int


def _parse_minimums(task: "Task", given: Sequence[str]) -> dict[str, float]:
    wanted = {}
    for text in given:
        name, _, percent = text.partition("=")
        shares = [m for m in task.measures if m not in task.distances]
        if name not in shares:
            raise InvalidRequest(f"--min: no measure {quoted(name)} in percent; there are {', '.join(shares)}", "min")
        try:
            wanted[name] = float(percent)
        except ValueError:
            wanted[name] = math.nan
        if not math.isfinite(wanted[name]):  # nothing is below NaN: such a gate would be no gate
            raise InvalidRequest(f"--min must be MEASURE=PERCENT, not {quoted(text)}", "min")
    return wanted


def _compared_run(what: _TaskPart, side: str, out: Path | None, loading: ModelOptions, place: int) -> "EvalRun":
    """One side of a comparison: the answers in a file, or those of a model of this name."""
    from galago.lab.eval.journal import read_journal
    from galago.lab.eval.report import score_run

    if side.endswith(".jsonl"):
        return score_run(what.task, *read_journal(Path(side)))
    return _ask_model(what, replace(loading, model=side), "", out and _sibling_path(out, "AB"[place]))


def _answer_files(out: Path | None, sides: Sequence[str], views: Sequence[str]) -> list[Path]:
    """Where answers will be kept."""
    if out is None:
        return []
    if sides:
        return [_sibling_path(out, "AB"[place]) for place, side in enumerate(sides) if not side.endswith(".jsonl")]
    return [out, *(_sibling_path(out, view) for view in views)]


def _summary_path(out: Path) -> Path:
    return out.with_suffix(".summary.json")


def _sibling_path(path: Path, what: str) -> Path:
    return path.with_name(f"{path.stem}-{what}{path.suffix}")


def _ask_model(what: _TaskPart, loading: ModelOptions, view: str, out: Path | None) -> "EvalRun":
    """Ask a model everything that is not yet answered in the file; `view` is one of report.VIEWS, or empty."""
    from galago.lab.eval.journal import open_journal
    from galago.lab.eval.report import VIEWS, cases_left_out, run_summary, score_run
    from galago.lab.eval.run import answer_cases, left_out

    if what.task.files and what.data is None:
        raise InvalidRequest(f"{what.name} needs --data FOLDER with {what.task.files}", "data")
    cases = what.task.cases(what.data or Path(), what.count, what.seed)
    out = _sibling_path(out, view) if out and view else out
    shown = {name: view == name for name in VIEWS}
    with loading.open() as model:
        if out and out.is_file() and not is_ours(out):
            out.unlink()  # with --force, or it would have been refused
        settings = {
            "task": what.name, "model": model.name, "weights": model.identity, "revision": model.revision,
            "precision": model.precision, "device": model.device, "kernels": model.kernels,
            "count": what.count, "seed": what.seed, "range": what.task.range, **shown,
        }  # fmt: skip
        with open_journal(out, settings) as (done, keep), progress_bar(f"{model.name} {model.precision}") as tell:
            if done:
                typer.echo(f"goes on after {len(done)} answers in {out}", err=True)
            try:
                records = answer_cases(model, cases, **shown, done=done, keep=keep, tell=tell)
            except KeyboardInterrupt:
                if out:
                    typer.echo(f"the answers so far are in {out}; the same command goes on", err=True)
                raise
    for what_it_lacks, number in left_out(records).items() if not view else ():
        typer.echo(f"{settings['model']} cannot {what_it_lacks}: {cases_left_out(number)}", err=True)
    run = score_run(what.task, settings, records)
    if out:
        write_text(jsonlib.dumps(run_summary(run), indent=1) + "\n", _summary_path(out))
    return run


def _output_scores(task: "Task", runs: Sequence["EvalRun"], compared: bool, json: bool, plot: Path | None) -> None:
    from rich.console import Console

    from galago.lab.eval.plot import plot_runs
    from galago.lab.eval.report import compare_runs, comparison_table, run_summary, scores_table, shared_cases

    differences = compare_runs(task, runs[0], runs[1]) if compared else {}
    if plot is not None:
        write_text(plot_runs(task, shared_cases(task, *runs) if compared else runs), plot)
    if json:
        told = run_summary(runs[0])
        if compared:
            told = {"a": told, "b": run_summary(runs[1]), "differences": {k: asdict(d) for k, d in differences.items()}}
        else:
            told |= {f"{run.view}_measures": run_summary(run)["measures"] for run in runs[1:]}
        print_json(told)
        return
    # Only a terminal has a width that the table must keep to.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(comparison_table(task, runs[0], runs[1], differences) if compared else scores_table(task, *runs))


def _check_minimums(run: "EvalRun", wanted: dict[str, float]) -> None:
    from galago.lab.eval.score import below_minimum

    if short := below_minimum(run.scores, wanted):
        for line in short:
            typer.echo(line, err=True)
        raise typer.Exit(1)
