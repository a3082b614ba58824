"""GET /metrics, as Prometheus reads it."""

from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from serving import ask, serving

from galago.engine.metrics import Metrics, Snapshot
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings


def test_metrics_are_served_as_text(http: Any) -> None:
    metrics = Metrics("served-metrics", "int8")
    metrics.watch(lambda: Snapshot(waiting=3))
    metrics.count_submitted("query", "normal")
    reply = http.get("/metrics")
    metrics.close()
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {
        (sample.name, sample.labels.get("model")): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    assert found["galago_requests_submitted_total", "served-metrics"] == 1
    assert found["galago_requests_waiting", "served-metrics"] == 3


def test_every_family_has_its_type_and_name(http: Any, client: Any, photo: str) -> None:
    client.chat.completions.create(model="any", messages=ask("hello", photo), max_tokens=1)
    text = http.get("/metrics").text
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    assert {"counter", "gauge", "histogram"} == set(types.values())
    for name, kind in types.items():
        assert name.startswith("galago_")
        assert name.endswith("_total") == (kind == "counter")


def test_a_queue_is_in_the_exposition_of_the_server_that_has_it(http: Any, tmp_path: Path) -> None:
    assert "galago_jobs{" not in http.get("/metrics").text
    settings = ServerSettings(model=("scenes",), jobs_db=str(tmp_path / "jobs.db"))
    with serving(create_app(ModelPool(keep_alive=None, options={"device": "cpu"}), settings)) as url:
        text = httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/health").json()["queue"]["jobs"]["queued"] == 0
    assert 'galago_jobs{state="queued"} 0.0' in text and "galago_memory_bytes" in text
    types = [line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len({name for name, _ in types}) == len(types), "each family is there once"
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in types)
