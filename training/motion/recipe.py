"""What the `motion` model is: sizes, tokenizer and the files that SmolVLM2's checkpoints have."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from galago.engine.step import Prefix
from galago.families.smolvlm import prompts
from galago.families.smolvlm.config import SmolVLMConfig, make_config
from galago.families.smolvlm.image import make_crops
from galago.families.tokenizer import Tokenizer, load_tokenizer
from galago.lab.eval.motion.draw import draw_clip
from galago.lab.eval.motion.questions import questions_for
from galago.lab.eval.motion.things import FRAMES
from galago.media.clip import Clip
from galago.request import Message

VOCAB = 640
SIDE, PATCH, SCALE = 112, 14, 2
IMAGE_TOKENS = (SIDE // PATCH // SCALE) ** 2
MOST_ROWS = 6
"""Of pieces that an image may be split into; the model is not trained on pieces, the tokenizer names them."""
FIRST = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LAST = (
    "<global-img>",
    *(f"<row_{r}_col_{c}>" for r in range(1, MOST_ROWS + 1) for c in range(1, MOST_ROWS + 1)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
)

VISION: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000,
    "max_position_embeddings": 2048,
}
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CORPUS = 3000
"""Clips whose questions the tokenizer is made for."""
FILES = (
    "config.json",
    "tokenizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.json",
)
"""Beside the weights, all that a checkpoint of SmolVLM2 has."""


def corpus(clips: int) -> Iterator[str]:
    """Every kind of text that the model meets, for the tokenizer."""
    numbers = ("four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
               "fifteen", "sixteen")  # fmt: skip
    for i in range(clips):
        drawn = draw_clip(np.random.default_rng([0, i]), sides=(64, 64), frames=(FRAMES[0], 8))
        for task in questions_for(drawn, np.random.default_rng([0, i, 1]), rounds=2):
            yield from (task.question, f" {task.text}")
        number = numbers[i % len(numbers)]
        time = f"0:00:{i % 17:02}"
        yield f"User: You are provided the following series of {number} frames from a {time} [H:MM:SS] video.\n\n"
        yield f"\nFrame from 00:{i % 17:02}:"
        yield "\nAssistant:"
        yield f" {i % 6}"


def make_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE; special tokens are named as SmolVLM2's.

    Unlike SmolLM2's it joins digits: a frame with its time takes 26 tokens, not 29, and its seconds are one.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(LAST),
        special_tokens=list(FIRST),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(CORPUS), trainer)
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in LAST])
    return tokenizer


def make_files(tokenizer: tokenizers.Tokenizer) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint, without the tokenizer itself, by their names."""
    vocab = tokenizer.get_vocab_size()
    ids = {name: tokenizer.token_to_id(name) for name in (*FIRST, *LAST)}
    end, pad = ids["<end_of_utterance>"], ids["<|im_end|>"]
    edge = {"longest_edge": SIDE}
    return {
        "config.json": {
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "image_token_id": ids["<image>"],
            "scale_factor": SCALE,
            "tie_word_embeddings": False,
            "pad_token_id": pad,
            "vocab_size": vocab,
            "torch_dtype": "float16",
            "vision_config": {"model_type": "smolvlm_vision"} | VISION,
            "text_config": {"model_type": "llama", "vocab_size": vocab, "pad_token_id": pad} | TEXT,
        },
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_image_splitting": False,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "image_processor_type": "SmolVLMImageProcessor",
            "max_image_size": edge,
            "processor_class": "SmolVLMProcessor",
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": edge,
            "video_sampling": {"fps": 1, "max_frames": FRAMES[1], "video_size": edge},
        },
        "processor_config.json": {"image_seq_len": IMAGE_TOKENS, "processor_class": "SmolVLMProcessor"},
        "generation_config.json": {
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": end,
            "pad_token_id": pad,
        },
        "tokenizer_config.json": {
            "additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": TEXT["max_position_embeddings"],
            "processor_class": "SmolVLMProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "chat_template.json": {"chat_template": TEMPLATE},
    }


def make_folder(folder: Path) -> None:
    """The files of a checkpoint but the weights, made where there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "tokenizer.json"
    if not vocabulary.exists():
        make_tokenizer().save(str(vocabulary))
    made = make_files(tokenizers.Tokenizer.from_file(str(vocabulary)))
    for name, content in made.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Prepared:
    """What turns clips and questions into what the model is fed."""

    config: SmolVLMConfig
    tokenizer: Tokenizer

    def pixels(self, clip: Clip) -> np.ndarray:
        """Frames uint8 [n, side, side, 3], as the family makes them."""
        return np.concatenate([make_crops(frame, self.config.image, False).pixels for frame in clip.frames])

    def prompt(self, clip: Clip, question: str) -> tuple[list[int], list[int]]:
        """The tokens up to the last frame, and those of the question."""
        asked = prompts.chat(self.config, self.tokenizer, [Message("user", (clip, question))], "high")
        assert isinstance(asked.prefix, Prefix)
        return list(asked.prefix.layout), list(asked.ids)

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        end = self.tokenizer.backend.token_to_id(prompts.END)
        assert end is not None
        return end


def prepare(folder: Path) -> Prepared:
    """The config and tokenizer in a folder, made there when it has none."""
    make_folder(folder)
    config, preprocessor = (
        json.loads((folder / name).read_text()) for name in ("config.json", "preprocessor_config.json")
    )
    return Prepared(make_config(config, preprocessor), load_tokenizer(folder / "tokenizer.json"))
