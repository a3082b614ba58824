"""A sequence gives exactly what its heads give alone, however many step beside it and whatever those read."""

from pathlib import Path

import pytest
import tiny_moondream as tiny
import tiny_smolvlm
import torch

from galago.engine.step import Feed
from galago.families.base import DecoderModel
from galago.families.moondream.loading import load_moondream
from galago.kernels import kernels
from galago.precision import pick_precision
from galago.precision.linear import GatedMlp, gelu, swiglu
from galago.store import hub

MODELS = ("scenes", "moondream", "smolvlm")


def model(name: str, precision: str, folder: Path) -> DecoderModel:
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
    heads = list(m.heads)
    named = [tuple(head for j, head in enumerate(heads) if (i + j) % 5) for i in range(len(ids))]
    feeds = [Feed(x, reads) for x, reads in zip(ids, named, strict=True)]
    with torch.inference_mode():
        wanted = [m.forward([m.new_cache(None)], [feed])[0] for feed in feeds]
        for n in (17, 32, 40):
            found = m.forward([m.new_cache(None) for _ in range(n)], feeds[:n])
            for one, alone in zip(found, wanted, strict=False):
                assert torch.equal(one.hidden, alone.hidden)
                assert one.heads.keys() == alone.heads.keys()
                assert all(torch.equal(one.heads[head], alone.heads[head]) for head in alone.heads)


class Same:
    """A linear map that changes nothing."""

    def forward(self, x: torch.Tensor, activate: bool = False) -> torch.Tensor:
        return x


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [48, 2560, 8192])
def test_activations_of_few_rows_are_those_of_each_alone(n: int, threads: int) -> None:
    rows = torch.randn(16, n, generator=torch.Generator().manual_seed(n))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for apply in (gelu, lambda x: swiglu(x, GatedMlp(Same(), Same()))):
                alone = torch.cat([apply(row) for row in rows.split(1)])
                assert all(torch.equal(apply(rows[:m]), alone[:m]) for m in range(1, 17))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", MODELS)
def test_how_far_rows_are_apart_where_torch_multiplies(
    name: str, precision: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/many-requests.md says of GPUs, and of CPUs without our kernels, in shares of the largest logit."""
    monkeypatch.setenv("GALAGO_KERNELS", "none")
    m, feeds = model(name, precision, tmp_path), [Feed(torch.tensor([20 + i])) for i in range(40)]
    with torch.inference_mode():
        together = m.forward([m.new_cache(None) for _ in feeds], feeds)
        for feed, found in zip(feeds, together, strict=True):
            alone = m.forward([m.new_cache(None)], [feed])[0]
            assert found.logits is not None and alone.logits is not None
            assert (found.logits - alone.logits).abs().max() <= most * alone.logits.abs().max()
