"""The queue and its worker, over a model whose steps wait until the test says go on."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from galago.answers import collect_answer
from galago.engine.encoded_image import EncodedImage
from galago.engine.engine import Engine
from galago.engine.kv_cache import KVCache
from galago.engine.limits import Limits
from galago.engine.step import End, Feed, ImageInput, Prefix, Start, StepOutput, Steps
from galago.errors import EngineBusy, EngineClosed, GenerationFailed, InvalidRequest
from galago.nn.passes import Passes
from galago.precision import pick_precision
from galago.request import Caption, Detail, Done, Encode, Query, Request, TextDelta

PATIENCE = 30


class Gated:
    """Spells the question one word a step; a step over the word `wait` waits for the gate."""

    def __init__(self) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        self.ended: list[str] = []

    name, identity, device = "gated", "gated@1", torch.device("cpu")
    precision = pick_precision("float32", device)
    kv_bytes, context, shares_prefixes, crops_per_pass, rows_per_pass = 16, 10_000, True, 1, 4

    def skill(self, request: Request) -> Steps:
        if not isinstance(request.skill, Query):
            raise InvalidRequest("only questions", "skill")
        return self._spell(request.skill.question)

    def _spell(self, question: str) -> Steps:
        try:
            yield Start(None, 50)
            for i, word in enumerate(question.split()):
                yield Feed(torch.tensor([i]))
                if word == "wait":
                    self.reached.set()
                    assert self.gate.wait(PATIENCE)
                elif word == "fail":
                    raise RuntimeError("out of luck")
                elif word == "refuse":
                    raise InvalidRequest("late refusal")
                yield TextDelta(word)
            return End("stop", i + 1)
        finally:
            self.ended.append(question)

    def image_prefix(self, shown: Any, detail: Detail = "high") -> Prefix:
        return Prefix((ImageInput(shown, detail),), 3)

    def make_crops(self, image: Image.Image, detail: Detail = "high") -> Any:
        return SimpleNamespace(pixels=np.zeros((1, 2, 2, 3), np.uint8))

    def encode_crops(self, pixels: np.ndarray) -> Passes[torch.Tensor]:
        yield
        return torch.zeros(len(pixels), 2, 2)

    def embed_image(self, features: torch.Tensor, crops: Any) -> torch.Tensor:
        return features[0]

    def encode_prefix(
        self, prefix: Prefix, embeddings: Sequence[torch.Tensor], variant: str | None = None
    ) -> Passes[EncodedImage]:
        yield
        k = torch.zeros(1, 1, 3, 2)
        return EncodedImage("gated", variant, k, k, prefix.images[0].image.size, 1, 2)

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache:
        return KVCache((1, 1, 2), 100, torch.float32, torch.device("cpu"), encoded)

    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[StepOutput]:
        assert torch.is_inference_mode_enabled()
        return [StepOutput(torch.zeros(2), {}, cache.room) for cache in caches]


def ask(text: str) -> Request:
    return Request(Query(text))


def words(events: Any) -> list[str]:
    return [e.text for e in events if isinstance(e, TextDelta)]


@pytest.fixture
def model() -> Gated:
    return Gated()


@pytest.fixture
def engine(model: Gated) -> Any:
    made = Engine(model, Limits(waiting=2, running=1))
    yield made
    model.gate.set()
    made.close()


def test_events_then_done(engine: Engine) -> None:
    run = engine.submit(ask("a b c"))
    *events, done = run
    assert events == [TextDelta("a"), TextDelta("b"), TextDelta("c")]
    assert isinstance(done, Done) and done.finish_reason == "stop"
    assert done.usage.completion_tokens == 3 and done.usage.prompt_tokens == 1
    assert 0 < done.timings.ttft_s <= done.timings.total_s
    assert done.timings.prefill_s + done.timings.decode_s <= done.timings.total_s
    assert [*run] == []


def test_requests_are_carried_out_in_turn(engine: Engine, model: Gated) -> None:
    runs = [engine.submit(ask("wait first"))]
    assert model.reached.wait(PATIENCE)
    runs += [engine.submit(ask("second")), engine.submit(ask("third"))]
    model.gate.set()
    assert [words(run)[-1] for run in reversed(runs)] == ["third", "second", "first"]
    assert model.ended == ["wait first", "second", "third"]


def test_a_full_queue_refuses(engine: Engine, model: Gated) -> None:
    running = engine.submit(ask("wait"))
    assert model.reached.wait(PATIENCE)
    waiting = [engine.submit(ask("a")), engine.submit(ask("b"))]
    assert engine.waiting == 2
    with pytest.raises(EngineBusy):
        engine.submit(ask("c"))
    with pytest.raises(EngineBusy):
        engine.submit(Request(Encode(), Image.new("RGB", (2, 2))))
    waiting[0].cancel()
    late = engine.submit(ask("d"))  # a cancelled request gives its place up
    model.gate.set()
    assert [words(run) for run in (running, waiting[0], waiting[1], late)] == [["wait"], [], ["b"], ["d"]]


def test_a_bad_request_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(InvalidRequest):
        engine.submit(Request(Caption()))
    assert words(engine.submit(ask("fine"))) == ["fine"]


def test_cancel_stops_at_the_next_step(engine: Engine, model: Gated) -> None:
    run = engine.submit(ask("a wait b c"))
    assert model.reached.wait(PATIENCE)
    run.cancel()
    run.cancel()
    model.gate.set()
    *events, done = run
    # The step under way was still given out, the next was not taken.
    assert words(events) == ["a", "wait"]
    assert isinstance(done, Done) and done.finish_reason == "cancelled"
    assert done.usage.completion_tokens == 1
    assert words(engine.submit(ask("next one"))) == ["next", "one"]
    assert model.ended == ["a wait b c", "next one"]


def test_cancel_after_the_end_changes_nothing(engine: Engine) -> None:
    run = engine.submit(ask("a"))
    events = [*run]
    run.cancel()
    assert words(events) == ["a"] and [*run] == []
    assert words(engine.submit(ask("b"))) == ["b"]


def test_a_waiting_request_is_cancelled_without_a_step(engine: Engine, model: Gated) -> None:
    running = engine.submit(ask("wait"))
    assert model.reached.wait(PATIENCE)
    waiting = engine.submit(ask("never"))
    waiting.cancel()
    (done,) = waiting  # while the other still runs
    assert isinstance(done, Done) and done.finish_reason == "cancelled"
    model.gate.set()
    assert words(running) == ["wait"]
    assert model.ended == ["wait"]


def test_letting_go_of_a_run_cancels_it(engine: Engine, model: Gated) -> None:
    run = engine.submit(ask("a wait b c d"))
    next(run)
    assert model.reached.wait(PATIENCE)
    del run
    gc.collect()
    model.gate.set()
    assert words(engine.submit(ask("next"))) == ["next"]
    assert model.ended == ["a wait b c d", "next"]


def test_a_failing_request_fails_alone(engine: Engine, model: Gated, caplog: pytest.LogCaptureFixture) -> None:
    runs = [engine.submit(ask("wait fail"))]
    assert model.reached.wait(PATIENCE)
    runs += [engine.submit(ask("a refuse")), engine.submit(ask("fine"))]
    with caplog.at_level(logging.ERROR):
        model.gate.set()
        with pytest.raises(GenerationFailed) as failed:
            list(runs[0])
    assert str(failed.value.__cause__) == "out of luck"
    assert "out of luck" not in str(failed.value)  # not for strangers
    assert "Traceback" in caplog.text and "out of luck" in caplog.text
    assert next(runs[1]) == TextDelta("a")
    with pytest.raises(InvalidRequest, match="late refusal"):
        next(runs[1])
    assert [*runs[1]] == []
    assert words(runs[2]) == ["fine"]


def test_close_ends_all_requests(engine: Engine, model: Gated) -> None:
    running = engine.submit(ask("a wait b"))
    assert model.reached.wait(PATIENCE)
    waiting = engine.submit(ask("c"))
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(EngineClosed):
        list(waiting)
    with pytest.raises(EngineClosed):
        engine.submit(ask("d"))
    model.gate.set()
    with pytest.raises(EngineClosed):
        list(running)
    closer.join(PATIENCE)
    assert not closer.is_alive()
    engine.close()
    assert model.ended[0] == "a wait b"


def test_an_engine_that_is_let_go_ends_its_thread() -> None:
    model, before = Gated(), threading.enumerate()
    gone: Callable[[], object] = weakref.ref(model)
    engine = Engine(model)
    (worker,) = [thread for thread in threading.enumerate() if thread not in before]
    run = engine.submit(ask("a b"))
    del engine, model
    assert words(run) == ["a", "b"]  # a run keeps its engine
    gc.disable()  # it takes no collection of garbage
    try:
        del run
        worker.join(PATIENCE)  # it ends by itself: whoever lets go does not wait for it
        assert gone() is None
    finally:
        gc.enable()


def test_encoding_takes_its_turn(engine: Engine) -> None:
    request = Request(Encode(), Image.new("RGB", (5, 4)), variant="v")
    encoded = collect_answer(request.skill, engine.submit(request))["image"]
    assert (encoded.model, encoded.variant, encoded.size) == ("gated", "v", (5, 4))


def test_many_threads(model: Gated) -> None:
    engine = Engine(model, Limits(waiting=100))
    answers: dict[int, list[str]] = {}

    def client(i: int) -> None:
        answers[i] = words(engine.submit(ask(f"answer {i}")))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    engine.close()
    assert answers == {i: ["answer", str(i)] for i in range(20)}
