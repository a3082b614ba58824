"""Stepping one request from its start to its last event."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import KVCache
from galago.engine.step import End, Feed, Output, Start, StepModel, Steps
from galago.request import Done, Event, Timings, Usage


@dataclass
class _Meter:
    """What a request used so far, and how long each phase took."""

    since: float
    prompt: int = 0
    image: int = 0
    cached: int = 0
    fed: int = 0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_s: float | None = None
    _phase: Literal["prefill", "decode"] | None = None
    _mark: float = 0.0

    def enter(self, phase: Literal["prefill", "decode"] | None) -> None:
        """Charge the time since the last call to the phase that it began.

        A phase lasts until the skill asks for more: only by then has an accelerator answered.
        """
        now = time.perf_counter()
        if self._phase == "prefill":
            self.prefill_s += now - self._mark
        elif self._phase == "decode":
            self.decode_s += now - self._mark
        self._phase, self._mark = phase, now

    def elapsed(self) -> float:
        return time.perf_counter() - self.since

    def done(self, end: End) -> Done:
        self.enter(None)
        total = self.elapsed()
        first = total if self.first_s is None else self.first_s
        usage = Usage(self.prompt, self.image, self.cached, end.completion_tokens)
        return Done(end.reason, usage, Timings(self.encode_s, self.prefill_s, self.decode_s, first, total))


def run(model: StepModel, steps: Steps, cancelled: Callable[[], bool], since: float | None = None) -> Iterator[Event]:
    """The events of a request and, last, Done.

    `cancelled` is asked before every step and may raise. Times count from `since` on the performance
    counter (default: now). Wants its caller to be in torch's inference mode.
    """
    meter = _Meter(time.perf_counter() if since is None else since)
    cache: KVCache | None = None
    answer: EncodedImage | Output | None = None
    try:
        while not cancelled():
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                end = stop.value
                break
            if isinstance(step, Start):
                meter.enter(None)
                answer = _encoded(model, step, meter)
                cache = model.new_cache(answer, step.variant)
                prompt = True
            elif isinstance(step, Feed):
                assert cache is not None, "a skill starts before it feeds"
                meter.enter("prefill" if prompt else "decode")
                answer = model.forward(cache, step)
                if prompt:
                    meter.prompt += len(step.input)
                else:
                    meter.fed += len(step.input)
                prompt = False
            else:
                answer = None
                if meter.first_s is None:
                    meter.first_s = meter.elapsed()
                yield step
        else:
            end = End("cancelled", meter.fed)
    finally:
        steps.close()
    yield meter.done(end)


def _encoded(model: StepModel, start: Start, meter: _Meter) -> EncodedImage | None:
    if start.image is None:
        return None
    if isinstance(start.image, EncodedImage):
        encoded = start.image
        meter.cached += encoded.positions
    else:
        encoded = model.encode_image(start.image, start.variant, start.detail)  # type: ignore[arg-type]
        meter.encode_s += encoded.encode_s
        meter.prefill_s += encoded.prefill_s
    meter.prompt += encoded.positions
    meter.image += encoded.image_tokens
    return encoded
