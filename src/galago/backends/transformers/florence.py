"""Florence-2 (arXiv:2311.06242): a model that carries out tasks, each of which a token of its prompt names.

Answers are searched with beams, as published, so their text comes whole. A caption or another text that is to be drawn
(a temperature, penalties, biases) or told with its probabilities is written token by token.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from galago.backends.queued import Prepared, Turn
from galago.backends.transformers.model import TransformersModel, decoded
from galago.backends.transformers.prompts import as_question, check_request, without_control
from galago.engine.step import End
from galago.errors import InvalidRequest, UnsupportedTask
from galago.request import (
    Caption,
    Chat,
    Detect,
    Length,
    Media,
    ObjectFound,
    Query,
    Request,
    Sampling,
    Skill,
    TextDelta,
)

SKILLS: frozenset[type[Skill]] = frozenset({Caption, Query, Chat, Detect})
CAPTIONS: dict[Length, str] = {
    "short": "<CAPTION>",
    "normal": "<DETAILED_CAPTION>",
    "long": "<MORE_DETAILED_CAPTION>",
}
DETECT = "<OPEN_VOCABULARY_DETECTION>"
TASK = re.compile(r"<[A-Z_]+>")
PLACE = re.compile(r"(<loc_\d+>)")
PUBLISHED = {"num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True, "forced_bos_token_id": 0}
"""How it is asked where generation_config.json does not say."""
BINS = 1000
"""Steps on each side of a picture in which places are told; one is told by its middle."""
FINE = 100 * BINS
"""The size of a picture in which the middles of all steps are whole numbers."""


class Florence(TransformersModel):
    """Florence-2 with its processor."""

    def prepare(self, request: Request) -> Prepared:
        """Check a request. Raises InvalidRequest or UnsupportedTask."""
        request = as_question(request)
        check_request(request)
        self.check_bias(request.sampling)
        if request.sampling.json_schema is not None:
            raise UnsupportedTask("answers of this model are not held to a schema")
        if request.image is None:
            raise InvalidRequest("this model needs an image", "image")
        match request.skill:
            case Caption(length):
                task, given = CAPTIONS[length], ""
            case Detect(name):
                task, given = DETECT, name
            case Query(question):
                task, given = self._task(question.strip())
            case _:
                raise AssertionError("Florence has no other skills")
        return Task(self, request, request.image, task, self._without_control(given))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with the places in it."""
        text = str(self.processor.tokenizer.decode(list(ids), skip_special_tokens=False))
        return re.sub("</?s>|<pad>", "", text)

    def parse(self, text: str, task: str, size: tuple[int, int]) -> Any:
        """What an answer says: a text, or lists of boxes, polygons and labels, in pixels of a picture of this size."""
        return self.processor.post_process_generation(text=text, task=task, image_size=size)[task]

    def is_text(self, task: str) -> bool:
        return bool(self.processor.tasks_answer_post_processing_type[task] == "pure_text")

    def _task(self, question: str) -> tuple[str, str]:
        found, tasks = TASK.match(question), self.processor.tasks_answer_post_processing_type
        if found is None or found[0] not in tasks:
            raise InvalidRequest(f"this model takes a task and no free question: one of {', '.join(tasks)}", "question")
        task, given = found[0], question[found.end() :].strip()
        if given and task in self.processor.task_prompts_without_inputs:
            raise InvalidRequest(f"{task} stands alone, without a text after it", "question")
        return task, given

    def _without_control(self, text: str) -> str:
        """A user's text, of whose control tokens places alone are read as such."""
        parts = PLACE.split(TASK.sub(lambda found: f"< {found[0][1:]}", text))
        return "".join(part if i % 2 else without_control(self.processor, part) for i, part in enumerate(parts))


@dataclass(frozen=True, eq=False)
class Task:
    """A task about an image, and the text that it is given."""

    m: Florence
    request: Request
    image: Media
    task: str
    text: str

    def carry_out(self, turn: Turn) -> End:
        m, image = self.m, decoded(self.image)
        inputs = m.processor(images=[image], text=self.task + self.text, return_tensors="pt")
        if m.is_text(self.task) and self._is_drawn:
            return m.write(turn, inputs, self.request)
        turn.check()
        limit, begun = m.limit(self.request, 0), False

        def step(ids: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
            nonlocal begun
            if not begun:
                turn.begin_answer(*prompt_tokens)
            begun = True
            turn.check()
            turn.count_token()
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        prompt_tokens = m.count(inputs)
        own = m.model.generation_config
        settings = {name: value for name, value in PUBLISHED.items() if not getattr(own, name, None)}
        [ids] = m.generate(inputs, limit, step, **settings)
        text = m.processor.tokenizer.decode(ids, skip_special_tokens=False)
        if isinstance(self.request.skill, Detect):
            self._emit_objects(turn, text)
        elif piece := self._cut(self._answer(text, image.size)):
            turn.emit(TextDelta(piece))
        # The last token is forced where the limit is reached.
        return End("length" if len(ids) > limit else "stop", len(ids) - 1)

    @property
    def _is_drawn(self) -> bool:
        s = self.request.sampling
        plain = Sampling(max_tokens=s.max_tokens, stop=s.stop, seed=s.seed)
        return self.request.top_logprobs is not None or s != plain

    def _answer(self, text: str, size: tuple[int, int]) -> str:
        found = self.m.parse(text, self.task, size)
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    def _emit_objects(self, turn: Turn, text: str) -> None:
        assert isinstance(self.request.skill, Detect)
        found = self.m.parse(text, self.task, (FINE, FINE))
        outlines = [[flat for polygon in polygons for flat in polygon] for polygons in found["polygons"]]
        boxes = found["bboxes"] + [[min(o[::2]), min(o[1::2]), max(o[::2]), max(o[1::2])] for o in outlines if o]
        for left, top, right, bottom in boxes[: self.request.skill.max_objects]:
            turn.emit(ObjectFound((left / FINE, top / FINE, right / FINE, bottom / FINE)))

    def _cut(self, text: str) -> str:
        """The text before the first of the stops."""
        return text[: min((at for stop in self.request.sampling.stop if (at := text.find(stop)) >= 0), default=None)]
