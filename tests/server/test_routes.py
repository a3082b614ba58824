"""One served name for several models: who answers what, by media and by memory, and what is told of that."""

import base64
import io
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_smolvlm as tiny
from clips import encoded, pictures
from jsonschema import Draft202012Validator
from serving import sdk, serving

import galago
from galago.fleet.pool import ModelPool
from galago.model import Model
from galago.server.app import create_app
from galago.server.models import Models
from galago.server.settings import ServerSettings
from galago.store.catalog import Route, Way

HYBRID = "smolvlm-hybrid"
SIZES = {"smolvlm-500m": 5, "smolvlm-256m": 2, "smolvlm2-500m": 6, "smolvlm2-256m": 3}
ALL = 11
"""The larger two beside each other."""


def need(name: str, precision: str | None = None) -> int:
    return next((size for model, size in SIZES.items() if name.startswith(model)), 20)


def pool(folder: Path, budget: int) -> ModelPool:
    """Tiny models under the catalogue's names; those without a 2 have not learnt from videos."""
    video = tiny.PREPROCESSOR
    stills = {name: value for name, value in video.items() if name != "video_sampling"}

    def load(name: str, progress: Any) -> Model:
        kind = ("smolvlm", video) if "smolvlm2" in name else ("idefics3", stills)
        tiny.write(folder / name, config={"model_type": kind[0]}, preprocessor=kind[1])
        return tiny.open_model(folder / name)

    return ModelPool(budget, keep_alive=None, load=load, need=need, options={"device": "cpu"})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(create_app(pool(tmp_path_factory.mktemp("models"), ALL), ServerSettings(model=(HYBRID,)))) as address:
        yield address


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a route with these ways into the catalogue."""

    def put(name: str, *ways: tuple[list[str], list[str]]) -> None:
        made = Route(name, "For a test", tuple(Way(tuple(takes), tuple(models)) for takes, models in ways))
        monkeypatch.setattr("galago.store.catalog.routes", lambda: (made,))

    return put


def still() -> dict[str, Any]:
    file = io.BytesIO()
    tiny.picture(1).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


STILL = still()
CLIP = base64.b64encode(encoded(pictures(20), fps=10)).decode()
VIDEO = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{CLIP}"}}


def turn(*shown: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*shown, {"type": "text", "text": "What is it?"}]}]


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, timeout=60)


def answered_by(url: str, *shown: dict[str, Any], name: str = HYBRID) -> str:
    reply = post(url, "/v1/chat/completions", model=name, messages=turn(*shown), max_tokens=2)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-galago-model"] == reply.json()["model"]
    return str(reply.json()["model"])


def health(url: str) -> Any:
    return httpx.get(f"{url}/health").json()


def loaded(url: str) -> set[str]:
    return {model["name"] for model in health(url)["models"]}


def ways(*lanes: tuple[list[str], str, list[str]]) -> list[dict[str, Any]]:
    return [{"takes": takes, "model": model, "too_large": large} for takes, model, large in lanes]


# --- by media --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "model"),
    [
        ([], "smolvlm-500m"),
        ([STILL], "smolvlm-500m"),
        ([STILL, STILL], "smolvlm2-500m"),
        ([VIDEO], "smolvlm2-500m"),
        ([STILL, VIDEO], "smolvlm2-500m"),
    ],
)
def test_what_a_request_shows_decides_who_answers(url: str, shown: list[Any], model: str) -> None:
    assert answered_by(url, *shown) == answered_by(url, *shown, name="gpt-4o") == model


def test_openai_client_streams_from_the_model_of_a_route(url: str) -> None:
    for shown, model in ((STILL, "smolvlm-500m"), (VIDEO, "smolvlm2-500m")):
        messages, client = turn(shown), sdk(url)
        parts = list(client.chat.completions.create(model=HYBRID, messages=messages, max_tokens=2, stream=True))
        assert {part.model for part in parts} == {model}
    assert HYBRID in [model.id for model in client.models.list()]


def test_moondreams_api_is_sent_on_too(url: str) -> None:
    reply = post(url, "/v1/caption", model=HYBRID, image_url=STILL["image_url"]["url"], settings={"max_tokens": 2})
    assert (reply.status_code, reply.headers["x-galago-model"]) == (200, "smolvlm-500m")


def test_the_models_behind_answer_to_their_own_names(url: str) -> None:
    assert answered_by(url, STILL, name="smolvlm2-500m") == "smolvlm2-500m"
    refused = post(url, "/v1/chat/completions", model="smolvlm-500m", messages=turn(VIDEO))
    assert refused.status_code == 501 and "SmolVLM2" in refused.text


def test_what_no_way_takes_is_refused_with_what_is_taken(tmp_path: Path, routed: Any) -> None:
    routed("stills", (["text", "image"], ["smolvlm-500m"]))
    with serving(create_app(pool(tmp_path, ALL), ServerSettings(model=("stills",)))) as url:
        assert answered_by(url, STILL, name="stills") == "smolvlm-500m"
        for shown, words in (([VIDEO], "videos"), ([STILL, STILL], "several images")):
            reply = post(url, "/v1/chat/completions", model="stills", messages=turn(*shown))
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_value", "model")
            assert error["message"] == f"stills takes text alone, single images; it does not take {words}"


# --- by memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "stills", "video"),
    [
        (11, "smolvlm-500m", "smolvlm2-500m"),
        (10, "smolvlm-500m", "smolvlm2-256m"),
        (7, "smolvlm-256m", "smolvlm2-256m"),
    ],
)
def test_the_larger_where_it_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, budget: int, stills: str, video: str
) -> None:
    with (
        caplog.at_level(logging.WARNING, "galago.fleet.routing"),
        serving(create_app(pool(tmp_path, budget), ServerSettings(model=(HYBRID,)))) as url,
    ):
        assert (answered_by(url, STILL), answered_by(url, VIDEO)) == (stills, video)
        assert loaded(url) == {stills, video}
        told = health(url)["routes"][HYBRID]
    large = [["smolvlm-500m"] if "256" in stills else [], ["smolvlm2-500m"] if "256" in video else []]
    assert told == ways((["text", "image"], stills, large[0]), (["images", "video"], video, large[1]))
    assert len(caplog.messages) == sum(map(len, large))
    assert all(f"{HYBRID}: {model}" in caplog.text for model in (stills, video) if "256" in model)


def test_models_beside_a_route_take_their_room(tmp_path: Path) -> None:
    names = (HYBRID, "smolvlm2-256m")
    with serving(create_app(pool(tmp_path, 10), ServerSettings(model=names))) as url:
        assert loaded(url) == {"smolvlm-500m", "smolvlm2-256m"}, "one model is there once"
        assert answered_by(url, VIDEO) == answered_by(url, STILL, name="smolvlm2-256m") == "smolvlm2-256m"


def test_what_does_not_fit_in_its_smallest_models_is_refused_at_the_start(tmp_path: Path) -> None:
    app = create_app(pool(tmp_path, 4), ServerSettings(model=(HYBRID,)))
    with pytest.raises(galago.OutOfMemory, match=r"smolvlm2-256m needs .* in use \(smolvlm-256m"), serving(app):
        pass


# --- names, loading and what is told ---------------------------------------------------------


def test_a_precision_is_that_of_the_models(tmp_path: Path) -> None:
    settings = ServerSettings(model=("SmolVLM-Hybrid-int4",), strict_model_names=True)
    with serving(create_app(pool(tmp_path, ALL), settings)) as url:
        assert health(url)["model"] == f"{HYBRID}-int4"
        for name in (HYBRID, f"{HYBRID}-int4"):
            assert answered_by(url, VIDEO, name=name) == "smolvlm2-500m-int4"
        for name in (f"{HYBRID}-fp32", "gpt-4o"):
            refused = post(url, "/v1/chat/completions", model=name, messages=turn())
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
            assert f"{HYBRID}-int4" in refused.text


def test_a_route_is_loaded_and_unloaded_with_its_models(url: str) -> None:
    both = {"smolvlm-500m", "smolvlm2-500m"}
    here = post(url, "/v1/models/load", model=HYBRID).json()
    assert (here["id"], here["loaded"], here["precision"], here["memory_bytes"]) == (HYBRID, True, "float32", ALL)
    assert here["ways"] == ways((["text", "image"], "smolvlm-500m", []), (["images", "video"], "smolvlm2-500m", []))
    assert httpx.get(f"{url}/v1/models/{HYBRID}").json() == here == httpx.get(f"{url}/v1/models").json()["data"][0]
    gone = post(url, "/v1/models/unload", model=HYBRID).json()
    assert (gone["loaded"], gone["unloaded"], loaded(url)) == (False, True, set())
    assert post(url, "/v1/models/unload", model=HYBRID).json()["unloaded"] is False
    assert answered_by(url, VIDEO) == "smolvlm2-500m" and loaded(url) == {"smolvlm2-500m"}, "what is asked for alone"
    assert not httpx.get(f"{url}/v1/models/{HYBRID}").json()["loaded"]
    last = post(url, "/v1/models/load", model=HYBRID, stream=True).text
    assert '"status":"loaded"' in last and loaded(url) == both


def test_what_is_told_fits_its_schemas(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    paths = {"/health": "Health", "/readyz": "Health", "/v1/models": "ModelList", f"/v1/models/{HYBRID}": "ModelEntry"}
    for path, name in paths.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft202012Validator(schema).validate(httpx.get(f"{url}{path}").json())
    said = health(url)
    assert (said["status"], said["model"], said["revision"]) == ("healthy", HYBRID, "SmolVLM")
    assert httpx.get(f"{url}/v1/stats").json()["model"] == HYBRID


def test_a_route_that_was_not_named_at_the_start_is_not_there(tmp_path: Path) -> None:
    with serving(create_app(pool(tmp_path, ALL), ServerSettings(model=("smolvlm-256m",)))) as url:
        assert answered_by(url, name=HYBRID) == "smolvlm-256m", "as any name that is none here"
        assert post(url, "/v1/models/load", model=HYBRID).status_code == 404
        assert health(url)["routes"] == {}


# --- routes that are wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "error", "words"),
    [
        ((["text"], ["nobody"]), galago.ModelNotFound, "mixed routes to 'nobody', which is no model"),
        ((["text"], ["smolvlm-256m", "mixed"]), galago.ModelNotFound, "mixed routes to 'mixed', which is no model"),
        ((["text", "sound"], ["smolvlm-256m"]), galago.InvalidRequest, "text, image, images, video"),
        ((["text"], []), galago.InvalidRequest, "must have models"),
    ],
)
def test_a_route_that_leads_nowhere_is_told_at_the_start(
    tmp_path: Path, routed: Any, way: Any, error: type[Exception], words: str
) -> None:
    routed("mixed", way)
    with pytest.raises(error, match=words):
        create_app(pool(tmp_path, ALL), ServerSettings(model=("mixed",)))


def test_a_route_is_not_loaded_as_a_model() -> None:
    with pytest.raises(galago.ModelNotFound, match=r"is a route: name one of smolvlm-500m, .* or run galago serve"):
        galago.load(HYBRID)
    with galago.ModelPool() as models, pytest.raises(galago.ModelNotFound, match="is a route"), models.use(HYBRID):
        pass


def test_a_video_waits_for_the_model_that_says_which_frames_it_wants(tmp_path: Path, monkeypatch: Any) -> None:
    first, second = "smolvlm2-500m", "smolvlm2-256m"
    begun, asked = threading.Event(), threading.Event()
    facts_of = Models.facts

    def facts(models: Models, name: str) -> Any:
        found = facts_of(models, name)
        if name == second:
            asked.set()
        return found

    def load(name: str, progress: Any) -> Model:
        if name == second:
            begun.set()
            assert asked.wait(60)
        tiny.write(tmp_path / name)
        return tiny.open_model(tmp_path / name)

    monkeypatch.setattr(Models, "facts", facts)
    models = ModelPool(ALL, keep_alive=None, load=load, need=need, options={"device": "cpu"})
    long = base64.b64encode(encoded(pictures(300), fps=10)).decode()
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{long}"}}
    with serving(create_app(models, ServerSettings(model=(first,)))) as url, ThreadPoolExecutor(1) as other:
        loads = other.submit(post, url, "/v1/models/load", model=second)
        assert begun.wait(60)
        reply = post(url, "/v1/chat/completions", model=second, messages=turn(video), max_tokens=2)
        assert loads.result().status_code == 200
    most = tiny.PREPROCESSOR["video_sampling"]["max_frames"]
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == second
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == most * tiny.TOKENS
