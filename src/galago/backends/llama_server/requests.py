"""A request as the body that llama-server's chat completions take."""

import base64
import io
import json
import secrets
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from PIL import Image

from galago.backends.conversation import messages_of
from galago.errors import ContextLengthExceeded, GenerationFailed, InvalidRequest, UnsupportedTask
from galago.media.clip import Clip
from galago.media.load import ONE_BY_ONE
from galago.media.picture import Picture
from galago.media.samples import to_rgb
from galago.request import Caption, Detail, Encoding, Media, Query, Request, Sampling

MAX_TOKENS = 512
"""Of an answer whose request has no limit."""
SIDES: dict[Detail, int] = {"high": 2048, "low": 512}
"""Pixels on the longer side of an image, at the most, by detail: no model of llama.cpp sees more of one."""
PENALISED = 8192
"""The last tokens that penalties look at: as many as a context has, since not every version takes -1 for all."""
HERE = secrets.token_hex(16)
"""Stands where an image goes. Nobody who writes a text knows it."""
RANDOM_SEED = 2**32 - 1
"""By which llama-server means that it draws one."""


@dataclass(frozen=True)
class Vocabulary:
    """What of a model's tokens a request is checked against."""

    size: int
    control: tuple[str, ...]
    """the texts of control tokens"""

    def without_control(self, text: str) -> str:
        """A user's text, in which nothing is read as a control token: a blank stands in those that it spells."""
        for token in self.control:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def check_request(request: Request, vocabulary: Vocabulary) -> None:
    """Raise UnsupportedTask or InvalidRequest for what llama-server cannot be asked."""
    skill = request.skill
    if request.variant is not None:
        raise UnsupportedTask("this model has no LoRA variants")
    if isinstance(skill, Query) and (skill.reasoning or skill.spatial_refs):
        raise UnsupportedTask(f"this model has no {'reasoning' if skill.reasoning else 'spatial references'}")
    if isinstance(skill, Caption) and request.image is None:
        raise InvalidRequest("this model needs an image", "image")
    for media in request.shown:
        if isinstance(media, Clip):
            raise UnsupportedTask(f"this model looks at images only; {ONE_BY_ONE}")
        if isinstance(media, Encoding):
            raise UnsupportedTask("this model does not encode images ahead of questions")
    if (highest := max(request.sampling.logit_bias, default=0)) >= vocabulary.size:
        what = f"logit_bias has the token {highest}; this model's are 0..{vocabulary.size - 1}"
        raise InvalidRequest(what, "logit_bias")


def body_of(request: Request, vocabulary: Vocabulary, *, cache: bool = True, as_stored: bool = True) -> bytes:
    """The body of a request. Raises InvalidImage for an image that is decoded, and damaged.

    With `cache` what an earlier prompt has in common with this one is not computed again. With `as_stored` image files
    that llama-server can read go as they are, which is a tenth of the bytes that it takes apart; others are decoded.
    """
    sides = iter([SIDES[request.detail_of(i)] for i in range(len(request.shown))])
    images: list[bytes] = []

    def part(given: "str | Media") -> dict[str, Any]:
        if isinstance(given, str):
            return {"type": "text", "text": vocabulary.without_control(given)}
        assert isinstance(given, Image.Image | Picture)
        images.append(_data_url(given, next(sides), as_stored))
        return {"type": "image_url", "image_url": {"url": HERE}}

    messages = [{"role": m.role, "content": [*map(part, m.parts)]} for m in messages_of(request.skill, request.image)]
    asked: dict[str, Any] = {
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        "cache_prompt": cache,
        "chat_template_kwargs": {"enable_thinking": False},
        **_sampling(request.sampling),
    }
    if request.top_logprobs is not None:
        asked |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    # Images are put in afterwards: they are megabytes, of which JSON would look at every letter.
    texts = map(str.encode, json.dumps(asked).split(HERE))
    return b"".join(piece for pair in zip_longest(texts, images, fillvalue=b"") for piece in pair)


def refusal(status: int, body: bytes) -> Exception:
    """The error for a request that llama-server answered with this status."""
    told: dict[str, Any] = {}
    try:
        told = json.loads(body)["error"]
        message = str(told["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")[:300]
    return refused(message, status, told)


def refused(message: str, status: int, told: dict[str, Any]) -> Exception:
    """The error for a message that came with this status."""
    if told.get("type") == "exceed_context_size_error":
        tokens, most = told.get("n_prompt_tokens", "more"), told.get("n_ctx", "fewer")
        return ContextLengthExceeded(f"the prompt has {tokens} tokens, {most} fit")
    if status == 400:
        param = "json_schema" if "schema" in message.lower() or "grammar" in message.lower() else "messages"
        return InvalidRequest(f"llama-server refused the request: {message}", param)
    return GenerationFailed(f"llama-server answered {status}: {message}")


def _data_url(media: "Image.Image | Picture", side: int, as_stored: bool) -> bytes:
    if as_stored and isinstance(media, Picture) and max(media.size) <= side and media.is_plain:
        return b"data:image/jpeg;base64," + base64.b64encode(media.data)  # it looks at the bytes, not at the type
    # Decoded here, since not every format, and no orientation, is known there. BMP costs little to write and read.
    image = to_rgb(media.limit_side(side).decode() if isinstance(media, Picture) else media)
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "BMP")
    return b"data:image/bmp;base64," + base64.b64encode(out.getvalue())


def _sampling(s: Sampling) -> dict[str, Any]:
    """All of it is said, since llama-server's own defaults are others."""
    asked: dict[str, Any] = {
        "temperature": s.temperature,
        "top_p": s.top_p,
        "min_p": s.min_p,
        "top_k": s.top_k or 0,
        "seed": RANDOM_SEED if s.seed is None else s.seed % RANDOM_SEED,
        "max_tokens": s.max_tokens or MAX_TOKENS,
        "repeat_penalty": s.repetition_penalty,
        "repeat_last_n": PENALISED,
        "presence_penalty": s.presence_penalty,
        "frequency_penalty": s.frequency_penalty,
    }
    if s.stop:
        asked["stop"] = list(s.stop)
    if s.logit_bias:
        asked["logit_bias"] = [[token, by] for token, by in s.logit_bias.items()]
    if s.json_schema is not None:
        schema = {"name": "answer", "schema": json.loads(s.json_schema)}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    return asked
