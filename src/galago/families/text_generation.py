"""Generating text token by token, for the skills of every family."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from galago.engine.constraint import Constraint
from galago.engine.sampling import FloatArray, Sampler, finite_logits
from galago.engine.step import End, Feed, Prefix, Start, StepOutput, StepResult, Steps
from galago.engine.text_stream import TextStream
from galago.engine.token_log import TokenLog
from galago.errors import InvalidRequest
from galago.families.text_model import TextModel
from galago.request import Encoding, Event, FinishReason, Request, TextDelta

FeedSteps = Generator[Start | Feed | Event, StepResult, StepOutput]
"""Steps that feed something and return the output of its last position."""


@dataclass(frozen=True)
class TextWriter:
    """The sampler, constraint and log of tokens of one text."""

    model: TextModel
    sampler: Sampler
    constraint: Constraint | None
    log: TokenLog | None


def writer_for(m: TextModel, request: Request) -> TextWriter:
    """What a request asks of its text. Raises InvalidRequest for a schema that text cannot be held to, and for a
    bias of a token that the model does not have.
    """
    sampling, top, vocabulary = request.sampling, request.top_logprobs, m.text_sizes.vocab_size
    if (highest := max(sampling.logit_bias, default=0)) >= vocabulary:
        raise InvalidRequest(f"logit_bias has the token {highest}; this model's are 0..{vocabulary - 1}", "logit_bias")
    constraint = None if sampling.json_schema is None else m.constraint(sampling.json_schema)
    return TextWriter(m, Sampler(sampling), constraint, None if top is None else TokenLog(m.tokenizer.spell, top))


def logits_without(out: StepOutput, ids: Sequence[int | None] = ()) -> FloatArray:
    """The logits [vocab] with those of these ids (None: no such id) set to -inf. Raises NotANumber."""
    logits = finite_logits(out.heads["logits"], "the next token")
    logits[[i for i in ids if i is not None]] = -np.inf
    return logits


def generate_text(
    w: TextWriter,
    out: StepOutput,
    limit: int,
    feed: Callable[[int], FeedSteps],
    banned: Sequence[int | None] = (),
    trim: bool = False,
) -> Generator[Start | Feed | Event, StepResult, tuple[FinishReason, int]]:
    """Generate at most `limit` tokens of text from `out` on; returns why it ended and how many there were.

    `feed` gives the steps that feed a token. `banned` ids may come first only; with `trim` blanks before the first
    word are left out. Text under a constraint ends whole where the limit has room for any end; where the limit
    changed it, the reason is "length" all the same.
    """
    sampler, constraint, log = w.sampler, w.constraint, w.log
    stream = TextStream(w.model.tokenizer.decode, sampler.sampling.stop)
    emitted = 0
    reason: FinishReason = "length"
    token = sampler.draw(logits_without(out), constraint, min(limit, out.room + 1))
    while True:
        if token == w.model.eos_id:
            reason = "stop"
            break
        emitted += 1
        if log:
            log.add(stream.chars_decoded, token, logits_without(out))
        piece = stream.push(token)
        if trim:
            piece = piece.lstrip()
            trim = not piece
        if piece:
            yield TextDelta(piece, log.pop_before(stream.chars_emitted) if log else ())
        if constraint and constraint.is_complete:
            reason = "stop"
            break
        if stream.stopped or emitted == limit or out.room == 0:
            break
        out = yield from feed(token)
        token = sampler.draw(logits_without(out, banned), constraint, min(limit - emitted, out.room + 1))
    if constraint and constraint.is_shortened:
        reason = "length"
    rest = stream.finish()
    piece, tokens = rest.lstrip() if trim else rest, log.pop_before(float("inf")) if log else ()
    if piece or tokens:
        yield TextDelta(piece, tokens)
    return "stop" if stream.stopped else reason, emitted


def text_steps(
    m: TextModel, request: Request, prefix: Prefix | Encoding | None, ids: Sequence[int], limit: int, room: int
) -> Steps:
    """Steps that generate at most `limit` tokens after a prefix and the prompt `ids`, which have `room` together.

    Blanks before the first word are left out. Raises InvalidRequest as `writer_for` does, before the first step.
    """
    writer, start = writer_for(m, request), Start(prefix, min(len(ids) + limit, room))

    def feed(*ids: int) -> FeedSteps:
        out = yield Feed(m.token_ids(ids))
        assert isinstance(out, StepOutput)
        return out

    def steps() -> Steps:
        yield start
        out = yield from feed(*ids)
        return End(*(yield from generate_text(writer, out, limit, feed, trim=True)))

    return steps()
