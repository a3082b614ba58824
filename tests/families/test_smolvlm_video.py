"""Videos by path, URL, bytes and file, as a model looks at them, and what is not computed twice."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips
import pytest
import tiny_moondream
import tiny_smolvlm as tiny
from websites import served

from galago.errors import CheckpointError, InvalidVideo, UnsupportedTask
from galago.media.clip import Clip
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip
from galago.model import Model
from galago.request import Done, Query, Request, Sampling

VIDEO = clips.encoded(clips.pictures(50))
"""Five seconds, of which a model looks at five frames"""
ASKED = {"temperature": 1.0, "seed": 7, "max_tokens": 12}


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with tiny.open_model(tiny.write(tmp_path / "tiny")) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "clip.mp4"
    file.write_bytes(VIDEO)
    return file


def test_wherever_it_comes_from(model: Model, path: Path) -> None:
    clip = load_clip(VIDEO, model.video_sampling)
    assert model.video_sampling == FrameSampling(fps=1, max_frames=8) and len(clip.frames) == 5
    captioned, told = model.caption(clip, settings=ASKED), model.query(clip, "What moves?", settings=ASKED)
    with served(VIDEO) as url:
        for source in (path, str(path), VIDEO, io.BytesIO(VIDEO), f"{url}/clip"):
            assert model.caption(source, settings=ASKED) == captioned
    assert model.query(path, "What moves?", settings=ASKED) == told
    talk = [{"role": "user", "content": [path, "What moves?"]}]
    assert model.chat(talk, settings=ASKED) == told
    seen = model.encode_image(path)
    assert seen.clip and model.query(seen, "What moves?", settings=ASKED) == told


def test_a_long_one_has_as_many_frames_as_the_model_takes(model: Model) -> None:
    *_, done = model.submit(Request(Query("x"), load_clip(clips.encoded(clips.pictures(300)), model.video_sampling)))
    assert done.usage.image_tokens == 8 * tiny.TOKENS  # type: ignore[union-attr]
    assert model.caption(clips.encoded(clips.pictures(300)), settings=ASKED)["caption"]


def test_an_image_that_moves_is_one_and_for_a_place_its_first_frame(model: Model, tmp_path: Path) -> None:
    moves = clips.animated(clips.pictures(3), "GIF", 1000)
    assert model.encode_image(moves).clip and model.encode_image(moves).crops == 3
    with tiny_moondream.open_model(tiny_moondream.write(tmp_path / "still")) as still:
        assert still.detect(moves, "x") == still.detect(clips.numbered(0), "x")


@pytest.mark.parametrize("ask", ["caption", "query", "encode_image"])
def test_a_model_that_looks_at_images_says_what_to_do(ask: str, path: Path, tmp_path: Path) -> None:
    with tiny_moondream.open_model(tiny_moondream.write(tmp_path / "still")) as model:
        more = {"question": "What moves?"} if ask == "query" else {}
        for source in (path, VIDEO):
            with pytest.raises(
                UnsupportedTask, match="is a video, and this model looks at images only; `galago watch`"
            ):
                getattr(model, ask)(source, **more)
        assert model.video_sampling is None
        moves = clips.animated(clips.pictures(3), "WEBP", 100)
        assert getattr(model, ask)(moves, **more) is not None, "the first frame"


def test_what_cannot_be_read_is_told(model: Model) -> None:
    with pytest.raises(InvalidVideo, match="only sound"):
        model.caption(clips.only_sound())


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"fps": "1"}, {"max_frames": 0}, {"max_frames": "many"}])
def test_which_frames_is_checked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = tiny.write(tmp_path / "tiny", preprocessor=tiny.PREPROCESSOR | {"video_sampling": wrong})
    with pytest.raises(CheckpointError, match="video_sampling"):
        tiny.load(folder)


# --- what is not computed twice ----------------------------------------------------------------


def looked_up(model: Model, shown: Any) -> tuple[dict[str, int], int]:
    """By cache tier how many of its frames were there for a new question, and tokens that were not computed."""
    before = Counter(model.stats()["images"])
    *_, done = model.submit(Request(Query(f"What {sum(before.values())}?"), shown, Sampling(max_tokens=2)))
    assert isinstance(done, Done)
    return dict(Counter(model.stats()["images"]) - before), done.usage.cached_tokens


def test_another_question_about_a_clip_sees_nothing_again(model: Model) -> None:
    assert looked_up(model, load_clip(VIDEO)) == ({"miss": 5}, 0)
    found, cached = looked_up(model, load_clip(VIDEO))
    assert found == {"hot": 5} and cached > 5 * tiny.TOKENS


def test_clips_that_overlap_share_their_frames(model: Model) -> None:
    looked_up(model, load_clip(VIDEO))
    # Of the frames 0, 12, 24, 36 and 49 three; of 0, 7, 14, 21, 28, 35, 42 and 49 two.
    assert looked_up(model, load_clip(VIDEO, FrameSampling(max_frames=3))) == ({"warm": 3}, 0)
    assert looked_up(model, load_clip(VIDEO, FrameSampling(fps=2, max_frames=8))) == ({"warm": 2, "miss": 6}, 0)
    later = load_clip(VIDEO)
    assert looked_up(model, Clip(later.frames[2:], later.times[2:], 5.0)) == ({"warm": 3}, 0)
