"""What the server says about itself."""

from typing import Any

from serving import ask


def test_models(client: Any, http: Any, model: Any) -> None:
    (entry,) = client.models.list().data
    assert (entry.id, entry.object, entry.owned_by) == (model.name, "model", "galago")
    assert client.models.retrieve(model.name) == entry
    (other,) = http.get("/v1/models").json()["models"]
    assert set(other) == {"id", "name", "description", "version"}


def test_root(http: Any, model: Any) -> None:
    body = http.get("/").json()
    assert set(body) == {"message", "version", "status", "model"}
    assert (body["status"], body["model"]) == ("running", model.name)


def test_health(http: Any, client: Any, model: Any, photo: str) -> None:
    before = http.get("/health").json()
    client.chat.completions.create(model="any", messages=ask("hello", photo), max_tokens=1)
    after = http.get("/health").json()
    assert (after["status"], after["server"], after["fallbacks"]) == ("healthy", "galago", [])
    for name in ("name", "device", "precision", "revision"):
        assert after["model" if name == "name" else name] == getattr(model, name)
    assert after["memory"]["peak_bytes"] >= after["memory"]["used_bytes"] > 0
    assert after["performance"]["requests"] == before["performance"]["requests"] + 1
    assert after["performance"]["cache_hits"] >= before["performance"]["cache_hits"]
    assert after["performance"]["avg_time"].endswith("s")
