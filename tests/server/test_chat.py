"""Chat completions as the official client sees them."""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from serving import GOLDEN, ask, data_url, hosting, load, sdk, serving

QUESTION = "How many people are in the image?"


def content(client: Any, messages: Any, **options: Any) -> str:
    reply = client.chat.completions.create(model="any", messages=messages, **{"max_tokens": 24, **options})
    return reply.choices[0].message.content


def streamed(client: Any, **options: Any) -> list[Any]:
    return list(client.chat.completions.create(model="any", stream=True, **options))


@pytest.mark.parametrize("case", ["im_500x120.query_0", "im_500x120.query_1", "text_only.query_0"])
def test_answers_what_the_model_answers(client: Any, golden: Any, case: str) -> None:
    expected = golden[case]
    images = [data_url(f"{expected['image']}.png")] if expected["image"] else []
    assert content(client, ask(expected["args"]["question"], *images)) == expected["output"]["answer"]


def test_reply(client: Any, model: Any, photo: str) -> None:
    reply = client.chat.completions.create(model="gpt-4o-mini", messages=ask(QUESTION, photo), max_tokens=5)
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model) == ("chat.completion", model.name)
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    usage, details = reply.usage, reply.usage.prompt_tokens_details
    assert usage.completion_tokens == 5
    assert usage.total_tokens == usage.prompt_tokens + 5
    assert details.image_tokens == 25
    assert details.image_tokens + details.text_tokens == usage.prompt_tokens
    assert 0 < reply.inference_time <= reply.processing_time
    assert "performance" not in reply.model_fields_set


def test_times_as_texts_for_those_who_had_them() -> None:
    with serving(hosting(load("small"), assistant_compat=True)) as url:
        client = sdk(url)
        reply = client.chat.completions.create(model="any", messages=ask("hello"), max_tokens=2)
        last = streamed(client, messages=ask("hello"), max_tokens=2, stream_options={"include_usage": True})[-1]
    for told in (reply, last):
        times = {"processing_time": told.processing_time, "inference_time": told.inference_time}
        assert told.performance == {name: f"{seconds:.2f}s" for name, seconds in times.items()}


def image_forms() -> list[Any]:
    raw = base64.b64encode((GOLDEN / "small" / "images" / "im_500x120.png").read_bytes()).decode()
    url = f"data:image/png;base64,{raw}"
    return [
        {"type": "image_url", "image_url": {"url": url, "detail": "high", "prompt_cache_breakpoint": {}}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "image_url", "image_url": {"url": raw, "detail": None}},
        {"type": "image_url", "image_url": {"url": url, "detail": "any"}},
        {"type": "file", "file": {"filename": "photo.png", "file_data": url}},
        {"type": "file", "file": {"file_data": raw}},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;name=a.jpg;base64,{raw}"}},
    ]


@pytest.mark.parametrize("form", range(5))
def test_every_way_to_write_an_image(client: Any, golden: Any, form: int) -> None:
    messages = [{"role": "user", "content": [image_forms()[form], {"type": "input_text", "text": QUESTION}]}]
    assert content(client, messages) == golden["im_500x120.query_0"]["output"]["answer"]


@pytest.mark.parametrize("text", [[], [{"type": "text", "text": " "}]])
def test_image_without_text_is_described(client: Any, photo: str, text: list[Any]) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": photo}}, *text]}]
    assert content(client, messages) == content(client, ask("Describe what you see in this image.", photo))


def test_content_string_is_the_same_as_one_text_part(client: Any) -> None:
    assert content(client, [{"role": "user", "content": QUESTION}]) == content(client, ask(QUESTION))


def test_conversation_uses_the_image_of_an_earlier_turn(client: Any, photo: str) -> None:
    def usage(*urls: str) -> Any:
        messages = [
            {"role": "developer", "content": "Be brief."},
            *ask("What is this?", *urls),
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant"},
            {"role": "user", "content": "And now?"},
        ]
        return client.chat.completions.create(model="any", messages=messages, max_tokens=2).usage

    assert usage(photo).prompt_tokens_details.image_tokens == 25
    assert usage().prompt_tokens_details.image_tokens == 0


