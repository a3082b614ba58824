"""Configurations with odd values: each is refused by a sentence about its field, or makes a model that answers."""

import copy
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_moondream
import tiny_smolvlm

import galago
from galago.errors import CheckpointError
from galago.families import ModelFiles
from galago.families.moondream.loading import config_of as moondream_config
from galago.families.smolvlm.loading import config_of as smolvlm_config
from galago.families.tokenizer import Tokenizer, load_tokenizer
from galago.store import hub

GONE = object()
"""The field is left out."""
ODD = (
    GONE, None, True, False, 0, -1, 1, 2, 3, 7, 2.0, 1.5, -0.5, 1e-9, 1e300, math.inf, -math.inf, math.nan, 10**9,
    10**30, "", "7", "llama", "x" * 5000, [], [0], [1, 2, 3], [None], [[]], ["a"], {}, {"a": 1}, {"longest_edge": "x"},
)  # fmt: skip
READ, LOADED = 700, 24
"""So many are read for each kind of folder, and of those that are not refused so many are loaded and asked."""
MOST = 500
"""Characters of an error beside the path of the file."""
SAID = re.compile(
    r"config\.json: (\S+ is (?s:.+); allowed is .+|\S+ is missing; allowed is .+|unknown field \S+; known are .+)"
    r"|preprocessor_config\.json is missing, or empty|revision"
)

Files = dict[str, dict[str, Any]]
Path_ = tuple[Any, ...]


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Every field of an object and of those in it, and every place of a list."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield (*at, name)
        yield from places(inner, (*at, name))


def changed(files: Files, at: Path_, value: Any) -> Files:
    made: Any = copy.deepcopy(files)
    owner = made
    for name in at[:-1]:
        owner = owner[name]
    if value is GONE:
        owner.pop(at[-1])
    else:
        owner[at[-1]] = value
    return made


MOONDREAM: Files = {"config.json": tiny_moondream.config() | {"revision": "2025-06-21"}}
SMOLVLM: Files = {
    "config.json": tiny_smolvlm.CONFIG
    | {"tie_word_embeddings": False, "vocab_size": tiny_smolvlm.VOCAB, "quantization_config": None}
    | {
        "text_config": tiny_smolvlm.CONFIG["text_config"] | {"head_dim": 16, "rope_scaling": None, "hidden_act": "silu"}
    },
    "preprocessor_config.json": tiny_smolvlm.PREPROCESSOR
    | {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 1}
    | {"image_mean": [0.5, 0.5, 0.5], "image_std": 0.5},
}
SMOLVLM_5: Files = {
    "config.json": {
        **SMOLVLM["config.json"],
        "text_config": {k: v for k, v in SMOLVLM["config.json"]["text_config"].items() if k != "rope_theta"}
        | {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}},
    },
    "processor_config.json": {
        "image_processor": SMOLVLM["preprocessor_config.json"],
        "video_processor": {"fps": 1, "num_frames": 8},
    },
}


@cache
def tokenizer_of(file: Path) -> Tokenizer:
    return load_tokenizer(file)


def read_moondream(files: ModelFiles) -> Any:
    return moondream_config(files, tokenizer_of(files.tokenizer))


CASES: dict[str, tuple[Files, Callable[[Path], Path], Callable[[ModelFiles], Any]]] = {
    "moondream": (MOONDREAM, tiny_moondream.write, read_moondream),
    "smolvlm": (SMOLVLM, tiny_smolvlm.write, smolvlm_config),
    "smolvlm of transformers 5": (SMOLVLM_5, tiny_smolvlm.write, smolvlm_config),
}


def put(folder: Path, files: Files) -> None:
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
        if name in files:
            (folder / name).write_text(json.dumps(files[name]), encoding="utf-8")


def located(folder: Path, files: Files) -> ModelFiles:
    put(folder, files)
    return hub.locate(folder)


@pytest.mark.parametrize("case", CASES)
def test_an_odd_value_is_refused_by_name_or_the_model_answers(case: str, tmp_path: Path) -> None:
    files, write, read = CASES[case]
    chance = random.Random(24)
    every = [(at, value) for at in places(files) if len(at) > 1 for value in ODD]
    folder = write(tmp_path / "model")
    usual = read(located(folder, files))
    taken = []
    for at, value in chance.sample(every, min(READ, len(every))):
        given = changed(files, at, value)
        try:
            config = read(located(folder, given))
        except CheckpointError as error:
            told = str(error).replace(str(folder), "")
            assert SAID.search(told) and len(told) <= MOST and "\n" not in told, (at, value, told)
            # A size may be told of at another that it has to fit with.
            fitting = value in (GONE, None) or isinstance(value, dict | float) or type(value) is int
            assert fitting or any(name in told for name in at[1:] if isinstance(name, str)), (at, value, told)
        else:
            taken.append((at, value, given, config == usual))
    # Sizes that the tensors do not have are told of tensor by tensor: a few are enough.
    same = [entry for entry in taken if entry[3]]
    other = [entry for entry in taken if not entry[3]]
    for at, value, given, _ in [
        *chance.sample(same, min(LOADED // 4, len(same))),
        *chance.sample(other, min(LOADED, len(other))),
    ]:
        put(folder, given)
        try:
            with galago.load(folder, device="cpu") as model:
                for shown in (tiny_moondream.IMAGE, None):
                    said = model.query(shown, "Why?", settings={"max_tokens": 2, "temperature": 1.0, "seed": 1})
                    assert isinstance(said["answer"], str), (at, value)
        except CheckpointError as error:
            assert "tensor" in str(error) or "in tokenizer.json" in str(error), (at, value, str(error))
