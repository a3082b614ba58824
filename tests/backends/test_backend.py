"""A backend that is not ours: two entries in tables, and every face serves it."""

import asyncio
import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest
import toy_backend
from PIL import Image
from serving import sdk, serving

import galago
from galago import aio
from galago.backends import backend
from galago.backends.memory_estimate import canonical_name, memory_needed
from galago.cli.app import main
from galago.fleet.pool import ModelPool
from galago.request import Caption, Detect, Encode, Skill
from galago.server.app import create_app
from galago.server.settings import ServerSettings
from galago.store import catalog, hub
from galago.store.catalog import Bundled, entries

IMAGE = Image.new("RGB", (30, 20))
LACKS = "this model does not detect objects; it can caption, answer questions, converse"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tables = catalog._tables()
    monkeypatch.setattr(catalog, "_tables", lambda: {**tables, "toy": toy_backend.ENTRY, "lost": LOST})
    monkeypatch.setitem(backend.BACKENDS, "toy", "toy_backend")
    entries.cache_clear()
    yield
    entries.cache_clear()


LOST = toy_backend.ENTRY | {"backend": "none such"}


def data_url() -> str:
    out = io.BytesIO()
    IMAGE.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@pytest.fixture
def url() -> Iterator[str]:
    pool = ModelPool(1_000_000, keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("toy",)))) as address:
        yield address


def test_python() -> None:
    with galago.load("toy") as model:
        assert model.caption(IMAGE) == {"caption": "30x20"}
        assert "".join(model.query(IMAGE, "How large?", stream=True)["answer"]) == "30x20"
        talk = [{"role": "user", "content": ["Which is larger?", IMAGE, IMAGE]}]
        assert model.chat(talk) == {"answer": "30x2030x20"}
        assert [*model.map(Caption(), [IMAGE, IMAGE])] == [{"caption": "30x20"}] * 2
        assert (model.name, model.precision, model.waiting, model.ended) == ("toy", "float32", 0, None)
        model.trim()


def test_asyncio() -> None:
    async def asked() -> tuple[Any, list[Any]]:
        async with await aio.load("toy") as model:
            request = galago.Request(Caption(), IMAGE)
            return await model.caption(IMAGE), [event async for event in model.events(request)]

    said, events = asyncio.run(asked())
    assert said == {"caption": "30x20"} and isinstance(events[-1], galago.Done)


@pytest.mark.parametrize("stream", [False, True])
def test_the_dialect_of_openai(url: str, stream: bool) -> None:
    parts: list[Any] = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": data_url()}}]
    talk: list[Any] = [{"role": "user", "content": parts}]
    reply: Any = sdk(url).chat.completions.create(model="toy", messages=talk, stream=stream)
    choices = [chunk.choices[0].delta for chunk in reply] if stream else [reply.choices[0].message]
    assert "".join(choice.content or "" for choice in choices) == "30x20"


def test_the_dialect_of_moondream(url: str) -> None:
    body = {"image_url": data_url(), "question": "How large?", "object": "x"}
    assert httpx.post(f"{url}/v1/caption", json=body).json()["caption"] == "30x20"
    assert httpx.post(f"{url}/v1/query", json=body).json()["answer"] == "30x20"
    for skill in ("detect", "point"):
        refused = httpx.post(f"{url}/v1/{skill}", json=body)
        assert (refused.status_code, refused.json()["code"]) == (501, "unsupported_task")
    streamed = httpx.post(f"{url}/v1/query", json=body | {"stream": True}).text
    assert "30x20" in streamed


