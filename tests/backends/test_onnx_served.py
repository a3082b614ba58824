"""Models of ONNX graphs behind the server, asked by the clients that people have."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
import tiny_smolvlm
from PIL import Image
from serving import sdk, serving

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

EYES, TALK = "eyes-float32-onnx", "talk-float32-onnx"
"""What the server calls the graphs of Moondream and of SmolVLM."""


def encoded(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


PICTURES = [encoded(tiny_smolvlm.picture(i)) for i in range(2)]
URLS = [f"data:image/png;base64,{picture}" for picture in PICTURES]


@pytest.fixture(scope="module")
def url(moondream: tuple[Path, Path], smolvlm: tuple[Path, Path]) -> Iterator[str]:
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=(str(moondream[1]), str(smolvlm[1]))))) as address:
        yield address


def ask(text: str, *urls: str) -> Any:
    images = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


@pytest.mark.parametrize(("model", "shown"), [(EYES, 1), (TALK, 2)])
def test_openai_whole_streamed_and_seeded(url: str, model: str, shown: int) -> None:
    settings: Any = {"model": model, "messages": ask("what?", *URLS[:shown]), "max_tokens": 12, "temperature": 1.0}
    create = sdk(url).chat.completions.create
    whole = create(**settings, seed=5)
    chunks = list(create(**settings, seed=5, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert create(**settings, seed=6).choices[0].message.content != text


def test_a_skill_that_is_lacking(url: str) -> None:
    body = {"image_url": URLS[0], "object": "cat"}
    refused = httpx.post(f"{url}/v1/detect", json=body | {"model": TALK})
    assert refused.status_code == 501 and "it can caption" in refused.text
    assert httpx.post(f"{url}/v1/detect", json=body | {"model": EYES}).status_code == 200
    with pytest.raises(openai.APIStatusError, match="takes one image"):
        sdk(url).chat.completions.create(model=EYES, messages=ask("what?", *URLS))


def test_ollama(url: str) -> None:
    client, options = ollama.Client(url), {"num_predict": 8, "temperature": 1.0, "seed": 3}
    message = {"role": "user", "content": "what is this?", "images": PICTURES[:1]}
    whole = client.chat(TALK, [message], options=options)
    pieces = list(client.chat(TALK, [message], options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content != ""
    assert {model.details.format for model in client.list().models if model.details} == {"onnx"}
