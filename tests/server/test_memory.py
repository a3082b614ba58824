"""Memory of the server: large pictures at once, the line of videos, and what is told of it."""

import base64
import io
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiny_smolvlm as tiny
from clips import encoded, pictures
from guarded import Process
from PIL import Image
from serving import hosting, serving

import galago
from galago.backends.memory_estimate import memory_needed
from galago.engine.decoding import CLIPS
from galago.server.shown import clip_bytes

PATIENCE = 60
SIDE = 4000
DECODED = 4 * SIDE**2
CLIP = "data:video/mp4;base64," + base64.b64encode(encoded(pictures(20), fps=10)).decode()
ASK_CLIP = [{"type": "text", "text": "What?"}, {"type": "video_url", "video_url": {"url": CLIP}}]


def large(seed: int) -> str:
    """A data: URL of a picture that is large in pixels and small as a file."""
    slope = np.linspace(0, 255, SIDE).astype(np.uint8)
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = slope, slope[:, None], seed
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: the peak of another process is read from /proc")
def test_large_pictures_at_once_take_no_more_than_the_room_for_decoding() -> None:
    urls = [large(seed) for seed in range(16)]
    with Process("--max-queue", "8", "--max-batch-size", "4") as server:
        status = Path(f"/proc/{server.process.pid}/status")

        def bytes_of(name: str) -> int:
            return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if name in line)

        def look(url: str) -> int:
            content = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
            return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE * 4).status_code

        assert look(urls[0]) == 200
        before = bytes_of("VmRSS")
        with ThreadPoolExecutor(len(urls)) as threads:
            answers = Counter(threads.map(look, urls))
        grown = bytes_of("VmHWM") - before
    assert set(answers) <= {200, 429} and answers[200] >= 4, answers
    assert grown < 6 * DECODED, f"{grown / DECODED:.1f} pictures were in memory at once"


# --- videos ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> galago.Model:
    return tiny.open_model(tiny.write(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def url(model: galago.Model) -> Iterator[str]:
    with serving(hosting(model, max_queue=2)) as address:
        yield address


@pytest.fixture(autouse=True)
def all_is_given_back() -> Iterator[None]:
    yield
    soon(lambda: (CLIPS.waiting, CLIPS.taken) == (0, 0))


def full() -> AbstractContextManager[bool]:
    """While all room for clips is somebody else's."""
    return CLIPS.hold(CLIPS.most)


def soon(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    never = threading.Event()
    for _ in range(PATIENCE * 100):
        if holds():
            return
        never.wait(0.01)
    raise AssertionError(f"{CLIPS.waiting} wait for room, {CLIPS.taken} bytes are taken")


def chat(url: str, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": ASK_CLIP}], "max_tokens": 2}
    return httpx.post(f"{url}/v1/chat/completions", json=body | more, timeout=PATIENCE)


def test_videos_wait_for_room_and_too_many_are_refused(url: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        with full():
            waiting = [threads.submit(chat, url) for _ in range(2)]
            soon(lambda: CLIPS.waiting == 2)
            refused = chat(url)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert [one.result(PATIENCE).status_code for one in waiting] == [200, 200]


def test_a_client_that_leaves_the_line_makes_place(url: str) -> None:
    with full():
        with pytest.raises(httpx.ReadTimeout):
            body = {"messages": [{"role": "user", "content": ASK_CLIP}]}
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.5)
        soon(lambda: not CLIPS.waiting)
    assert chat(url).status_code == 200


def test_the_time_of_a_request_runs_in_the_line_too(tmp_path: Path) -> None:
    with serving(hosting(tiny.open_model(tiny.write(tmp_path)), timeout=0.3)) as url, full():
        late = chat(url)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert not CLIPS.waiting


def test_more_clips_are_counted_as_more(model: galago.Model) -> None:
    sampling = model.video_sampling
    assert sampling and clip_bytes(sampling) == min(4 * 64_000_000, 4 * sampling.max_frames * sampling.longest_edge**2)


# --- what is told ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_health_tells_what_was_measured(precision: str) -> None:
    with serving(hosting(galago.load(f"scenes-{precision}", device="cpu"))) as url:
        httpx.post(f"{url}/v1/caption", json={"image_url": picture(), "length": "short"}, timeout=PATIENCE)
        health = httpx.get(f"{url}/health").json()
    (one,) = health["models"]
    parameters, size = 7_678_624, {"float32": 4, "int8": 1.08}[precision]
    assert one["memory"]["weights_bytes"] == pytest.approx(parameters * size, rel=0.03)
    assert 0 <= one["memory"]["mapped_bytes"] <= one["memory"]["weights_bytes"]
    assert one["memory"]["cache_bytes"]["prefixes"] > 0 and one["memory"]["cache_bytes"]["embeddings"] > 0
    assert health["memory"]["of"] == "resident memory of the process"
    assert health["memory"]["decoding"]["pictures"]["used_bytes"] == 0
    assert memory_needed(f"scenes-{precision}") > one["memory"]["weights_bytes"]


def picture() -> str:
    out = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
