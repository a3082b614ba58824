"""Ids that sort by time: a prefix, 48 bits of milliseconds since 1970 and 80 random ones, in 26 characters."""

import secrets
import threading

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, in lower case: its order is that of ASCII, and no two characters look alike."""
LENGTH = 26
RANDOM_BITS = 80


class IdSource:
    """Makes ids that are unique everywhere, each greater than those made here before, whatever the clock does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self, prefix: str, now: float) -> str:
        """An id for something made `now`, in seconds since 1970."""
        with self._lock:
            fresh = (int(now * 1000) << RANDOM_BITS) | secrets.randbits(RANDOM_BITS)
            same_or_earlier = fresh >> RANDOM_BITS <= self._last >> RANDOM_BITS
            # A random step, so that nobody guesses the next id from this one.
            self._last = self._last + 1 + secrets.randbits(64) if same_or_earlier else fresh
            number = self._last
        return prefix + "".join(ALPHABET[number >> 5 * i & 31] for i in reversed(range(LENGTH)))


def is_id(text: str, prefix: str) -> bool:
    return text.startswith(prefix) and len(text) == len(prefix) + LENGTH and set(text[len(prefix) :]) <= {*ALPHABET}
