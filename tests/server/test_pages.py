"""The pages for people and the OpenAPI document for programs: whole, true, and needing nothing from elsewhere."""

import base64
import io
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from PIL import Image
from serving import ask, serving

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

NAMES = ("scenes", "scenes-int8")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two precisions of the bundled model."""
    with serving(
        create_app(ModelPool(keep_alive=None, options={"device": "cpu"}), ServerSettings(model=NAMES))
    ) as address:
        yield address


@pytest.fixture(scope="module")
def pixel() -> str:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class Page(HTMLParser):
    """A page's text, links and tags; every tag must be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.links, self.seen, self._open = "", [], set[str](), list[str]()
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "action")]
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        if tag not in ("meta", "link", "br", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(url: str, path: str) -> Page:
    reply = httpx.get(f"{url}{path}", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, timeout=60)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    made = Page(reply.text)
    assert "script" not in made.seen and all(link[0] in "/#" and link[:2] != "//" for link in made.links), made.links
    for link in made.links:
        if link.startswith("/"):
            assert httpx.get(f"{url}{link}", timeout=60).status_code == 200, link
        else:
            assert f'id="{link[1:]}"' in reply.text, link
    return made


def test_the_start_page(url: str) -> None:
    """What it does is tested in a browser (tests/page)."""
    told = httpx.get(url, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert told.headers["content-type"].startswith("text/html")
    made = Page(told.text)
    for link in made.links:
        assert link[0] == "/" or f'id="{link[1:]}"' in told.text or f'id="view-{link[1:]}"' in told.text, link
        assert link[0] == "#" or httpx.get(f"{url}{link}", timeout=60).status_code == 200, link
    assert "/docs" in made.links and "style=" not in told.text
    plain = httpx.get(url)
    assert plain.json()["model"] == "scenes" and "Accept" in plain.headers["vary"].split(", ")
    css = httpx.get(f"{url}/style.css").text
    assert "prefers-color-scheme: dark" in css and "url(" not in css and "@import" not in css


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "index.html", "app", "%2e%2e"])
def test_other_files_are_no_files_of_the_page(url: str, name: str) -> None:
    assert httpx.get(f"{url}/app/{name}").status_code == 404


def test_the_page_needs_no_key_and_nothing_else_is_open() -> None:
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("scenes",), api_keys=("k",)))) as url:
        html = {"Accept": "text/html"}
        assert [httpx.get(f"{url}{path}", headers=html).status_code for path in ("/", "/app/main.js")] == [200, 200]
        assert httpx.get(url).status_code == httpx.get(f"{url}/docs", headers=html).status_code == 401
        assert httpx.post(f"{url}/app/main.js", headers=html).status_code == 401


def test_every_route_is_described_and_the_page_has_them_all(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    validate(document)
    held = create_app(ModelPool(1))
    routes = {
        (route.path.replace("{name:path}", "{id}"), method.lower())  # type: ignore[attr-defined]
        for route in held.routes
        for method in route.methods  # type: ignore[attr-defined]
        if method != "HEAD"  # which every GET has beside it
    }
    assert routes == {(path, method) for path, of in document["paths"].items() for method in of}
    made = page(url, "/docs")
    for path, of in document["paths"].items():
        for method, operation in of.items():
            assert f"{method.upper()} {path}" in made.text and operation["summary"] in made.text
    for name in document["components"]["schemas"]:
        assert f"#{name}" in made.links or name in made.text


def test_replies_are_as_they_are_described(url: str, pixel: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    image = {"image_url": pixel}
    asked: list[tuple[str, str, Any]] = [
        *(("get", path, None) for path in ("/", "/health", "/v1/models", "/stats", "/v1/stats", "/openapi.json")),
        ("post", "/v1/embeddings", {"model": "any", "input": "a cat"}),
        ("post", "/v1/chat/completions", {"messages": ask("hello", pixel), "max_tokens": 3}),
        ("post", "/v1/chat/completions", {"messages": []}),
        ("post", "/v1/caption", {**image, "settings": {"max_tokens": 3}}),
        ("post", "/v1/query", {"question": "What?", "settings": {"max_tokens": 2}}),
        ("post", "/v1/query", {}),
        ("post", "/v1/detect", {**image, "object": "circle", "max_objects": 1}),
        ("post", "/point", {**image, "obj": "circle", "max_objects": 1}),
        ("post", "/v1/detect_gaze", {**image, "eye": [0.5, 0.5]}),
        ("post", "/v1/segment", {**image, "object": "circle"}),
        ("post", "/v1/models/load", {"model": "scenes"}),
        ("post", "/v1/models/load", {"model": "nobody"}),
        ("post", "/v1/models/unload", {"model": "scenes-int4"}),
    ]
    for method, path, body in asked:
        reply = httpx.request(method, f"{url}{path}", json=body, timeout=60)
        described = document["paths"][path][method]["responses"][str(reply.status_code)]["content"]
        schema = described[reply.headers["content-type"]]["schema"]
        Draft202012Validator({**schema, "components": document["components"]}).validate(reply.json())
