"""Every golden vector of SmolVLM2, within the tolerances of its README."""

import json
import re
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from smolvlm_golden import (
    AT,
    CASES,
    CPU,
    Recorder,
    begun,
    clip,
    expected,
    features_of,
    images,
    loaded,
    mask_of,
    messages,
    rows,
    tables,
    tensors,
)
from torch import Tensor
from vectors import VECTORS

from galago.backends.native import Native
from galago.engine.engine import Engine
from galago.engine.step import Feed
from galago.families.smolvlm import prompts
from galago.families.smolvlm.config import ImageConfig
from galago.families.smolvlm.image import first_size, tiled_size, tiling_of
from galago.families.smolvlm.prompts import Control, Item
from galago.families.smolvlm.vision import positions, project
from galago.media import timeline
from galago.media.clip import Clip
from galago.model import Model
from galago.nn.decoder import decoder, embed_tokens
from galago.nn.vit import normalise
from galago.precision import pick_precision
from galago.precision.linear import rms_norm
from galago.request import Chat, Message, Query, Request, Sampling
from galago.store import hub

VISION, LOGITS, STEPS = 2e-5, 5e-4, 24
SEEN = [case for case in CASES if expected(case)["num_tiles"]]
EMPTY = [c for c in CASES if c not in SEEN]
MADE = {"a7_masked_tile"}
"""cases whose pixels are not what comes of their image"""
KNOWN = {
    "input_ids", "pixel_values", "pixel_attention_mask", "position_ids_vision", "vision_features", "connector_output",
    "text_hidden_last", "logits_last", "logits_steps", "greedy_ids",
}  # fmt: skip


def worst(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max())


def text_of(items: list[Item]) -> str:
    return "".join(item.name if isinstance(item, Control) else item for item in items)


def items_of(text: str, case: str) -> list[Item]:
    """A rendered prompt as control tokens and texts."""
    added = [t.content for t in loaded(case).tokenizer.backend.get_added_tokens_decoder().values()]
    parts = re.split("(" + "|".join(map(re.escape, added)) + ")", text)
    return [Control(part) if part in added else part for part in parts if part]


# --- cases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_known(case: str) -> None:
    assert set(tensors(case)) <= KNOWN


@pytest.mark.parametrize("case", CASES)
def test_prompt(case: str) -> None:
    m, wanted = loaded(case), expected(case)
    items, inputs = prompts.conversation_items(m.config, messages(case), "high")
    assert text_of(items) == wanted["prompt_expanded"]
    ids = prompts.ids_of(m.tokenizer, items)
    assert list(ids) == wanted["input_ids"] == tensors(case)["input_ids"].tolist()
    assert len(ids) == wanted["num_prompt_tokens"]
    assert ids.count(m.config.image_id) == wanted["num_image_tokens"]
    frames = sum(len(m.make_crops(one.image, one.detail).pixels) for one in inputs)
    assert frames == wanted["num_tiles"]
    prompt = prompts.chat(m.config, m.tokenizer, messages(case), "high")
    before = prompt.prefix.layout if inputs else ()  # type: ignore[union-attr]
    assert before + prompt.ids == ids and m.config.image_id not in prompt.ids


@pytest.mark.parametrize("case", [case for case in CASES if "rows" in expected(case)])
def test_tiling(case: str) -> None:
    c, wanted = loaded(case).config.image, expected(case)
    found = [tiling_of(image.size, c, c.split) for image in images(case)]
    assert found == list(zip(wanted["rows"], wanted["cols"], strict=True))


@pytest.mark.parametrize("case", [case for case in SEEN if case not in MADE])
def test_pixels(case: str) -> None:
    m = loaded(case)
    _, inputs = prompts.conversation_items(m.config, messages(case), "high")
    pixels = [torch.from_numpy(m.make_crops(one.image, one.detail).pixels) for one in inputs]
    found, wanted = normalise(torch.cat(pixels)), tensors(case)["pixel_values"]
    if "video" in expected(case):
        # The reference resizes videos with torch, which rounds otherwise.
        assert worst(found, wanted) <= 2 / 127.5 + 1e-6
        assert ((found - wanted).abs() > 1e-6).float().mean() <= 0.02
    else:
        assert worst(found, wanted) <= 1e-6


