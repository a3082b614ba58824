"""Figures, files, comparisons and pictures of results that are written here, not measured."""

import io
import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from rich.console import Console

from galago.errors import InvalidRequest
from galago.lab.bench.plot import plot_results
from galago.lab.bench.results import (
    FIGURES,
    best_and_median,
    figure_value,
    find_counterpart,
    improvement,
    label,
    read_results,
    save_results,
)
from galago.lab.bench.table import render_results

FIGURE = {figure.key: figure for figure in FIGURES}
SVG = "{http://www.w3.org/2000/svg}"


def result(precision: str = "int8", faster: float = 1.0, **members: Any) -> dict[str, Any]:
    times = {"load_s": 3.0, "encode_s": 1.0, "prefill_s": 2.0, "ttft_s": 3.0, "decode_s": 4.0, "total_s": 7.0}
    return {
        "engine": "galago",
        "version": None,
        "date": "2026-01-02",
        "machine": {"cpu": "Abacus <2> & Sons", "cores": 2, "system": "Linux", "torch": "2"},
        "model": "big",
        "precision": precision,
        "threads": 2,
        "kernels": "wood",
        "random_weights": True,
        "image": "378x378",
        "crops": 1,
        "prompt_tokens": 735,
        "tokens": 64,
        "tokens_made": 64,
        "processes": 1,
        "runs": 3,
        **{key: {"best": t / faster, "median": 1.5 * t / faster} for key, t in times.items()},
        "decode_tokens_per_s": {"best": 16.0 * faster, "median": 12.0 * faster},
        "decode_gb_per_s": {"best": 20.0 * faster, "median": 15.0 * faster},
        "peak_rss_bytes": {"best": 2_000_000_000, "median": 2_100_000_000},
        "ceilings": {
            "read_gb_per_s": {"best": 40.0, "median": 25.0},
            "matmul_tflop_per_s": {"int8": {"best": 1.8, "median": 1.7}},
        },
        "share_of_ceiling": {"decode": {"best": 0.5, "median": 0.6}},
        **members,
    }


PEER = {
    "engine": "abacus.cpp",
    "precision": "q4",
    "image": "378x378",
    "tokens": 64,
    "encode_s": {"best": 2.0, "median": 2.0},
    "prefill_s": {"best": 3.0, "median": 3.0},
    "total_s": {"best": 9.0, "median": 9.0},
    "peak_rss_bytes": 3_000_000_000,
}


