"""Every golden case of Moondream2: ids, bins, boxes, points, gaze and text, exactly."""

import json
from typing import Any

import pytest
import torch
from moondream_golden import (
    ARGUMENTS,
    AT,
    BOX,
    FOLDERS,
    Fed,
    Trace,
    cases,
    expected,
    image,
    loaded,
    model,
    output,
    picture,
    request,
    trace,
)

from galago.families.moondream import prompts
from galago.families.moondream.region import coordinate_logits, size_logits

CASES = [(folder, case) for folder in FOLDERS for case in cases(folder)]
TEXT, OBJECTS, GAZE = ("caption", "query"), ("detect", "point"), ("detect_gaze",)
KNOWN = {"id", "skill", "image", "args", "output", "min_top2_margin", "bins"}
KNOWN_OF = {
    **{skill: {"segments"} for skill in TEXT},
    **{skill: {"prompt_ids", "start_pos"} for skill in OBJECTS},
    **{skill: {"prompt_ids_before_after", "samples_source_result"} for skill in GAZE},
}


def approx(found: Any) -> Any:
    """Numbers within 1e-5, all else exactly."""
    if isinstance(found, float):
        return pytest.approx(found, abs=1e-5)
    if isinstance(found, dict):
        return {k: approx(v) for k, v in found.items()}
    return [approx(v) for v in found] if isinstance(found, list | tuple) else found


def ids_of(folder: str, prompt: prompts.Prompt) -> list[int]:
    tokens = loaded(folder).config.tokens
    kinds = {prompts.Coordinate: tokens.coord_id, prompts.Size: tokens.size_id}
    return [kinds.get(type(item), item) for item in prompt]


def coordinate_bin(folder: str, fed: Fed) -> list[Any]:
    logits = coordinate_logits(fed.hidden[-1], loaded(folder).weights.region)
    return ["coordinate", [int(logits.argmax())]]


