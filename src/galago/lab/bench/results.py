"""The figures of a result; saving, reading and comparing results.

A result is a JSON object: what was measured (`engine`, `model`, `precision`, `image`, `tokens`, ...), and its figures,
each {"best", "median"}. Other engines' results have the same form (benchmarks/peers/), with figures left out.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galago.errors import InvalidRequest
from galago.system.outputs import write_text

BenchResult = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of a result, and how it is shown: its value over `scale`, in `unit`."""

    key: str
    title: str
    unit: str
    higher: bool = False
    scale: float = 1.0
    ceiling: str | None = None
    """key of `share_of_ceiling`"""


FIGURES = (
    Figure("load_s", "load, imports included", "s"),
    Figure("ready_s", "start to first image seen", "s"),
    Figure("encode_s", "encode (vision)", "s"),
    Figure("prefill_s", "prefill (image, prompt)", "s"),
    Figure("ttft_s", "time to first token", "s"),
    Figure("again_s", "the same, asked again", "s"),
    Figure("decode_s", "decode (all tokens)", "s"),
    Figure("decode_tokens_per_s", "decode speed", "tokens/s", higher=True),
    Figure("total_s", "whole request", "s"),
    Figure("peak_rss_bytes", "peak resident memory", "GB", scale=1e9),
    Figure("peak_of_all_bytes", "the same, all images cached", "GB", scale=1e9),
    Figure("peak_device_bytes", "peak device memory", "GB", scale=1e9),
    Figure("decode_gb_per_s", "decode reads weights", "GB/s", higher=True, ceiling="decode"),
    Figure("read_gb_per_s", "a plain read of them", "GB/s", higher=True),
    Figure("prefill_tflop_per_s", "prefill computes", "Top/s", higher=True, ceiling="prefill"),
    Figure("encode_tflop_per_s", "encode computes", "Top/s", higher=True, ceiling="encode"),
)


def best_and_median(values: Sequence[float | None], higher: bool = False) -> dict[str, float | None]:
    """The best and the median of what was measured; None where nothing was."""
    known = [v for v in values if v is not None]
    if not known:
        return {"best": None, "median": None}
    found = {"best": max(known) if higher else min(known), "median": statistics.median(known)}
    return {which: _round_figure(value) for which, value in found.items()}


def _round_figure(value: float) -> float:
    """Five digits, and all of a whole number's (bytes)."""
    return round(value) if value >= 1e5 else float(f"{value:.5g}")


def label(result: Mapping[str, Any]) -> str:
    """Model and precision; another engine's name in place of the model's."""
    engine = result.get("engine", "galago")
    name = result.get("model", "?") if engine == "galago" else engine
    return f"{name} {result.get('precision', '')}".strip()


def figure_value(result: Mapping[str, Any], figure: Figure, which: str = "best") -> float | None:
    """The best (or median) of a figure; a bare number counts as both."""
    value = result.get(figure.key)
    value = value.get(which) if isinstance(value, Mapping) else value
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


# --- files -----------------------------------------------------------------------------------


def save_results(results: Sequence[BenchResult], path: Path) -> None:
    """Write results as a JSON array. Raises InvalidRequest if that cannot be done."""
    write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", path)


def read_results(path: Path) -> list[BenchResult]:
    """Results that were saved, or printed by --json. Raises InvalidRequest."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        found = json.loads(text)
    except ValueError:
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise InvalidRequest(f"{path} is not a saved run of galago bench: {error}") from error
    results = found if isinstance(found, list) else [found]
    if not results or not all(isinstance(r, dict) and "image" in r and "tokens" in r for r in results):
        raise InvalidRequest(f"{path} is not a saved run of galago bench")
    return results


# --- comparing -------------------------------------------------------------------------------


def same_work(result: Mapping[str, Any], saved: Sequence[BenchResult]) -> list[BenchResult]:
    """Those of the saved results with the same image size and tokens."""
    return [s for s in saved if all(s[k] == result[k] for k in ("image", "tokens"))]


def find_counterpart(result: Mapping[str, Any], saved: Sequence[BenchResult]) -> BenchResult | None:
    """What a result is to be compared with: the same model and precision, or the only one there is.

    None where no saved result is of the same work.
    """
    candidates = same_work(result, saved)
    exact = [s for s in candidates if label(s) == label(result)]
    if exact:
        return exact[-1]
    return candidates[0] if len(candidates) == 1 else None


def improvement(figure: Figure, now: Mapping[str, Any], before: Mapping[str, Any]) -> float | None:
    """How many times better the best is than before: above 1 is faster, or takes less memory."""
    new, old = figure_value(now, figure), figure_value(before, figure)
    if not new or not old:
        return None
    return new / old if figure.higher else old / new