def shown(*args: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(render_results(*args))
    return out.getvalue()


def test_best_is_the_lowest_time_and_the_highest_speed():
    assert best_and_median([3.0, 1.0, 2.0, 4.0]) == {"best": 1.0, "median": 2.5}
    assert best_and_median([3.0, 1.0], higher=True) == {"best": 3.0, "median": 2.0}
    assert best_and_median([None, 2.0]) == {"best": 2.0, "median": 2.0}
    assert best_and_median([None]) == {"best": None, "median": None}
    assert best_and_median([2_000_000_001, 2_000_000_003])["median"] == 2_000_000_002
    assert best_and_median([0.123456789])["best"] == 0.12346


def test_files_are_read_as_they_were_saved_or_printed(tmp_path):
    results = [result(), result("float32")]
    save_results(results, tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))
    (tmp_path / "c.json").write_text(json.dumps(PEER))
    assert read_results(tmp_path / "a.json") == read_results(tmp_path / "b.jsonl") == results
    assert read_results(tmp_path / "c.json") == [PEER]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', "words\nmore", "[3]"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    file = tmp_path / "saved.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match="saved run") as refused:
        read_results(file)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(InvalidRequest, match="No such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(InvalidRequest, match="cannot write"):
        save_results([result()], tmp_path / "none" / "a.json")


def test_a_result_is_compared_with_its_like_or_with_the_only_one():
    now, like, other = result(), result(faster=2.0), result("float32")
    assert find_counterpart(now, [other, like]) is like
    assert find_counterpart(now, [other]) is other
    assert find_counterpart(now, [PEER]) is PEER
    assert find_counterpart(now, [other, PEER]) is None
    assert find_counterpart(now, [result(tokens=8), result(image="9x9")]) is None


def test_a_ratio_above_one_is_better():
    fast, slow = result(faster=3.0), result()
    assert all(improvement(FIGURE[k], fast, slow) == pytest.approx(3.0) for k in ("encode_s", "decode_tokens_per_s"))
    assert improvement(FIGURE["peak_rss_bytes"], fast, PEER) == pytest.approx(1.5)
    assert improvement(FIGURE["load_s"], fast, PEER) is None
    assert figure_value(PEER, FIGURE["peak_rss_bytes"], "median") == 3_000_000_000


def test_the_table_has_a_column_for_each_result():
    text = shown([result(), result("float32", tokens_made=5)])
    assert "big int8" in text and "big float32" in text
    assert "16.0 / 12.0" in text and "20.0 / 15.0 (50% / 60%)" in text and "2 / 2.1" in text
    assert "big int8: 40.0 / 25.0 GB/s on a plain read" in text and "int8 1.8 / 1.7" in text
    assert "big float32 ended after 5 tokens." in text and "big int8 ended" not in text
    assert "Abacus <2> & Sons, 2 cores, 2 threads" in text and "wood" in text
    assert "saved" not in text


def test_the_table_shows_ratios_beside_the_figures():
    rows = {line.split("  ")[0]: line.split() for line in shown([result(faster=2.0)], [result()]).splitlines()}
    assert rows["encode (vision)"][-1] == rows["decode speed"][-1] == "2.00x"
    assert rows["peak resident memory"][-1] == "1.00x"
    assert "no saved run" in shown([result()], [result(tokens=3)])
    assert "big int8 to the saved abacus.cpp q4, of no date." in shown([result()], [PEER])


def test_a_figure_that_was_not_measured_is_a_dash():
    none = {"best": None, "median": None}
    text = shown([result(decode_tokens_per_s=none, ceilings={}, share_of_ceiling={}), result("float32")])
    assert next(line.split() for line in text.splitlines() if line.startswith("decode speed"))[3] == "-"


def test_the_plot_has_a_bar_for_each_result():
    drawn = ET.fromstring(plot_results([result(), result("float32")], [PEER]))
    bars = drawn.findall(f"{SVG}g[@class='bar']")
    names = [bar.findtext(f"{SVG}text") for bar in bars]
    assert names == [label(result()), "big float32", "abacus.cpp q4, saved"]
    widths = [[float(r.attrib["width"]) for r in bar.findall(f"{SVG}rect")] for bar in bars]
    encode, prefill, decode = widths[0]
    assert prefill == pytest.approx(2 * encode, abs=0.2) and decode == pytest.approx(4 * encode, abs=0.2)
    # The peer tells no decode time: it is what the whole request leaves.
    assert widths[2] == pytest.approx([encode * s / 1.5 for s in (2, 3, 4)], abs=0.3)
    ends = [float(r.attrib["x"]) + float(r.attrib["width"]) for r in bars[0].findall(f"{SVG}rect")]
    assert max(ends) < float(drawn.attrib["width"])
    assert "Abacus <2> & Sons, 2 threads" in "".join(drawn.itertext())


@pytest.mark.parametrize("faster", [1e-3, 0.7, 1.0, 300.0])
def test_the_axis_of_a_plot_has_few_lines(faster):
    drawn = ET.fromstring(plot_results([result(faster=faster)]))
    assert 2 <= len(drawn.findall(f"{SVG}line")) <= 8


def test_a_plot_has_room_for_long_names():
    drawn = ET.fromstring(plot_results([result(model="m" * 120)]))
    assert all(float(r.attrib["width"]) > 0 for r in drawn.iter(f"{SVG}rect"))
