"""Tiny random checkpoints in the layout of transformers, for its backend: each as its authors publish it.

Every function writes a folder and returns it. The models know nothing; what they say is the same on every run.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

WORDS = ["what", "is", "in", "the", "image", "of", "a", "red", "cat", "and", "dog", "on", "mat", "with", "two"]
WORDS += ["describe", "this", "how", "many", "are", "there", "yes", "no", "?"]
CHAT = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As LLaVA 1.5 converses."""
SIDE = 28


def byte_level(specials: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of all bytes and some words, whose first tokens are the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*specials, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer as of Llama: words that begin with a blank, single bytes, and <s> before each text."""
    special, marked = ["<unk>", "<s>", "</s>", "<image>", "<pad>"], [f"▁{word}" for word in WORDS]
    letters = sorted({c for word in WORDS for c in word} | set("▁ABCDEFGHIJKLMNOPQRSTUVWXYZ:."))
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocabulary = {token: i for i, token in enumerate([*special, *bytes_, *letters, *marked])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def word_piece() -> PreTrainedTokenizerFast:
    """A tokenizer as of BERT: words in small letters, and pieces of them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({c for word in WORDS for c in word})
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS, *letters, *(f"##{c}" for c in letters), "."])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **files: object) -> Path:
    """Write a checkpoint: its weights, its tokenizer, and JSON files by their names."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 8  # or else all that they see is nearly the same to them
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _vision() -> dict[str, int]:
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 14,
    }


def _images(kind: str, **more: object) -> dict[str, object]:
    side = {"height": SIDE, "width": SIDE}
    return {"image_processor_type": kind, "size": side, "crop_size": side, **more}


def llava(folder: Path, chat: str | None = CHAT) -> Path:
    """LLaVA 1.5: CLIP, a projector, Llama."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = metaspace()
    tokenizer.chat_template = chat
    torch.manual_seed(1)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_vision()},
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_id=3,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
    }
    return _save(
        folder, model, tokenizer, preprocessor_config=_images("CLIPImageProcessor"), processor_config=processor
    )


def blip(folder: Path, answers: bool = False) -> Path:
    """BLIP: captions, or with `answers` questions about images."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering

    tokenizer = word_piece()
    torch.manual_seed(2)
    config = BlipConfig(
        vision_config=_vision(),
        text_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "encoder_hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "bos_token_id": 2,
            "sep_token_id": 3,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        projection_dim=16,
        image_text_hidden_size=16,
    )
    model = (BlipForQuestionAnswering if answers else BlipForConditionalGeneration)(config)
    files = {"preprocessor_config": _images("BlipImageProcessor") | {"processor_class": "BlipProcessor"}}
    return _save(folder, model, tokenizer, **files)


def git(folder: Path) -> Path:
    """GIT: CLIP, and BERT that sees its features before its text."""
    from transformers import GitConfig, GitForCausalLM

    tokenizer = word_piece()
    torch.manual_seed(3)
    config = GitConfig(
        vision_config=_vision(),
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    model = GitForCausalLM(config)
    files = {"preprocessor_config": _images("CLIPImageProcessor") | {"processor_class": "GitProcessor"}}
    return _save(folder, model, tokenizer, **files)


QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen(folder: Path) -> Path:
    """Qwen2.5-VL, whose processor has a part for videos too."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    specials += ["<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_level(specials)
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template = "<|endoftext|>", "<|im_end|>", QWEN_CHAT
    torch.manual_seed(4)
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 512,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        vision_start_token_id=3,
        vision_end_token_id=4,
        image_token_id=5,
        video_token_id=6,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    images = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    images |= {"min_pixels": 56 * 56, "max_pixels": 112 * 112, "patch_size": 14, "temporal_patch_size": 2}
    generation = {"eos_token_id": [2, 0], "repetition_penalty": 1.05, "do_sample": True, "temperature": 0.1}
    return _save(folder, model, tokenizer, preprocessor_config=images, generation_config=generation)


def vit_gpt2(folder: Path) -> Path:
    """A ViT and a GPT-2 that looks at its features, which captioners of 2022 are."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    tokenizer = byte_level(["<|endoftext|>"])
    tokenizer.eos_token = tokenizer.bos_token = "<|endoftext|>"
    torch.manual_seed(5)
    writer = GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=0,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**_vision()), writer)
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = 0
    files = {"preprocessor_config": _images("ViTImageProcessor")}
    return _save(folder, VisionEncoderDecoderModel(config), tokenizer, **files)


def paligemma(folder: Path) -> Path:
    """PaliGemma, which has no chat template, and reads tasks."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    tokenizer = byte_level(["<pad>", "<eos>", "<bos>", "<unk>", "<image>"])
    for name in ("pad", "eos", "bos", "unk"):
        setattr(tokenizer, f"{name}_token", f"<{name}>")
    torch.manual_seed(6)
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **_vision()},
        text_config={
            "model_type": "gemma",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 8,
            # Its processor adds tokens of places and segments.
            "vocab_size": len(tokenizer) + 1024 + 128,
            "max_position_embeddings": 512,
        },
        projection_dim=32,
        image_token_id=4,
        image_token_index=4,
    )
    images = _images("SiglipImageProcessor", image_seq_length=4) | {"processor_class": "PaliGemmaProcessor"}
    return _save(folder, PaliGemmaForConditionalGeneration(config), tokenizer, preprocessor_config=images)


KINDS: dict[str, Callable[[Path], Path]] = {
    "llava": llava,
    "blip": blip,
    "blip-vqa": lambda folder: blip(folder, answers=True),
    "git": git,
    "qwen": qwen,
    "vit-gpt2": vit_gpt2,
    "paligemma": paligemma,
}
