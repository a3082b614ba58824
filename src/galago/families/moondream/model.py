"""A loaded Moondream2: the forward passes that the engine steps."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import KVCache
from galago.engine.step import Feed, Output, Steps
from galago.errors import CheckpointError, ContextLengthExceeded, InvalidRequest
from galago.families.moondream.config import MoondreamConfig, make_config
from galago.families.moondream.image import make_crops
from galago.families.moondream.skills import skill_steps
from galago.families.moondream.text import BlockLora, decoder, embedded, logits_of
from galago.families.moondream.tokenizer import Tokenizer, decide_revision, load_tokenizer
from galago.families.moondream.vision import image_embedding
from galago.families.moondream.weights import MoondreamWeights, load, load_lora, read, table
from galago.nn.attention import attend_cached, attention, store
from galago.nn.device import synchronize
from galago.nn.rotary import rotary_table
from galago.precision import Precision
from galago.precision.packed import pack
from galago.request import Detail, Encoding, Request

if TYPE_CHECKING:
    from galago.hub import Files

MAX_LORAS = 8
"""LoRA variants kept in memory; the one loaded first is dropped first."""


@dataclass(frozen=True, eq=False)
class Moondream:
    name: str
    identity: str
    """name and digest of checkpoint, revision, type and device: what an encoded image belongs to"""
    config: MoondreamConfig
    weights: MoondreamWeights
    tokenizer: Tokenizer
    device: torch.device
    precision: Precision
    variants: Path | None = None
    """the folder that variants are named in; without one a variant is a path to a file"""
    loras: dict[str, tuple[BlockLora, ...]] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.precision.dtype

    def skill(self, request: Request) -> Steps:
        """The steps of a request; see skills.skill_steps for what it raises."""
        return skill_steps(self, request)

    def check_image(self, image: Image.Image | Encoding | None, variant: str | None) -> None:
        """Raise InvalidRequest unless the image is one to encode, or was encoded by this model and variant.

        Loads the variant if it is new, and raises CheckpointError if it does not fit.
        """
        self.lora(variant)
        if image is None or isinstance(image, Image.Image):
            return
        if not isinstance(image, EncodedImage):
            raise InvalidRequest(f"an image must be a PIL image or an encoded one, not {type(image).__name__}", "image")
        if image.model != self.identity:
            raise InvalidRequest(f"the image was encoded by {image.model}, this is {self.identity}", "image")
        if image.variant != variant:
            raise InvalidRequest(f"the image was encoded with variant {image.variant}, not {variant}", "variant")

    def lora(self, variant: str | None) -> tuple[BlockLora, ...] | None:
        """The updates of a variant, read at its first use."""
        if variant is None:
            return None
        if variant not in self.loras:
            file = Path(variant) if self.variants is None else self.variants / variant
            inside = self.variants is None or file.resolve().is_relative_to(self.variants.resolve())
            if not inside or not file.is_file():
                raise InvalidRequest(f"no LoRA variant {variant!r}", "variant")
            if len(self.loras) >= MAX_LORAS:
                self.loras.pop(next(iter(self.loras)), None)
            self.loras[variant] = load_lora(file, self.config, self.dtype, self.device)
        return self.loras[variant]

    @torch.inference_mode()
    def encode_image(self, image: Image.Image, variant: str | None = None, detail: Detail = "high") -> EncodedImage:
        """Keys and values of BOS and the image, which look at each other in both directions."""
        begin = time.perf_counter()
        c, w = self.config, self.weights
        crops = make_crops(image, c.vision, tiled=detail == "high")
        pixels = torch.from_numpy(crops.pixels).to(self.device)
        kv = self.precision.kv
        seen = image_embedding(pixels, crops.tiling, w.vision, c.vision, kv)
        synchronize(self.device)
        encoded = time.perf_counter()

        shape = (c.text.n_layers, c.text.n_kv_heads, c.prefix_len, c.text.head_dim)
        keys = torch.empty(shape, dtype=kv, device=self.device)
        values = torch.empty_like(keys)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store(k[0], keys[layer])
            store(v[0], values[layer])
            return attention(q, k, v, kv)

        bos = embedded(torch.tensor([c.tokens.bos_id], device=self.device), w.text, self.dtype)
        x = torch.cat((bos, seen))
        positions = torch.arange(c.prefix_len, device=self.device)
        lora = self.lora(variant)
        if (stack := w.text.stack) and stack.by.has_attention and lora is None:
            place = (keys.data_ptr(), values.data_ptr(), 0, c.prefix_len)
            table = rotary_table(positions, c.text.head_dim // 2)
            stack.forward(x, [([place], c.prefix_len)], table, together=True)
        else:
            decoder(x.unsqueeze(0), w.text, c.text, positions, attend, lora)
        synchronize(self.device)
        return EncodedImage(
            model=self.identity,
            variant=variant,
            k=keys,
            v=values,
            size=image.size,
            crops=len(crops.pixels),
            image_tokens=c.vision.n_tokens,
            encode_s=encoded - begin,
            prefill_s=time.perf_counter() - encoded,
        )

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache:
        """A sequence over an encoded image, or an empty one."""
        t = self.config.text
        shape = (t.n_layers, t.n_kv_heads, t.head_dim)
        return KVCache(shape, t.max_context, self.precision.kv, self.device, encoded, variant)

    @torch.inference_mode()
    def hidden(self, cache: KVCache, tokens: Tensor) -> Tensor:
        """Put ids [n] or embeddings [n, dim] after the sequence; their residual stream [n, dim].

        Raises ContextLengthExceeded if they do not fit.
        """
        n, begin = len(tokens), cache.length
        if n > cache.room:
            raise ContextLengthExceeded(f"{n} more tokens do not fit: {cache.room} positions are left")
        x = tokens if tokens.is_floating_point() else embedded(tokens, self.weights.text, self.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_cached(q[0], cache.append(layer, k[0], v[0]), begin).unsqueeze(0)

        t = self.config.text
        positions = torch.arange(begin, begin + n, device=self.device)
        lora = self.lora(cache.variant)
        cache.reserve(n)
        if (stack := self.weights.text.stack) and lora is None:
            out = stack.forward(x, [(cache.places(), n)], rotary_table(positions, t.head_dim // 2))
        else:
            out = decoder(x.unsqueeze(0), self.weights.text, t, positions, attend, lora)[0]
        cache.advance(n)
        return out

    @torch.inference_mode()
    def forward(self, cache: KVCache, feed: Feed) -> Output:
        """One step of one sequence."""
        last = self.hidden(cache, feed.input)[-1]
        logits = logits_of(last, self.weights.text).float() if feed.logits else None
        return Output(last, logits, cache.room)


def load_moondream(
    files: "Files",
    *,
    precision: Precision,
    device: torch.device,
    revision: str | None = None,
    variants: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Moondream:
    """Read a checkpoint; the caller's revision goes before the catalogue's and config.json's.

    `variants` is the folder of LoRA files; `progress` is told how many of how many tensors are loaded.
    Raises CheckpointError.
    """
    tokenizer = load_tokenizer(files.tokenizer)
    config = config_of(files, tokenizer, revision)
    vocab = tokenizer.backend.get_vocab_size()
    if vocab > config.text.vocab_size:
        raise CheckpointError(f"tokenizer.json has {vocab} tokens, the model {config.text.vocab_size}")
    weights = load(files.weights, config, precision, device, progress)
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files.weights]
    digest = hashlib.sha256(repr((stats, config.revision, precision, device)).encode()).hexdigest()
    return Moondream(
        name=files.name,
        identity=f"{files.name}@{digest[:12]}",
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        variants=variants,
    )


def config_of(files: "Files", tokenizer: Tokenizer, revision: str | None = None) -> MoondreamConfig:
    """What the files say of the model, or the caller of its revision."""
    stated = revision or files.revision or files.config.get("revision")
    decided = decide_revision(stated, files.config.get("prompt_family"), tokenizer)
    return make_config(files.config.get("config") or {}, decided)


def pack_moondream(
    files: "Files", bits: int, file: Path, progress: Callable[[int, int], None] | None = None
) -> MoondreamConfig:
    """Write a checkpoint's packed form, see precision/packed.py; the model's config. Raises CheckpointError."""
    config = config_of(files, load_tokenizer(files.tokenizer))
    about = {"format": "pt", "galago.model": files.name, "galago.revision": config.revision.name}
    pack(lambda: read(files.weights, config), table(config), bits, file, about, progress)
    return config
