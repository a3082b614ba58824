"""A sequence gives exactly the logits that it gives alone, however many step beside it."""

from pathlib import Path

import pytest
import tiny_moondream as tiny
import tiny_smolvlm
import torch

from galago import hub
from galago.engine.step import Feed, StepModel
from galago.families.moondream.model import load_moondream
from galago.kernels import kernels
from galago.precision import pick_precision

MODELS = ("scenes", "moondream", "smolvlm")


def model(name: str, precision: str, folder: Path) -> StepModel:
    chosen = pick_precision(precision, tiny.CPU)
    if name == "scenes":
        return load_moondream(hub.locate("scenes"), precision=chosen, device=tiny.CPU)
    if name == "moondream":
        return tiny.load(tiny.write(folder), precision=chosen)
    return tiny_smolvlm.load(tiny_smolvlm.write(folder), precision)


@pytest.mark.skipif(kernels() is None, reason="needs the kernels: torch's products differ by how many rows there are")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_more_rows_than_sixteen(name: str, precision: str, tmp_path: Path) -> None:
    m, ids = model(name, precision, tmp_path), [torch.tensor([20 + i]) for i in range(40)]
    feeds = [Feed(x, logits=i % 5 > 0) for i, x in enumerate(ids)]
    with torch.inference_mode():
        wanted = [m.forward([m.new_cache(None)], [feed])[0] for feed in feeds]
        for n in (17, 32, 40):
            found = m.forward([m.new_cache(None) for _ in range(n)], feeds[:n])
            for one, alone in zip(found, wanted, strict=False):
                assert torch.equal(one.hidden, alone.hidden)
                assert alone.logits is None or torch.equal(one.logits, alone.logits)  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", MODELS)
def test_how_far_rows_are_apart_where_torch_multiplies(
    name: str, precision: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What README says of accelerators and of processors without our kernels, as a share of the largest logit."""
    monkeypatch.setenv("GALAGO_KERNELS", "none")
    m, feeds = model(name, precision, tmp_path), [Feed(torch.tensor([20 + i])) for i in range(40)]
    with torch.inference_mode():
        together = m.forward([m.new_cache(None) for _ in feeds], feeds)
        for feed, found in zip(feeds, together, strict=True):
            alone = m.forward([m.new_cache(None)], [feed])[0]
            assert found.logits is not None and alone.logits is not None
            assert (found.logits - alone.logits).abs().max() <= most * alone.logits.abs().max()
