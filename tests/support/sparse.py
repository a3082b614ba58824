"""A checkpoint that is large enough to be packed, and takes no room on the disk: all its weights are zero."""

import json
import math
from pathlib import Path
from typing import Any

import tiny_moondream as tiny

from galago.families.moondream.config import REVISIONS, make_config
from galago.families.moondream.weights import shapes

WIDE: dict[str, Any] = {"dim": 1024, "ff_dim": 8192, "n_layers": 8, "n_heads": 16}


def write(folder: Path) -> Path:
    """A Moondream2 of 170 million weights in a file with a hole for each."""
    folder.mkdir(parents=True)
    members = tiny.config(**WIDE)
    (folder / "config.json").write_text(json.dumps(members))
    tiny.tokenizer().save(str(folder / "tokenizer.json"))
    table, end = {}, 0
    for name, shape in shapes(make_config(members["config"], REVISIONS["2025-06-21"])).items():
        begin, end = end, end + 2 * math.prod(shape)
        table[f"model.{name}"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return folder
