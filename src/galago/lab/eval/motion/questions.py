"""Questions about drawn clips with answers that are true by construction: each is asked only where the facts decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from galago.lab.eval.motion.things import DrawnClip, MovingObject
from galago.lab.eval.scenes.phrases import one_of, type_carelessly


@dataclass(frozen=True)
class ClipQuestion:
    """One thing to ask about a clip."""

    kind: str
    """what it measures, one of score.MEASURES"""
    question: str
    text: str
    """the true answer"""


WAYS = {
    "right": ("right", "to the right"), "left": ("left", "to the left"), "up": ("up", "upwards"),
    "down": ("down", "downwards"), "up right": ("up and to the right", "up and right"),
    "up left": ("up and to the left", "up and left"), "down right": ("down and to the right", "down and right"),
    "down left": ("down and to the left", "down and left"),
}  # fmt: skip
"""Directions as questions name them."""

WHICH_WAY = (
    "Which way does the {x} move?", "Which way does the {x} go?", "In which direction does the {x} move?",
    "Which direction does the {x} move in?", "What is the direction of the {x}?", "Where does the {x} move to?",
)  # fmt: skip
WHAT_MOVES = (
    "What moves?", "What is moving?", "Which thing moves?", "Which shape is moving?", "What moves in this video?",
    "What does not stand still?",
)  # fmt: skip
WHAT_MOVES_SO = (
    "What moves {way}?", "Which thing moves {way}?", "What is moving {way}?", "Which shape goes {way}?",
)  # fmt: skip
WHAT_STANDS = (
    "What stands still?", "What does not move?", "Which thing stays where it is?", "Which shape is not moving?",
)  # fmt: skip
WHAT_COMES = (
    "What appears?", "What comes into the picture?", "Which thing is new at the end?",
    "What was not there at the start?", "Which shape appears?",
)  # fmt: skip
WHAT_LEAVES = (
    "What leaves?", "What disappears?", "Which thing is gone at the end?", "What is no longer there at the end?",
    "Which shape leaves the picture?",
)  # fmt: skip
WHAT_STAYS = (
    "What is there all the time?", "Which thing is there from start to end?", "What can be seen the whole time?",
    "Which shape is in every frame?",
)  # fmt: skip
FIRST = {
    ("moves", "first"): ("Which moves first, {xy}?", "What starts to move first, {xy}?", "What moves first?",
                         "Which thing moves first?"),
    ("moves", "last"): ("Which moves last, {xy}?", "What starts to move later, {xy}?", "What moves last?",
                        "Which of the two moves second, {xy}?"),
    ("comes", "first"): ("Which comes first, {xy}?", "What appears first, {xy}?", "What appears first?",
                         "Which thing comes first?"),
    ("comes", "last"): ("Which comes last, {xy}?", "What appears later, {xy}?", "What appears last?",
                        "Which of the two comes second, {xy}?"),
    ("leaves", "first"): ("Which leaves first, {xy}?", "What disappears first, {xy}?", "What disappears first?",
                          "Which thing is gone first?"),
    ("leaves", "last"): ("Which leaves last, {xy}?", "What disappears later, {xy}?", "What disappears last?",
                         "Which of the two leaves second, {xy}?"),
}  # fmt: skip
HOW_MANY = (
    "How many things move?", "How many things are moving?", "How many shapes move?", "Count the moving shapes.",
    "What is the number of moving things?", "How many of the shapes do not stand still?",
)  # fmt: skip
HOW_FAST = (
    "How fast does the {x} move?", "How fast is the {x}?", "Is the {x} slow or fast?", "Is the {x} fast or slow?",
    "Does the {x} move slow or fast?", "What is the speed of the {x}?",
)  # fmt: skip
WHICH_IS = {
    "fast": ("Which is faster, {xy}?", "What moves faster, {xy}?", "Which of the two is faster, {xy}?",
             "Which one is quicker, {xy}?"),
    "slow": ("Which is slower, {xy}?", "What moves slower, {xy}?", "Which of the two is slower, {xy}?",
             "Which one is less quick, {xy}?"),
}  # fmt: skip
ANYTHING = (
    "Is anything moving?", "Does anything move?", "Is there any movement?", "Is there something that moves?",
    "Do you see anything move?",
)  # fmt: skip
DOES_IT = (
    "Does the {x} move?", "Is the {x} moving?", "Can you see the {x} move?", "Is it true that the {x} moves?",
)  # fmt: skip


def _question(rng: np.random.Generator, kind: str, wordings: Sequence[str], text: str, **fields: str) -> ClipQuestion:
    """A question in one of the wordings, now and then typed carelessly."""
    return ClipQuestion(kind, type_carelessly(rng, one_of(rng, wordings).format(**fields), 0.1), text)


def _moving(drawn: DrawnClip) -> list[MovingObject]:
    return [t for t in drawn.things if t.direction]


def unique_phrase(rng: np.random.Generator, drawn: DrawnClip, thing: MovingObject) -> str:
    """A phrase that means this thing alone: 'red circle', or shorter where that is enough."""
    names = [thing.phrase] * 3
    if sum(t.name == thing.name for t in drawn.things) == 1:
        names.append(thing.name)
    if sum(t.color == thing.color for t in drawn.things) == 1:
        names.append(f"{thing.color} {one_of(rng, ('shape', 'thing', 'one'))}")
    if _moving(drawn) == [thing]:
        names.append(one_of(rng, ("moving shape", "moving thing")))
    return one_of(rng, names)


def _either_phrase(rng: np.random.Generator, one: MovingObject, other: MovingObject) -> str:
    """'the red circle or the blue square', each as often first."""
    first, second = (one, other) if rng.random() < 0.5 else (other, one)
    return f"the {first.phrase} or the {second.phrase}"


def ask_direction(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    moving = _moving(drawn)
    if not moving:
        return None
    thing = one_of(rng, moving)
    return _question(rng, "direction", WHICH_WAY, thing.direction, x=unique_phrase(rng, drawn, thing))


def ask_what_moves(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    moving = _moving(drawn)
    still = [t for t in drawn.things if not t.direction]
    asks: list[tuple[Sequence[str], MovingObject, str]] = []
    if len(moving) == 1:
        asks.append((WHAT_MOVES, moving[0], ""))
    if len(still) == 1 and moving:
        asks.append((WHAT_STANDS, still[0], ""))
    for thing in moving:
        # What goes up and to the left goes left too.
        among = [t for t in moving if set(thing.direction.split()) <= set(t.direction.split())]
        if len(among) == 1 and len(moving) > 1:
            asks.append((WHAT_MOVES_SO, thing, one_of(rng, WAYS[thing.direction])))
    if not asks:
        return None
    wordings, thing, way = one_of(rng, asks)
    return _question(rng, "object", wordings, thing.phrase, way=way)


def ask_what_comes_or_leaves(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    asks = []
    for wordings, found in (
        (WHAT_COMES, [t for t in drawn.things if drawn.comes(t)]),
        (WHAT_LEAVES, [t for t in drawn.things if drawn.leaves(t)]),
        (WHAT_STAYS, [t for t in drawn.things if not drawn.comes(t) and not drawn.leaves(t)]),
    ):
        # A thing that comes and goes is neither new at the end nor only gone.
        if len(found) == 1 and not (drawn.comes(found[0]) and drawn.leaves(found[0])):
            asks.append((wordings, found[0]))
    if not asks:
        return None
    wordings, thing = one_of(rng, asks)
    return _question(rng, "object", wordings, thing.phrase)


def ask_order(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    event = one_of(rng, ("comes", "leaves")) if drawn.story == "visits" else "moves"
    when: dict[str, tuple[MovingObject, int]] = {}
    for t in drawn.things:
        if event == "moves" and t.moves is not None:
            when[t.phrase] = t, t.moves[0]
        elif event == "comes" and drawn.comes(t):
            when[t.phrase] = t, t.seen[0]
        elif event == "leaves" and drawn.leaves(t):
            when[t.phrase] = t, t.seen[1]
    if len(when) != 2:
        return None
    (first, begin), (second, later) = sorted(when.values(), key=lambda found: found[1])
    if later - begin < 2:
        return None
    place = one_of(rng, ("first", "last"))
    thing = first if place == "first" else second
    return _question(rng, "order", FIRST[event, place], thing.phrase, xy=_either_phrase(rng, first, second))


def ask_count(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    return _question(rng, "count", HOW_MANY, str(len(_moving(drawn))))


def ask_speed(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    moving = _moving(drawn)
    if not moving:
        return None
    thing = one_of(rng, moving)
    others = [t for t in moving if t.speed != thing.speed]
    if others and rng.random() < 0.4:
        pair = _either_phrase(rng, thing, one_of(rng, others))
        return _question(rng, "speed", WHICH_IS[thing.speed], thing.phrase, xy=pair)
    return _question(rng, "speed", HOW_FAST, thing.speed, x=unique_phrase(rng, drawn, thing))


def ask_anything(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    moving = _moving(drawn)
    # Of five numbers of moving things one is none: so both answers come as often.
    if moving and rng.random() > 0.25:
        return None
    return _question(rng, "moving", ANYTHING, "yes" if moving else "no")


def ask_whether(drawn: DrawnClip, rng: np.random.Generator) -> ClipQuestion | None:
    wanted = rng.random() < 0.5
    fitting = [t for t in drawn.things if bool(t.direction) == wanted]
    if len(fitting) in (0, len(drawn.things)):
        return None
    thing = one_of(rng, fitting)
    # Not as 'the moving thing'.
    return _question(rng, "moving", DOES_IT, "yes" if wanted else "no", x=thing.phrase)


ClipAsker = Callable[[DrawnClip, np.random.Generator], ClipQuestion | None]
ASKED: dict[str, tuple[ClipAsker, ...]] = {
    "moves": (ask_count, ask_anything, ask_whether, ask_direction, ask_what_moves, ask_speed, ask_direction),
    "change": (ask_what_comes_or_leaves, ask_what_comes_or_leaves, ask_direction),
    "turns": (ask_order, ask_direction, ask_order, ask_speed),
    "visits": (ask_order, ask_order, ask_what_comes_or_leaves),
}
"""By story. How many things move, and whether, is asked where it was drawn evenly, and where nothing comes or goes."""


def questions_for(drawn: DrawnClip, rng: np.random.Generator, *, rounds: int = 1) -> list[ClipQuestion]:
    """What is asked about a clip, never the same words twice; more rounds ask more."""
    found: dict[str, ClipQuestion] = {}
    for make in ASKED[drawn.story] * rounds:
        task = make(drawn, rng)
        if task is not None:
            found.setdefault(task.question.lower().rstrip("?."), task)
    return list(found.values())
