"""A model of the transformers library in memory, and how a request is carried out on it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedConfig, PreTrainedModel, StoppingCriteriaList
from transformers.processing_utils import ProcessorMixin

from galago.backends.queued import Prepared, Turn
from galago.backends.transformers.prompts import Kind, Prompt, read
from galago.backends.transformers.writer import Writer
from galago.engine.constraint import Constraint, vocabulary
from galago.engine.sampling import Sampler
from galago.engine.shortest_end import Vocabulary
from galago.engine.step import End
from galago.engine.token_log import TokenLog
from galago.errors import ContextLengthExceeded, InvalidRequest
from galago.families.tokenizer import Tokenizer
from galago.media.picture import Picture
from galago.media.samples import to_rgb
from galago.request import Request, Sampling

MAX_TOKENS = 512
"""Of an answer whose request has no limit."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How some vocabularies write a token of one byte."""
MAX_CONTEXT = 8192
"""Positions of a prompt and its answer, where a model would take more: their keys and values are reckoned with."""


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that is of what writes text."""
    return config.get_text_config(decoder=True)


def context_of(config: PreTrainedConfig) -> int:
    """Positions that a prompt and its answer may take."""
    own = getattr(text_config(config), "max_position_embeddings", None)
    return min(own, MAX_CONTEXT) if isinstance(own, int) else MAX_CONTEXT


def kv_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of the longest request."""
    c = text_config(config)
    heads, width = int(c.num_attention_heads), int(c.hidden_size)
    head = getattr(c, "head_dim", None) or width // heads
    kv_heads = getattr(c, "num_key_value_heads", None) or heads
    return 2 * int(c.num_hidden_layers) * int(kv_heads) * int(head) * context_of(config) * dtype.itemsize


@dataclass(frozen=True, eq=False)
class TransformersModel:
    """A model with its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin
    kind: Kind
    device: torch.device
    dtype: torch.dtype
    context: int

    def prepare(self, request: Request) -> Prepared:
        """Check a request. Raises InvalidRequest or UnsupportedTask."""
        self.check_bias(request.sampling)
        schema = request.sampling.json_schema
        constraint = None if schema is None else Constraint(self._vocabulary, schema)
        return Answer(self, request, self.kind.prompt(request), constraint)

    def check_bias(self, sampling: Sampling) -> None:
        """Raise InvalidRequest for a bias of a token that the model does not have."""
        size = self.vocabulary_size
        if (highest := max(sampling.logit_bias, default=0)) >= size:
            raise InvalidRequest(f"logit_bias has the token {highest}; this model's are 0..{size - 1}", "logit_bias")

    def write(self, turn: Turn, inputs: Any, request: Request, constraint: Constraint | None = None) -> End:
        """Answer a prompt, whose tensors these are, token by token."""
        turn.check()
        prompt_tokens = self.count(inputs)
        limit = self.limit(request, prompt_tokens[0])
        sampler, top = Sampler(request.sampling), request.top_logprobs
        log = None if top is None else TokenLog(self.spell, top)
        writer = Writer(turn, prompt_tokens, sampler, self.decode, self.ends, self.banned, limit, constraint, log)
        self.generate(inputs, limit, writer.is_ended, num_beams=1, logits_processor=[writer])
        return writer.end()

    def generate(self, inputs: Any, limit: int, is_ended: Callable[..., torch.Tensor], **settings: Any) -> torch.Tensor:
        """The ids [1, n] that the library generates, at most `limit` new ones; `is_ended` is called after each."""
        made: torch.Tensor = self.model.generate(
            **inputs.to(self.device, self.dtype),
            max_new_tokens=limit,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([is_ended]),
            **settings,
        )
        return made

    def count(self, inputs: Any) -> tuple[int, int]:
        """Positions of a prompt, and those of its images. Raises ContextLengthExceeded where no answer fits."""
        ids = inputs.get("input_ids")
        if ids is None:
            return 0, 0
        if ids.shape[1] >= self.context:
            raise ContextLengthExceeded(f"the prompt has {ids.shape[1]} tokens, {self.context - 1} fit")
        marks = [mark for mark in (getattr(self.model.config, "image_token_id", None),) if isinstance(mark, int)]
        return ids.shape[1], sum(int((ids == mark).sum()) for mark in marks)

    def limit(self, request: Request, taken: int) -> int:
        """Tokens that an answer may have."""
        # An encoder's prompt takes no positions of the decoder, whose first is that of the token that it begins with.
        room = self.context - (1 if self.model.config.is_encoder_decoder else taken)
        return min(request.sampling.max_tokens or MAX_TOKENS, room)

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer: what the checkpoint says in any of its files."""
        text = getattr(self.model.config, "text_config", None)
        said = [
            self.model.generation_config.eos_token_id,
            self.processor.tokenizer.eos_token_id,
            getattr(text, "sep_token_id", None) if self.model.config.model_type == "blip" else None,
        ]
        lists = [one if isinstance(one, list | tuple) else [one] for one in said]
        return frozenset(int(token) for some in lists for token in some if token is not None)

    @cached_property
    def banned(self) -> tuple[int, ...]:
        """Tokens that stand for no text: those of images, and rows that the tokenizer has no token for."""
        names = ("image_token_id", "video_token_id", "image_token_index")
        marks = {getattr(self.model.config, name, None) for name in names}
        size = self.vocabulary_size
        unknown = range(len(self.processor.tokenizer), size)
        return tuple(sorted({*unknown, *(m for m in marks if isinstance(m, int) and m < size)} - self.ends))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids somewhere in an answer: a blank before its first word is kept."""
        text = self._decode([*self._anchor, *ids])
        return text[len(self._decode(self._anchor)) :]

    def spell(self, token: int) -> tuple[str, bytes | None]:
        """The text and the bytes of a token; None for those of control tokens and of ids that no token has."""
        tokenizer = self.processor.tokenizer
        if isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel):
            return Tokenizer(tokenizer.backend_tokenizer).spell(token)
        text, name = self.decode([token]), tokenizer.convert_ids_to_tokens(token)
        data = bytes([int(name[3:5], 16)]) if name and BYTE.fullmatch(name) else text.encode()
        return text, data or None

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def _anchor(self) -> list[int]:
        """A token before others: where the first begins a text, some tokenizers leave its blank out."""
        return list(self.processor.tokenizer.encode("a", add_special_tokens=False))[-1:]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        backend = self.processor.tokenizer.backend_tokenizer
        return vocabulary(backend.to_str(), self.vocabulary_size, min(self.ends))


@dataclass(frozen=True, eq=False)
class Answer:
    """A request for a text."""

    m: TransformersModel
    request: Request
    prompt: Prompt
    constraint: Constraint | None

    def carry_out(self, turn: Turn) -> End:
        m = self.m
        inputs = read(m.processor, self.prompt, [decoded(media) for media in self.prompt.images])
        return m.write(turn, inputs, self.request, self.constraint)


def decoded(media: Any) -> Image.Image:
    image = media.decode() if isinstance(media, Picture) else media
    return to_rgb(image)
