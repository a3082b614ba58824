"""Videos in a conversation, for models that look at them, and what is said where they cannot be."""

import base64
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest
import tiny_smolvlm as tiny
from clips import encoded, pictures
from serving import hosting, serving
from websites import hosted

import galago
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip
from galago.model import Model
from galago.request import Chat, Message, Request, Sampling, TextDelta

CLIP = encoded(pictures(50), fps=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.open_model(tiny.write(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(hosting(model, allow_image_hosts=("127.0.0.1",))) as address:
        yield address


def data(video: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(video).decode()


def shown(where: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": where}}


def post(url: str, *parts: dict[str, Any]) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 8}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CLIP)

    def log_message(self, format: str, *args: Any) -> None:
        pass


ASK = {"type": "text", "text": "What moves?"}


def test_the_model_is_given_the_frames(model: Model, url: str) -> None:
    reply = post(url, shown(data(CLIP)), ASK)
    clip = load_clip(CLIP, FrameSampling())
    assert len(clip.frames) == 5
    talk = Chat((Message("user", (clip, "What moves?")),))
    run = model.submit(Request(talk, sampling=Sampling(max_tokens=8)))
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "".join(e.text for e in run if isinstance(e, TextDelta))
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 5 * tiny.TOKENS


def test_of_a_long_video_it_is_given_as_many_as_it_was_trained_on(url: str) -> None:
    reply = post(url, shown(data(encoded(pictures(300), fps=10))), ASK)
    most = tiny.PREPROCESSOR["video_sampling"]["max_frames"]
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == most * tiny.TOKENS


def test_a_video_alone_is_described(url: str) -> None:
    assert post(url, shown(data(CLIP))).json()["usage"]["completion_tokens"] > 0


def test_a_video_by_url(url: str) -> None:
    with hosted(Site) as site:
        there, here = post(url, shown(f"{site}/clip.mp4"), ASK), post(url, shown(data(CLIP)), ASK)
    assert there.status_code == 200, there.text
    assert there.json()["choices"] == here.json()["choices"]


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        (data(b"nothing"), "invalid_video", "not"),
        (data(CLIP[:40]), "invalid_video", "video"),
        ("data:video/mp4,", "invalid_image", "data:video/mp4;base64"),
        ("file:///etc/passwd", "invalid_image", "never read"),
    ],
)
def test_what_is_no_video(url: str, where: str, code: str, words: str) -> None:
    reply = post(url, shown(where), ASK)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, "messages.0.content.0.video_url.url")
    assert words in error["message"]


def test_a_model_that_looks_at_images_says_so() -> None:
    with galago.load() as bundled, serving(hosting(bundled)) as url:
        reply = post(url, shown(data(CLIP)), ASK)
    assert reply.status_code == 400 and "clip" in reply.json()["error"]["message"]
