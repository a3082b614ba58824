"""Images by URL, in every dialect: fetched where that is allowed, refused in the dialect's words where not."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import openai
import pytest
from serving import GOLDEN, ask, data_url, hosting, load, sdk, serving
from websites import hosted

QUESTION = "How many people are in the image?"
URL_FIELD = "messages.0.content.1.image_url.url"


class Site(BaseHTTPRequestHandler):
    held = threading.Semaphore(0)
    asked = threading.Semaphore(0)

    def do_GET(self) -> None:
        if self.path == "/held":
            self.asked.release()
            self.held.acquire()
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", f"http://localhost:{self.server.server_address[1]}/image")
            self.end_headers()
            return
        body = b"<html>" if self.path == "/page" else (GOLDEN / "small" / "images" / "im_500x120.png").read_bytes()
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with hosted(Site) as url:
        yield url


@pytest.fixture(scope="module")
def open_url() -> Iterator[str]:
    """A server that may fetch from this machine."""
    with serving(hosting(load("small"), allow_image_hosts=("127.0.0.1",))) as url:
        yield url


def refused(client: openai.OpenAI, url: str) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="any", messages=ask(QUESTION, url), max_tokens=2)
    assert (raised.value.code, raised.value.param) == ("invalid_image", URL_FIELD)
    return raised.value


def test_the_same_answer_as_for_the_image_itself(open_url: str, site: str, golden: Any) -> None:
    reply = sdk(open_url).chat.completions.create(model="any", messages=ask(QUESTION, f"{site}/image"), max_tokens=24)
    assert reply.choices[0].message.content == golden["im_500x120.query_0"]["output"]["answer"]


def test_moondream_too(open_url: str, site: str) -> None:
    def caption(url: str) -> httpx.Response:
        body = {"image_url": url, "settings": {"max_tokens": 8}}
        return httpx.post(f"{open_url}/v1/caption", json=body, timeout=60)

    assert caption(f"{site}/image").json()["caption"] == caption(data_url("im_500x120.png")).json()["caption"]
    wrong = caption(f"{site}/none")
    assert (wrong.status_code, wrong.json()["code"], wrong.json()["param"]) == (400, "invalid_image", "image_url")


@pytest.mark.parametrize(
    ("path", "said"), [("/none", "404"), ("/page", "known format"), ("/moved", "not fetched from localhost")]
)
def test_what_a_site_may_answer(open_url: str, site: str, path: str, said: str) -> None:
    assert said in refused(sdk(open_url), site + path).message


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/image",
        "http://localhost:{port}/image",
        "HTTP://[::1]:{port}/image",
        "http://[::ffff:127.0.0.1]:{port}/image",
        "http://2130706433:{port}/image",
        "http://0.0.0.0:{port}/image",
        "http://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/a.png",
    ],
)
def test_private_addresses_are_refused(client: openai.OpenAI, site: str, target: str) -> None:
    error = refused(client, target.format(port=site.rpartition(":")[2]))
    assert "not a public address" in error.message


def test_turned_off(site: str) -> None:
    app = hosting(load("small"), remote_images=False, allow_image_hosts=("127.0.0.1",))
    with serving(app) as url:
        assert "turned off" in refused(sdk(url), f"{site}/image").message


def test_a_slow_site_keeps_nobody_else_waiting(open_url: str, site: str, photo: str) -> None:
    client = sdk(open_url)

    def content(url: str) -> Any:
        reply = client.chat.completions.create(model="any", messages=ask(QUESTION, url), max_tokens=3)
        return reply.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(content, f"{site}/held") for _ in range(8)]
        try:
            for _ in slow:
                Site.asked.acquire()
            quick = content(photo)
        finally:
            Site.held.release(8)
        assert [s.result() for s in slow] == [quick] * 8