@pytest.mark.parametrize("case", SEEN)
@torch.inference_mode()
def test_vision(case: str) -> None:
    m, given = loaded(case), tensors(case)
    features = features_of(case)
    assert worst(features, given["vision_features"]) <= VISION
    found = project(features, m.weights.vision, m.config.vision)
    assert worst(found, given["connector_output"]) <= VISION
    mask, n = mask_of(case), m.config.vision.grid
    full = torch.ones(len(features), n, n, dtype=torch.bool)
    places = torch.stack([positions(one) for one in (full if mask is None else mask)])
    assert torch.equal(places, given["position_ids_vision"])


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_text(case: str) -> None:
    """The residual stream after each block, logits, and greedy tokens, from the given pixels."""
    m, given = loaded(case), tensors(case)
    c, w, ids = m.config, m.weights.text, given["input_ids"]
    x = embed_tokens(ids, w, torch.float32)
    if case in SEEN:
        x[ids == c.image_id] = given["connector_output"].flatten(0, 1)
    cache = m.new_cache(None)
    cache.reserve(len(ids))
    found = [x[-1]]
    for i in range(c.text.n_layers):

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            groups = c.text.n_heads // c.text.n_kv_heads
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        x = decoder(x[None], w, c.text, torch.arange(len(ids)), attend, range(i, i + 1))[0]
        found.append(x[-1])
    found[-1] = rms_norm(found[-1], w.norm, c.text.eps)
    assert worst(torch.stack(found), given["text_hidden_last"]) <= LOGITS

    kept, out = begun(case)
    logits = []
    for token in given["greedy_ids"].tolist():
        assert out.logits is not None
        logits.append(out.logits)
        out = m.forward([kept], [Feed(torch.tensor([token]))])[0]
    assert worst(logits[0], given["logits_last"]) <= LOGITS
    assert worst(torch.stack(logits), given["logits_steps"]) <= LOGITS
    assert torch.stack(logits).argmax(-1).tolist() == given["greedy_ids"].tolist() == expected(case)["greedy_ids"]


def run(m: Recorder, case: str, **sampling: Any) -> list[int]:
    """The tokens of an answer, drawn by the engine from the files."""
    engine = Engine(m)  # type: ignore[arg-type]
    # The reference leaves text and what is shown in the order of the client.
    with patch.object(prompts, "with_media_first", lambda message: message):
        asked = engine.submit(Request(Chat(messages(case)), sampling=Sampling(**sampling)))
    events = list(asked)
    engine.close()
    assert events[-1].finish_reason == ("length" if m.inner.eos_id < 0 else "stop")  # type: ignore[union-attr]
    return [int(logits.argmax()) for logits in m.logits]


@pytest.mark.parametrize("pieces", [None, 5])
@pytest.mark.parametrize("case", [case for case in CASES if case not in MADE])
def test_engine(case: str, pieces: int | None) -> None:
    """From PNG files through encoder, prefix and steps; nothing ends the text."""
    m = Recorder(replace(loaded(case), eos_id=-1), pieces)
    assert run(m, case, max_tokens=STEPS) == expected(case)["greedy_ids"]
    wanted = expected(case)["input_ids"]
    fed = [token for ids in m.fed for token in ids][: len(wanted) - sum(len(p.layout) for p in m.prefixes)]
    assert [*(i for p in m.prefixes for i in p.layout), *fed] == wanted


@pytest.mark.parametrize("case", [case for case in CASES if case not in MADE])
def test_stop(case: str) -> None:
    check = expected(case)["stop_check"]
    m = Recorder(replace(loaded(case), eos_id=check["stop_token_id"]))
    assert run(m, case, max_tokens=STEPS) == check["ids_up_to_and_including_stop"]


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("case", ["a1_wide_split", "b2_video_presampled", "a8_text_only"])
def test_precisions(case: str, precision: str) -> None:
    """Random weights leave coarser numbers little to agree on, but the logits stay alike."""
    m = Recorder(replace(loaded(case, precision), eos_id=-1))
    run(m, case, max_tokens=1)
    found, wanted = m.logits[0].double(), tensors(case)["logits_last"].double()
    alike = float(torch.nn.functional.cosine_similarity(found, wanted, 0))
    assert alike > {"bfloat16": 0.995, "int8": 0.98, "int4": 0.75}[precision]


# --- tables ------------------------------------------------------------------------------------

TABLES = {
    "grids", "frame_sampling", "video_prompt", "image_prompt", "chat", "tokenizer_model_a", "vision_position_ids",
}  # fmt: skip


def test_every_table_is_known() -> None:
    assert set(tables()) == TABLES


@pytest.mark.parametrize("row", rows("grids"))
def test_grids(row: list[Any]) -> None:
    (height, width), edge, tile, first, tiled, n_rows, n_columns, frames = row
    c = ImageConfig(edge, tile, True, True, None)
    size = first_size((width, height), edge)
    assert [*reversed(size)] == first
    assert [*reversed(tiled_size(size, tile))] == tiled
    assert tiling_of((width, height), c, True) == (n_rows, n_columns)
    assert frames == n_rows * n_columns + 1


# Three rows have a rate that does not go with their duration, which no timeline of ours can have.
@pytest.mark.parametrize(
    "row", [row for row in rows("frame_sampling") if round(row[0] / row[2], 6) == round(row[1], 6)]
)
def test_frame_sampling(row: list[Any]) -> None:
    total, fps, duration, most, wanted, indices = row
    given = timeline.Timeline([i / fps for i in range(total)], duration)
    assert timeline.choose_frames(given, timeline.FrameSampling(wanted, most)) == indices


