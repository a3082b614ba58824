"""Results for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from galago.lab.bench.results import FIGURES, BenchResult, Figure, figure_value, find_counterpart, improvement, label


def render_results(results: Sequence[BenchResult], saved: Sequence[BenchResult] | None = None) -> RenderableType:
    """A table with a column for each result, or some below each other where a line has no room for all of them.

    With `saved` ratios stand beside the figures.
    """
    against = [find_counterpart(r, saved) if saved else None for r in results]
    pairs = list(zip(results, against, strict=True))
    notes = [*_ceiling_notes(results), *_early_ends(results), *(_comparison_notes(pairs) if saved else [])]
    return Group(Text(_heading(results[0])), Text(), _Tables(pairs), *(Text(n) for n in ["", *notes] if notes))


@dataclass(frozen=True)
class _Tables:
    """As few tables as the width allows."""

    pairs: Sequence[tuple[BenchResult, BenchResult | None]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide, left = options.update(width=10_000), list(self.pairs)

        def fits(count: int) -> bool:
            return Measurement.get(console, wide, _table(left[:count])).maximum <= options.max_width

        while left:
            count = next(filter(fits, range(len(left), 1, -1)), 1)
            yield _table(left[:count])
            del left[:count]
            if left:
                yield Text()


def _table(pairs: Sequence[tuple[BenchResult, BenchResult | None]]) -> Table:
    results = [result for result, _ in pairs]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("best / median", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result, before in pairs:
        table.add_column(label(result), justify="right")
        if before:
            table.add_column("to saved", justify="right", no_wrap=True)
    for figure in FIGURES:
        if any(figure_value(r, figure) is not None for r in results):
            table.add_row(figure.title, figure.unit, *(c for pair in pairs for c in _cells(figure, *pair)))
    for title, key in (("crops seen", "crops"), ("positions of the prompt", "prompt_tokens"), ("kernels", "kernels")):
        if any(r[key] is not None for r in results):
            shown = (("-" if r[key] is None else str(r[key]), *([""] if before else [])) for r, before in pairs)
            table.add_row(title, "", *(c for cells in shown for c in cells))
    return table


def format_number(value: float) -> str:
    """About three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _cells(figure: Figure, result: BenchResult, before: BenchResult | None) -> list[str]:
    shown = [v for which in ("best", "median") if (v := figure_value(result, figure, which)) is not None]
    text = " / ".join(format_number(v / figure.scale) for v in shown) or "-"
    share = result.get("share_of_ceiling", {}).get(figure.ceiling)
    if share is not None:
        text += f" ({share['best']:.0%} / {share['median']:.0%})"
    if before is None:
        return [text]
    times = improvement(figure, result, before)
    return [text, "-" if times is None else f"{times:.2f}x"]


def _heading(result: Mapping[str, Any]) -> str:
    m, threads = result["machine"], _count(result["threads"], "thread", "threads")
    weights = "random weights, " if result["random_weights"] else ""
    tokens = _count(result["tokens"], "token", "tokens")
    runs = f"{_count(result['runs'], 'caption', 'captions')} in {_count(result['processes'], 'process', 'processes')}"
    galago = "galago" if result["version"] is None else f"galago {result['version']}"
    return (
        f"{m['cpu']}, {_count(m['cores'], 'core', 'cores')}, {threads}, {m['system']}; {galago}, torch {m['torch']}\n"
        f"{weights}noise images of {result['image']}, {tokens}, {runs} for each column; {result['date']}"
    )


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _ceiling_notes(results: Sequence[BenchResult]) -> list[str]:
    """What the machine reached before each result, at its best and at the median."""
    told = [(r["ceilings"], label(r)) for r in results if r["ceilings"]]
    if not told:
        return []
    lines = ["In brackets the share of what the machine sustains, measured before each process:"]
    for reached, name in told:
        products = ", ".join(f"{kind} {_best_and_median(v)}" for kind, v in reached["matmul_tflop_per_s"].items())
        lines.append(f"  {name}: {_best_and_median(reached['read_gb_per_s'])} GB/s on a plain read, Top/s: {products}.")
    lines.append("Counted is the work with weights: attention and the KV cache come on top.")
    return [*lines, "A decode step's share is of a plain read of the same weights right after it."]


def _best_and_median(value: Mapping[str, float]) -> str:
    return f"{format_number(value['best'])} / {format_number(value['median'])}"


def _early_ends(results: Sequence[BenchResult]) -> list[str]:
    """Models that ended before the tokens that were asked for."""
    ended = [r for r in results if r["tokens_made"] < r["tokens"]]
    return [f"{label(r)} ended after {_count(r['tokens_made'], 'token', 'tokens')}." for r in ended]


def _comparison_notes(pairs: Sequence[tuple[BenchResult, BenchResult | None]]) -> list[str]:
    told = []
    for result, before in pairs:
        if before is None:
            told.append(f"{label(result)}: no saved run of the same image size, tokens, model and precision.")
        else:
            told.append(f"{label(result)} to the saved {label(before)}, {before.get('date', 'of no date')}.")
    if any(before for _, before in pairs):
        told.append("1.5x: the best is one and a half times as fast as the saved, or takes two thirds of its memory.")
    return told
