"""A loaded SmolVLM: the forward passes that the engine steps."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from galago.engine.batch import Batch, stepped
from galago.engine.constraint import Constraint, vocabulary
from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import KVCache
from galago.engine.step import Feed, Output, Prefix, Steps
from galago.errors import CheckpointError, ContextLengthExceeded, InvalidRequest
from galago.families import work
from galago.families.family import Family, Outline
from galago.families.smolvlm import prompts
from galago.families.smolvlm.config import SmolVLMConfig, make_config
from galago.families.smolvlm.image import Frames, make_frames
from galago.families.smolvlm.skills import skill_steps
from galago.families.smolvlm.text import decoder, embedded, logits_of
from galago.families.smolvlm.vision import frame_passes, projected
from galago.families.smolvlm.weights import HEAD, SmolVLMWeights, load, read, sources, table
from galago.families.tokenizer import Tokenizer, load_tokenizer
from galago.kernels import place
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.media.timeline import FrameSampling
from galago.nn.attention import attend_cached, store
from galago.nn.passes import Passes, pieces
from galago.nn.rotary import rotary_table
from galago.nn.stack import exact_rows
from galago.nn.vit import normalise
from galago.packed_cache import described
from galago.precision import Precision
from galago.precision.packed import pack
from galago.request import Caption, Chat, Detail, Encode, Media, Query, Request, Skill

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from galago.hub import Files


@dataclass(frozen=True, eq=False)
class SmolVLM:
    name: str
    identity: str
    """name and digest of checkpoint, preprocessing, type and device: what an encoded image belongs to"""
    config: SmolVLMConfig
    weights: SmolVLMWeights
    tokenizer: Tokenizer
    eos_id: int
    device: torch.device
    precision: Precision

    @property
    def revision(self) -> str:
        return self.config.name

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.precision.dtype

    @property
    def skills(self) -> frozenset[type[Skill]]:
        return frozenset({Caption, Query, Chat, Encode})

    @property
    def video_sampling(self) -> FrameSampling | None:
        """Which frames of a video it was trained to look at; None where it looks at images only."""
        return self.config.image.video

    def skill(self, request: Request) -> Steps:
        """The steps of a request; see skills.skill_steps for what it raises."""
        return skill_steps(self, request)

    def constraint(self, json_schema: str) -> Constraint:
        """What holds a text to a schema. Raises InvalidRequest."""
        return Constraint(self._vocabulary, json_schema)

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        # Made when it is first needed: it takes a good part of a second.
        return vocabulary(self.tokenizer.backend.to_str(), self.config.text.vocab_size, self.eos_id)

    def check(self, shown: Media) -> None:
        """Raise InvalidRequest unless this is something to look at, or was encoded by this model."""
        if isinstance(shown, Image.Image | Picture | Clip):
            return
        if not isinstance(shown, EncodedImage):
            what = type(shown).__name__
            raise InvalidRequest(f"an image must be a PIL image, a clip or an encoded one, not {what}", "image")
        if shown.model != self.identity:
            raise InvalidRequest(f"the image was encoded by {shown.model}, this is {self.identity}", "image")

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values for each position."""
        t = self.config.text
        return 2 * t.n_layers * t.kv_dim * self.precision.kv.itemsize

    @property
    def context(self) -> int:
        """Positions that a sequence may have at the most."""
        return self.config.text.max_context

    @property
    def crops_at_once(self) -> int:
        """Frames that one pass sees."""
        return work.crops_at_once(self.device)

    @property
    def rows_at_once(self) -> int:
        """Rows of a prompt in one pass."""
        t = self.config.text
        block = t.dim * (2 * t.q_dim + 2 * t.kv_dim + 3 * t.ff_dim)
        return work.rows_at_once(t.n_layers * block, self.device, self.precision)

    def opening(self, shown: Image.Image | Picture | Clip, detail: Detail = "high") -> Prefix:
        """What a conversation begins with whose first turn begins with this. Raises ContextLengthExceeded."""
        prefix = prompts.opening(self.config, self.tokenizer, shown, detail)
        if prefix.positions > self.config.text.max_context:
            fit = self.config.text.max_context
            raise ContextLengthExceeded(f"the images take {prefix.positions} tokens, {fit} fit", "image")
        return prefix

    def views(self, image: Image.Image, detail: Detail = "high") -> Frames:
        """What the vision tower sees of an image; may run in any thread."""
        c = self.config.image
        return make_frames(image, c, split=c.split and detail == "high")

    def see(self, pixels: np.ndarray) -> Passes[Tensor]:
        """Frames uint8 [n, side, side, 3], maybe of several images, to embeddings [n, T, D]."""
        c, w = self.config.vision, self.weights.vision
        block = c.dim * (4 * c.dim + 2 * c.ff_dim)
        at_once = work.blocks_at_once(len(pixels) * c.grid**2 * block, self.device, self.precision)
        frames = normalise(torch.from_numpy(pixels).to(self.device))
        return projected((yield from frame_passes(frames, w, c, at_once, self.precision.kv)), w, c)

    def embed_image(self, features: Tensor, views: Frames) -> Tensor:
        """All frames' embeddings [n, T, D] to the image's [n * T, D], in the type that keys and values have."""
        return features.flatten(0, 1).to(self.precision.kv)

    def prefix(self, prefix: Prefix, embeddings: Sequence[Tensor], variant: str | None = None) -> Passes[EncodedImage]:
        """Keys and values of a conversation as far as its last image, so many rows in each piece."""
        c, t, w, kv = self.config, self.config.text, self.weights.text, self.precision.kv
        ids = torch.tensor(prefix.plan, device=self.device)
        seen = torch.cat([embedding.to(self.device, self.dtype) for embedding in embeddings])
        places = (ids == c.image_id).nonzero().flatten()
        if len(places) != len(seen):
            raise ValueError(f"the images have {len(seen)} tokens, the prompt has places for {len(places)}")
        x = embedded(ids, w, self.dtype).index_copy(0, places, seen)
        keys = torch.empty(t.n_layers, t.n_kv_heads, len(ids), t.head_dim, dtype=kv, device=self.device)
        values = torch.empty_like(keys)
        for rows in pieces(len(ids), self.rows_at_once):
            if rows.start:
                yield
            begin, end = rows.start, rows.stop
            positions = torch.arange(begin, end, device=self.device)
            if w.stack:
                turns, kept = rotary_table(positions, t.head_dim, t.theta), place(keys, values, begin)
                w.stack.forward(x[begin:end], [([kept], end - begin)], turns, eps=t.eps)
                continue

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, begin: int = begin, end: int = end) -> Tensor:
                store(k[0], keys[layer, :, begin:end])
                store(v[0], values[layer, :, begin:end])
                return attend_cached(q[0], [(keys[layer, :, :end], values[layer, :, :end])], begin).unsqueeze(0)

            decoder(x[None, begin:end], w, t, positions, attend)
        return EncodedImage(
            model=self.identity,
            variant=variant,
            k=keys,
            v=values,
            size=prefix.looks[0].image.size,
            crops=len(seen) // c.vision.n_tokens,
            image_tokens=len(seen),
        )

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache:
        """A sequence after this prefix, or an empty one."""
        t = self.config.text
        shape = (t.n_layers, t.n_kv_heads, t.head_dim)
        return KVCache(shape, t.max_context, self.precision.kv, self.device, encoded, variant)

    @torch.inference_mode()
    def _hidden(self, caches: Sequence[KVCache], tokens: Sequence[Tensor]) -> Sequence[Tensor]:
        """Put ids [n] after each sequence; their residual streams [n, dim]. A failed call can be repeated."""
        t, w = self.config.text, self.weights.text
        batch = Batch(caches, [len(given) for given in tokens], self.device)
        x = embedded(torch.cat(list(tokens)), w, self.dtype)
        if w.stack:
            w.stack.forward(x, batch.places, rotary_table(batch.positions, t.head_dim, t.theta), eps=t.eps)
        else:
            x = decoder(x[None], w, t, batch.positions, batch.attend)[0]
        return batch.advance(x)

    @torch.inference_mode()
    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[Output]:
        """One step of several sequences. On a CPU none of it depends on what else is in the step."""
        # Where torch multiplies, the last bits of a row depend on how many there are, but for few.
        exact = self.weights.text.stack is not None
        groups = [i if len(feed.input) > 1 and not exact else None for i, feed in enumerate(feeds)]
        w, t, at_most = self.weights.text, self.config.text, exact_rows(self.device, self.weights.text.stack)
        return stepped(caches, feeds, groups, self._hidden, lambda x: logits_of(x, w, t), at_most)


