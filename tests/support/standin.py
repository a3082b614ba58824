"""A model of whole numbers for tests of the engine.

What it answers depends on every row that was fed, in their order, on all of the image, variant and detail, and on
nothing else: a row that is lost, doubled or another's changes the answer.
"""

import io
import json
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import CHUNK, KVCache
from galago.engine.step import End, Feed, ImageInput, Prefix, Start, StepOutput, Steps
from galago.media.picture import Picture, open_picture
from galago.nn.passes import Passes, finish
from galago.precision import pick_precision
from galago.request import Detail, Event, Query, Request, TextDelta

PRIME, VOCAB = 1_000_003, 97
LAYERS, PREFIX, TILE = 2, 5, 4
POSITION_BYTES = 2 * LAYERS * 8
PREFIX_BYTES = PREFIX * POSITION_BYTES
CPU = torch.device("cpu")

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """What a request does: feed a prompt, spell so many tokens."""

    prompt: int = 1
    steps: int = 1
    seed: int = 0
    """what the prompt is made of"""
    starts: str = "i"
    """sequences one after the other, over the image (i), the one just encoded (e), its mirror (m) or nothing (-)"""
    breaks: int | None = None
    """raises an error instead of this token"""
    before: int = 0
    """what stands around the images"""

    @property
    def tokens(self) -> list[int]:
        return [fold(self.seed, i) for i in range(self.prompt)]


def ask(plan: Plan, image: Any = None, **how: Any) -> Request:
    return Request(Query(json.dumps(asdict(plan))), image, **how)


def plan_of(request: Request) -> Plan:
    assert isinstance(request.skill, Query)
    return Plan(**json.loads(request.skill.question))


def picture(seed: int, tiles: int = 1) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (TILE, TILE * tiles, 3), np.uint8)
    return Image.fromarray(pixels)


