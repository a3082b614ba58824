"""Streaming text word by word while its tokens arrive."""

from collections.abc import Callable, Sequence

_CJK = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x2F800, 0x2FA1F))


def _ends_in_cjk(text: str) -> bool:
    return bool(text) and any(low <= ord(text[-1]) <= high for low, high in _CJK)


class TextStream:
    """Tokens in, pieces of text out.

    Words come whole with the space after them, lines with their end, CJK characters one by one; a
    character is never split. Text from the first stop string on is never given out, and what may
    yet become one is held back. The pieces together are the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []  # since the last line end
        self._passed = 0  # characters of their text that are words already
        self._held = ""  # whole words that may be the start of a stop string
        self._lines = 0  # characters up to the last line end
        self.chars_decoded = 0
        """how many characters the tokens so far became"""
        self.chars_emitted = 0
        """how many of them were returned by `push` and `finish`"""
        self.stopped = False
        """A stop string came: nothing more will be given out."""

    def push(self, token: int) -> str:
        """Add a token; the text that it completes, often none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        self.chars_decoded = self._lines + len(text.rstrip("\ufffd"))
        whole = text.endswith("\n") or _ends_in_cjk(text)
        end = len(text) if whole else max(text.rfind(" ") + 1, self._passed)
        # An unfinished character decodes to U+FFFD at the end: not yet text.
        piece = self._before_stop(self._held + text[self._passed : end], text[end:].rstrip("\ufffd"))
        self._passed = end
        if text.endswith("\n"):
            self._lines += len(text)
            self._ids.clear()
            self._passed = 0
        self.chars_emitted += len(piece)
        return piece

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        rest = self._held + self._decode(self._ids)[self._passed :]
        self._ids.clear()
        self._passed = 0
        piece = self._before_stop(rest, "") + self._held
        self._held = ""
        self.chars_emitted += len(piece)
        return piece

    def _before_stop(self, ready: str, pending: str) -> str:
        """The part of the whole words `ready` that no stop string begins in, with `pending` the text after them."""
        self._held = ""
        if self.stopped or not self._stop:
            return "" if self.stopped else ready
        text = ready + pending
        # The stop that ends first counts, so the result does not depend on how tokens split the text.
        found = min(((text.find(s) + len(s), text.find(s)) for s in self._stop if s in text), default=None)
        if found:
            self.stopped = True
            return text[: found[1]]
        longest = max(map(len, self._stop))
        for start in range(max(0, len(text) - longest + 1), len(ready)):
            if any(s.startswith(text[start:]) for s in self._stop):
                self._held = ready[start:]
                return ready[:start]
        return ready
