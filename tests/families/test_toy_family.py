"""A family that galago does not know: a module, and a line in the table; every face serves it."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import toy_family
from PIL import Image
from serving import sdk, serving

import galago
from galago import families
from galago.backends.memory_estimate import memory_needed
from galago.cli.app import main
from galago.errors import CheckpointError
from galago.fleet.pool import ModelPool
from galago.lab.bench.random import ensure_random_checkpoint
from galago.server.app import create_app
from galago.server.settings import ServerSettings
from galago.store import hub

QUESTION, SETTINGS = "Why?", {"max_tokens": 8}


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "toy", families.FamilyModule("toy_family", ("toy",), "see.weight"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy_family.write(tmp_path / "toy")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((30, 20)).save(file)
    return file


@pytest.fixture
def said(folder: Path, photo: Path) -> str:
    with galago.load(folder) as model:
        return str(model.query(photo, QUESTION, settings=SETTINGS)["answer"])


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    with serving(create_app(ModelPool(2 << 30, keep_alive=None), ServerSettings(model=(str(folder),)))) as address:
        yield address


def data_url(photo: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_python(folder: Path, photo: Path, precision: str) -> None:
    with galago.load(folder, precision=precision) as model:
        said = model.query(photo, QUESTION, settings=SETTINGS)["answer"]
        assert (model.name, model.revision, model.precision) == ("toy", "toy", precision) and said
        assert model.query(model.encode_image(photo), QUESTION, settings=SETTINGS)["answer"] == said
        assert "".join(model.query(photo, QUESTION, stream=True, settings=SETTINGS)["answer"]) == said
        others = [Image.effect_noise((30, 20), 100), Image.new("RGB", (30, 20), "red")]
        answers = [model.query(other, QUESTION, settings=SETTINGS)["answer"] for other in others]
        assert len({said, *answers}) == 3, "it does not look"
        together = model.map(galago.Query(QUESTION), [photo, *others] * 8, settings=SETTINGS)
        assert [one["answer"] for one in together] == [said, *answers] * 8  # type: ignore[index]
        schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        schema["additionalProperties"] = False
        held = model.query(photo, QUESTION, settings={"max_tokens": 32, "json_schema": schema})["answer"]
        assert held in ('{"a": true}', '{"a": false}')
        with pytest.raises(galago.UnsupportedTask):
            model.detect(photo, "cat")


def test_the_command_line(folder: Path, photo: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", str(photo), QUESTION, "-m", str(folder), "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip() == said.strip()
    assert main(["show", str(folder)]) == 0
    assert "toy" in capsys.readouterr().out
    assert main(["detect", str(photo), "x", "-m", str(folder)]) == 2


def test_both_dialects(url: str, photo: Path, said: str) -> None:
    parts: list[Any] = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": data_url(photo)}},
    ]
    talk: list[Any] = [{"role": "user", "content": parts}]
    reply = sdk(url).chat.completions.create(model="toy", messages=talk, max_tokens=8)
    assert str(reply.choices[0].message.content).strip() == said.strip()
    body = {"image_url": data_url(photo), "question": QUESTION, "settings": SETTINGS}
    assert httpx.post(f"{url}/v1/query", json=body).json()["answer"].strip() == said.strip()
    assert httpx.post(f"{url}/v1/caption", json=body).json()["caption"]
    assert httpx.post(f"{url}/v1/detect", json=body | {"object": "x"}).status_code == 501


def test_what_is_told_of_it_without_loading(folder: Path, photo: Path) -> None:
    assert hub.locate(folder).family == "toy"
    assert memory_needed(str(folder)) > 64 * 2 * 32 * 4
    assert main(["quantize", str(folder), "--to", "int8", "--out", str(folder.parent / "small")]) == 0
    with galago.load(folder.parent / "small") as small, galago.load(folder, precision="int8") as whole:
        answers = [model.query(photo, QUESTION, settings=SETTINGS) for model in (small, whole)]
        assert small.precision == "int8" and answers[0] == answers[1]
    with galago.load(ensure_random_checkpoint(str(folder))) as model:
        out = io.BytesIO()
        Image.new("RGB", (9, 9)).save(out, "PNG")
        assert model.query(out.getvalue(), QUESTION, settings=SETTINGS)["answer"]


def test_it_is_refused_where_nobody_lists_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(families.FAMILIES, "toy")
    with pytest.raises(CheckpointError, match='model_type is "toy"; allowed is one of "moondream1"'):
        galago.load(folder)