def test_nulls_are_absent_and_unknown_fields_ignored(http: Any, photo: str) -> None:
    names = ["model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "min_p", "seed", "stop"]
    names += ["stream", "stream_options", "n", "tools", "response_format", "logprobs", "reasoning"]
    plain = http.post("/v1/chat/completions", json={"messages": ask(QUESTION, photo)}).json()
    body = {"messages": ask(QUESTION, photo), **dict.fromkeys(names), "metadata": {"a": 1}, "nonsense": [1]}
    body |= {"tools": [], "stop": [], "n": 1, "response_format": {"type": "text"}}
    body |= {"presence_penalty": 0.0, "logit_bias": {}}
    reply = http.post("/v1/chat/completions", json=body).json()
    assert reply["choices"] == plain["choices"]


def test_limits(client: Any, photo: str) -> None:
    def tokens(**options: Any) -> int:
        reply = client.chat.completions.create(model="any", messages=ask(QUESTION, photo), **options)
        return reply.usage.completion_tokens

    assert tokens(max_tokens=3) == 3
    assert tokens(max_completion_tokens=2, max_tokens=3) == 2


def test_stop(client: Any, golden: Any, photo: str) -> None:
    case = golden["im_500x120.query_1"]
    whole, messages = case["output"]["answer"], ask(case["args"]["question"], photo)
    for stop in ["tri", ["absent", "tri"]]:
        reply = client.chat.completions.create(model="any", messages=messages, max_tokens=24, stop=stop)
        assert reply.choices[0].message.content == whole.partition("tri")[0] != whole
        assert reply.choices[0].finish_reason == "stop"


def test_logit_bias(client: Any, model: Any, golden: Any, photo: str) -> None:
    case = golden["im_500x120.query_0"]
    first, *_, other = case["segments"][0]["token_ids"]
    options: dict[str, Any] = {"max_tokens": 8, "logit_bias": {str(other): 100}}
    reply = client.chat.completions.create(model="any", messages=ask(QUESTION, photo), logprobs=True, **options)
    assert len({token.token for token in reply.choices[0].logprobs.content}) == 1
    settings = {"max_tokens": 8, "logit_bias": {other: 100}}
    with Image.open(GOLDEN / "small" / "images" / "im_500x120.png") as image:
        assert model.query(image, QUESTION, settings=settings)["answer"] == reply.choices[0].message.content
    without = content(client, ask(QUESTION, photo), logit_bias={str(first): -100})
    assert without[:3] != case["output"]["answer"][:3]


def test_seed_repeats_a_sampled_text(client: Any, photo: str) -> None:
    def draw(seed: int) -> str:
        return content(client, ask(QUESTION, photo), temperature=2, top_p=1, seed=seed)

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_reasoning(http: Any, golden: Any, photo: str) -> None:
    expected = golden["im_500x120.query_reasoning_0"]["output"]
    body = {"messages": ask(QUESTION, photo), "max_tokens": 40, "reasoning": True}
    message = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (expected["answer"], expected["reasoning"]["text"])
    body["messages"] = [{"role": "user", "content": part} for part in (QUESTION, ask("", photo)[0]["content"][1:])]
    assert http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"] == message


@pytest.mark.parametrize("include_usage", [True, False])
def test_stream(client: Any, model: Any, golden: Any, photo: str, include_usage: bool) -> None:
    parts = streamed(
        client,
        messages=ask(QUESTION, photo),
        max_tokens=24,
        stream_options={"include_usage": include_usage},
    )
    assert {(p.id, p.created, p.model, p.object) for p in parts} == {
        (parts[0].id, parts[0].created, model.name, "chat.completion.chunk")
    }
    if include_usage:
        usage = parts.pop()
        assert usage.choices == []
        assert usage.usage.completion_tokens == 24
        assert usage.inference_time <= usage.processing_time
    assert all(("usage" in p.model_fields_set) is include_usage and p.usage is None for p in parts)
    first, *middle, last = (p.choices[0] for p in parts)
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert (last.delta.content, last.finish_reason) == (None, "length")
    assert len(middle) > 1
    assert all(c.finish_reason is None for c in middle)
    assert "".join(c.delta.content for c in middle) == golden["im_500x120.query_0"]["output"]["answer"]


def test_stream_is_written_as_clients_expect(http: Any, photo: str) -> None:
    body = {"messages": ask(QUESTION, photo), "max_tokens": 3, "stream": True}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-cache"
    *events, end = reply.text.split("\n\n")
    assert end == ""
    assert events[-1] == "data: [DONE]"
    assert all(e.startswith("data: {") and "\n" not in e for e in events[:-1])


def test_stream_helper(client: Any, golden: Any, photo: str) -> None:
    case = golden["im_500x120.query_1"]
    messages = ask(case["args"]["question"], photo)
    with client.chat.completions.stream(
        model="any", messages=messages, max_tokens=24, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == case["output"]["answer"]
    assert final.usage.completion_tokens == len(case["segments"][0]["token_ids"])


def test_requests_at_once(client: Any, golden: Any, photo: str) -> None:
    asked = [("im_500x120.query_0", [photo]), ("text_only.query_0", []), ("im_500x120.query_1", [photo])] * 3

    def one(case: str, urls: list[str], stream: bool) -> str:
        messages = ask(golden[case]["args"]["question"], *urls)
        if not stream:
            return content(client, messages)
        parts = streamed(client, messages=messages, max_tokens=24)
        return "".join(p.choices[0].delta.content or "" for p in parts)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(one, case, urls, i % 2 == 0) for i, (case, urls) in enumerate(asked)]
    assert [a.result() for a in answers] == [golden[case]["output"]["answer"] for case, _ in asked]
