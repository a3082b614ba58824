"""Drawn clips: what is drawn moves as it is told, the answers are true and evenly spread, the scores are right."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galago.lab.eval.motion import questions
from galago.lab.eval.motion.draw import clip_at, draw_clip
from galago.lab.eval.motion.plans import MOST_MOVING, STORIES
from galago.lab.eval.motion.questions import WAYS, ClipQuestion, questions_for
from galago.lab.eval.motion.score import MEASURES, answer_kind, judge, parse_answer
from galago.lab.eval.motion.things import DIRECTIONS, FRAMES, SIDES, DrawnClip, MovingObject
from galago.lab.eval.scenes.ranges import BACKGROUNDS, COLORS, SHAPES

SEED = 4242
COUNT = 500


@pytest.fixture(scope="module")
def small() -> list[tuple[DrawnClip, list[ClipQuestion]]]:
    """Many clips of few pixels: what they tell does not depend on their size."""
    made = []
    for i in range(COUNT):
        drawn = draw_clip(np.random.default_rng([SEED, i]), sides=(64, 80))
        made.append((drawn, questions_for(drawn, np.random.default_rng([SEED, i, 1]))))
    return made


@pytest.fixture(scope="module")
def asked(small) -> list[tuple[DrawnClip, ClipQuestion]]:
    return [(drawn, task) for drawn, tasks in small for task in tasks]


# --- drawing ----------------------------------------------------------------------------------


@settings(max_examples=8)
@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_the_same_seed_draws_the_same_clip(seed, index):
    a, b = clip_at(seed, index), clip_at(seed, index)
    assert (a.things, a.background, a.story) == (b.things, b.background, b.story)
    assert [f.tobytes() for f in a.clip.frames] == [f.tobytes() for f in b.clip.frames]
    assert np.array_equal(a.ids, b.ids) and a.clip.times == b.clip.times
    assert questions_for(a, np.random.default_rng(1)) == questions_for(b, np.random.default_rng(1))
    assert clip_at(seed, index + 1).things != a.things


@pytest.mark.parametrize("story", STORIES)
def test_a_clip_tells_the_story_that_is_asked_for(story):
    assert {draw_clip(np.random.default_rng([6, i]), frames=(8, 8), story=story).story for i in range(12)} == {story}


def test_clips_have_the_promised_sizes():
    made = [clip_at(SEED, i) for i in range(60)]
    sizes = [d.clip.frames[0].size for d in made]
    assert all(SIDES[0] <= min(s) and max(s) <= SIDES[1] and max(s) <= 1.26 * min(s) for s in sizes)
    assert min(map(min, sizes)) < 90 and max(map(max, sizes)) > 200
    for d in made:
        frames = d.clip.frames
        assert FRAMES[0] <= len(frames) <= FRAMES[1] and len(frames) == len(d.clip.times) == d.clip.duration
        assert {f.size for f in frames} == {frames[0].size} and {f.mode for f in frames} == {"RGB"}
        assert d.ids.shape == (len(frames), frames[0].height, frames[0].width)
        assert 1 <= len(d.things) == len({t.phrase for t in d.things}) <= 5
        assert d.background in BACKGROUNDS
    assert {d.story for d in made} == set(STORIES)
    noisy = [np.ptp(np.asarray(d.clip.frames[0])[:5, :5], (0, 1)).max() > 6 for d in made]
    assert 0.2 < np.mean(noisy) < 0.8


def test_colours_move_as_it_is_told():
    """What is seen of a colour: where its middle is, which way and how fast it goes, when it is there."""
    palette = np.array([*COLORS.values(), *BACKGROUNDS.values()], np.float32)
    seen = Counter()
    for i in range(70):
        drawn = draw_clip(np.random.default_rng([SEED, i]), sides=(64, 112))
        size = drawn.clip.frames[0].size
        nearest = [
            np.abs(np.asarray(frame, np.float32)[:, :, None] - palette).sum(-1).argmin(-1)
            for frame in drawn.clip.frames
        ]
        for thing in drawn.things:
            if sum(t.color == thing.color for t in drawn.things) > 1:
                continue
            ink = list(COLORS).index(thing.color)
            # Strays of noise apart.
            found = [np.argwhere(frame == ink)[:, ::-1] for frame in nearest]
            middles = [np.median(at, axis=0) + 0.5 if len(at) > 20 else None for at in found]
            there = range(thing.seen[0], thing.seen[1] + 1)
            assert all(
                middles[n] is None for n in range(drawn.frames) if n not in there and drawn.background == "white"
            )
            inside = [n for n in there if thing.size != "large" and all(0.25 < v < 0.75 for v in thing.track[n])]
            assert all(middles[n] is not None for n in inside)
            # The middle of a heart is not that of its box, but always as far from it.
            apart = [middles[n] - np.multiply(thing.track[n], size) for n in inside]
            if apart:
                assert np.ptp(apart, axis=0).max() <= 2.5 and np.abs(apart).max() < 0.1 * min(size), (i, thing)
                seen["inside"] += len(apart)
            if thing.moves and not drawn.comes(thing) and not drawn.leaves(thing):
                begin, end = (middles[n] for n in thing.moves)
                dx, dy = end - begin
                off = math.atan2(dy, dx) - math.atan2(*reversed(DIRECTIONS[thing.direction]))
                assert abs(math.remainder(off, math.tau)) < math.radians(20), (i, thing)
                pace = math.hypot(dx, dy) / (thing.moves[1] - thing.moves[0]) / min(size)
                assert (pace > 0.065) == (thing.speed == "fast"), (i, thing, pace)
                seen[thing.direction] += 1
    assert seen["inside"] > 200 and set(seen) >= set(DIRECTIONS)


def test_nothing_hides_another(small):
    for drawn, _ in small[:200]:
        for number, thing in enumerate(drawn.things, 1):
            sizes = [np.count_nonzero(frame == number) for frame in drawn.ids]
            there = [i for i, size in enumerate(sizes) if size]
            assert thing.seen[0] <= there[0] and there[-1] <= thing.seen[1]
            inside = [i for i in there if all(0.26 < v < 0.74 for v in thing.track[i])]
            # Of one size wherever it is, but for the rounding of half pixels.
            assert len({sizes[i] for i in inside}) == 0 or np.ptp([sizes[i] for i in inside]) <= 0.2 * max(sizes)


# --- questions --------------------------------------------------------------------------------


def _way(thing: MovingObject) -> str:
    """The direction by the track alone."""
    (x0, y0), (x1, y1) = thing.track[0], thing.track[-1]
    if math.hypot(x1 - x0, y1 - y0) < 0.01:
        return ""
    eighth = round(math.atan2(y1 - y0, x1 - x0) / (math.pi / 4)) % 8
    return ("right", "down right", "down", "down left", "left", "up left", "up", "up right")[eighth]


def _pace(thing: MovingObject) -> float:
    return max(math.dist(a, b) for a, b in zip(thing.track, thing.track[1:], strict=False))


def _starts(thing: MovingObject) -> int:
    return next(i for i, p in enumerate(thing.track) if p != thing.track[0])


def _meant(text: str, things: tuple[MovingObject, ...]) -> list[MovingObject]:
    """The things that words of colour and shape, or of moving, mean."""
    found = list(things)
    for word in re.findall("[a-z]+", text):
        if word in COLORS:
            found = [t for t in found if t.color == word]
        elif word in SHAPES:
            found = [t for t in found if t.name == word]
        elif word == "moving":
            found = [t for t in found if _way(t)]
    return found


def _answer(drawn: DrawnClip, task: ClipQuestion) -> str:
    """A second reading of a question, from its words and the tracks alone."""
    question = task.question.lower()
    things = drawn.things
    moving, still = ([t for t in things if bool(_way(t)) == moves] for moves in (True, False))
    last = drawn.frames - 1

    def only(found: list[MovingObject]) -> str:
        assert len(found) == 1, (question, found)
        return found[0].phrase

    if task.kind == "count":
        return str(len(moving))
    pair = re.search(r"(?:, )(the .*) or (the [a-z ]*)", question)
    two = [t for part in (pair.groups() if pair else ()) for t in _meant(part, things)]
    if task.kind == "order":
        if "move" in question:
            when = {t: _starts(t) for t in two or moving}
        elif re.search("come|appears", question) and "disappear" not in question:
            when = {t: t.seen[0] for t in two or things if t.seen[0] > 0}
        else:
            when = {t: t.seen[1] for t in two or things if t.seen[1] < last}
        assert len(when) == 2 and abs(np.subtract(*when.values())) >= 2
        return (min if "first" in question else max)(when, key=when.__getitem__).phrase
    if task.kind == "speed" and pair:
        assert len(two) == 2
        slow = re.search("slower|less quick", question)
        return (min if slow else max)(two, key=_pace).phrase
    if task.kind == "object":
        if ways := [way for way, said in WAYS.items() for words in said if question.rstrip("?.").endswith(f" {words}")]:
            wanted = set(max(ways, key=len).split())
            return only([t for t in moving if wanted <= set(_way(t).split())])
        if re.search("all the time|start to end|whole time|every frame", question):
            return only([t for t in things if t.seen == (0, last)])
        if re.search("appears|comes|new|not there at the start", question) and "disappear" not in question:
            return only([t for t in things if t.seen[0] > 0])
        if re.search("leaves|disappears|gone|no longer", question):
            return only([t for t in things if t.seen[1] < last])
        stands = re.search("stands still|does not move|stays|not moving", question)
        return only(still if stands else moving)
    if task.kind == "moving":
        if re.search("anything|movement|something", question):
            return "yes" if moving else "no"
        return "yes" if _way(_one(_meant(re.sub("moving|moves?", "", question), things))) else "no"
    thing = _one(_meant(question, things))
    return _way(thing) if task.kind == "direction" else ("fast" if _pace(thing) > 0.065 else "slow")


def _one(found: list[MovingObject]) -> MovingObject:
    assert len(found) == 1, found
    return found[0]


def test_the_facts_decide_every_answer(asked):
    kinds = Counter()
    for drawn, task in asked:
        assert _answer(drawn, task) == task.text, (task, drawn.things)
        kinds[task.kind] += 1
    assert set(kinds) == set(MEASURES) and min(kinds.values()) > 100


def _even(counted: Counter, share: float, within: float) -> None:
    total = counted.total()
    assert all(abs(n / total - share) < within for n in counted.values()), counted


def test_answers_are_evenly_spread(asked):
    answers = {kind: Counter(t.text for _, t in asked if t.kind == kind) for kind in MEASURES}
    assert set(answers["direction"]) == set(DIRECTIONS)
    _even(answers["direction"], 1 / 8, 0.04)
    assert set(answers["count"]) == {str(n) for n in range(MOST_MOVING + 1)}
    _even(answers["count"], 1 / (MOST_MOVING + 1), 0.06)
    assert set(answers["moving"]) == {"yes", "no"}
    _even(answers["moving"], 1 / 2, 0.07)
    _even(Counter(t.text for _, t in asked if t.text in ("slow", "fast")), 1 / 2, 0.07)
    assert max(answers["object"].values()) < 0.05 * answers["object"].total()


def test_order_is_told_by_time_alone(asked):
    """None of what frames tell without their order says which of two was first."""
    cues = {name: [] for name in ("named first", "listed first", "longer there", "longer under way", "higher", "left")}
    for drawn, task in asked:
        if task.kind != "order":
            continue
        first = re.search("first", task.question.lower()) is not None
        two = [t for t in drawn.things if (t.moves if drawn.story == "turns" else t.seen != (0, drawn.frames - 1))]
        right = next(t for t in two if t.phrase == task.text)
        one, other = (right, next(t for t in two if t is not right))[:: 1 if first else -1]
        if f"{two[0].phrase} or" in task.question or f"{two[1].phrase} or" in task.question:
            cues["named first"].append(f"{task.text} or" in task.question)
        cues["listed first"].append(two.index(one) == 0)
        long = [t.seen[1] - t.seen[0] if drawn.story == "visits" else t.moves[1] - t.moves[0] for t in (one, other)]
        if long[0] != long[1]:
            cues["longer there" if drawn.story == "visits" else "longer under way"].append(long[0] > long[1])
        cues["higher"].append(one.track[0][1] + one.track[-1][1] < other.track[0][1] + other.track[-1][1])
        cues["left"].append(one.track[0][0] + one.track[-1][0] < other.track[0][0] + other.track[-1][0])
    for name, found in cues.items():
        spread = 3.5 * 0.5 / len(found) ** 0.5
        assert len(found) > 50 and abs(np.mean(found) - 0.5) < spread, (name, len(found), np.mean(found))


def test_directions_are_told_by_time_alone(asked):
    """A thing rests as long, and as near to an edge, before it moves as after."""
    before, middle = [], []
    for drawn, task in asked:
        moving = [t for t in drawn.things if t.direction == task.text and t.seen == (0, drawn.frames - 1)]
        if task.kind == "direction" and len(moving) == 1:
            begin, end = moving[0].moves
            before.append(np.sign(begin - (drawn.frames - 1 - end)))
            middle.append(math.dist(moving[0].track[0], (0.5, 0.5)) - math.dist(moving[0].track[-1], (0.5, 0.5)))
    assert len(before) > 100
    assert abs(np.mean(before)) < 3.5 / len(before) ** 0.5
    assert abs(np.mean(np.sign(middle))) < 3.5 / len(middle) ** 0.5


def test_every_wording_is_used(asked):
    said = {task.question.lower().rstrip("?.") for _, task in asked}
    tables = [v for v in vars(questions).values() if isinstance(v, tuple) and v and isinstance(v[0], str)]
    tables += [w for v in (questions.FIRST, questions.WHICH_IS) for w in v.values()]
    wordings = {w for table in tables for w in table if w.endswith(("?", "."))}
    assert len(wordings) > 60
    for wording in wordings:
        pattern = re.sub(r"\\\{[a-z]+\\\}", "[a-z ]+", re.escape(wording.lower().rstrip("?.")))
        assert any(re.fullmatch(pattern, question) for question in said), wording
    words = {kind: {len(t.text.split()) for _, t in asked if t.kind == kind} for kind in MEASURES}
    assert all(most <= {1, 2} for most in words.values())


# --- scores -----------------------------------------------------------------------------------


def test_true_answers_are_right_and_others_wrong(asked):
    answers = {sort: set() for sort in ("direction", "speed", "number", "whether", "thing")}
    for _, task in asked:
        answers[answer_kind(task.text)].add(task.text)
    for texts in answers.values():
        for true in texts:
            for said in texts:
                [mark] = judge(ClipQuestion("direction", "?", true), said)
                assert (mark.measure, mark.hits, mark.total) == ("direction", float(said == true), 1.0)


@pytest.mark.parametrize(
    ("true", "said"),
    [
        ("left", " Left."), ("left", "to the left"), ("left", "It moves leftwards"), ("up left", "up and to the left"),
        ("up left", "left and up"), ("down right", "Down-right"), ("slow", "slowly"), ("fast", "It is quick."),
        ("3", "three"), ("0", "None"), ("4", "There are 4 moving things."), ("yes", "Yes, it does."), ("no", "no"),
        ("red circle", "The red circle."), ("red circle", "a circle, which is red"),
    ],
)  # fmt: skip
def test_answers_in_other_words(true, said):
    assert judge(ClipQuestion("object", "?", true), said)[0].hits == 1


@pytest.mark.parametrize(
    ("true", "said"),
    [
        ("left", "up left"), ("up left", "left"), ("left", "left or right"), ("left", ""), ("slow", "slow, then fast"),
        ("3", "13"), ("3", "2 or 3"), ("yes", "no"), ("yes", "yes and no"), ("red circle", "circle"),
        ("red circle", "red circle and blue square"), ("red circle", "left"),
    ],
)  # fmt: skip
def test_answers_that_say_something_else(true, said):
    assert judge(ClipQuestion("object", "?", true), said)[0].hits == 0


@pytest.mark.parametrize(("direction", "said"), [(d, said) for d, all_said in WAYS.items() for said in all_said])
def test_every_way_is_read(direction, said):
    assert parse_answer(said, "direction") == parse_answer(direction, "direction") == frozenset(direction.split())


def test_what_is_no_answer_is_refused():
    with pytest.raises(ValueError, match="sideways"):
        answer_kind("sideways")