def test_what_a_server_says_of_it(url: str) -> None:
    said = httpx.get(f"{url}/health").json()
    assert (said["status"], said["kernels"], said["precision"]) == ("healthy", "Python", "float32")
    assert httpx.get(f"{url}/v1/stats").json()["queue_size"] == 0
    rows = {row["id"]: row for row in httpx.get(f"{url}/v1/models").json()["data"]}
    assert rows["toy"]["loaded"] and rows["toy"]["memory_bytes"] == 1_000_000
    assert httpx.get(f"{url}/").status_code == httpx.get(f"{url}/metrics").status_code == 200
    assert httpx.post(f"{url}/v1/models/unload", json={"model": "toy"}).json()["unloaded"]


def test_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    IMAGE.save(photo)
    for command in (["caption", photo], ["query", photo, "How large?"]):
        assert main([*map(str, command), "-m", "toy"]) == 0
        assert capsys.readouterr().out == "30x20\n"
    assert main(["detect", str(photo), "x", "-m", "toy"]) == 2
    assert capsys.readouterr().err == f"error: {LACKS}\n"
    assert main(["show", "toy"]) == main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "Tells the size of a picture" in shown and "1.0 MB  Python" in shown


def test_a_skill_that_is_lacking_is_told_once() -> None:
    with galago.load("toy") as model:
        for asked in (
            lambda: model.map(Detect("x"), [IMAGE] * 3),
            lambda: model.start(Detect("x"), "/nowhere.png"),
            lambda: model.submit(galago.Request(Detect("x"), IMAGE)),
        ):
            with pytest.raises(galago.UnsupportedTask) as error:
                asked()
            assert str(error.value) == LACKS
        with pytest.raises(galago.UnsupportedTask, match="encode"):
            model.encode_image(IMAGE)
        with pytest.raises(galago.InvalidRequest, match="object must be a name"):
            model.detect(IMAGE, "")


def test_what_it_needs_is_what_its_entry_says() -> None:
    assert memory_needed("toy") == 1_000_000 and canonical_name("TOY") == "toy"


def test_a_backend_that_is_not_here() -> None:
    with pytest.raises(galago.ModelNotFound, match="none such"):
        galago.load("lost")


def test_skills_are_as_the_catalogue_says() -> None:
    for entry in (entry for entry in entries() if isinstance(entry.source, Bundled)):
        with galago.load(entry.id) as model:
            skills = model.backend.facts.skills
            assert ("objects" in entry.can) == (Detect in skills) and Encode in skills
            assert ("video" in entry.can) == (model.video_sampling is not None)
    assert set(backend.SKILLS) == set(get_args(Skill))


def test_every_kind_of_source_can_be_told_in_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = {"repo": "someone/model", "revision": "main"}
    gguf = {name: value for name, value in toy_backend.ENTRY.items() if name != "url"}
    gguf |= {"gguf": remote | {"file": "model.gguf"}, "projector": remote | {"file": "mmproj.gguf"}}
    monkeypatch.setattr(catalog, "_tables", lambda: {"one": gguf, "other": toy_backend.ENTRY})
    entries.cache_clear()
    one, other = entries()
    assert isinstance(one.source, catalog.Hosted)
    assert [r.file for r in one.source.files] == ["model.gguf", "mmproj.gguf"]
    assert other.source == catalog.Address("toy:")
    with pytest.raises(galago.DownloadError, match="not installed"):
        hub.fetch(one, offline=True)
    with pytest.raises(galago.CheckpointError, match="is run by toy"):
        hub.locate("one")


def test_the_face_of_a_backend_needs_no_torch() -> None:
    code = "import sys, galago; galago.Backend, galago.Run, galago.Facts; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_server_makes_pictures_smaller_where_its_settings_say_so() -> None:
    pool = ModelPool(1_000_000, keep_alive=None, options={"device": "cpu"})
    settings = ServerSettings(model=("toy",), max_image_side=64)
    out = io.BytesIO()
    IMAGE.resize((192, 128)).save(out, "PNG")
    body = {"image_url": base64.b64encode(out.getvalue()).decode()}
    with serving(create_app(pool, settings)) as address:
        assert httpx.post(f"{address}/v1/caption", json=body).json()["caption"] == "64x43"
