"""What the bundled model is: sizes, tokenizer and prompts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from galago.families.moondream.config import REVISIONS, MoondreamConfig, make_config
from galago.families.tokenizer import Tokenizer, load_tokenizer
from galago.lab.eval.scenes.draw import SINGLE_VIEW, draw_scene
from galago.lab.eval.scenes.question_mix import questions_for
from galago.lab.eval.scenes.ranges import V2

RANGE = V2
"""What the scenes that it learns hold."""

REVISION = "2025-06-21"
VOCAB = 800
SPECIALS = ["<|endoftext|>", *(f"<|md_reserved_{i}|>" for i in range(20))]

SIZES: dict[str, Any] = {
    "text": {"dim": 256, "ff_dim": 1024, "n_layers": 4, "n_heads": 4, "vocab_size": VOCAB, "max_context": 2048},
    "vision": {
        "enc_dim": 192,
        "enc_n_layers": 6,
        "enc_n_heads": 3,
        "enc_ff_dim": 768,
        "crop_size": 112,
        "max_crops": 12,
        "overlap_margin": 1,
        "proj_inner_dim": 512,
    },
    "region": {"inner_dim": 256, "coord_feat_dim": 128, "size_feat_dim": 128},
}


def corpus(scenes: int = 3000) -> Iterator[str]:
    """Every kind of text that the model meets, for the tokenizer."""
    yield from ("caption short normal long", "query", "detect", "point", " gaze", "\n\nPoint:")
    for i in range(scenes):
        scene = draw_scene(np.random.default_rng([0, i]), sides=(64, SINGLE_VIEW), of=RANGE)
        for task in questions_for(scene, np.random.default_rng([0, i, 1])):
            # What is written in a picture is read letter by letter, so it must not become a token.
            answer = "" if task.spelt else re.sub(r'(?<=the word ")[^"]*', "", task.text)
            yield from (task.question, task.object, answer)


def make_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE in which digits stand alone and special ids are those of starmie."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def make_config_json(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """The checkpoint's config.json: our sizes, and templates spelled with our tokenizer."""

    def ids(text: str) -> list[int]:
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=False).ids]

    templates = {
        "caption": {length: [1, *ids("caption"), 2, *ids(length), 3] for length in ("short", "normal", "long")},
        "query": {"prefix": [1, *ids("query"), 2], "suffix": [3]},
        "detect": {"prefix": [1, *ids("detect"), 2], "suffix": [3]},
        "point": {"prefix": [1, *ids("point"), 2], "suffix": [3]},
    }
    return {
        "model_type": "moondream1",
        "revision": REVISION,
        "config": SIZES | {"tokenizer": {"templates": templates}},
    }


def prepare(folder: Path) -> tuple[MoondreamConfig, Tokenizer]:
    """The config and tokenizer in a folder, made there when it has none."""
    vocabulary, config_json = folder / "tokenizer.json", folder / "config.json"
    if not vocabulary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = make_tokenizer()
        tokenizer.save(str(vocabulary))
        config_json.write_text(json.dumps(make_config_json(tokenizer), indent=1) + "\n")
    nested = json.loads(config_json.read_text())
    return make_config(nested["config"], REVISIONS[nested["revision"]]), load_tokenizer(vocabulary)
