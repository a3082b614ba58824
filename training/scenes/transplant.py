"""A finished checkpoint as the start of one with another tokenizer."""

from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from galago.checkpoint.tensors import read_tensors

ROWS = ("text.wte", "text.lm_head.weight", "text.lm_head.bias")
"""What has one row for each token."""


def transplant(start: Path, vocabulary: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those of `start` in place of random ones; tokens keep what their text meant.

    A token that `start` lacks begins as the mean of the tokens that spell it there. Raises ValueError where
    another tensor differs in shape.
    """
    old = {name.removeprefix("model."): tensor.float() for name, tensor in read_tensors([start / "model.safetensors"])}
    before, after = (tokenizers.Tokenizer.from_file(str(f)) for f in (start / "tokenizer.json", vocabulary))
    known = before.get_vocab()
    out = dict(tensors)
    for name, tensor in old.items():
        if name in ROWS:
            fresh = tensors[name].clone()
            for token, i in after.get_vocab().items():
                if i < len(fresh):
                    ids = [known[token]] if token in known else before.encode(after.decode([i])).ids
                    if ids:
                        fresh[i] = tensor[torch.tensor(ids)].mean(0)
            out[name] = fresh
        elif name not in tensors or tensors[name].shape != tensor.shape:
            raise ValueError(f"{start} has another {name}")
        else:
            out[name] = tensor
    return out
