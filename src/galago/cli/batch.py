"""galago batch"""

import os
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galago.cli import options
from galago.cli.inputs import path_from_url
from galago.cli.streams import print_json, standard_input
from galago.errors import InvalidRequest, quoted
from galago.request import check_skill
from galago.system.files import json_path

if TYPE_CHECKING:
    from galago.batch.job import Job
    from galago.batch.progress import Meter
    from galago.batch.remote import RemotePath
    from galago.batch.run import Counts
    from galago.media.timeline import FrameSampling
    from galago.model import Model

EXAMPLES = """\b
Examples:
  galago batch photos/ --out captions.jsonl
  galago batch photos/ --caption short --detect person --query "Is it indoors?" --out answers.parquet
  galago batch photos/ --sidecar xmp
  galago batch list.csv --column path --where caption= --out captions.csv
  galago batch shards/ --format webdataset --out captioned/ --shard 2/8
  galago batch s3://bucket/photos --out s3://bucket/captions --on ray://head:10001 --workers 4..64
  find /photos -newer last.txt | galago batch - --out new.jsonl

A run that was ended goes on with the same command: rows that the output has are not asked about again."""
NAMED = 20
"""Errors that are printed at the end; all are in the output."""


@options.expand_groups
def batch(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Folders, images, videos, URLs; lists (.csv, .jsonl, .txt, .parquet); WebDataset (.tar); - reads a "
            "list from standard input.",
            show_default=False,
        ),
    ] = None,
    caption: Annotated[
        list[str] | None,
        typer.Option(
            help="Describe each; may be given again. What is asked where nothing else is.", show_default=False
        ),
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option(metavar="QUESTION", help="Ask this; may be given again.", show_default=False)
    ] = None,
    detect: Annotated[
        list[str] | None, typer.Option(metavar="OBJECT", help="Find boxes; may be given again.", show_default=False)
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="OBJECT", help="Find points; may be given again.", show_default=False)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER|URL",
            help="A .jsonl, .csv or .parquet file, or a folder of shards, which s3:// and gs:// can name too.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Of the shards in a folder: jsonl, csv, parquet or webdataset.", show_default=False),
    ] = None,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a shard; by default 10000.")] = None,
    sidecar: Annotated[
        str | None,
        typer.Option(
            metavar="xmp|txt|json",
            help="Write a file beside each picture. One that has a caption is left alone, and its picture left out.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Of a list: the one with paths, URLs or bytes.", show_default=False)
    ] = None,
    glob: Annotated[
        list[str] | None,
        typer.Option(help="Which files of a folder, as '2024/*.jpg'; may be given again.", show_default=False),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Only these rows of a list; COLUMN= are those without one; may be given again.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="i/n", help="Only the i-th of n parts, each for a machine.", show_default=False),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="ray[://HOST:PORT]",
            help="Spread the work over a Ray cluster, or over processes of this machine; --out is a folder then.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN..MAX",
            help="Copies of the model on Ray, each with --threads cores (4), or with a GPU by --device cuda; by "
            "default as many as there is room for.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many at most.")] = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Ask again about rows with an error.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Rows with an error are no reason for exit code 1.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing: count, ask about a few, and tell how long it would take.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Tell progress and the end as JSON.")] = False,
    force: options.ForceOption = False,
    max_objects: Annotated[int | None, typer.Option(help="Find so many at most; by default 50.")] = None,
    *,
    frames: options.FrameOptions,
    text: options.TextOptions,
    loading: options.ModelOptions,
) -> None:
    """Ask about many images: folders, lists and data sets; what was ended goes on."""
    from galago.batch.inputs import InputOptions, read_inputs
    from galago.batch.job import Job
    from galago.batch.opened import Roots
    from galago.batch.progress import Meter, counting, show_progress
    from galago.batch.questions import make_questions
    from galago.batch.rows import Rereadable, parse_condition, parse_share, select
    from galago.batch.run import Counts
    from galago.batch.sidecars import SIDECARS, Sidecars
    from galago.cluster.batch import run_on_cluster
    from galago.cluster.connection import Workers, connect, parse_workers
    from galago.media.timeline import FrameSampling

    example = "galago batch photos/ --out captions.jsonl"
    if not inputs:
        raise InvalidRequest(f"INPUT is missing; as in: {example}", "inputs")
    if sidecar is not None and sidecar not in SIDECARS:
        raise InvalidRequest(f"--sidecar must be {', '.join(SIDECARS)}, not {quoted(sidecar)}", "sidecar")
    if out is None and sidecar is None and not dry_run:
        raise InvalidRequest(f"where to? give --out FILE or FOLDER, or --sidecar; as in: {example}", "out")
    given = [path_from_url(source) for source in inputs]
    if given.count("-") > 1:
        raise InvalidRequest("standard input can be read once", "inputs")
    target = _target(out)
    others = query or detect or point
    if on is not None:
        _check_cluster(on, given, target, dry_run)
    elif workers is not None:
        raise InvalidRequest("--workers is of --on ray; --shard i/n shares the work out without Ray", "workers")
    pool = parse_workers(workers, "workers") if workers else Workers()
    questions = make_questions(
        captions=caption or ([] if others else ["normal"]), queries=query or [], detect=detect or [],
        point=point or [], settings=options.collect_settings(text), max_objects=max_objects,
    )  # fmt: skip
    for question in questions:
        check_skill(question.skill)
    frames.override(FrameSampling())
    loading.check()
    conditions, share = [parse_condition(one) for one in where or []], parse_share(shard) if shard else None
    found = read_inputs(given, InputOptions(column, tuple(glob or ()), standard_input))
    rows = Rereadable(lambda: islice(select(found, conditions, share), limit))
    job = Job(
        rows, questions, Roots.of(given), target, format, shard_rows,
        Sidecars(SIDECARS[sidecar], force) if sidecar else None, retry_errors,
    )  # fmt: skip
    if dry_run:
        _print_estimate(job, loading, frames, bool(detect or point), json)
        return
    counts = Counts()
    with ExitStack() as stack:
        cluster = stack.enter_context(connect(on)) if on is not None else None
        output = job.open_output()
        stack.callback(output.close)
        skill = "objects" if detect or point else None
        model = stack.enter_context(loading.open(skill)) if cluster is None else None
        meter = Meter(counts)
        if "-" not in given:
            stack.enter_context(counting(rows, meter))
        tell = stack.enter_context(show_progress(meter, json))
        try:
            if model is not None:
                job.run(model.backend, output, counts, _sampling(model, frames), tell)
            elif cluster is not None:
                run_on_cluster(cluster, job, loading.choose(skill), frames.override, pool, output, counts, tell)
        except BaseException as error:
            if counts.done or isinstance(error, KeyboardInterrupt):
                typer.echo(f"ended after {_count(counts.done, 'image')}; the same command goes on", err=True)
            raise
    _print_end(job, counts, meter, json)
    if counts.failed + counts.failed_before and not keep_going:
        raise typer.Exit(1)


