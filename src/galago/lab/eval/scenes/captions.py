"""A small grammar of captions for drawn scenes: writing them, reading them, comparing them.

A fact is a tuple of strings, its first item the tag:
('things', count, colour, name), ('word', text, ink), ('background', colour),
('place', size, colour, name, where) or, for what could not be read, ('unread', piece).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from galago.lab.eval.scenes.ranges import BACKGROUNDS, MORE_COLORS, MORE_SHAPES
from galago.lab.eval.scenes.things import Scene, SceneObject
from galago.request import Length

Fact = tuple[str, ...]

LENGTHS: tuple[Length, ...] = ("short", "normal", "long")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
_MOST_SENTENCES = 6


def plural(name: str) -> str:
    """'circles', 'crosses'."""
    return name + ("es" if name.endswith("s") else "s")


def article(phrase: str) -> str:
    """The phrase after 'a' or 'an'."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def phrase_of(thing: SceneObject) -> str:
    """What a thing is called without an article: 'red circle', 'face', 'word'."""
    return f"{thing.color} {thing.name}" if thing.kind == "shape" else thing.name


def place_of(thing: SceneObject) -> str:
    """Where a thing is, on a grid of three by three: 'top left' ... 'center' ... 'bottom right'."""
    column, row = (min(int(3 * v), 2) for v in thing.center)
    return PLACES[3 * row + column]


# --- writing --------------------------------------------------------------------------------


def caption_of(scene: Scene, length: str = "normal") -> str:
    """The caption of a scene; `length` is 'short', 'normal' or 'long'."""
    if not scene.things:
        return f"An empty {scene.background} background."
    things = caption_order(scene.things)
    parts = _join(_groups(things))
    parts = parts[0].upper() + parts[1:]
    if length == "short":
        return f"{parts}."
    sentences = [f"{parts} on a {scene.background} background."]
    if length == "long":
        alike = Counter(phrase_of(t) for t in things)
        sentences += [_sentence(t, alike[phrase_of(t)]) for t in things[:_MOST_SENTENCES]]
    return " ".join(sentences)


def caption_order(things: Iterable[SceneObject]) -> list[SceneObject]:
    """Words, faces, then shapes of one name and colour after the other; things alike from left to right.

    What comes next then follows from what was said last alone. From left to right throughout, whoever tells must
    keep in mind all that was told, and groups that lie among each other are told twice.
    """
    kinds, names, colors = ("word", "face", "shape"), tuple(MORE_SHAPES), tuple(MORE_COLORS)

    def place(t: SceneObject) -> tuple[int, int, int]:
        if t.kind != "shape":
            return kinds.index(t.kind), 0, 0
        return kinds.index(t.kind), names.index(t.name), colors.index(t.color)

    return sorted(things, key=place)


def _groups(things: Iterable[SceneObject]) -> list[str]:
    """Things alike together, in the order of the first of each kind."""
    counts: Counter[str] = Counter(
        f'the word "{t.text}" in {t.color}' if t.kind == "word" else phrase_of(t) for t in things
    )
    groups = []
    for phrase, count in counts.items():
        if phrase.startswith("the word"):
            groups += [phrase] * count
        else:
            groups.append(article(phrase) if count == 1 else f"{NUMBERS[count]} {plural(phrase)}")
    return groups


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(thing: SceneObject, alike: int) -> str:
    where = place_of(thing)
    preposition = "in" if where == "center" else "at"
    if thing.kind == "word":
        return f'The word "{thing.text}" is {preposition} the {where}.'
    size = f"{thing.size} " if thing.kind == "shape" else ""
    first = "The" if alike == 1 else "One"
    return f"{first} {size}{phrase_of(thing)} is {preposition} the {where}."


# --- facts ----------------------------------------------------------------------------------