def load_smolvlm(
    files: "Files",
    *,
    precision: Precision,
    device: torch.device,
    revision: str | None = None,
    variants: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SmolVLM:
    """Read a checkpoint, whose files tell what it is; there are no variants.

    `progress` is told how many of how many tensors are loaded. Raises CheckpointError, and InvalidRequest for
    another revision than the checkpoint's.
    """
    config = config_of(files)
    if revision not in (None, config.name):
        raise InvalidRequest(f"{files.name} is of the revision {config.name}, not {revision}", "revision")
    tokenizer = load_tokenizer(files.tokenizer, control=r"<[^<>\s]+>")
    vocab = tokenizer.backend.get_vocab_size()
    if vocab > config.text.vocab_size:
        raise CheckpointError(f"tokenizer.json has {vocab} tokens, the model {config.text.vocab_size}")
    _, eos_id, _, image_id = (_known(tokenizer, n) for n in (prompts.START, prompts.END, prompts.AROUND, prompts.IMAGE))
    if image_id != config.image_id:
        raise CheckpointError(f"config.json: image_token_id is {config.image_id}, in tokenizer.json it is {image_id}")
    weights = load(files.weights, config, precision, device, progress)
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files.weights]
    digest = hashlib.sha256(repr((stats, config, precision, device)).encode()).hexdigest()
    return SmolVLM(
        name=files.name,
        identity=f"{files.name}@{digest[:12]}",
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        eos_id=eos_id,
        device=device,
        precision=precision,
    )


def _known(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.backend.token_to_id(name)
    if found is None:
        raise CheckpointError(f"tokenizer.json has no {name}")
    return int(found)


def config_of(files: "Files") -> SmolVLMConfig:
    """What the files say of the model. Raises CheckpointError."""
    return make_config(files.config, files.preprocessor, files.video)


def pack_smolvlm(files: "Files", bits: int, file: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write a checkpoint's packed form, see precision/packed.py. Raises CheckpointError."""
    config = config_of(files)
    about = described(files, config.name)
    pack(lambda: read(files.weights, config), table(config), bits, file, about, progress)


def outline(files: "Files") -> Outline:
    """What the files say without the weights."""
    config, tokenizer = config_of(files), load_tokenizer(files.tokenizer)
    stored = {source.name: source.shape for source in sources(config)}
    t = config.text
    return Outline(config.name, stored, HEAD, _known(tokenizer, prompts.END), 2 * t.n_layers * t.kv_dim, t.max_context)


FAMILY = Family(load_smolvlm, outline, pack_smolvlm)