@pytest.mark.parametrize("row", rows("video_prompt"))
def test_video_prompt(row: list[Any]) -> None:
    frames, duration, fps, indices, text = row
    assert len(indices) == frames
    found = text_of(prompts.clip_items([i / fps for i in indices], duration, 3))
    assert found == text.replace("<image>*K", "<image>" * 3)


@pytest.mark.parametrize("row", rows("image_prompt"))
def test_image_prompt(row: list[Any]) -> None:
    n_rows, n_columns, tokens, text = row
    assert text_of(prompts.image_items((n_rows, n_columns), tokens)) == text


@pytest.mark.parametrize("row", rows("chat"))
def test_chat_template(row: list[Any]) -> None:
    given, text = row
    picture, film = images("a1_wide_split")[0], clip("a6_video_sampled")
    kinds: dict[str, Any] = {"image": picture, "video": film}
    talk = [Message(m["role"], tuple(kinds.get(item["type"]) or item["text"] for item in m["content"])) for m in given]
    c = loaded("a1_wide_split").config
    shown = {
        "<image>": prompts.image_items(tiling_of(picture.size, c.image, True), c.vision.n_tokens),
        "<video>": prompts.clip_items(film.times, film.duration, c.vision.n_tokens),
    }
    wanted = re.sub("<image>|<video>", lambda m: text_of(shown[m[0]]), text)
    assert text_of(prompts.conversation_items(c, talk, "high")[0]) == wanted


@pytest.mark.parametrize("row", rows("tokenizer_model_a"))
def test_tokens(row: list[Any]) -> None:
    text, ids = row
    t = loaded("a1_wide_split").tokenizer
    assert list(prompts.ids_of(t, items_of(text, "a1_wide_split"))) == ids
    # What a user writes stays text.
    assert t.decode(t.encode(text)) == text


@pytest.mark.parametrize("row", rows("vision_position_ids"))
def test_position_ids(row: list[Any]) -> None:
    n, n_rows, n_columns, row_buckets, column_buckets, total = row
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[:n_rows, :n_columns] = True
    found = positions(mask)
    wanted = torch.tensor(row_buckets)[:, None] * n + torch.tensor(column_buckets)
    assert torch.equal(found.view(n, n)[:n_rows, :n_columns], wanted)
    assert int(found.sum()) == total


# --- files -------------------------------------------------------------------------------------


def test_python_face() -> None:
    """galago.load's own way to the same text, of an image given as a file."""
    case = "a1_wide_split"
    (turn,) = expected(case)["messages"]
    with Model(Native(loaded(case))) as model:
        said = model.query(AT[case] / "image_0.png", turn["content"][1]["text"], settings={"max_tokens": 8})
        seen = model.encode_image(AT[case] / "image_0.png")
        assert model.query(seen, turn["content"][1]["text"], settings={"max_tokens": 8}) == said
        talk = [{"role": "user", "content": [AT[case] / "image_0.png", turn["content"][1]["text"]]}]
        assert model.chat(talk, settings={"max_tokens": 8}) == said
    assert said["answer"] == loaded(case).tokenizer.decode(expected(case)["greedy_ids"][:8]).lstrip()


def test_a_clip_that_was_encoded_goes_on_as_the_clip() -> None:
    case = "a6_video_sampled"
    with Model(Native(loaded(case))) as model:
        film = clip(case)
        assert isinstance(film, Clip)
        said = model.query(film, "What happens in this video?", settings={"max_tokens": 8})
        assert model.query(model.encode_image(film), "What happens in this video?", settings={"max_tokens": 8}) == said
    assert said["answer"] == loaded(case).tokenizer.decode(expected(case)["greedy_ids"][:8]).lstrip()


def test_the_files_say_what_they_are() -> None:
    files = hub.locate(VECTORS / "smolvlm2-tiny" / "model_a")
    assert files.family == "smolvlm"
    assert pick_precision("float32", CPU).name == "float32" and json.dumps(dict(files.config))


def test_a_second_question_on_a_clip_computes_its_own_text_alone() -> None:
    case = "a6_video_sampled"
    m = Recorder(replace(loaded(case), eos_id=-1))
    engine = Engine(m)  # type: ignore[arg-type]
    film = clip(case)
    usages = []
    for question in ("What happens in this video?", "Is it red?"):
        m.fed.clear()
        *_, done = engine.submit(Request(Query(question), film, Sampling(max_tokens=2)))
        usages.append(done.usage)  # type: ignore[union-attr]
    engine.close()
    (prefix,) = m.prefixes
    assert usages[0].cached_tokens == 0 and usages[1].cached_tokens == prefix.positions == len(prefix.layout)
    assert len(m.fed[0]) == usages[1].prompt_tokens - prefix.positions < 20