def size_bin(folder: str, fed: Fed) -> list[Any]:
    logits = size_logits(fed.hidden[-1], loaded(folder).weights.region)
    return ["size", logits.argmax(-1).tolist()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder(folder: str) -> None:
    table, revision = expected(folder), loaded(folder).config.revision
    assert set(table) == {"family", "images", "cases", "region", "worst_margin"}
    assert revision.family == table["family"]
    assert model(folder).revision == revision.name


@pytest.mark.parametrize(("folder", "case_id"), CASES)
def test_every_key_is_known(folder: str, case_id: str) -> None:
    case = cases(folder)[case_id]
    assert case["skill"] in ARGUMENTS
    assert set(case) - KNOWN - KNOWN_OF[case["skill"]] == set()
    request(folder, case)  # fails for an unknown argument


@pytest.mark.parametrize(("folder", "case_id"), CASES)
def test_output(folder: str, case_id: str) -> None:
    """What the engine's events amount to."""
    case = cases(folder)[case_id]
    events = list(model(folder).submit(request(folder, case)))
    found, wanted = output(case, events), case["output"]
    if loaded(folder).config.revision.family == "legacy" and case["skill"] in TEXT:
        # The reference decoded token by token, which splits characters; ours decodes them together.
        decode = loaded(folder).tokenizer.decode
        (segment,) = case["segments"]
        (key,) = wanted
        assert wanted[key] == "".join(decode([i]) for i in segment["token_ids"])
        wanted = {key: decode(segment["token_ids"])}
    assert found == approx(wanted)


@pytest.mark.parametrize(("folder", "case_id"), CASES)
def test_python_face(folder: str, case_id: str) -> None:
    """The same through the methods of Model, streamed and not."""
    case = cases(folder)[case_id]
    args, wanted = case["args"], output(case, trace(folder, case_id).events)
    name = case["image"]
    source: Any = picture(folder, case)
    if name and source is image(folder, name):
        # A path, to go through decoding too; but there alpha is composited, which the reference drops.
        source = source.convert("RGB") if source.mode == "RGBA" else str(AT[folder] / "images" / f"{name}.png")
    m = model(folder)
    settings: dict[str, Any] = {k: args[k] for k in ("max_tokens", "temperature", "max_objects") if k in args}
    if "lora" in args:
        settings["variant"] = str(AT[folder] / args["lora"])
    if case["skill"] in TEXT:
        if case["skill"] == "caption":
            call, key, given = m.caption, "caption", {"length": args["length"]}
        else:
            given = {k: args[k] for k in ("question", "reasoning", "spatial_refs") if k in args}
            call, key = m.query, "answer"
        streamed = call(source, **given, stream=True, settings=settings)
        found = streamed | {key: "".join(streamed[key])}
        assert found == call(source, **given, settings=settings)
    elif case["skill"] in OBJECTS:
        found = (m.detect if case["skill"] == "detect" else m.point)(source, args["object"], settings=settings)
    else:
        flags = {k: args[k] for k in ("prioritize_accuracy", "force_detect") if k in args}
        settings = {"seed": args.get("python_random_seed")}
        found = m.detect_gaze(source, args.get("eye"), args.get("face"), **flags, settings=settings)
    assert json.loads(json.dumps(found)) == approx(wanted)


@pytest.mark.parametrize(("folder", "case_id"), [(f, c) for f, c in CASES if "segments" in cases(f)[c]])
def test_text_tokens(folder: str, case_id: str) -> None:
    case, t, tokens = cases(folder)[case_id], trace(folder, case_id), loaded(folder).config.tokens
    (feeds,) = t.sequences
    bins: list[list[Any]] = []
    for segment in case["segments"]:
        assert segment["phase"] in ("answer", "reasoning")
        reasoning = segment["phase"] == "reasoning"
        prompt, feeds = feeds[0], feeds[1:]
        check_text_prompt(folder, case, segment, prompt)

        last, chosen = prompt, []
        while True:
            logits = t.recorder.logits(last.hidden[-1])
            if chosen:
                banned = (tokens.eos_id, tokens.size_id) if reasoning else (tokens.answer_id,)
                allowed = [i not in banned for i in range(len(logits))]
                logits = logits.where(torch.tensor(allowed), float("-inf"))
            choice = int(logits.argmax())
            if len(chosen) == len(segment["token_ids"]):
                assert choice == segment["stopped_on"]
                break
            chosen.append(choice)
            if reasoning and choice == tokens.coord_id:
                bins.append(coordinate_bin(folder, last))
            last, feeds = feeds[0], feeds[1:]
            assert last.token == (None if reasoning and choice == tokens.coord_id else choice)
        assert chosen == segment["token_ids"]
    assert not feeds
    assert bins == case.get("bins", [])


def check_text_prompt(folder: str, case: dict[str, Any], segment: dict[str, Any], fed: Fed) -> None:
    assert fed.start == segment["start_pos"]
    m, args = loaded(folder), case["args"]
    if not fed.input.is_floating_point():
        assert fed.input.tolist() == segment["prompt_ids"]
        return
    assert args["spatial_refs"]
    refs = [tuple(ref) for ref in args["spatial_refs"]]
    prompt = prompts.query(m.config, m.tokenizer, args["question"], args.get("reasoning", False), refs)
    assert ids_of(folder, prompt) == segment["prompt_ids"]
    assert torch.allclose(fed.input, m.embed(prompt), atol=1e-5)


@pytest.mark.parametrize(("folder", "case_id"), [(f, c) for f, c in CASES if cases(f)[c]["skill"] in OBJECTS])
def test_object_bins(folder: str, case_id: str) -> None:
    case, t = cases(folder)[case_id], trace(folder, case_id)
    (feeds,) = t.sequences
    assert feeds[0].input.tolist() == case["prompt_ids"]
    assert feeds[0].start == case["start_pos"]
    per_object = 3 if case["skill"] == "detect" else 2
    reads = [coordinate_bin, coordinate_bin, size_bin][:per_object]
    # The last state only says that no more follow.
    found = [reads[i % per_object](folder, fed) for i, fed in enumerate(feeds[:-1])]
    assert found == case["bins"]


@pytest.mark.parametrize(("folder", "case_id"), [(f, c) for f, c in CASES if cases(f)[c]["skill"] in GAZE])
def test_gaze_bins(folder: str, case_id: str) -> None:
    case, t, m = cases(folder)[case_id], trace(folder, case_id), loaded(folder)
    if "samples_source_result" in case:
        check_samples(folder, case, t)
        return
    (feeds,) = t.sequences
    assert (len(feeds) > 1) == bool(case["bins"])
    assert [coordinate_bin(folder, fed) for fed in feeds[: len(case["bins"])]] == case["bins"]
    prompt = prompts.gaze(m.tokenizer, tuple(case["args"]["eye"]))
    assert torch.allclose(feeds[0].input, m.embed(prompt), atol=1e-5)
    if "prompt_ids_before_after" in case:
        before, after = case["prompt_ids_before_after"]
        places = [prompts.Coordinate(v) for v in case["args"]["eye"]]
        assert prompt == (*before, *places, *after)


def check_samples(folder: str, case: dict[str, Any], t: Trace) -> None:
    m = loaded(folder)
    assert len(t.sequences) == len(case["samples_source_result"])
    for feeds, (source, result) in zip(t.sequences, case["samples_source_result"], strict=True):
        assert torch.allclose(feeds[0].input, m.embed(prompts.gaze(m.tokenizer, tuple(source))), atol=1e-6)
        if result is None:
            assert len(feeds) == 1
        else:
            found = [coordinate_bin(folder, fed)[1][0] / m.config.region.coord_out_dim for fed in feeds]
            assert found == pytest.approx(result, abs=1e-5)


def test_boxes_are_not_clamped() -> None:
    values = [v for f, c in CASES for box in cases(f)[c]["output"].get("objects", []) for v in (box[k] for k in BOX)]
    assert min(values) < 0 and max(values) > 1
