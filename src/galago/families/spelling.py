"""Writing text token by token, for the skills of every family."""

from collections.abc import Callable, Generator, Sequence

import numpy as np

from galago.engine.constraint import Constraint
from galago.engine.encoded_image import EncodedImage
from galago.engine.sampling import Row, Sampler, numbers
from galago.engine.step import Feed, Output, Start
from galago.engine.text_stream import TextStream
from galago.engine.token_log import TokenLog
from galago.families.tokenizer import Tokenizer
from galago.request import Event, FinishReason, TextDelta

Answer = EncodedImage | Output | None
Fed = Generator[Start | Feed | Event, Answer, Output]
"""Steps that feed something and return what it gave."""


def logits_without(out: Output, ids: Sequence[int | None] = ()) -> Row:
    """The logits [vocab], where these ids (None: no such) cannot be chosen. Raises NotANumber."""
    assert out.logits is not None
    logits = numbers(out.logits, "the next token")
    logits[[i for i in ids if i is not None]] = -np.inf
    return logits


def spell(
    out: Output,
    tokenizer: Tokenizer,
    eos: int,
    sampler: Sampler,
    limit: int,
    feed: Callable[[int], Fed],
    constraint: Constraint | None = None,
    log: TokenLog | None = None,
    banned: Sequence[int | None] = (),
    trim: bool = False,
) -> Generator[Start | Feed | Event, Answer, tuple[FinishReason, int]]:
    """Text after what `out` came from, at most `limit` tokens; why it ended, and how many there were.

    `feed` gives the steps that put a token after the sequence. `banned` ids may come first only;
    with `trim` blanks before the first word are left out.
    """
    stream = TextStream(tokenizer.decode, sampler.sampling.stop)
    emitted = 0
    reason: FinishReason = "length"
    token = sampler.draw(logits_without(out), constraint)
    while True:
        if token == eos:
            reason = "stop"
            break
        emitted += 1
        if log:
            log.add(stream.seen, token, logits_without(out))
        piece = stream.push(token)
        if trim:
            piece = piece.lstrip()
            trim = not piece
        if piece:
            yield TextDelta(piece, log.before(stream.given) if log else ())
        if constraint and constraint.complete:
            reason = "stop"
            break
        if stream.stopped or emitted == limit or out.room == 0:
            break
        out = yield from feed(token)
        token = sampler.draw(logits_without(out, banned), constraint)
    rest = stream.finish()
    piece, told = rest.lstrip() if trim else rest, log.before(float("inf")) if log else ()
    if piece or told:
        yield TextDelta(piece, told)
    return "stop" if stream.stopped else reason, emitted
