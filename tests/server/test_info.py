"""What the server says about itself."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ask, hosting, serving

import galago
from galago.kernels import kernels
from galago.store import packing


def test_models(client: Any, http: Any, model: Any) -> None:
    entry, *others = client.models.list().data
    assert (entry.id, entry.object, entry.owned_by) == (model.name, "model", "galago")
    assert entry.loaded and not any(other.loaded for other in others)
    assert client.models.retrieve(model.name) == entry
    first, *_ = described = http.get("/v1/models").json()["models"]
    assert first["id"] == model.name
    assert all(set(one) == {"id", "name", "description", "version"} for one in described)


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


def test_statistics_of_the_manual_assistant(http: Any, client: Any, model: Any, photo: str) -> None:
    before = http.get("/stats").json()
    client.chat.completions.create(model="any", messages=ask("hello", photo), max_tokens=1)
    after = http.get("/stats").json()
    assert after["model"] == model.name
    counted = after["statistics"]
    assert counted["requests"] == before["statistics"]["requests"] + 1
    assert counted["total_time"] > before["statistics"]["total_time"]
    assert counted["avg_time"] == counted["total_time"] / counted["requests"]
    assert counted["cache_hits"] >= before["statistics"]["cache_hits"]
    assert set(counted) == {"requests", "total_time", "avg_time", "cache_hits"}
    assert after["optimizations"]["image_caching"] is True and after["optimizations"]["response_caching"] is False


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_health_tells_what_computes(precision: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not own:
        monkeypatch.setenv("GALAGO_KERNELS", "none")
    elif kernels() is None:
        pytest.skip("needs the kernels, which a C++ compiler makes (apt install g++)")
    with serving(hosting(galago.load(f"scenes-{precision}", device="cpu"))) as url:
        health = httpx.get(f"{url}/health").json()
    assert (health["precision"], health["device"], health["model"]) == (precision, "cpu", "scenes")
    if found := kernels():
        assert found.name in health["kernels"] and health["fallbacks"] == []
    else:
        assert health["kernels"] == "torch int8" or precision == "float32"
        assert len(health["fallbacks"]) == (2 if precision == "int4" else 1)


def test_health_tells_that_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose file system is read-only: it is packed in memory, and answers."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    with serving(hosting(galago.load("scenes", precision="int8", device="cpu"))) as url:
        told = httpx.get(f"{url}/health").json()
        body = {"messages": ask("hello"), "max_tokens": 1}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    [said] = [text for text in told["fallbacks"] if "packed copy" in text]
    assert str(tmp_path / "cache") in said and "packed in memory" in said
    assert told["status"] == "healthy" and said in told["models"][0]["fallbacks"]
