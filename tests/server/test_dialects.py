"""A dialect of one file is served, documented and guarded like the others."""

from collections.abc import Iterator

import httpx
import pytest
from jsonschema import Draft202012Validator
from serving import data_url, hosting, load, serving
from toy_dialect import TOY

import galago
from galago.server import app, openapi
from galago.server.dialects import DIALECTS

ASKED = {"picture": data_url("im_500x120.png"), "question": "How many people are in the image?"}


@pytest.fixture(scope="module")
def at() -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (app, openapi):
            patch.setattr(module, "DIALECTS", (*DIALECTS, TOY))
        openapi.document.cache_clear()
        with serving(hosting(load("small"))) as url, httpx.Client(base_url=url, timeout=60) as http:
            yield http
    openapi.document.cache_clear()


def test_it_is_answered_whole_and_streamed(at: httpx.Client, model: galago.Model) -> None:
    image = model.encode_image(ASKED["picture"])
    wanted = model.query(image, ASKED["question"])["answer"]
    whole = at.post("/toy", json=ASKED)
    assert (whole.json(), whole.headers["x-galago-model"]) == ({"said": wanted}, model.name)
    streamed = at.post("/toy//", json=ASKED | {"stream": True})
    assert (streamed.text, streamed.headers["content-type"]) == (wanted, "text/plain")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"question": None}, "question is required"),
        ({"question": " "}, "question must not be blank"),
        ({"picture": 7}, "picture must be a string"),
        ({"picture": "data:image/png;base64,AAAA"}, "not an image of a known format"),
        ({"picture": "file:///etc/hostname"}, "files are never read for a client"),
        ({"stream": "yes"}, "stream must be true or false"),
    ],
)
def test_what_is_wrong_is_told_in_its_own_form(at: httpx.Client, change: dict[str, object], told: str) -> None:
    reply = at.post("/toy", json=ASKED | change)
    assert reply.status_code == 400 and told in reply.json()["wrong"], reply.text


def test_it_is_in_the_document(at: httpx.Client) -> None:
    document = at.get("/openapi.json").json()
    operation = document["paths"]["/toy"]["post"]
    assert {"200", "400", "401", "429", "503"} <= set(operation["responses"])
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**body, "components": document["components"]})
    assert validator.is_valid(ASKED) and not validator.is_valid({"picture": "x"})


def test_every_name_of_a_schema_is_one_word() -> None:
    """Pydantic spells out the modules of types that have the same name."""
    assert not [name for name in openapi.document("1")["components"]["schemas"] if "__" in name]
