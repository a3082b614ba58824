"""A folder of inputs that is taken away while a batch runs: one clear error, and nothing is lost."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_moondream import write

import galago
from galago.batch.inputs import InputOptions, read_inputs
from galago.batch.job import Job
from galago.batch.opened import Roots
from galago.batch.questions import make_questions
from galago.batch.run import Counts
from galago.errors import InvalidRequest
from galago.media.timeline import FrameSampling


def test_it_ends_with_one_error_and_goes_on(tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out.jsonl"
    folder.mkdir()
    for n in range(120):
        Image.new("RGB", (40, 30), (n, 0, 0)).save(folder / f"{n:03}.png")
    questions = make_questions(captions=["short"], settings={"max_tokens": 2})
    job = Job(read_inputs([str(folder)], InputOptions()), questions, Roots.of([str(folder)]), out)

    def run(tell):
        output = job.open_output()
        counts = Counts()
        try:
            job.run(model.backend, output, counts, FrameSampling(), tell)
        finally:
            output.close()
        return counts

    def take_away() -> None:
        if folder.exists():
            folder.rename(tmp_path / "away")

    with galago.load(str(write(tmp_path / "model"))) as model:
        with pytest.raises(InvalidRequest, match="is no longer there"):
            run(take_away)
        assert 0 < len(out.read_bytes().splitlines()) < 120
        assert b'"error"' not in out.read_bytes()
        (tmp_path / "away").rename(folder)
        counts = run(lambda: None)
    assert counts.before + counts.done == 120 and counts.failed + counts.failed_before == 0
    assert len(set(out.read_bytes().splitlines())) == 120
