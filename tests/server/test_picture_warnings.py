"""What of a picture could not be read is told beside the times of the reply, in every dialect."""

import base64
import io
import json
from typing import Any

import clips
import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from serving import ask

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8).repeat(8, 0).repeat(8, 1)
MARK = "the image is cut off: the mark at its end is missing"


def jpeg(cut: int = 0, **more: Any) -> str:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "JPEG", **more)
    data = out.getvalue()
    return "data:image/jpeg;base64," + base64.b64encode(data[: len(data) - cut]).decode()


def test_in_moondreams_api(http: httpx.Client) -> None:
    whole = http.post("/v1/caption", json={"image_url": jpeg()}).json()
    cut = http.post("/v1/caption", json={"image_url": jpeg(2)}).json()
    assert cut["caption"] == whole["caption"]
    assert cut["metrics"]["warnings"] == [MARK] and "warnings" not in whole["metrics"]
    found = http.post("/v1/detect", json={"image_url": jpeg(2), "object": "cat"}).json()
    assert found["metrics"]["warnings"] == [MARK]


def test_in_streams(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/caption", json={"image_url": jpeg(2), "stream": True}) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert events[-1]["metrics"]["warnings"] == [MARK]
    body = {"messages": ask("What?", jpeg(2)), "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    assert events[-1]["warnings"] == [MARK]


@pytest.mark.parametrize("n", [1, 2])
def test_in_openais_api(client: openai.OpenAI, n: int) -> None:
    asked: dict[str, Any] = {"model": "x", "max_tokens": 4, "n": n}
    reply: Any = client.chat.completions.create(messages=ask("What?", jpeg(2)), **asked)
    assert reply.warnings == [MARK]
    again: Any = client.chat.completions.create(messages=ask("What?", jpeg(2)), **asked)
    assert again.warnings == [MARK]  # though its encoding was kept
    whole: Any = client.chat.completions.create(messages=ask("What?", jpeg()), **asked)
    assert not hasattr(whole, "warnings") and whole.choices[0].message == reply.choices[0].message


def test_what_lacks_more_is_refused(http: httpx.Client) -> None:
    refused = http.post("/v1/caption", json={"image_url": jpeg(1000)})
    assert refused.status_code == 400 and "truncated" in refused.json()["error"]


def test_one_on_its_side_is_the_same_picture(http: httpx.Client) -> None:
    def found(pixels: np.ndarray, orientation: int) -> Any:
        told, out = Image.Exif(), io.BytesIO()
        told[274] = orientation
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", exif=told)
        url = "data:;base64," + base64.b64encode(out.getvalue()).decode()
        reply = http.post("/v1/point", json={"image_url": url, "object": "cat"})
        return reply.json()["points"]

    upright = found(PIXELS, 1)
    assert found(np.rot90(PIXELS), 6) == found(PIXELS[:, ::-1], 2) == found(np.rot90(PIXELS, 2), 3) == upright


def test_of_a_video(tmp_path: Any) -> None:
    import tiny_smolvlm as tiny
    from serving import hosting, serving

    data = clips.encoded(clips.pictures(60), "matroska", fps=10)
    url = "data:video/x-matroska;base64," + base64.b64encode(data[: len(data) * 2 // 3]).decode()
    content = [{"type": "text", "text": "What?"}, {"type": "video_url", "video_url": {"url": url}}]
    with serving(hosting(tiny.open_model(tiny.write(tmp_path)))) as address:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
        reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
    assert reply["warnings"] == ["the video is cut off or damaged; what can be read of it is used"], reply