def filed(image: Image.Image) -> Picture:
    """The same as the file of it."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return open_picture(out.getvalue())


def needs(plan: Plan, image: Any) -> int:
    """Bytes that must be set aside for it."""
    new = isinstance(image, Image.Image | Picture | list) and plan.starts[0] == "i"
    return (plan.prompt + plan.steps + CHUNK) * POSITION_BYTES + (PREFIX_BYTES if new else 0)


def prefix_of(shown: Any, detail: Detail, before: int = 0) -> Prefix:
    """Of one image, or of a list of them."""
    images = shown if isinstance(shown, list) else [shown]
    return Prefix(tuple(ImageInput(image, detail) for image in images), PREFIX, (before,))


def fold(a: int, b: int) -> int:
    return (a * 31 + b + 7) % PRIME


def folded(numbers: Iterable[int], begin: int = 1) -> list[int]:
    """Every number with all that came before it."""
    found = []
    for number in numbers:
        begin = fold(begin, number)
        found.append(begin)
    return found


def number(*parts: Any) -> int:
    return zlib.crc32(repr(parts).encode()) % PRIME


def output(seen: list[int], room: int, logits: bool = True) -> StepOutput:
    """What follows all these keys and values of the last layer."""
    digest = folded(seen)[-1]
    chosen = torch.nn.functional.one_hot(torch.tensor(digest % VOCAB), VOCAB).float()
    return StepOutput(torch.tensor([digest]), {"logits": chosen} if logits else {}, room)


class Standin:
    """Notes what it is asked, and lets a test step in before each answer: to look, to wait, or to raise an error."""

    name, identity, device = "standin", "standin@1", CPU
    precision = pick_precision("float32", CPU)
    kv_bytes, context, shares_prefixes = POSITION_BYTES, 10_000, True

    def __init__(self, rows_per_pass: int = 4, crops_per_pass: int = 2) -> None:
        self.rows_per_pass, self.crops_per_pass = rows_per_pass, crops_per_pass
        self.asked: list[tuple[str, Rows]] = []
        """the kind of call, and the rows of each sequence, or the digests of images or crops"""
        self.step_in: Callable[[str, Rows], None] = lambda kind, rows: None
        self._prefixes: list[weakref.ref[Tensor]] = []

    @property
    def prefix_bytes(self) -> int:
        """Bytes of all prefixes that are still in memory."""
        return sum(2 * k.nbytes for ref in self._prefixes if (k := ref()) is not None)

    def times(self, kind: str) -> int:
        return sum(asked == kind for asked, _ in self.asked)

    def skill(self, request: Request) -> Steps:
        return spell(request, plan_of(request))

    def image_prefix(self, shown: Any, detail: Detail = "high") -> Prefix:
        return prefix_of(shown, detail)

    def make_crops(self, image: Image.Image, detail: Detail = "high") -> Any:
        pixels = np.asarray(image.convert("RGB"))
        self._ask("make_crops", ((number(pixels.tobytes(), detail),),))
        tiles = np.stack(np.split(pixels, pixels.shape[1] // TILE, axis=1))
        return SimpleNamespace(pixels=tiles if detail == "high" else tiles.sum(0, dtype=np.uint8, keepdims=True))

    def encode_crops(self, pixels: np.ndarray) -> Passes[Tensor]:
        digests = [number(crop.tobytes()) for crop in pixels]
        self._ask("encode_crops", tuple((digest,) for digest in digests))
        for digest in digests:
            yield
            self._ask("crop", ((digest,),))
        return torch.tensor(digests).view(-1, 1)

    def embed_image(self, features: Tensor, crops: Any) -> Tensor:
        assert len(features) == len(crops.pixels)
        self._ask("embed", (tuple(features.flatten().tolist()),))
        return (features * 3 + len(features)) % PRIME

    def encode_prefix(
        self, prefix: Prefix, embeddings: Sequence[Tensor], variant: str | None = None
    ) -> Passes[EncodedImage]:
        sizes = [(image.image.size, image.detail) for image in prefix.images]
        numbers = [i for embedding in embeddings for i in embedding.flatten().tolist()]
        digest = folded(numbers, number(sizes, prefix.layout, variant))[-1]
        self._ask("prefix", ((digest,),))
        for _ in range(2):
            yield
            self._ask("fill", ((digest,),))
        n = prefix.positions
        k = torch.tensor(folded(range(LAYERS * n), digest)).view(LAYERS, 1, n, 1)
        self._prefixes.append(weakref.ref(k))
        return EncodedImage(self.identity, variant, k, k + 1, sizes[0][0], len(numbers), n - 1)

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache:
        self._ask("new", ())
        return KVCache((LAYERS, 1, 1), self.context, torch.int64, CPU, encoded, variant)

    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[StepOutput]:
        assert torch.is_inference_mode_enabled()
        fed = [feed.input.tolist() for feed in feeds]
        for cache, rows in zip(caches, fed, strict=True):
            cache.reserve(len(rows))
        seen: list[list[int]] = [[]] * len(fed)
        for layer in range(LAYERS):
            for i, (cache, rows) in enumerate(zip(caches, fed, strict=True)):
                new = torch.tensor(folded(seen[i])[-len(rows) :] if layer else rows).view(1, -1, 1)
                pieces = cache.append(layer, new, new + 1)
                keys, values = (torch.cat(part, 1).flatten().tolist() for part in zip(*pieces, strict=True))
                seen[i] = list(map(fold, keys, values))
        # In the middle of a step: keys are there, nothing is counted yet.
        self._ask("forward", tuple(map(tuple, fed)))
        for cache, rows in zip(caches, fed, strict=True):
            cache.advance(len(rows))
        return [
            output(s, cache.room, "logits" in feed.heads) for s, cache, feed in zip(seen, caches, feeds, strict=True)
        ]

    def _ask(self, kind: str, rows: Rows) -> None:
        self.asked.append((kind, rows))
        self.step_in(kind, rows)


def mirror(image: Any) -> Any:
    return image.mirror() if isinstance(image, Picture) else ImageOps.mirror(image)


def spell(request: Request, plan: Plan) -> Steps:
    encoded: Any = None
    for start in plan.starts:
        images = {"i": request.image, "e": encoded, "-": None}
        image = mirror(request.image) if start == "m" else images[start]
        given = image is None or isinstance(image, EncodedImage)
        prefix = image if given else prefix_of(image, request.detail, plan.before)
        encoded = yield Start(prefix, plan.prompt + plan.steps, request.variant)
        tokens = plan.tokens
        for i in range(plan.steps):
            out = yield Feed(torch.tensor(tokens))
            if i == plan.breaks:
                raise RuntimeError("a broken skill")
            assert isinstance(out, StepOutput) and out.logits is not None
            tokens = [int(out.logits.argmax())]
            yield TextDelta(f"{tokens[0]}:{int(out.hidden)}")
    return End("stop", len(plan.starts) * plan.steps)


def alone(request: Request) -> list[Event]:
    """The events of a request without an engine, a cache, or anyone beside it; none after an error."""
    model = Standin()
    steps, events = model.skill(request), list[Event]()
    answer: Any = None
    fed: list[int] = []
    while True:
        try:
            step = steps.send(answer)
        except (StopIteration, RuntimeError):
            return events
        answer = None
        if isinstance(step, Start):
            fed = []
            answer = encoded = step.prefix
            if isinstance(step.prefix, Prefix):
                answer = encoded = made(step.prefix, step.variant)
        elif isinstance(step, Feed):
            fed += step.input.tolist()
            layers: list[list[int]] = encoded.k.flatten(1).tolist() if encoded else [[]] * LAYERS
            keys = layers[0] + fed
            for layer in layers[1:]:
                keys = layer + folded([fold(k, k + 1) for k in keys])[-len(fed) :]
            answer = output([fold(k, k + 1) for k in keys], 0)
        else:
            events.append(step)


def encode(image: Image.Image, variant: str | None = None, detail: Detail = "high") -> EncodedImage:
    return made(prefix_of(image, detail), variant)


def decoded(image: Image.Image | Picture) -> Image.Image:
    return image.decode() if isinstance(image, Picture) else image


def made(prefix: Prefix, variant: str | None) -> EncodedImage:
    model = Standin()
    embeddings = []
    for image in prefix.images:
        crops = model.make_crops(decoded(image.image), image.detail)
        embeddings.append(model.embed_image(finish(model.encode_crops(crops.pixels)), crops))
    return replace(finish(model.encode_prefix(prefix, embeddings, variant)), encode_s=0.0)
