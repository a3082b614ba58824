"""One pass of the decoder over several sequences, none of which sees another."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from galago.engine.kv_cache import KVCache
from galago.engine.step import Feed, StepOutput
from galago.errors import ContextLengthExceeded
from galago.kernels import KVBuffer
from galago.nn.attention import attend_cached
from galago.nn.passes import pieces


class Batch:
    """The rows of one pass: of each sequence some, which follow what its cache holds.

    The caches count them as kept when `advance` is called; a pass that failed before can be repeated.
    """

    def __init__(self, caches: Sequence[KVCache], counts: Sequence[int], device: torch.device) -> None:
        """Raises ContextLengthExceeded if they do not fit."""
        for cache, n in zip(caches, counts, strict=True):
            if n > cache.room:
                raise ContextLengthExceeded(f"{n} more tokens do not fit: {cache.room} positions are left")
            cache.reserve(n)
        self._caches, self._counts = caches, list(counts)
        self._starts = [cache.length for cache in caches]
        places = [torch.arange(begin, begin + n) for begin, n in zip(self._starts, counts, strict=True)]
        self.positions = torch.cat(places).to(device)
        """of each row, int64 [rows]"""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v [1, K, rows, d] to the caches; attention of q [1, H, rows, d] over each row's sequence."""
        rows = (part[0].split(self._counts, 1) for part in (q, k, v))
        parts = zip(self._caches, self._starts, *rows, strict=True)
        mixed = [attend_cached(q, cache.append(layer, k, v), begin) for cache, begin, q, k, v in parts]
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, 1)).unsqueeze(0)

    @property
    def kv_buffers(self) -> list[tuple[list[KVBuffer], int]]:
        """The buffers of each sequence's keys and values, and how many rows are its own, as a Stack takes them."""
        return [(cache.kv_buffers(), n) for cache, n in zip(self._caches, self._counts, strict=True)]

    def advance(self, rows: Tensor) -> Sequence[Tensor]:
        """Count the rows as kept; `rows`, their residual streams [rows, dim], split by sequence."""
        for cache, n in zip(self._caches, self._counts, strict=True):
            cache.advance(n)
        return rows.split(self._counts)


def forward_step(
    caches: Sequence[KVCache],
    feeds: Sequence[Feed],
    groups: Sequence[Hashable],
    hidden: Callable[[Sequence[KVCache], Sequence[Tensor]], Sequence[Tensor]],
    heads: Mapping[str, Callable[[Tensor], Tensor]],
    max_batch: int | None = None,
) -> list[StepOutput]:
    """Feed several sequences; those of equal `groups` go through the decoder together, at most `max_batch` at once.

    `hidden` maps caches and inputs to residual streams [n, dim], each of the `heads` rows [m, dim] of these to values.
    """
    together: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        together.setdefault(group, []).append(i)
    last: list[Tensor] = [torch.empty(0)] * len(feeds)
    for members in together.values():
        for part in _chunks(members, max_batch):
            found = hidden([caches[i] for i in part], [feeds[i].input for i in part])
            for i, rows in zip(part, found, strict=True):
                last[i] = rows[-1]
    read: list[dict[str, Tensor]] = [{} for _ in feeds]
    for name in {name: None for feed in feeds for name in feed.heads}:
        for part in _chunks([i for i, feed in enumerate(feeds) if name in feed.heads], max_batch):
            # Choices are made on the CPU: one copy for all sequences, and the step's time has what an accelerator took.
            values = heads[name](torch.stack([last[i] for i in part])).float().cpu()
            for i, value in zip(part, values, strict=True):
                read[i][name] = value
    return [StepOutput(rows, given, cache.room) for rows, given, cache in zip(last, read, caches, strict=True)]


def _chunks(members: list[int], max_batch: int | None) -> Iterator[list[int]]:
    """The members in lists of at most `max_batch`."""
    return (members[some.start : some.stop] for some in pieces(len(members), max_batch or len(members)))
