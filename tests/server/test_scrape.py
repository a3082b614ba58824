"""GET /metrics, as Prometheus reads it."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from serving import ask

from galago.engine.metrics import Metrics, Snapshot


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
