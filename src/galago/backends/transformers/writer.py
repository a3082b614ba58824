"""Drawing an answer token by token while the library generates it.

It calls a LogitsProcessor with the logits of each token. This one draws by the rules of our own engine, so that a
seed, a schema or a stop means the same with every backend, and leaves the library the one token that was drawn.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from galago.backends.queued import Turn
from galago.engine.constraint import Constraint
from galago.engine.sampling import FloatArray, Sampler
from galago.engine.step import End
from galago.engine.text_stream import TextStream
from galago.engine.token_log import TokenLog
from galago.errors import NotANumber
from galago.request import FinishReason, TextDelta


class Writer(LogitsProcessor):
    """One answer of at most `limit` tokens, given to a turn as text."""

    def __init__(
        self,
        turn: Turn,
        prompt_tokens: tuple[int, int],
        sampler: Sampler,
        decode: Callable[[Sequence[int]], str],
        ends: Collection[int],
        banned: Sequence[int],
        limit: int,
        constraint: Constraint | None = None,
        log: TokenLog | None = None,
    ) -> None:
        """`prompt_tokens` are all, and those of images; `ends` are tokens after which nothing comes."""
        self._turn, self._prompt_tokens, self._limit = turn, prompt_tokens, limit
        self._sampler, self._constraint, self._log = sampler, constraint, log
        self._ends, self._banned = ends, list(banned)
        self._stream = TextStream(decode, sampler.sampling.stop)
        self._is_blank = True
        self._reason: FinishReason | None = None
        self._count = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [1, V] to those that leave the drawn token alone."""
        token = self._next(scores[0])
        drawn = torch.full_like(scores, -torch.inf)
        drawn[0, token] = 0
        return drawn

    def is_ended(self, input_ids: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
        """Whether nothing comes after the last token; the library asks after each."""
        return torch.tensor([self._reason is not None], device=input_ids.device)

    def end(self) -> End:
        """Give out the rest of the text."""
        self._emit(self._stream.finish(), last=True)
        reason = self._reason or "length"
        if self._constraint and self._constraint.is_shortened:
            reason = "length"
        return End("stop" if self._stream.stopped else reason, self._count)

    def _next(self, row: torch.Tensor) -> int:
        if not self._count:
            self._turn.begin_answer(*self._prompt_tokens)
        self._turn.check()
        logits: FloatArray = row.float().cpu().numpy().copy()
        # Minus infinity is what the checkpoint's own rules have banned.
        if np.isnan(logits).any() or logits.max() in (np.inf, -np.inf):
            raise NotANumber("the next token")
        logits[self._banned] = -np.inf
        before = logits.copy()
        token = self._sampler.draw(logits, self._constraint, self._limit - self._count)
        if token in self._ends:
            # Some models are forced to end at the limit.
            forced = self._count + 1 == self._limit and int((before > -np.inf).sum()) == 1
            self._reason = "length" if forced else "stop"
            return token
        self._count += 1
        self._turn.count_token()
        if self._log:
            self._log.add(self._stream.chars_decoded, token, before)
        self._emit(self._stream.push(token))
        if self._stream.stopped or (self._constraint and self._constraint.is_complete):
            self._reason = "stop"
        elif self._count == self._limit:
            self._reason = "length"
        return token

    def _emit(self, piece: str, last: bool = False) -> None:
        """Give out a piece of the text, without blanks before its first word."""
        if self._is_blank:
            piece = piece.lstrip()
            self._is_blank = not piece
        end = float("inf") if last else self._stream.chars_emitted
        tokens = self._log.pop_before(end) if self._log and (piece or last) else ()
        if piece or tokens:
            self._turn.emit(TextDelta(piece, tokens))
