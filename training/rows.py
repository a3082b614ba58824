"""Sequences side by side in rows of one length."""

from collections.abc import Iterator, Sequence


def placed(lengths: Sequence[int], rows: int, row_length: int) -> Iterator[tuple[int, int, slice]]:
    """(which of them, row, positions there), longest first, each in the first row that has room; those without are
    left out."""
    filled = [0] * rows
    for which in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        n = lengths[which]
        row = next((r for r in range(rows) if filled[r] + n <= row_length), None)
        if row is not None:
            yield which, row, slice(filled[row], filled[row] + n)
            filled[row] += n
