"""What Galago adds to an answer of llama-server: the same question through the backend, and asked directly, in turn.

    python benchmarks/llama_overhead.py ./SmolVLM-500M-Instruct-GGUF --image photo.jpg --tokens 64 --rounds 20

Both go to one llama-server, the one that Galago started, with the same body, streamed, read to their end. Each round
has another question, so that no answer is found in a cache. Prints medians in milliseconds, and the difference in
milliseconds and as a share.
"""

import argparse
import http.client
import json
import statistics
import time
from pathlib import Path

from PIL import Image

import galago
from galago.backends.llama_server.process import HOST
from galago.backends.llama_server.requests import body_of


def ask_directly(server: object, body: bytes) -> int:
    """Bytes of a streamed answer, on a connection of its own as a client has it."""
    connection = http.client.HTTPConnection(HOST, server.port)  # type: ignore[attr-defined]
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}  # type: ignore[attr-defined]
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    size = sum(len(line) for line in response)
    connection.close()
    return size


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", help="a GGUF file with its projector beside it, or its folder")
    made.add_argument("--image", type=Path, help="default: a grey one of 512 x 384")
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--rounds", type=int, default=20)
    made.add_argument("--schema", action="store_true", help="letters under a JSON schema: for random weights")
    args = made.parse_args()
    image = Image.open(args.image).convert("RGB") if args.image else Image.new("RGB", (512, 384), "grey")
    schema = json.dumps({"type": "string", "pattern": f"^[a-h]{{{args.tokens - 2}}}$"}) if args.schema else None
    sampling = galago.Sampling(max_tokens=args.tokens, json_schema=schema)
    taken: dict[str, list[float]] = {"galago": [], "directly": []}
    with galago.load(args.model) as model:
        loaded = model.backend._model  # type: ignore[attr-defined]
        for i in range(args.rounds + 1):
            order = ("galago", "directly") if i % 2 else ("directly", "galago")
            for j, way in enumerate(order):
                request = galago.Request(galago.Query(f"Question {i}.{j}: what is this?"), image, sampling)
                body = body_of(request, loaded.vocabulary) if way == "directly" else b""
                begin = time.perf_counter()
                if way == "galago":
                    done = list(model.submit(request))[-1]
                    assert isinstance(done, galago.Done)
                else:
                    ask_directly(loaded.server, body)
                if i:  # the first warms up
                    taken[way].append((time.perf_counter() - begin) * 1000)
        print(f"{model.kernels}; {args.tokens} tokens, {args.rounds} rounds")
    ours, direct = (statistics.median(taken[way]) for way in ("galago", "directly"))
    print(f"directly {direct:.1f} ms, by galago {ours:.1f} ms: {ours - direct:+.1f} ms, {(ours / direct - 1):+.1%}")


if __name__ == "__main__":
    main()
