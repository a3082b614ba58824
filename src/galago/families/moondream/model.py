"""A loaded Moondream2: the forward passes that the engine steps."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from galago.config_file import TEXT, members_of, one_of
from galago.engine.batch import Batch, stepped
from galago.engine.constraint import Constraint, vocabulary
from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import KVCache
from galago.engine.step import Feed, Look, Output, Prefix, Steps
from galago.errors import CheckpointError, InvalidRequest, quoted
from galago.families import work
from galago.families.family import Family, Outline
from galago.families.moondream.config import MoondreamConfig, make_config
from galago.families.moondream.image import Crops, make_crops, tiling_of
from galago.families.moondream.skills import skill_steps
from galago.families.moondream.text import BlockLora, decoder, embedded, logits_of
from galago.families.moondream.tokenizer import PROMPT_FAMILIES, decide_revision
from galago.families.moondream.vision import crop_passes, embedding_of
from galago.families.moondream.weights import FLOAT32, MoondreamWeights, load, load_lora, read, shapes, table
from galago.families.tokenizer import Tokenizer, load_tokenizer
from galago.kernels import place
from galago.media.clip import Clip
from galago.media.load import ONE_BY_ONE
from galago.media.picture import Picture
from galago.nn.attention import attention, store
from galago.nn.device import synchronize
from galago.nn.passes import Passes, finish, pieces
from galago.nn.rotary import rotary_table
from galago.nn.stack import exact_rows
from galago.packed_cache import described
from galago.precision import Precision
from galago.precision.packed import pack
from galago.request import Detail, Media, Request, Skill

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from galago.hub import Files

MAX_LORAS = 8
"""LoRA variants kept in memory; the one loaded first is dropped first."""
ONE_IMAGE = f"this model looks at one image, not at a clip; {ONE_BY_ONE}"


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
    def revision(self) -> str:
        return self.config.revision.name

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.precision.dtype

    @property
    def skills(self) -> frozenset[type[Skill]]:
        return frozenset(get_args(Skill))

    @property
    def video_sampling(self) -> None:
        """It looks at images only."""

    def skill(self, request: Request) -> Steps:
        """The steps of a request; see skills.skill_steps for what it raises."""
        return skill_steps(self, request)

    def constraint(self, json_schema: str) -> Constraint:
        """What holds a text to a schema. Raises InvalidRequest."""
        return Constraint(self._vocabulary, json_schema)

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        # Made when it is first needed: it takes a good part of a second.
        c = self.config
        return vocabulary(self.tokenizer.backend.to_str(), c.text.vocab_size, c.tokens.eos_id)

    def check_image(self, image: Media | None, variant: str | None) -> None:
        """Raise InvalidRequest unless the image is one to encode, or was encoded by this model and variant.

        Loads the variant if it is new, and raises CheckpointError if it does not fit.
        """
        self.lora(variant)
        if image is None or isinstance(image, Image.Image | Picture):
            return
        if isinstance(image, Clip):
            raise InvalidRequest(ONE_IMAGE, "image")
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
            if not inside or not os.path.isfile(file):
                raise InvalidRequest(f"no LoRA variant {quoted(variant)}", "variant")
            if len(self.loras) >= MAX_LORAS:
                self.loras.pop(next(iter(self.loras)), None)
            self.loras[variant] = load_lora(file, self.config, self.dtype, self.device)
        return self.loras[variant]

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values for each position."""
        t = self.config.text
        return 2 * t.n_layers * t.n_kv_heads * t.head_dim * self.precision.kv.itemsize

    @property
    def context(self) -> int:
        """Positions that a sequence may have at the most."""
        return self.config.text.max_context

    @property
    def crops_at_once(self) -> int:
        """Crops that one pass sees."""
        return work.crops_at_once(self.device)

    @property
    def rows_at_once(self) -> int:
        """Rows of a prompt in one pass."""
        t = self.config.text
        weights = t.n_layers * _block_size(t.dim, t.qkv_dim, t.ff_dim)
        return work.rows_at_once(weights, self.device, self.precision)

    def opening(self, shown: Image.Image | Picture | Clip, detail: Detail = "high") -> Prefix:
        """BOS and an image, which every question begins with."""
        if isinstance(shown, Clip):
            raise InvalidRequest(ONE_IMAGE, "image")
        return Prefix((Look(shown, detail),), self.config.prefix_len)

    def views(self, image: Image.Image, detail: Detail = "high") -> Crops:
        """What the vision tower sees of an image; may run in any thread."""
        return make_crops(image, self.config.vision, tiled=detail == "high")

    def see(self, pixels: np.ndarray) -> Passes[Tensor]:
        """Crops uint8 [n, crop, crop, 3], maybe of several images, to features [n, T, E], in pieces of bounded work."""
        c = self.config.vision
        rows = len(pixels) * c.n_tokens
        block = _block_size(c.enc_dim, 3 * c.enc_dim, c.enc_ff_dim)
        at_once = work.blocks_at_once(rows * block, self.device, self.precision)
        given = torch.from_numpy(pixels).to(self.device)
        return crop_passes(given, self.weights.vision, c, at_once, self.precision.kv)

    def embed_image(self, features: Tensor, views: Crops) -> Tensor:
        """All crops' features [n, T, E] to the image's embedding [T, D], in the type that keys and values have."""
        return embedding_of(features, views.tiling, self.weights.vision, self.config.vision).to(self.precision.kv)

    def prefix(self, prefix: Prefix, embeddings: Sequence[Tensor], variant: str | None = None) -> Passes[EncodedImage]:
        """Keys and values of BOS and an image, which look at each other in both directions."""
        (look,), (embedding,) = prefix.looks, embeddings
        c, t, w, kv = self.config, self.config.text, self.weights.text, self.precision.kv
        shape = (t.n_layers, t.n_kv_heads, c.prefix_len, t.head_dim)
        keys = torch.empty(shape, dtype=kv, device=self.device)
        values = torch.empty_like(keys)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store(k[0], keys[layer])
            store(v[0], values[layer])
            return attention(q, k, v, kv)

        bos = embedded(torch.tensor([c.tokens.bos_id], device=self.device), w, self.dtype)
        x = torch.cat((bos, embedding.to(self.dtype)))
        positions = torch.arange(c.prefix_len, device=self.device)
        table = rotary_table(positions, t.head_dim // 2)
        lora = self.lora(variant)
        stack = w.stack if w.stack and w.stack.by.has_attention and lora is None else None
        block = _block_size(t.dim, t.qkv_dim, t.ff_dim)
        at_once = work.blocks_at_once(c.prefix_len * block, self.device, self.precision)
        for blocks in pieces(t.n_layers, at_once):
            if blocks.start:
                yield
            if stack:
                stack.forward(x, [([place(keys, values, 0)], c.prefix_len)], table, together=True, blocks=blocks)
            else:
                x = decoder(x.unsqueeze(0), w, t, positions, attend, lora, blocks)[0]
        width, height = look.image.size
        rows, columns = tiling_of(height, width, c.vision) if look.detail == "high" else (1, 1)
        return EncodedImage(
            model=self.identity,
            variant=variant,
            k=keys,
            v=values,
            size=look.image.size,
            crops=1 if (rows, columns) == (1, 1) else 1 + rows * columns,
            image_tokens=c.vision.n_tokens,
        )

    @torch.inference_mode()
    def encode_image(self, image: Image.Image, variant: str | None = None, detail: Detail = "high") -> EncodedImage:
        """All of the above, now."""
        begin = time.perf_counter()
        views = self.views(image, detail)
        parts = range(0, len(views.pixels), self.crops_at_once)
        seen = [finish(self.see(views.pixels[i : i + self.crops_at_once])) for i in parts]
        embedding = self.embed_image(torch.cat(seen), views)
        synchronize(self.device)
        middle = time.perf_counter()
        encoded = finish(self.prefix(self.opening(image, detail), [embedding], variant))
        synchronize(self.device)
        return replace(encoded, encode_s=middle - begin, prefill_s=time.perf_counter() - middle)

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache:
        """A sequence over an encoded image, or an empty one."""
        t = self.config.text
        shape = (t.n_layers, t.n_kv_heads, t.head_dim)
        return KVCache(shape, t.max_context, self.precision.kv, self.device, encoded, variant)

    def hidden(self, cache: KVCache, tokens: Tensor) -> Tensor:
        """Put ids [n] or embeddings [n, dim] after the sequence; their residual stream [n, dim].

        Raises ContextLengthExceeded if they do not fit.
        """
        return self._hidden([cache], [tokens])[0]

    @torch.inference_mode()
    def _hidden(self, caches: Sequence[KVCache], tokens: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same for several sequences of one variant, which do not meet. A failed call can be repeated."""
        t, w = self.config.text, self.weights.text
        batch = Batch(caches, [len(given) for given in tokens], self.device)
        x = torch.cat([part if part.is_floating_point() else embedded(part, w, self.dtype) for part in tokens])
        lora = self.lora(caches[0].variant)
        if w.stack and lora is None:
            w.stack.forward(x, batch.places, rotary_table(batch.positions, t.head_dim // 2))
        else:
            x = decoder(x.unsqueeze(0), w, t, batch.positions, batch.attend, lora)[0]
        return batch.advance(x)

    @torch.inference_mode()
    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[Output]:
        """One step of several sequences. On a CPU none of it depends on what else is in the step."""
        groups = self._groups(caches, feeds)
        at_most = exact_rows(self.device, self.weights.text.stack)
        return stepped(caches, feeds, groups, self._hidden, lambda x: logits_of(x, self.weights.text), at_most)

    def _groups(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[object]:
        """Which feeds go through the decoder together: those of equal groups.

        Of one variant they must be. Where torch multiplies, the last bits of a row depend on how many there
        are, but for few; so there only single rows go together.
        """
        exact = self.weights.text.stack is not None
        groups: list[object] = []
        for i, (cache, feed) in enumerate(zip(caches, feeds, strict=True)):
            alone = len(feed.input) > 1 and not (exact and cache.variant is None)
            groups.append((cache.variant, i if alone else None))
        return groups


def _block_size(dim: int, qkv: int, inner: int) -> int:
    """Weights of a transformer block."""
    return dim * (qkv + dim + 2 * inner)


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
    config = members_of(files.config, "config.json")
    stated = revision or files.revision or config.take("revision", TEXT, None)
    decided = decide_revision(stated, config.take("prompt_family", one_of(*PROMPT_FAMILIES), None), tokenizer)
    return make_config(config.part("config"), decided)


def pack_moondream(files: "Files", bits: int, file: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write a checkpoint's packed form, see precision/packed.py. Raises CheckpointError."""
    config = config_of(files, load_tokenizer(files.tokenizer))
    about = described(files, config.revision.name)
    pack(lambda: read(files.weights, config), table(config), bits, file, about, progress)


def outline(files: "Files") -> Outline:
    """What the files say without the weights."""
    config = config_of(files, load_tokenizer(files.tokenizer))
    stored = {f"model.{name}": shape for name, shape in shapes(config).items()}
    exact = frozenset(f"model.{name}" for name in FLOAT32)
    t = config.text
    kv_values = 2 * t.n_layers * t.n_kv_heads * t.head_dim
    head, end = "model.text.lm_head.bias", config.tokens.eos_id
    return Outline(config.revision.name, stored, head, end, kv_values, t.max_context, exact)


FAMILY = Family(load_moondream, outline, pack_moondream)
