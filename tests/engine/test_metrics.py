"""What engines count, read back from the text that Prometheus would read."""

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from galago.engine.metrics import CacheResult, Metrics, Snapshot, exposition
from galago.request import Timings, Usage


def scraped(model: str = "") -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All series, or those of one model: there are those of every model that any test before had."""
    lines = exposition().decode().splitlines(keepends=True)
    families = text_string_to_metric_families("".join(line for line in lines if line[0] == "#" or model in line))
    found = [((s.name, frozenset(s.labels.items())), s.value) for f in families for s in f.samples]
    assert len(dict(found)) == len(found)  # Prometheus drops a scrape that has a series twice
    return dict(found)


def value(name: str, precision: str = "float32", **labels: str) -> float | None:
    return scraped(labels.get("model", "").partition(" ")[0]).get(
        (f"galago_{name}", frozenset((labels | {"precision": precision}).items()))
    )


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Metrics]]:
    """Metrics of a model that no other test counts for; closed at the end."""
    made: list[Metrics] = []

    def metrics(model: str, precision: str = "float32") -> Metrics:
        made.append(Metrics(f"{request.node.name}-{model}", precision))
        return made[-1]

    yield metrics
    for one in made:
        one.close()


@pytest.fixture
def metrics(make: Callable[[str], Metrics]) -> Metrics:
    return make("a")


def answer(metrics: Metrics, skill: str = "query", ttft: float = 0.2, gaps: tuple[float, ...] = (0.03, 0.04)) -> None:
    """One request from its submission to its end."""
    metrics.count_submitted(skill, "normal")
    metrics.observe_wait(0.02)
    metrics.count_images("miss")
    metrics.observe_step(729, 1, 0.1, "vision")
    metrics.observe_step(740, 1, 0.06, "prefill")
    metrics.observe_first_event(skill, ttft)
    metrics.observe_event(skill, None)
    for gap in gaps:
        metrics.observe_step(1, 1, gap, "decode")
        metrics.observe_event(skill, gap)
    total = ttft + sum(gaps)
    metrics.count_finished(skill, "done", Usage(740, 729, 0, 3), Timings(0.1, 0.06, sum(gaps), ttft, total))


def test_a_request_is_counted(metrics: Metrics) -> None:
    answer(metrics)
    of = {"model": metrics.model}
    assert value("requests_submitted_total", **of, skill="query", priority="normal") == 1
    assert value("requests_finished_total", **of, skill="query", outcome="done") == 1
    assert value("requests_finished_total", **of, skill="query", outcome="failed") is None
    tokens = [
        value(f"{kind}_tokens_total", **of, skill="query") for kind in ("prompt", "image", "cached", "completion")
    ]
    assert tokens == [740, 729, 0, 3]
    assert value("images_total", **of, tier="miss") == 1
    assert value("images_total", **of, tier="hot") == 0
    assert value("step_rows_total", **of, kind="prefill") == 740
    assert value("step_duration_seconds_sum", **of, kind="decode") == pytest.approx(0.07)


def test_histograms_are_cumulative(metrics: Metrics) -> None:
    answer(metrics, gaps=(0.001, 0.03, 0.04, 31.0))
    of = {"model": metrics.model, "skill": "query"}
    buckets = {
        le: value("inter_token_seconds_bucket", **of, le=le) for le in ("0.001", "0.025", "0.05", "30.0", "+Inf")
    }
    assert list(buckets.values()) == [1, 1, 3, 3, 4]
    assert value("inter_token_seconds_count", **of) == 4
    assert value("inter_token_seconds_sum", **of) == pytest.approx(31.071)
    assert value("time_to_first_token_seconds_sum", **of) == pytest.approx(0.2)
    assert value("request_duration_seconds_sum", **of) == pytest.approx(31.271)
    assert value("queue_wait_seconds_bucket", model=metrics.model, le="0.025") == 1
    assert value("queue_wait_seconds_bucket", model=metrics.model, le="0.01") == 0


def test_sequences_that_share_a_step(metrics: Metrics) -> None:
    metrics.observe_step(5, 5, 0.01, "decode")
    metrics.observe_step(1, 1, 0.01, "decode")
    of = {"model": metrics.model, "kind": "decode"}
    assert [value("step_sequences_bucket", **of, le=le) for le in ("1.0", "4.0", "8.0")] == [1, 1, 2]
    assert value("step_sequences_sum", **of) == 6


def test_requests_that_did_not_succeed(metrics: Metrics) -> None:
    metrics.count_refused("queue_full")
    metrics.count_submitted("detect", "low")
    metrics.count_finished("detect", "failed", None, None)
    metrics.count_submitted("detect", "normal")
    metrics.count_finished("detect", "cancelled", Usage(10, 0, 4, 2), Timings(total_s=9.0))
    of = {"model": metrics.model}
    assert value("requests_refused_total", **of, reason="queue_full") == 1
    assert value("cached_tokens_total", **of, skill="detect") == 4
    assert value("request_duration_seconds_count", **of, skill="detect") is None
    stats = metrics.stats()
    assert stats["refused"] == {"queue_full": 1}
    row = stats["skills"]["detect"]
    assert [row[k] for k in ("submitted", "done", "cancelled", "failed")] == [2, 0, 1, 1]
    assert row["total_s"] == {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None}


def test_two_models_beside_each_other(make: Callable[[str], Metrics]) -> None:
    a, b = make("a"), make("b")
    answer(a)
    answer(a)
    answer(b)
    a.watch(lambda: Snapshot(waiting=4))
    b.watch(lambda: Snapshot(waiting=5))
    done = {"skill": "query", "outcome": "done"}
    assert [value("requests_finished_total", model=m.model, **done) for m in (a, b)] == [2, 1]
    assert [value("requests_waiting", model=m.model) for m in (a, b)] == [4, 5]
    b.close()
    assert [value("requests_waiting", model=m.model) for m in (a, b)] == [4, None]


def test_two_precisions_of_a_model_have_series_of_their_own(make: Callable[..., Metrics]) -> None:
    exact, small = make("a"), make("a", "int8")
    answer(exact)
    answer(small)
    answer(small)
    exact.watch(lambda: Snapshot(waiting=4))
    small.watch(lambda: Snapshot(waiting=5))
    done, both = {"model": exact.model, "skill": "query"}, ("float32", "int8")
    assert [value("requests_finished_total", p, outcome="done", **done) for p in both] == [1, 2]
    assert [value("time_to_first_token_seconds_count", p, **done) for p in both] == [1, 2]
    assert [value("requests_waiting", p, model=exact.model) for p in both] == [4, 5]


def test_engines_of_one_name_and_precision_share_series_but_not_stats(make: Callable[[str], Metrics]) -> None:
    a, again = make("a"), make("a")
    answer(a)
    answer(again)
    answer(again)
    a.watch(lambda: Snapshot(running=1, bytes={"weights": 100}))
    again.watch(lambda: Snapshot(running=2, bytes={"weights": 10, "kv": 5}))
    assert value("requests_finished_total", model=a.model, skill="query", outcome="done") == 3
    assert value("requests_running", model=a.model) == 3
    assert value("memory_bytes", model=a.model, kind="weights") == 110
    assert value("memory_bytes", model=a.model, kind="kv") == 5
    assert [m.stats()["skills"]["query"]["done"] for m in (a, again)] == [1, 2]
    assert a.stats()["bytes"] == {"weights": 100}


def test_gauges_are_read_at_each_scrape_until_close(metrics: Metrics) -> None:
    now = Snapshot(1, 2, 3, {"weights": 7})
    metrics.watch(lambda: now)
    names = ("requests_waiting", "requests_running", "images_encoding")
    assert [value(name, model=metrics.model) for name in names] == [1, 2, 3]
    now = Snapshot(0, 1, 0, {"prefixes": 9})
    assert [value(name, model=metrics.model) for name in names] == [0, 1, 0]
    assert value("memory_bytes", model=metrics.model, kind="prefixes") == 9
    assert value("memory_bytes", model=metrics.model, kind="weights") is None
    assert metrics.stats()["queue"] == {"waiting": 0, "running": 1, "encoding": 0}
    answer(metrics)
    metrics.close()
    metrics.close()
    assert [value(name, model=metrics.model) for name in names] == [None, None, None]
    assert value("requests_finished_total", model=metrics.model, skill="query", outcome="done") == 1
    assert metrics.stats()["queue"] == {"waiting": 0, "running": 0, "encoding": 0}


def test_counters_go_on_when_a_model_is_loaded_again(make: Callable[[str], Metrics]) -> None:
    before = make("a")
    answer(before)
    before.close()
    after = make("a")
    answer(after)
    assert value("requests_finished_total", model=after.model, skill="query", outcome="done") == 2
    assert after.stats()["skills"]["query"]["done"] == 1


def test_an_engine_can_be_let_go_while_it_is_watched(metrics: Metrics) -> None:
    class Engine:
        def snapshot(self) -> Snapshot:
            return Snapshot(waiting=1)

    engine = Engine()
    metrics.watch(engine.snapshot)
    assert value("requests_waiting", model=metrics.model) == 1
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    assert value("requests_waiting", model=metrics.model) is None


def test_stats(metrics: Metrics) -> None:
    for ttft in (0.1, 0.2, 0.2, 0.2, 4.0):
        answer(metrics, ttft=ttft)
    answer(metrics, skill="caption")
    metrics.count_images("hot")
    metrics.watch(lambda: Snapshot(1, 2, 0, {"kv": 3}))
    stats = metrics.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert list(stats["skills"]) == ["caption", "query"]
    row = stats["skills"]["query"]
    assert row["tokens"] == {"prompt": 3700, "image": 3645, "cached": 0, "completion": 15}
    first = row["ttft_s"]
    assert (first["count"], first["max"], first["mean"]) == (5, 4.0, pytest.approx(0.94))
    assert 0.1 < first["p50"] <= 0.25 < 2.5 < first["p90"] <= first["p99"] <= 4.0
    assert row["inter_token_s"]["count"] == 10
    assert stats["wait_s"]["p50"] == pytest.approx(0.02)
    assert stats["images"] == dict.fromkeys(get_args(CacheResult), 0) | {"hot": 1, "miss": 6}
    decode = stats["steps"]["decode"]
    assert decode == {"count": 12, "rows": 12, "sequences": 12, "seconds": pytest.approx(0.42)}
    assert (stats["queue"], stats["bytes"]) == ({"waiting": 1, "running": 2, "encoding": 0}, {"kv": 3})


def test_an_engine_that_did_nothing_has_stats(metrics: Metrics) -> None:
    stats = metrics.stats()
    assert (stats["skills"], stats["steps"], stats["refused"], stats["bytes"]) == ({}, {}, {}, {})
    assert json.dumps(stats)


@pytest.mark.slow
def test_nothing_is_lost_between_threads(metrics: Metrics) -> None:
    each, scrapes = 2000, 20

    def work() -> None:
        for i in range(each):
            metrics.count_submitted(f"skill{i % 50}", "normal")
            metrics.observe_event("query", 0.01)

    def scrape() -> None:
        for _ in range(scrapes):
            scraped()
            metrics.stats()

    failed: list[Any] = []
    threads = [threading.Thread(target=_told(target, failed)) for target in (work, work, scrape)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sum(row["submitted"] for row in metrics.stats()["skills"].values()) == 2 * each
    assert value("inter_token_seconds_count", model=metrics.model, skill="query") == 2 * each


def _told(target: Callable[[], None], failed: list[Any]) -> Callable[[], None]:
    def run() -> None:
        try:
            target()
        except BaseException as error:
            failed.append(error)

    return run


def test_a_name_may_hold_any_character(make: Callable[[str], Metrics]) -> None:
    odd = make('a "b"\\c\nd é')
    odd.count_refused("queue_full")
    assert value("requests_refused_total", model=odd.model, reason="queue_full") == 1


def test_importing_galago_imports_no_prometheus() -> None:
    checked = "import sys, galago; assert not [m for m in sys.modules if m.startswith('prometheus')]"
    subprocess.run([sys.executable, "-c", checked], check=True)
