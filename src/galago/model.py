"""The Python face: load a model, ask it about images and videos.

Results have the shapes that Moondream's own clients return. Coordinates are 0..1 from the top left.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from galago import arguments
from galago.answers import collect_answer, collect_mapped_answer
from galago.arguments import SettingsDict, make_request
from galago.backends.backend import Backend, Run, loader_of
from galago.batch.each import each, raise_errors
from galago.engine.limits import Limits
from galago.errors import GalagoError, InvalidRequest
from galago.media.clip import Clip
from galago.media.image import load_image
from galago.media.load import load_media, open_image, open_media
from galago.media.source import FileSource
from galago.messages import MessageDict, read_messages
from galago.request import (
    STILL_SKILLS,
    Caption,
    Chat,
    Detect,
    Encode,
    Encoding,
    Length,
    Media,
    Message,
    Point,
    Priority,
    Query,
    Request,
    Skill,
    check,
)
from galago.store.catalog import entries
from galago.system.forked import run_after_fork
from galago.values import is_whole

log = logging.getLogger(__name__)
MediaSource = FileSource | Image.Image | np.ndarray | Clip | Encoding
"""An image or a video: a path, a URL, the bytes of a file, an open file; a PIL image or a clip; or what is encoded."""


def load(
    model: str | Path | None = None,
    *,
    precision: str | None = None,
    profile: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    variants: str | Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits | None = None,
) -> "Model":
    """Load a model of the catalogue, a folder or a weights file, downloading it where needed.

    Without a name it is the catalogue's first, which is bundled and knows drawings only; the log says so.

    `precision` is float32, bfloat16, float16, int8 or int4; without one the model's name may end in it
    (moondream2-int8), or `profile` decides: standard (float32) or optimized (the best for the device: int8 on a CPU,
    bfloat16 on CUDA, float16 on MPS). Without one models of 100 M parameters and more are optimized, smaller ones
    standard. The first load of a large model in int8 or int4 keeps a packed copy.

    `device` is cpu, cuda or mps (default: the best there is), `revision` the published state whose
    behaviour a checkpoint has, if its files do not tell. `variants` is a folder of LoRA files that requests
    name; without it they give paths, so a server that lets strangers choose a variant wants it. `threads`
    is how many CPU threads compute for this model (default: those that this process may use; more than can run at
    a time are cut, and the log says so); `progress` is told how many bytes of how many are downloaded. `limits` says
    how much may wait, run and be kept at once.

    Raises ModelNotFound, CheckpointError, DownloadError or InvalidRequest.
    """
    check(model is None or (isinstance(model, str | Path) and str(model)), "model", "a name or a path")
    for name, text in {"precision": precision, "profile": profile, "device": device, "revision": revision}.items():
        check(text is None or (isinstance(text, str) and text), name, "a text, or None for the default")
    check(variants is None or (isinstance(variants, str | Path) and str(variants)), "variants", "a folder, or None")
    fits = threads is None or (is_whole(threads) and threads >= 1)
    check(fits, "threads", "a whole number >= 1, or None for what this process may use")
    check(progress is None or callable(progress), "progress", "a function of bytes done and of how many, or None")
    check(limits is None or isinstance(limits, Limits), "limits", "galago.Limits, or None")
    if model is None:
        model = entries()[0].id
        log.warning("no model was named: %s", entries()[0].description)
    name = str(model)
    load = partial(loader_of(name).load, name, precision=precision, profile=profile, device=device, revision=revision)
    folder = None if variants is None else Path(variants)
    return Model(run_after_fork(lambda: load(variants=folder, threads=threads, progress=progress, limits=limits)))


class Model:
    """A loaded model. Its methods may be called from any thread; requests are carried out together.

    `name`, `identity`, `revision`, `precision`, `device`, `threads`, `kernels`, `fallbacks` and `video_sampling` are
    its backend's facts; see galago.Facts.

    Of a video the frames are looked at that the model was trained to look at (`video_sampling`), and what moves, as
    some GIFs do, is one. Other models, and detect, point and detect_gaze, take of what moves the first frame.

    All raise InvalidRequest for arguments out of range, InvalidImage and InvalidVideo for what cannot be read,
    UnsupportedTask for what the model's revision lacks, such as videos, EngineBusy when too many wait, NotANumber where
    what the model computes is NaN or infinite, and EngineClosed where it has `ended`. Threads do not survive a fork: a
    program that forks loads its models in its children.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, facts = backend, backend.facts
        self.name, self.identity, self.revision = facts.name, facts.identity, facts.revision
        self.precision, self.device, self.threads = facts.precision, facts.device, facts.threads
        self.kernels, self.fallbacks, self.video_sampling = facts.kernels, list(facts.fallbacks), facts.video_sampling
        for fallback in facts.fallbacks:
            log.warning("%s: %s", facts.name, fallback)

    @property
    def waiting(self) -> int:
        """Requests in the queue, without those that are running."""
        return int(self.stats()["queue"]["waiting"])

    @property
    def ended(self) -> GalagoError | None:
        """Why it takes no more requests; None as long as it does.

        It was closed, its engine failed (EngineFailed), or this process was forked off from the one that loaded it.
        """
        return self.backend.ended

    def stats(self) -> dict[str, Any]:
        """What has been done, how fast, and what is held in memory."""
        return self.backend.stats()

    def memory(self) -> dict[str, Any]:
        """Bytes: of the weights, of those in mapped files, and of what keys, values and cached images take now."""
        facts = self.backend.facts
        weights = {"weights_bytes": facts.weights_bytes, "mapped_bytes": facts.mapped_bytes}
        return {**weights, "cache_bytes": self.stats()["bytes"]}

    def trim(self) -> None:
        """Let go of cached images, and hand memory back to the system, before the next step."""
        self.backend.trim()

    def encode_image(self, image: MediaSource, settings: SettingsDict | None = None) -> Encoding:
        """See an image or a video once, for many questions about it; of the settings `variant` and `detail` matter."""
        arguments.sampling_from_settings(settings)
        if isinstance(image, Encoding):
            return image
        return cast(Encoding, self._answer(Encode(), image, settings)["image"])

    def caption(
        self, image: MediaSource, length: str = "normal", stream: bool = False, settings: SettingsDict | None = None
    ) -> dict[str, Any]:
        """{"caption": text} that is short, normal or long; an iterator of pieces of text with `stream`."""
        return self._answer(Caption(cast(Length, length)), image, settings, stream)

    def query(
        self,
        image: MediaSource | None = None,
        question: str | None = None,
        reasoning: bool = False,
        spatial_refs: Sequence[Sequence[float]] | None = None,
        stream: bool = False,
        settings: SettingsDict | None = None,
    ) -> dict[str, Any]:
        """{"answer": text}, or an iterator of pieces of text with `stream`.

        `spatial_refs` are points (x, y) and boxes (x_min, y_min, x_max, y_max) that the question is
        about. With `reasoning` the result also has "reasoning": {"text", "grounding": [{"start_idx",
        "end_idx", "points"}]}, characters of that text and the points that they speak of.
        """
        return self._answer(arguments.read_query(question, reasoning, spatial_refs), image, settings, stream)

    def chat(
        self, messages: Sequence[MessageDict | Message], stream: bool = False, settings: SettingsDict | None = None
    ) -> dict[str, Any]:
        """{"answer": text} to a conversation that ends with a user turn, or an iterator of pieces with `stream`."""
        return self._answer(self.conversation(messages), None, settings, stream)

    def detect(self, image: MediaSource, object: str, settings: SettingsDict | None = None) -> dict[str, Any]:
        """{"objects": [{"x_min", "y_min", "x_max", "y_max"}]}; boxes may reach past 0..1."""
        return self._answer(Detect(object, **arguments.object_limit(settings)), image, settings)

    def point(self, image: MediaSource, object: str, settings: SettingsDict | None = None) -> dict[str, Any]:
        """{"points": [{"x", "y"}]}, one in each object of that name."""
        return self._answer(Point(object, **arguments.object_limit(settings)), image, settings)

    def detect_gaze(
        self,
        image: MediaSource,
        eye: Sequence[float] | Mapping[str, float] | None = None,
        face: Sequence[float] | Mapping[str, float] | None = None,
        unstable_settings: SettingsDict | None = None,
        *,
        prioritize_accuracy: bool = False,
        force_detect: bool = False,
        settings: SettingsDict | None = None,
    ) -> dict[str, Any]:
        """{"gaze": {"x", "y"} or None}: where the person with this eye (x, y) looks.

        With `prioritize_accuracy` twenty points of the `face` box are asked from instead, drawn with
        the setting `seed`, which takes an image that is not yet encoded. Both flags may also stand in
        `unstable_settings`, as upstream has them.
        """
        skill = arguments.read_gaze(eye, face, unstable_settings, prioritize_accuracy, force_detect)
        return self._answer(skill, image, settings)

    def map(
        self,
        skill: Skill,
        images: Iterable[MediaSource | None],
        *,
        settings: SettingsDict | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[dict[str, Any] | GalagoError]:
        """The answers to a skill of galago.request about each image or video, in their order, many at a time.

            for path, answer in zip(paths, model.map(Caption("short"), paths)):
                print(path, answer if isinstance(answer, GalagoError) else answer["caption"])

        An answer is what the method of that skill returns; where one is not to be had, because an image cannot be read
        for instance, its error stands in its place, and the others go on. `images` may be endless, or slow: they are
        taken as they are needed, about 32 ahead. `progress` is told how many are done. Requests of other callers go
        first. Ending the iteration early cancels what is under way. Raises at once what is wrong with the skill and
        the settings and UnsupportedTask for a skill that the model lacks, and in the middle EngineClosed where it takes
        no more requests.
        """
        check(callable(progress), "progress", "a function of how many are done")
        template, images = self._template(skill, settings, "batch"), arguments.iterate(images, "images")

        def request(image: MediaSource | None) -> Request:
            return replace(template, image=self._defer_media(image, isinstance(skill, STILL_SKILLS)))

        return each(images, request, self.submit, collect_mapped_answer, progress=progress)

    def answer_question(
        self,
        image: MediaSource,
        question: str,
        tokenizer: object = None,
        chat_history: str = "",
        result_queue: Any = None,
        max_new_tokens: int = 256,
        **kwargs: object,
    ) -> str:
        """The answer as text, as the 2024 releases gave it; also put into `result_queue`, if there is one.

        At most `max_new_tokens` long. The other arguments are there for older programs, and not used.
        """
        check(result_queue is None or hasattr(result_queue, "put"), "result_queue", "a queue, or None")
        answer = str(self.query(image, question, settings={"max_tokens": max_new_tokens})["answer"]).strip()
        if result_queue is not None:
            result_queue.put(answer)
        return answer

    def batch_answer(
        self, images: Sequence[MediaSource], prompts: Sequence[str], tokenizer: object = None, **kwargs: object
    ) -> list[str]:
        """One answer for each pair of image and question."""
        for name, given in {"images": images, "prompts": prompts}.items():
            check(isinstance(given, list | tuple), name, "a list")
        if len(images) != len(prompts):
            raise InvalidRequest(f"{len(images)} images and {len(prompts)} prompts do not pair", "prompts")

        def request(pair: tuple[MediaSource, str]) -> Request:
            return make_request(Query(pair[1]), self._defer_media(pair[0]), {"max_tokens": 256}, "batch")

        answers = raise_errors(each(zip(images, prompts, strict=True), request, self.submit, collect_mapped_answer))
        return [answer["answer"].strip() for answer in answers]

    def submit(self, request: Request) -> Run:
        """Start a request; the Run iterates over its events. Raises at once what is wrong with the request."""
        check(isinstance(request, Request), "request", "a Request")
        self.backend.facts.check_skill(type(request.skill))
        return self.backend.submit(request)

    def start(self, skill: Skill, image: MediaSource | None = None, settings: SettingsDict | None = None) -> Run:
        """Open an image or a video and submit a request about it, with settings as the methods take them."""
        template = self._template(skill, settings)  # what is wrong with it is told before the image is read
        opened = self._defer_media(image, isinstance(skill, STILL_SKILLS))
        return self.submit(replace(template, image=opened))

    def conversation(self, messages: Sequence[MessageDict | Message]) -> Chat:
        """Messages as `chat` takes them, checked, with their images and videos opened."""
        return Chat(read_messages(messages, self._open_media))

    def close(self) -> None:
        """End everything under way with EngineClosed. A closed model refuses requests."""
        self.backend.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _template(self, skill: Skill, settings: SettingsDict | None, priority: Priority = "interactive") -> Request:
        """A request for a skill, whose image is still to come. Raises UnsupportedTask for one that the model lacks."""
        template = make_request(skill, None, settings, priority)
        self.backend.facts.check_skill(type(skill))
        return template

    def _open_media(self, source: MediaSource, still: bool = False) -> Image.Image | Clip | Encoding:
        if isinstance(source, Encoding | Clip):
            return source
        if still or isinstance(source, Image.Image):
            return load_image(source)
        return load_media(source, lambda: self.video_sampling)

    def _defer_media(self, source: MediaSource | None, still: bool = False) -> Media | None:
        """Like _open_media, but an image file is decoded only when its turn comes."""
        if source is None or isinstance(source, Encoding | Clip | Image.Image | np.ndarray):
            return None if source is None else self._open_media(source, still)
        return open_image(source) if still else open_media(source, lambda: self.video_sampling)

    def _answer(
        self, skill: Skill, image: MediaSource | None, settings: SettingsDict | None, stream: bool = False
    ) -> dict[str, Any]:
        check(isinstance(stream, bool), "stream", "True or False")
        return collect_answer(skill, self.start(skill, image, settings), stream)
