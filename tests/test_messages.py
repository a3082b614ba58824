"""No message grows with what was given: whatever it quotes, it is one line of MAX_MESSAGE characters at most."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from serving import hosting, load, serving

import galago
from galago.cli.app import main
from galago.errors import MAX_MESSAGE, GalagoError, InvalidRequest, quoted, shortened
from galago.media.fetch import fetch
from galago.media.image import load_image
from galago.media.load import load_media
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip

LONG = base64.b64encode(bytes(300_000)).decode()
LINES = "what\nis\nthis " * 3_000
GIVEN: dict[str, Any] = {
    "text": LONG,
    "lines": LINES,
    "surrogates": "\udcff" * 10_000,
    "bytes": LONG.encode(),
    "list": [LONG] * 10,
    "dict": {LONG + str(i): LONG for i in range(3)},
    "number": 10**5000,
}
PICTURE = Image.new("RGB", (30, 20))


@pytest.fixture(scope="module")
def model() -> Iterator[galago.Model]:
    with load("small") as model:
        yield model


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    # A server of its own: it closes its model.
    with serving(hosting(load("small"))) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def is_short(message: str) -> bool:
    return 0 < len(message) <= MAX_MESSAGE and "\n" not in message


CALLS: dict[str, Callable[[Any, galago.Model], object]] = {
    "image": lambda v, m: load_image(v),
    "media": lambda v, m: load_media(v, FrameSampling),
    "clip": lambda v, m: load_clip(v),
    "asked": lambda v, m: m.caption(v),
    "url": lambda v, m: load_image(f"http://{v}/a.png"),
    "path of a url": lambda v, m: fetch(f"http://127.0.0.1:9/{v}"),
    "data url": lambda v, m: load_image(f"data:{v}"),
    "file of a folder": lambda v, m: load_image(Path(f"/tmp/{v}")),
    "model": lambda v, m: galago.load(v),
    "model in a folder": lambda v, m: galago.load(f"./{v}"),
    "precision": lambda v, m: galago.load(precision=v),
    "profile": lambda v, m: galago.load(profile=v),
    "device": lambda v, m: galago.load(device=v),
    "revision": lambda v, m: galago.load(revision=v),
    "threads": lambda v, m: galago.load(threads=v),
    "limits": lambda v, m: galago.Limits(queue=v),
    "length": lambda v, m: m.caption(PICTURE, v),
    "detail": lambda v, m: m.caption(PICTURE, settings={"detail": v}),
    "variant": lambda v, m: m.caption(PICTURE, settings={"variant": v}),
    "setting": lambda v, m: m.caption(PICTURE, settings={str(v)[:400_000]: 1}),
    "unstable setting": lambda v, m: m.detect_gaze(PICTURE, (0.5, 0.5), unstable_settings={str(v)[:400_000]: 1}),
    "temperature": lambda v, m: m.caption(PICTURE, settings={"temperature": v}),
    "role": lambda v, m: m.chat([{"role": v, "content": "hello"}]),
    "content": lambda v, m: m.chat([{"role": "user", "content": [[v]]}]),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("call", CALLS)
def test_of_python(call: str, kind: str, model: galago.Model) -> None:
    if kind == "number" and call in ("url", "path of a url", "data url", "file of a folder", "setting"):
        return  # Python does not write it
    try:
        CALLS[call](GIVEN[kind], model)
    except GalagoError as error:
        assert is_short(str(error)), (len(str(error)), str(error)[:1000])
    except (TypeError, ValueError, AttributeError, RecursionError):
        pass


FIELDS: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "image": lambda v: ("/v1/caption", {"image_url": v}),
    "url": lambda v: ("/v1/caption", {"image_url": f"http://{v}"}),
    "path of a url": lambda v: ("/v1/caption", {"image_url": f"http://127.0.0.1/{v}"}),
    "file": lambda v: ("/v1/caption", {"image_url": f"file:///{v}"}),
    "data url": lambda v: ("/v1/caption", {"image_url": f"data:{v}"}),
    "length": lambda v: ("/v1/caption", {"image_url": PNG, "length": v}),
    "variant": lambda v: ("/v1/caption", {"image_url": PNG, "settings": {"variant": v}}),
    "model": lambda v: ("/v1/chat/completions", {"model": v, "messages": v}),
    "role": lambda v: ("/v1/chat/completions", {"messages": [{"role": v, "content": "hello"}]}),
    "part": lambda v: ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": v}]}]}),
    "detail": lambda v: ("/v1/chat/completions", picture(url=PNG, detail=v)),
    "format": lambda v: ("/v1/chat/completions", {**picture(url=PNG), "response_format": {"type": v}}),
    "schema": lambda v: (
        "/v1/chat/completions",
        {**picture(url=PNG), "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": v}}}},
    ),
    "load": lambda v: ("/v1/models/load", {"model": v}),
}


def picture(**given: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": given}]}]}


def _png() -> str:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


PNG = _png()


@pytest.mark.parametrize("kind", [kind for kind in GIVEN if kind not in ("bytes", "number")])
@pytest.mark.parametrize("field", FIELDS)
def test_of_the_server(field: str, kind: str, http: httpx.Client) -> None:
    path, body = FIELDS[field](GIVEN[kind])
    reply = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.is_success or is_short(message_of(reply)), reply.text[:1000]
    assert len(reply.content) < 2000


def message_of(reply: httpx.Response) -> str:
    told = reply.json()["error"]
    return str(told["message"] if isinstance(told, dict) else told)


def test_of_paths_and_headers(http: httpx.Client) -> None:
    long = LONG[:40_000]
    for reply in (http.get("/" + long), http.get("/health", headers={"host": long}), http.post("/", content=long)):
        assert reply.status_code >= 400 and is_short(message_of(reply))


@pytest.mark.parametrize("text", [LONG, LINES], ids=["text", "lines"])
@pytest.mark.parametrize(
    "command",
    [
        "caption {}",
        "caption data:{}",
        "caption http://{}",
        "caption {photo} --length {}",
        "caption {photo} --detail {}",
        "caption {photo} --precision {}",
        "caption {photo} --threads {}",
        "caption {photo} --{}",
        "caption {photo} -m {}",
        "caption {photo} -m ./{}",
        "caption {photo} --variant {}",
        "detect {photo} circle -m scenes --draw {}",
        "gaze {photo} --eye {}",
        "query {photo} what --ref {}",
        "bench --image {}",
        "eval {}",
        "serve {}",
        "serve --config {}",
        "serve --host {}",
        "serve --cors-origin {}",
        "models remove {}",
        "{}",
    ],
)
def test_of_the_command_line(
    command: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    PICTURE.save(tmp_path / "a.png")
    args = [part.replace("{photo}", "a.png").replace("{}", text) for part in command.split(" ")]
    assert main(args) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and is_short(told.removeprefix("error: ").removesuffix("\n")), told[:1000]


def test_what_is_allowed_stays_readable_behind_what_was_given() -> None:
    for call, allowed in (("precision", "int8"), ("device", "mps"), ("model", "scenes")):
        with pytest.raises(GalagoError, match=allowed):
            CALLS[call](LONG, None)  # type: ignore[arg-type]


def test_quoting() -> None:
    assert quoted("photo.png") == "'photo.png'" and quoted(7) == "7" and quoted(None) == "None"
    assert quoted("a\nb") == r"'a\nb'" and quoted("\udcff") == r"'\udcff'"
    long = quoted("abc" * 1000 + ".png")
    assert len(long) <= 102 and long.startswith("'abcabc") and long.endswith(".png'") and "..." in long
    for value in GIVEN.values():
        assert len(quoted(value)) <= 102
    assert shortened("a" * 100) == "a" * 100 and shortened("ab" * 100, 11) == "ababab...ab"
    assert len(str(InvalidRequest("a" * 1000, "image"))) == MAX_MESSAGE
