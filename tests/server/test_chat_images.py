"""Several images in a conversation, for models that were trained with them."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_smolvlm as tiny
from PIL import Image
from serving import hosting, sdk, serving

from galago.model import Model
from galago.request import Chat, Message, Request, Sampling, TextDelta

ONE, OTHER = tiny.picture(1), tiny.picture(2, (20, 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.open_model(tiny.write(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(hosting(model)) as address:
        yield address


def part(image: Image.Image, detail: str = "auto") -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": data, "detail": detail}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [part(ONE), text("What is this?")]},
    {"role": "assistant", "content": "Noise."},
    {"role": "user", "content": [text("And this: "), part(OTHER), text("?")]},
]
TALK = (
    Message("system", "Be brief."),
    Message("user", (ONE, "What is this?")),
    Message("assistant", "Noise."),
    Message("user", ("And this: ", OTHER, "?")),
)


def test_images_stand_where_they_were_put(model: Model, url: str) -> None:
    reply = sdk(url).chat.completions.create(model="any", messages=TURNS, max_tokens=10, temperature=1, seed=3)  # type: ignore
    run = model.submit(Request(Chat(TALK), sampling=Sampling(temperature=1, seed=3, max_tokens=10)))
    assert reply.choices[0].message.content == "".join(e.text for e in run if isinstance(e, TextDelta))
    assert reply.usage.prompt_tokens_details.image_tokens == (9 + 17) * tiny.TOKENS  # type: ignore


def test_each_image_has_a_detail_of_its_own(url: str) -> None:
    content = [part(ONE, "low"), part(OTHER, "high"), part(ONE, "any"), text("?")]
    reply = sdk(url).chat.completions.create(model="any", messages=[{"role": "user", "content": content}], max_tokens=1)  # type: ignore
    assert reply.usage.prompt_tokens_details.image_tokens == (1 + 17 + 9) * tiny.TOKENS  # type: ignore


def test_a_detail_for_all_images_of_a_server(tmp_path: Path) -> None:
    with serving(hosting(tiny.open_model(tiny.write(tmp_path)), detail="low")) as address:
        content = [part(ONE, ""), part(OTHER, "high"), text("?")]
        messages: Any = [{"role": "user", "content": content}]
        usage = sdk(address).chat.completions.create(model="any", messages=messages, max_tokens=1).usage
        assert usage and usage.prompt_tokens_details
        assert usage.prompt_tokens_details.image_tokens == (1 + 17) * tiny.TOKENS  # type: ignore[attr-defined]


def test_too_many(url: str) -> None:
    content = [*[part(OTHER)] * 65, text("?")]
    reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (
        400, "too_many_images", "messages.0.content.64.image_url.url",
    )  # fmt: skip


def test_what_this_model_lacks(url: str) -> None:
    file = part(ONE)["image_url"]["url"]
    reply = httpx.post(f"{url}/v1/detect", json={"image_url": file, "object": "star"})
    assert reply.status_code >= 400 and "detect" in reply.text
    said = httpx.post(f"{url}/v1/caption", json={"image_url": file, "settings": {"max_tokens": 5}})
    assert said.status_code == 200 and said.json()["caption"]
