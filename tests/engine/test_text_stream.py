"""Text comes out word by word, never half a character, never what a stop string takes back."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galago.engine.text_stream import TextStream

# Few letters, so that stop strings occur; spaces and line ends; two-, three- and four-byte characters.
TEXT = st.text(alphabet="abc  \né東\u3400🙂\ufffd", max_size=40)
STOPS = st.lists(st.text(alphabet="abc \né🙂", min_size=1, max_size=4), max_size=3)


class Bytes:
    """A tokenizer whose tokens are pieces of bytes, cut anywhere."""

    def __init__(self, data: bytes, cuts: Sequence[int]) -> None:
        ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        self.pieces = [data[a:b] for a, b in pairwise(ends)]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Up to the stop string that is complete first; of several, the longest."""
    found = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    return text[: min(found)[1]] if found else text


def stream(tokens: Bytes, stops: Sequence[str]) -> list[str]:
    out = TextStream(tokens.decode, stops)
    pieces = []
    for token in range(len(tokens.pieces)):
        pieces.append(out.push(token))
        if out.stopped:
            break
    return [*pieces, out.finish()]


@given(st.binary(max_size=40), st.lists(st.integers(0, 40)))
def test_pieces_are_the_text(data: bytes, cuts: list[int]) -> None:
    tokens = Bytes(data, cuts)
    assert "".join(stream(tokens, ())) == data.decode("utf-8", "replace")


@given(TEXT, st.lists(st.integers(0, 160)), STOPS)
def test_ends_before_the_first_stop_however_tokens_split_it(text: str, cuts: list[int], stops: list[str]) -> None:
    assert "".join(stream(Bytes(text.encode(), cuts), stops)) == cut_at_stop(text, stops)


@given(TEXT, st.lists(st.integers(0, 160)), STOPS)
def test_nothing_given_out_is_taken_back(text: str, cuts: list[int], stops: list[str]) -> None:
    whole, given_out = cut_at_stop(text, stops), ""
    for piece in stream(Bytes(text.encode(), cuts), stops):
        given_out += piece
        assert whole.startswith(given_out)


@given(TEXT, st.lists(st.integers(0, 160)))
def test_pieces_end_where_a_word_does(text: str, cuts: list[int]) -> None:
    *pieces, _ = stream(Bytes(text.encode(), cuts), ())
    assert all(piece[-1] in " \n東\u3400" for piece in pieces if piece)


def words(text: str, stops: Sequence[str] = ()) -> list[str]:
    data = text.encode()
    return [piece for piece in stream(Bytes(data, range(len(data))), stops) if piece]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two\nthree", (), ["one ", "two\n", "three"]),
        ("one two STOP three", ("STOP",), ["one ", "two "]),
        # "two " may begin the stop, so it waits; it turns out not to.
        ("one two three", ("two four",), ["one ", "two ", "three"]),
        ("one two four", ("two four",), ["one "]),
        # The stop that is complete first wins, though another begins earlier.
        ("xabcx", ("abc", "b"), ["xa"]),
        ("xabcx", ("abc", "c"), ["x"]),
        ("", ("x",), []),
        ("x", ("x",), []),
    ],
)
def test_examples(text: str, stops: tuple[str, ...], expected: list[str]) -> None:
    assert words(text, stops) == expected


def test_says_that_it_stopped() -> None:
    out = TextStream("".join, ("b",))  # type: ignore[arg-type]
    assert out.push("a") == "" and not out.stopped  # type: ignore[arg-type]
    assert out.push("b") == "a" and out.stopped  # type: ignore[arg-type]
    assert out.finish() == ""
