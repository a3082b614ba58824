"""Several choices of one request, and the probabilities of their tokens, as the official client sees them."""

import math
from collections import defaultdict
from typing import Any

import openai
import pytest
from serving import ask

SCENE = "What is in the image?"
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 7, "max_tokens": 8}


def create(client: openai.OpenAI, *urls: str, **options: Any) -> Any:
    return client.chat.completions.create(model="any", messages=ask(SCENE, *urls), **options)


def test_each_choice_is_drawn_apart_and_repeats(bundled: openai.OpenAI, photo: str) -> None:
    def texts(**more: Any) -> list[str]:
        reply = create(bundled, photo, **DRAWN, **more)
        assert [c.index for c in reply.choices] == list(range(len(reply.choices)))
        return [c.message.content for c in reply.choices]

    eight = texts(n=8)
    assert len(eight) == 8
    assert len(set(eight)) > 1
    assert texts(n=8) == eight
    assert texts(n=3) == eight[:3]
    assert texts() == eight[:1]


def test_greedy_choices_are_the_same(bundled: openai.OpenAI, photo: str) -> None:
    reply = create(bundled, photo, n=3, max_tokens=8)
    assert len({c.message.content for c in reply.choices}) == 1


def test_usage_adds_up(bundled: openai.OpenAI, photo: str) -> None:
    one = create(bundled, photo, **DRAWN, n=1)
    reply = create(bundled, photo, **DRAWN, n=4, logprobs=True)
    written = sum(len(c.logprobs.content) for c in reply.choices)
    usage = reply.usage
    assert usage.completion_tokens == written
    assert usage.prompt_tokens == one.usage.prompt_tokens
    assert usage.total_tokens == usage.prompt_tokens + written
    # The image was there already.
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens_details.image_tokens > 0
    assert 0 < reply.inference_time <= reply.processing_time


