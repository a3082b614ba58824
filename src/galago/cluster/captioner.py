"""A class for other people's Ray pipelines."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import galago
from galago.batch.lists import COLUMNS, source_row
from galago.batch.questions import Place, make_questions
from galago.batch.rows import Row
from galago.batch.run import finished_rows
from galago.errors import InvalidRequest, quoted
from galago.media.source import from_array
from galago.media.timeline import FrameSampling


class Captioner:
    """Asks about the images of a batch, as `Dataset.map_batches` hands it over: columns in, the same columns out with
    the answers.

        asked = {"model": "moondream2-int8", "query": ["Where is it?"]}
        options = {"batch_size": 32, "concurrency": (1, 8), "num_cpus": 4}
        dataset.map_batches(galago.ray.Captioner, fn_constructor_kwargs=asked, **options)

    It has one model, which is loaded when it is made. `caption` are lengths (short, normal, long), `query` questions,
    `detect` and `point` words; without any it captions. Images are in the `column`, by default the first of COLUMNS
    that there is: paths, URLs (s3:// and gs:// too), the bytes of files, or arrays, uint8 [height, width, 3]. The
    answers are in columns that are called as `galago batch` does in CSV: caption, captions.LENGTH, answers.QUESTION,
    objects.WORD and points.WORD, of which the last two, and what was asked of the frames of a video, are JSON. What is
    wrong with an image is in the column `error`, which is None for all others.

    `settings` are those of a request (max_tokens, temperature, ...), other options are galago.load's: without
    `threads` a model has the cores that Ray gave it. Raises InvalidRequest and what galago.load raises.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        caption: Sequence[str] = (),
        query: Sequence[str] = (),
        detect: Sequence[str] = (),
        point: Sequence[str] = (),
        column: str | None = None,
        settings: Mapping[str, Any] | None = None,
        max_objects: int | None = None,
        **options: Any,
    ) -> None:
        captions = caption or ([] if query or detect or point else ["normal"])
        self.questions = make_questions(
            captions=captions, queries=query, detect=detect, point=point, max_objects=max_objects,
            settings=dict(settings or {}),
        )  # fmt: skip
        self.column = column
        options.setdefault("threads", _cores())
        self.model = galago.load(model, **options) if model else galago.load(**options)
        self.questions.check(self.model.backend.facts)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Raises InvalidRequest for a batch without a column of images, and EngineClosed where the model has ended."""
        rows = [_row(value, number) for number, value in enumerate(batch[self._chosen(batch)])]
        sampling = self.model.video_sampling or FrameSampling()
        with closing(finished_rows(self.model.backend, rows, self.questions, sampling, images=False)) as finished:
            records = [one.record for one in finished]
        told: dict[str, Any] = {
            ".".join(question.place): [_value(record, question.place) for record in records]
            for question in self.questions
        }
        errors = [record["error"]["message"] if "error" in record else None for record in records]
        return {**batch, **told, "error": errors}

    def _chosen(self, batch: Mapping[str, Any]) -> str:
        known = [name for name in ([self.column] if self.column else COLUMNS) if name in batch]
        if known:
            return known[0]
        wanted = f"no column {quoted(self.column)}" if self.column else "none of the columns " + ", ".join(COLUMNS)
        raise InvalidRequest(f"the batch has {wanted}; there are {', '.join(batch)}: name one with column=", "column")


def _row(value: Any, number: int) -> Row:
    place = f"row {number} of the batch"
    if isinstance(value, np.ndarray):
        return Row(place, partial(from_array, value))
    return source_row(value.item() if isinstance(value, np.generic) else value, {}, Path(), place)


def _value(record: Mapping[str, Any], place: Place) -> str | None:
    """An answer of a row as text; that about a video's frames where it has none about the whole."""
    for held in (record, record.get("frames", {})):
        for name in place:
            held = held.get(name) if isinstance(held, Mapping) else None
        if held is not None:
            return held if isinstance(held, str) else json.dumps(held, ensure_ascii=False)
    return None


def _cores() -> int | None:
    """Those that Ray gave this actor; None outside of one."""
    import ray

    if not ray.is_initialized():
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
