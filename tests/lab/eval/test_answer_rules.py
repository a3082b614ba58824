"""Published rules of when an answer is right, against values worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galago.lab.eval.answers import (
    agreement,
    is_relaxed_match,
    normalize_answer,
    says_yes,
    textvqa_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The Dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("yall'd've", "y'all'd've"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("t-shirt", "t shirt"),  # within a word: a space
        ("t-shirt - blue", "tshirt blue"),  # beside a space anywhere: nothing
        ("1,000 a/b", "1000 ab"),  # a comma between digits: nothing, for all punctuation
        ("a/b, c", "b c"),  # the slash becomes a space, then the article goes
        ("3.5 ft.", "3.5 ft"),
        ("white\nand\tred ", "white and red"),
        ("What?!", "what"),
        ("it's 10:30", "it's 10:30"),
    ],
)
def test_vqa_normalisation(answer, plain):
    assert normalize_answer(answer) == plain


@pytest.mark.parametrize(
    ("same", "accuracy"),
    # Of ten people n gave the answer. Without one of those, n - 1 are left, without another, n:
    # (n * min((n - 1) / 3, 1) + (10 - n) * min(n / 3, 1)) / 10
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)],
)
def test_agreement_with_ten_people(same, accuracy):
    assert agreement("cat", ["cat"] * same + ["dog"] * (10 - same)) == pytest.approx(accuracy)


def test_vqa_accuracy_normalises_where_people_differ():
    people = ["2"] * 2 + ["two"] + ["three"] * 7
    assert vqa_accuracy("Two.", people) == pytest.approx(0.9)
    # All agree: the official evaluation then compares as it is.
    assert vqa_accuracy("yes", ["yes"] * 10) == 1 and vqa_accuracy(" yes\n", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0


def test_textvqa_accuracy_always_normalises():
    assert textvqa_accuracy("Yes.", ["yes"] * 10) == 1
    assert textvqa_accuracy("joe's", ["joe 's"] * 2 + ["bob"] * 8) == pytest.approx(0.6)
    assert textvqa_accuracy("1,000?", ["1000"] * 10) == 1


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is none.", False),
        ("There is not. Yes.", False),
        ("Yes. There is no doubt.", True),
        ("NO", True),  # the published rule looks for No, no and not
        ("nothing", True),
        ("", True),
    ],
)
def test_pope_yes(answer, yes):
    assert says_yes(answer) == yes


@pytest.mark.parametrize(
    ("answer", "true", "right"),
    [
        ("14", "14", True),
        ("14.7", "14", True),  # 5 %
        ("14.71", "14", False),
        ("13.3", "14", True),
        ("-10", "10", False),
        ("50%", "0.5", True),
        ("5%", "5", False),  # a percentage is a share
        ("0.0", "0", False),  # 5 % of nothing: then texts are compared
        ("0", "0", True),
        (" no ", "No", True),
        ("Nope", "No", False),
        ("1,000", "1000", False),
    ],
)
def test_relaxed_accuracy(answer, true, right):
    assert is_relaxed_match(answer, true) == right


@given(st.text(max_size=40), st.lists(st.text(max_size=10), min_size=1, max_size=10))
def test_accuracies_are_shares(answer, people):
    assert 0 <= vqa_accuracy(answer, people) <= 1 and 0 <= textvqa_accuracy(answer, people) <= 1
    assert textvqa_accuracy(answer, [answer] * 10) == 1
    assert normalize_answer(answer).lower() == normalize_answer(answer)
