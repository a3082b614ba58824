"""When a text is the true answer: the rules that data sets have published."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# The published table maps each word that lacks one apostrophe to the word with it, and has one entry the wrong way.
_CONTRACTIONS = {w[:i] + w[i + 1 :]: w for w in _CONTRACTED.split() for i, letter in enumerate(w) if letter == "'"}
_CONTRACTIONS["somebody'd"] = "somebodyd"


def normalize_answer(answer: str) -> str:
    """An answer as the VQA evaluation compares it: without punctuation and articles, numbers as digits.

    github.com/GT-Vision-Lab/VQA, vqaEval.py, oddities included: punctuation within words becomes a space, but
    none where it stands next to a space anywhere in the answer, or where a comma stands between two digits.
    """
    text = answer = _flatten(answer)
    for mark in _PUNCTUATION:
        dropped = f"{mark} " in text or f" {mark}" in text or _DIGITS_WITH_COMMA.search(text)
        answer = answer.replace(mark, "" if dropped else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", answer).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _flatten(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def agreement(answer: str, people: Sequence[str]) -> float:
    """How far an answer is that of people, 0..1: min(n / 3, 1) over each set of all of them but one, averaged.

    n counts those who gave just this answer.
    """
    same = sum(person == answer for person in people)
    return sum(min((same - (person == answer)) / 3, 1.0) for person in people) / len(people)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The VQA evaluation's accuracy, 0..1. Where all people agree it compares without normalisation."""
    answer, people = _flatten(answer), [_flatten(person) for person in people]
    if len(set(people)) > 1:
        answer, people = normalize_answer(answer), [normalize_answer(person) for person in people]
    return agreement(answer, people)


def textvqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The TextVQA challenge's accuracy, 0..1: that of VQA, always normalised, with possessives as words."""
    return agreement(_split_possessives(answer), [_split_possessives(person) for person in people])


def _split_possessives(answer: str) -> str:
    return normalize_answer(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def says_yes(answer: str) -> bool:
    """Whether POPE's evaluation takes an answer as yes: no word of its first sentence is No, no or not."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def is_relaxed_match(answer: str, true: str, tolerance: float = 0.05) -> bool:
    """ChartQA's relaxed accuracy: numbers within 5 % of the true one (percentages as shares), texts the same."""
    said, meant = (_parse_number(text.strip()) for text in (answer, true))
    if said is not None and meant:
        return abs(said - meant) / abs(meant) <= tolerance
    return answer.strip().lower() == true.strip().lower()


def _parse_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