def _target(out: str | None) -> "Path | RemotePath | None":
    from galago.batch.remote import RemotePath, is_remote

    if out is None:
        return None
    out = path_from_url(out)
    return RemotePath(out) if is_remote(out) and not os.path.exists(out) else Path(out)


def _check_cluster(on: str, given: list[str], out: "Path | RemotePath | None", dry_run: bool) -> None:
    """Raise InvalidRequest for what cannot be done on a cluster."""
    from galago.cluster.batch import check_output
    from galago.cluster.connection import check_address, import_ray

    check_address(on)
    if "-" in given:
        raise InvalidRequest("standard input cannot be read by a cluster; name a file with the list", "inputs")
    if dry_run:
        raise InvalidRequest("--dry-run measures this machine; leave out --on", "on")
    check_output(out)
    import_ray()


def _sampling(model: "Model", frames: options.FrameOptions) -> "FrameSampling":
    from galago.media.timeline import FrameSampling

    return frames.override(model.video_sampling or FrameSampling())


def _print_estimate(
    job: "Job", loading: options.ModelOptions, frames: options.FrameOptions, objects: bool, json: bool
) -> None:
    from galago.batch.job import estimate
    from galago.batch.progress import span

    with loading.open("objects" if objects else None) as model:
        told = estimate(job, model.backend, _sampling(model, frames))
    if json:
        print_json(asdict(told))
        return
    left = told.total - told.done
    typer.echo(f"{told.total} images, {told.done} done, {left} left")
    typer.echo(
        f"{told.images_per_minute:g} images a minute, measured on {told.measured}"
        + (f", {told.errors} of them with errors" if told.errors else "")
        + f": about {span(told.seconds_left)}"
    )


def _print_end(job: "Job", counts: "Counts", meter: "Meter", json: bool) -> None:
    from galago.batch.progress import span

    failed = counts.failed + counts.failed_before
    kept = job.sidecars.kept if job.sidecars else 0
    if json:
        seconds = round(meter.clock() - meter.begun, 3)
        told = {
            "images": counts.before + counts.done, "asked": counts.done, "errors": failed, "tokens": counts.tokens,
            "seconds": seconds, "images_per_minute": round(60 * counts.done / seconds, 1) if seconds else None,
        }  # fmt: skip
        print_json(
            told | ({"kept": kept} if job.sidecars else {}) | ({"out": json_path(str(job.out))} if job.out else {})
        )
        return
    for name, message in counts.errors[:NAMED]:
        typer.echo(f"error: {message}" if name in message else f"error: {name}: {message}", err=True)
    if counts.failed > NAMED:
        typer.echo(f"error: and {counts.failed - NAMED} others; their rows have an error", err=True)
    took = span(meter.clock() - meter.begun)
    done = f"{_count(counts.done, 'image')} in {took}" if counts.done else "nothing was left to do"
    before = f", {counts.before} before" if counts.before else ""
    left_alone = f", {_count(kept, 'sidecar')} with a caption left alone" if kept else ""
    errors = f", {failed} with an error" if failed else ""
    where = f": {job.out}" if job.out else ""
    typer.echo(f"{done}{before}{errors}{left_alone}{where}", err=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