def facts_of(scene: Scene, length: str = "normal") -> list[Fact]:
    """What a perfect caption of this length states."""
    counts = Counter((t.color, t.name) for t in scene.things if t.kind != "word")
    facts: list[Fact] = [("things", str(n), color, name) for (color, name), n in counts.items()]
    facts += [("word", t.text, t.color) for t in scene.things if t.kind == "word"]
    if length != "short" or not scene.things:
        facts.append(("background", scene.background))
    if length == "long":
        for t in caption_order(scene.things)[:_MOST_SENTENCES]:
            size = t.size if t.kind == "shape" else ""
            name, color = (t.text, "") if t.kind == "word" else (t.name, t.color)
            facts.append(("place", size, color, name, place_of(t)))
    return facts


_COUNTS = {word: str(n) for n, word in enumerate(NUMBERS)} | {"a": "1", "an": "1"}
_NAMES = {name: name for name in (*MORE_SHAPES, "face")}
_NAMES |= {plural(name): name for name in (*MORE_SHAPES, "face")}
_ANY_NAME, _ANY_COLOR = "|".join(_NAMES), "|".join(MORE_COLORS)
_ANY_GROUND = "|".join(BACKGROUNDS)
_ANY_PLACE = "|".join(PLACES)
_EMPTY = re.compile(rf"an empty ({_ANY_GROUND}) background$", re.I)
_ON = re.compile(rf"(?:^|\s)on an? ({_ANY_GROUND}) background$", re.I)
_THINGS = re.compile(rf"({'|'.join(_COUNTS)}) (?:({_ANY_COLOR}) )?({_ANY_NAME})$", re.I)
_WORD = re.compile(rf'the word "([^"]*)" in ({_ANY_COLOR})$', re.I)
_PLACE = re.compile(
    rf'(?:the|one) (?:word "([^"]*)"|(?:(small|medium|large) )?(?:({_ANY_COLOR}) )?'
    rf"({_ANY_NAME})) is (?:at|in) the ({_ANY_PLACE})$",
    re.I,
)


def parse_caption(text: str) -> list[Fact]:
    """The facts a caption states; whatever is not of the grammar becomes an 'unread' fact."""
    sentences = [s.strip() for s in re.split(r"\.(?=\s|$)", text) if s.strip()]
    facts: list[Fact] = []
    for i, sentence in enumerate(sentences):
        facts += _read_first(sentence) if i == 0 else [_read_place(sentence)]
    return facts


def _read_first(sentence: str) -> list[Fact]:
    if empty := _EMPTY.match(sentence):
        return [("background", empty[1].lower())]
    ground: list[Fact] = []
    if on := _ON.search(sentence):
        ground = [("background", on[1].lower())]
        sentence = sentence[: on.start()]
    pieces = [p.strip() for p in re.split(r",| and ", sentence) if p.strip()]
    return [_read_piece(piece) for piece in pieces] + ground


def _read_piece(piece: str) -> Fact:
    if word := _WORD.match(piece):
        return ("word", word[1], word[2].lower())
    if things := _THINGS.match(piece):
        name = _NAMES[things[3].lower()]
        color = (things[2] or "").lower()
        if (name == "face") == (color == ""):
            return ("things", _COUNTS[things[1].lower()], color, name)
    return ("unread", piece)


def _read_place(sentence: str) -> Fact:
    if not (place := _PLACE.match(sentence)):
        return ("unread", sentence)
    if place[1] is not None:
        return ("place", "", "", place[1], place[5].lower())
    size, color = ((place[i] or "").lower() for i in (2, 3))
    return ("place", size, color, _NAMES[place[4].lower()], place[5].lower())


def common_facts(stated: Iterable[Fact], true: Iterable[Fact]) -> int:
    """How many of the stated facts are true, each true fact counting once.

    Case does not matter: 'zoo' and 'ZOO' can look the same.
    """

    def folded(facts: Iterable[Fact]) -> Counter[Fact]:
        return Counter(tuple(item.lower() for item in fact) for fact in facts)

    return (folded(stated) & folded(true)).total()
