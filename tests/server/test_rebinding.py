"""Names and redirects that lead a running server to where it must not go: refused, and nothing is connected to."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote, unquote

import httpx
import pytest
import tiny_moondream as tiny
from guarded import PATIENCE, Process
from hostile import encoded, picture
from serving import ask
from websites import hosted

PUBLIC = "93.184.216.34"
INSIDE = "127.0.0.1"
IMAGE = encoded(picture(), "PNG")


class Outside(BaseHTTPRequestHandler):
    """The site at the public address."""

    def do_GET(self) -> None:
        to = self.path.removeprefix("/to/")
        body = IMAGE if self.path == "/image" else b"<html>"
        self.send_response(200 if to == self.path else 302)
        if to != self.path:
            self.send_header("location", unquote(to))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Inside(BaseHTTPRequestHandler):
    """What listens on this machine for its own use, with an image wherever one looks."""

    asked = 0

    def do_GET(self) -> None:
        Inside.asked += 1
        self.send_response(200)
        self.send_header("content-length", str(len(IMAGE)))
        self.end_headers()
        self.wfile.write(IMAGE)

    def log_message(self, *args: object) -> None:
        pass


NAMES = {
    "public.test": [[PUBLIC]],
    # Public when it is judged, of this machine when it is looked up again.
    "rebind.test": [[PUBLIC], [INSIDE]],
    "hop.test": [[PUBLIC], [INSIDE]],
    "twice.test": [[PUBLIC], [INSIDE]],
    "inside.test": [[INSIDE]],
    "mixed.test": [[PUBLIC, INSIDE]],
    "metadata.test": [["169.254.169.254"]],
}
PRIVATE = [
    "http://127.0.0.1:{port}/image",
    "http://localhost:{port}/image",
    "http://[::1]:{port}/image",
    "http://[::ffff:127.0.0.1]:{port}/image",
    "http://2130706433:{port}/image",
    "http://0.0.0.0:{port}/image",
    "http://10.0.0.1:{port}/image",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://100.64.0.1/",
    "http://[fd00::1]/",
    "http://inside.test:{port}/image",
    "http://mixed.test:{port}/image",
    "https://inside.test:{port}/image",
    "http://metadata.test/latest",
]


class World:
    def __init__(self, server: Process, port: str, log: Path) -> None:
        self.server, self.port, self.log = server, port, log

    def show(self, url: str) -> httpx.Response:
        """What the server answers to this image."""
        body = {"messages": ask("What is it?", url), "max_tokens": 1}
        return httpx.post(f"{self.server.url}/v1/chat/completions", json=body, timeout=PATIENCE)

    def refused(self, url: str) -> str:
        """Why the server would not have it."""
        reply = self.show(url)
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_image", "messages.0.content.1.image_url.url")
        return str(error["message"])

    @property
    def connected(self) -> set[str]:
        return set(self.log.read_text().split())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    model = tiny.write(folder / "tiny", members=tiny.config(max_context=2000))
    with hosted(Outside) as outside, hosted(Inside) as inside:
        log = folder / "connections"
        log.touch()
        routes = {PUBLIC: int(outside.rpartition(":")[2])}
        file = folder / "world.json"
        file.write_text(json.dumps({"names": NAMES, "routes": routes, "log": str(log)}))
        with Process("--model", model, module=("renamed", str(file))) as server:
            yield World(server, inside.rpartition(":")[2], log)
    assert Inside.asked == 0


@pytest.fixture(autouse=True)
def kept_out(world: World) -> Iterator[None]:
    yield
    assert Inside.asked == 0
    assert world.connected <= {PUBLIC}


def test_a_public_site_is_fetched_from(world: World) -> None:
    """Else everything below could be refused for another reason."""
    assert world.show(f"http://public.test:{world.port}/image").status_code == 200
    moved = f"http://public.test:{world.port}/to/{quote('/image', safe='')}"
    assert world.show(moved).status_code == 200
    assert PUBLIC in world.connected


def test_the_address_that_was_judged_is_the_one_connected_to(world: World) -> None:
    assert "known format" in world.refused(f"http://rebind.test:{world.port}/page")
    # By now the name leads here for everyone.
    assert "not a public address" in world.refused(f"http://rebind.test:{world.port}/page")


def test_also_behind_a_redirect(world: World) -> None:
    there = quote(f"http://hop.test:{world.port}/page", safe="")
    assert "known format" in world.refused(f"http://public.test:{world.port}/to/{there}")


def test_a_name_that_turns_between_two_redirects(world: World) -> None:
    again = quote(f"http://twice.test:{world.port}/image", safe="")
    assert "not a public address" in world.refused(f"http://twice.test:{world.port}/to/{again}")


@pytest.mark.parametrize("target", PRIVATE)
def test_redirects_and_names_that_lead_inside(world: World, target: str) -> None:
    target = target.format(port=world.port)
    assert "not a public address" in world.refused(target)
    assert "not a public address" in world.refused(f"http://public.test:{world.port}/to/{quote(target, safe='')}")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1:25/x"])
def test_redirects_to_what_is_no_site(world: World, target: str) -> None:
    assert "only http" in world.refused(f"http://public.test:{world.port}/to/{quote(target, safe='')}")


def test_moondream_clients_are_told_too(world: World) -> None:
    inside = quote(f"http://127.0.0.1:{world.port}/image", safe="")
    body = {"image_url": f"http://public.test:{world.port}/to/{inside}"}
    reply = httpx.post(f"{world.server.url}/v1/caption", json=body, timeout=PATIENCE)
    assert (reply.status_code, reply.json()["code"], reply.json()["param"]) == (400, "invalid_image", "image_url")