def test_streamed_choices(bundled: openai.OpenAI, photo: str) -> None:
    whole = create(bundled, photo, **DRAWN, n=4, logprobs=True, top_logprobs=2)
    parts = list(
        create(
            bundled,
            photo,
            **DRAWN,
            n=4,
            logprobs=True,
            top_logprobs=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    last = parts.pop()
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    of_choice: dict[int, list[Any]] = defaultdict(list)
    for part in parts:
        assert part.usage is None
        (choice,) = part.choices
        of_choice[choice.index].append(choice)
    for choice in whole.choices:
        first, *middle, end = of_choice[choice.index]
        assert (first.delta.role, first.delta.content) == ("assistant", "")
        assert (end.delta.content, end.finish_reason) == (None, choice.finish_reason)
        assert "".join(c.delta.content for c in middle) == choice.message.content
        assert [t.token for c in middle for t in (c.logprobs.content if c.logprobs else [])] == [
            t.token for t in choice.logprobs.content
        ]
    order = [part.choices[0].index for part in parts]
    assert order != sorted(order)  # they run side by side


def test_logprobs(bundled: openai.OpenAI, photo: str) -> None:
    reply = create(bundled, photo, logprobs=True, top_logprobs=20, max_tokens=12)
    (choice,) = reply.choices
    assert choice.logprobs.refusal is None
    tokens = choice.logprobs.content
    assert len(tokens) == reply.usage.completion_tokens
    assert bytes(b for t in tokens for b in t.bytes).decode() == choice.message.content
    for told in tokens:
        top = told.top_logprobs
        assert len(top) == 20
        assert [t.logprob for t in top] == sorted((t.logprob for t in top), reverse=True)
        # Greedy: the first is the one that was taken.
        assert (top[0].token, top[0].bytes, top[0].logprob) == (told.token, told.bytes, told.logprob)
        assert sum(math.exp(t.logprob) for t in top) < 1 + 1e-4


def test_logprobs_are_those_of_the_model_alone(bundled: openai.OpenAI, photo: str) -> None:
    """However a first token is drawn, its place had the same probabilities."""

    def first(**options: Any) -> dict[str, float]:
        reply = create(bundled, photo, logprobs=True, top_logprobs=5, max_tokens=1, **options)
        return {t.token: t.logprob for t in reply.choices[0].logprobs.content[0].top_logprobs}

    plain = first()
    for options in (
        {"temperature": 2.0, "seed": 1},
        {"temperature": 1.0, "seed": 1, "top_p": 0.1},
        {"response_format": {"type": "json_object"}},
        {"extra_body": {"top_k": 1}},
    ):
        assert first(**options) == pytest.approx(plain, abs=1e-3)


def test_logprobs_alone(bundled: openai.OpenAI, photo: str) -> None:
    told = create(bundled, photo, logprobs=True, max_tokens=4).choices[0].logprobs.content
    assert all(t.top_logprobs == [] for t in told)
    plain = create(bundled, photo, max_tokens=4)
    assert plain.choices[0].logprobs is None


@pytest.mark.parametrize("seed", range(3))
def test_tokens_that_are_parts_of_characters(client: openai.OpenAI, photo: str, seed: int) -> None:
    """A model of random weights writes any bytes; each token keeps its own, in order."""
    options: dict[str, Any] = {"temperature": 2.0, "seed": seed, "max_tokens": 24, "logprobs": True}
    reply = create(client, photo, **options)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == reply.usage.completion_tokens
    said = b"".join(bytes(t.bytes) for t in tokens if t.bytes is not None)
    assert said.decode("utf-8", "replace") == reply.choices[0].message.content
    parts = list(create(client, photo, **options, stream=True))
    streamed = [t for p in parts if p.choices[0].logprobs for t in p.choices[0].logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in tokens])


def test_tokens_come_with_the_text_in_which_they_begin(bundled: openai.OpenAI, photo: str) -> None:
    text, told = "", ""
    for part in create(bundled, photo, logprobs=True, max_tokens=24, stream=True):
        (choice,) = part.choices
        text += choice.delta.content or ""
        told += "".join(t.token for t in choice.logprobs.content) if choice.logprobs else ""
        assert told.startswith(text)
    assert told == text


def test_tokens_of_a_stop_string_are_told(bundled: openai.OpenAI, photo: str) -> None:
    whole = create(bundled, photo, max_tokens=24).choices[0].message.content
    stop = whole.split()[2]
    reply = create(bundled, photo, max_tokens=24, stop=stop, logprobs=True)
    (choice,) = reply.choices
    assert (choice.finish_reason, choice.message.content) == ("stop", whole[: whole.index(stop)])
    told = "".join(t.token for t in choice.logprobs.content)
    assert len(choice.logprobs.content) == reply.usage.completion_tokens
    assert whole.startswith(told)
    assert stop in told


def test_top_k_of_one_is_greedy(bundled: openai.OpenAI, photo: str) -> None:
    greedy = create(bundled, photo, max_tokens=12).choices[0].message.content
    for seed in range(4):
        drawn = create(bundled, photo, max_tokens=12, temperature=2.0, seed=seed, extra_body={"top_k": 1})
        assert drawn.choices[0].message.content == greedy


def test_repetition_penalty(bundled: openai.OpenAI, photo: str) -> None:
    def repeated(penalty: float) -> int:
        reply = create(bundled, photo, max_tokens=24, logprobs=True, extra_body={"repetition_penalty": penalty})
        tokens = [t.token for t in reply.choices[0].logprobs.content]
        return len(tokens) - len(set(tokens))

    assert repeated(0.2) > repeated(1.0)


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties(client: openai.OpenAI, photo: str, name: str) -> None:
    def repeated(penalty: float) -> int:
        reply = create(client, photo, max_tokens=24, logprobs=True, **{name: penalty})
        tokens = [t.token for t in reply.choices[0].logprobs.content]
        return len(tokens) - len(set(tokens))

    assert repeated(-2) > repeated(2)
