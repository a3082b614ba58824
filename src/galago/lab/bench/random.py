"""Checkpoints of random weights at a model's true shapes: they prove speed and memory, and mean nothing.

python -m galago.lab.bench.random moondream2    # prints the folder, which other engines can be given too
"""

import json
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from galago.errors import GalagoError, InvalidRequest, ModelNotFound
from galago.families import ModelFiles
from galago.families.family import Blueprint, family
from galago.families.tokenizer import load_tokenizer
from galago.store import hub
from galago.store.catalog import Bundled, entries, find
from galago.system.files import lock_file

log = logging.getLogger(__name__)
STD = 0.02
CHUNK = 1 << 20
"""Weights that are made at once, so that they stay in the processor's cache."""


def default_random_model() -> str:
    """The catalogue's first model that has to be downloaded: to measure it without is what random weights are for."""
    return next(entry.id for entry in entries() if not isinstance(entry.source, Bundled))


def find_blueprint(model: str) -> Blueprint:
    """What to make for a model of the catalogue or a folder; nothing is downloaded. Raises ModelNotFound."""
    try:
        entry = find(model)
    except ModelNotFound:
        files = hub.locate(model)
        return Blueprint(files.name, files.config, files.tokenizer, files.family, files.preprocessor)
    if isinstance(entry.source, Bundled):
        own = hub.locate(entry.id)
        return Blueprint(entry.id, own.config, own.tokenizer, own.family)
    make = family(entry.family).blueprint if entry.family else None
    if make is None:
        raise ModelNotFound(f"{entry.id} is not here, and nobody says what its weights would be like")
    return make(entry.id, hub.locate(next(e for e in entries() if isinstance(e.source, Bundled)).id))


def ensure_random_checkpoint(model: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of a model's random checkpoint, made at its first use; moondream2-random is that of moondream2.

    `progress` is told how many bytes of how many are written. Raises ModelNotFound, CheckpointError, or
    InvalidRequest where it cannot be written.
    """
    made = find_blueprint(model)
    folder = hub.random_folder() / f"{made.name}{hub.RANDOM}"
    if _is_complete(folder, made):
        return folder

    def waiting(holder: str) -> None:
        log.warning("waiting for %s, which makes random weights in %s", holder, folder.parent)

    try:
        with lock_file(folder.parent / ".lock", waiting) as alone:
            if _is_complete(folder, made):
                return folder
            for left in folder.parent.glob(".making-*") if alone else ():
                shutil.rmtree(left, ignore_errors=True)
            # Made beside its place and then moved there, so that what is there is whole.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
                new = Path(making) / folder.name
                write_checkpoint(new, made, progress)
                shutil.rmtree(folder, ignore_errors=True)
                new.rename(folder)
    except OSError as error:
        raise InvalidRequest(f"cannot write {folder}: {error.strerror or error}; set GALAGO_CACHE") from error
    return folder


def _is_complete(folder: Path, made: Blueprint) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(config == dict(made.config)) and (folder / "model.safetensors").is_file()


def write_checkpoint(folder: Path, made: Blueprint, progress: Callable[[int, int], None] | None = None) -> None:
    """Write model.safetensors (bfloat16) and the other files of a model, holding one tensor at a time.

    The end token is so unlikely that answers always reach their limit.
    """
    import torch

    from galago.checkpoint.tensors import write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    for name, members in (("config.json", made.config), ("preprocessor_config.json", made.preprocessor)):
        if members or name == "config.json":
            (folder / name).write_text(json.dumps(dict(members), indent=1) + "\n", encoding="utf-8")
    tokenizer = folder / "tokenizer.json"
    _write_tokenizer(tokenizer, made)
    files = ModelFiles(made.name, made.family, (), tokenizer, made.config, preprocessor=made.preprocessor)
    outline = family(made.family).outline(files)
    # float32 first, so that each tensor lies at a multiple of its type's size.
    table = sorted(outline.shapes.items(), key=lambda pair: pair[0] not in outline.exact)
    layout = {name: (torch.float32 if name in outline.exact else torch.bfloat16, shape) for name, shape in table}
    total = sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())
    _check_space(folder, total)
    generator = np.random.Generator(np.random.SFC64(0))

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        done = 0
        for name, (dtype, shape) in layout.items():
            values = _random_values(name, shape, generator)
            if dtype == torch.float32:
                made = torch.from_numpy(np.concatenate(list(values)))
            else:
                made = torch.from_numpy(np.concatenate([_to_bfloat16(v) for v in values])).view(dtype)
            if name == outline.head:
                # A bias that is never outdone, or weights that give a logit of 0, below the largest of many.
                made.view(shape)[outline.end] = -1e4 if len(shape) == 1 else 0.0
            yield name, made.view(shape)
            done += made.nbytes
            if progress:
                progress(done, total)

    write_tensors(folder / "model.safetensors", layout, tensors(), {"format": "pt"})


def _write_tokenizer(file: Path, made: Blueprint) -> None:
    if not made.control:
        shutil.copyfile(made.tokenizer, file)
        return
    from tokenizers import AddedToken

    backend = load_tokenizer(made.tokenizer).backend
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in made.control])
    backend.save(str(file))


def _random_values(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Iterator[np.ndarray]:
    """float32 pieces of a tensor: uniform of deviation STD for matrices, 1 for gains, 0 for biases."""
    count = math.prod(shape)
    if len(shape) == 1:
        yield np.full(count, 0.0 if name.endswith("bias") else 1.0, np.float32)
        return
    # Uniform from raw bits: an order of magnitude cheaper than normal ones, and as good for speed.
    scale = np.float32(STD * math.sqrt(3) / 2**15)
    for begin in range(0, count, CHUNK):
        bits = np.frombuffer(generator.bytes(2 * min(CHUNK, count - begin)), np.int16)
        yield bits.astype(np.float32) * scale


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers: bfloat16, rounded towards zero, as int16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.int16)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise GalagoError(
            f"random weights need {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free: "
            "make room, or set GALAGO_CACHE to a folder on a larger disk"
        )


if __name__ == "__main__":
    print(ensure_random_checkpoint(sys.argv[1] if len(sys.argv) > 1 else default_random_model()))
