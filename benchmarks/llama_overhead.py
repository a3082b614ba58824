"""What Galago adds to an answer of llama-server: the same question through the backend, and asked directly, in turn.

    python benchmarks/llama_overhead.py ./SmolVLM-500M-Instruct-GGUF --image photo.jpg --tokens 64 --rounds 20

Both go to one llama-server, the one that Galago started, and both begin with the bytes of an image file: Galago's
public face opens them, the client that asks directly sends them in base64, with the same sampling. Both read a stream
to its end. Each answer is to a question and a picture of its own, so that nothing is found in a cache. Prints medians
in milliseconds, and the difference in milliseconds and as a share, of the medians and of the pairs.

With --again each question is asked twice and the second answer is timed, in which llama-server finds the picture that
it has seen; with --no-cache the client that asks directly keeps it from that.
"""

import argparse
import base64
import http.client
import io
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

import galago
from galago.backends.llama_server.process import HOST
from galago.backends.llama_server.requests import body_of

SIZE = 1024, 768


def draw_photo(seed: int) -> Image.Image:
    """A picture with slow changes of light, edges and noise, as photographs have them: some 150 kB as a JPEG."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width]
    light = np.stack(
        [120 + 80 * np.sin(x / 150), 100 + 60 * np.cos(y / 200 + x / 300), 90 + 70 * np.sin((x + y) / 250)]
    )
    light[:, (x // 170 + y // 130) % 3 == 0] *= 0.6
    noisy = light + np.random.default_rng(seed).normal(0, 14, light.shape)
    pixels = np.clip(noisy, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8))


def as_jpeg(image: Image.Image, number: int) -> bytes:
    """The file, with a corner that no other round's has."""
    image.paste((number % 256, 80, number // 256), (0, 0, 16, 16))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def ask_directly(server: Any, asked: dict[str, Any], question: str, file: bytes) -> int:
    """Tokens of a streamed answer, on a connection of its own as a client has it."""
    url = "data:image/jpeg;base64," + base64.b64encode(file).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = json.dumps(asked | {"messages": [{"role": "user", "content": content}]}).encode()
    connection = http.client.HTTPConnection(HOST, server.port)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    tokens = 0
    for line in response:
        if line.startswith(b"data: {"):
            usage = json.loads(line[6:]).get("usage")
            tokens = usage["completion_tokens"] if usage else tokens
    connection.close()
    return tokens


def ask_galago(model: galago.Model, question: str, file: bytes, settings: Any) -> int:
    *_, done = model.start(galago.Query(question), file, settings)
    assert isinstance(done, galago.Done)
    return done.usage.completion_tokens


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", help="a GGUF file with its projector beside it, or its folder")
    made.add_argument("--image", type=Path, help="default: a drawn one of 1024 x 768")
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--rounds", type=int, default=20)
    made.add_argument("--schema", action="store_true", help="letters under a JSON schema: for random weights")
    made.add_argument("--again", action="store_true", help="time the second question about each picture")
    made.add_argument("--no-cache", action="store_true", help="of the client that asks directly alone")
    args = made.parse_args()
    image = Image.open(args.image).convert("RGB") if args.image else draw_photo(1)
    settings: Any = {"max_tokens": args.tokens}
    if args.schema:
        settings["json_schema"] = {"type": "string", "pattern": f"^[a-h]{{{args.tokens - 2}}}$"}
    taken: dict[str, list[float]] = {"galago": [], "directly": []}
    with galago.load(args.model) as model:
        backend: Any = model.backend
        schema = json.dumps(settings["json_schema"]) if args.schema else None
        sampling = galago.Sampling(max_tokens=args.tokens, json_schema=schema)
        asked = json.loads(body_of(galago.Request(galago.Query("what?"), None, sampling), backend._model.vocabulary))
        del asked["timings_per_token"]
        asked["cache_prompt"] = not args.no_cache
        size = 0
        for i in range(args.rounds + 1):
            for j, way in enumerate(("galago", "directly") if i % 2 else ("directly", "galago")):
                file = as_jpeg(image, 2 * i + j)
                for _ in range(1 + args.again):
                    question = f"Question {i}.{j}: what is this?"
                    begin = time.perf_counter()
                    if way == "galago":
                        tokens = ask_galago(model, question, file, settings)
                    else:
                        tokens = ask_directly(backend._model.server, asked, question, file)
                    spent = (time.perf_counter() - begin) * 1000
                size = len(file)
                assert tokens >= args.tokens - 2, f"{way}: {tokens} tokens"
                if i:  # the first warms up
                    taken[way].append(spent)
        print(
            f"{model.kernels}, {os.cpu_count()} cores; {args.tokens} tokens, {args.rounds} rounds, {size} bytes of JPEG"
        )
    ours, direct = (statistics.median(taken[way]) for way in ("galago", "directly"))
    pairs = [a - b for a, b in zip(taken["galago"], taken["directly"], strict=True)]
    print(f"directly {direct:.1f} ms, by galago {ours:.1f} ms: {ours - direct:+.1f} ms, {(ours / direct - 1):+.1%}")
    paired = statistics.median(pairs)
    print(f"median of the pairs' differences {paired:+.1f} ms, {paired / direct:+.1%}")


if __name__ == "__main__":
    main()
