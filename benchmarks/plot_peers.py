"""The plot of the README: how long a request takes, and how much memory, beside other engines.

    python benchmarks/plot_peers.py > docs/speed.svg

Its figures are those of `results/peers-378.json`, one run of all engines, and for float32, which that run leaves out,
of `results/moondream2-random-378.json`, of the same machine and day.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from galago.lab.svg import svg_document

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "galago:int4": "Galago int4",
    "galago:int8": "Galago int8",
    "galago:bfloat16": "Galago bfloat16",
    "galago:float32": "Galago float32 *",
    "llama:q4_0": "llama.cpp Q4_0",
    "reference:bfloat16": "Moondream's PyTorch, bfloat16",
}
"""How the plot calls each engine and precision, in its order."""
OURS, OTHERS = "#3b6fb6", "#9a9a9a"
WIDTH, ROW, BAR, TOP, BOTTOM = 860, 32, 20, 104, 40
"""Pixels of the picture, of a row, of the bar in it, and above the first and below the last one."""
PANELS = (226, 550)
"""Where the bars of seconds begin, and those of memory."""
LONGEST = 236
"""Pixels of the longest bar of a panel."""


@dataclass(frozen=True)
class Figures:
    seconds: float
    """of a whole request, the median"""
    peak_bytes: float
    """of the process, over all its requests"""


def read_figures() -> dict[str, Figures]:
    """The figures by the names of the engines, in the order of the plot."""
    summary = json.loads((RESULTS / "peers-378.json").read_text())["summary"]["378x378"]
    found = {name: Figures(one["total_s"]["median"], one["peak_rss_bytes"]) for name, one in summary.items()}
    bench: list[dict[str, Any]] = json.loads((RESULTS / "moondream2-random-378.json").read_text())
    (apart,) = (one for one in bench if one["precision"] == "float32")
    found["galago:float32"] = Figures(apart["total_s"]["median"], apart["peak_of_all_bytes"]["median"])
    return {name: found[name] for name in NAMES}


def plot(figures: dict[str, Figures]) -> str:
    """An SVG document: a row for each engine, with its seconds on the left and its memory on the right."""
    height = TOP + ROW * len(figures) + BOTTOM
    about = "2 cores of an AMD EPYC (Zen 5), no GPU, 24 November 2026; random weights of the true shapes; medians"
    lines = [f'<text x="16" y="50" fill="#666">{escape(about)}</text>']
    for left, head in zip(PANELS, ("Whole request", "Peak memory"), strict=True):
        lines.append(f'<text x="{left}" y="{TOP - 16}" font-weight="600">{head}</text>')
    for place, (name, one) in enumerate(figures.items()):
        middle = TOP + ROW * place + BAR / 2 + 4.5
        lines.append(f'<text x="{PANELS[0] - 10}" y="{middle}" text-anchor="end">{escape(NAMES[name])}</text>')
        most = Figures(max(f.seconds for f in figures.values()), max(f.peak_bytes for f in figures.values()))
        fill, top = OURS if name.startswith("galago:") else OTHERS, TOP + ROW * place
        lines += bar(PANELS[0], top, one.seconds / most.seconds, f"{one.seconds:.1f} s", fill)
        lines += bar(PANELS[1], top, one.peak_bytes / most.peak_bytes, f"{one.peak_bytes / 1e9:.1f} GB", fill)
    note = "* of another run on the same machine and day, with one image more in the cache"
    lines.append(f'<text x="16" y="{height - 14}" fill="#666">{note}</text>')
    return svg_document(WIDTH, height, "Moondream2: one image of 378 x 378, answered in 64 tokens", lines)


def bar(left: int, top: int, share: float, text: str, fill: str) -> Iterator[str]:
    """A bar of this share of the longest, with its figure behind it."""
    width = share * LONGEST
    yield f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{fill}"/>'
    yield f'<text x="{left + width + 8:.1f}" y="{top + BAR / 2 + 4.5}" fill="#444">{text}</text>'


if __name__ == "__main__":
    print(plot(read_figures()), end="")
