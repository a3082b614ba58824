"""The linear layers of a model of the transformers library, over whole numbers that our own kernels multiply."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from galago.checkpoint.tensors import read_tensors, write_tensors
from galago.kernels import PANEL
from galago.precision.quantise import Quantised, panel_bytes, quantise
from galago.precision.quantised import weight_for
from galago.system.device import return_memory
from galago.system.progress import Progress

PARTS = ("panels", "scale", "total", "bias", "multiply")
"""The tensors of a quantised layer, as Quantised has them; in a file their names follow the layer's."""


class QuantisedLinear(nn.Module):
    """An nn.Linear whose weight is quantised, for activations of this type."""

    def __init__(self, stored: Quantised, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = stored.k, stored.n
        self.stored_bytes = stored.panels.numel()
        self._map = weight_for(stored, device, dtype)
        # Some models look up in which type and on which device a layer is.
        self.register_buffer("weight", torch.empty(0, dtype=dtype, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._map.forward(x)


def pack_layers(model: nn.Module, bits: int, file: Path, about: Mapping[str, str], tell: Progress) -> None:
    """Write the linear layers of a model, quantised."""
    layers = dict(_linear_layers(model))
    layout = {
        f"{path}.{part}": known
        for path, layer in layers.items()
        for part, known in zip(PARTS, _layout(layer, bits), strict=True)
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for done, (path, layer) in enumerate(layers.items()):
            stored = _quantise(layer, bits)
            yield from ((f"{path}.{part}", getattr(stored, part)) for part in PARTS)
            return_memory(torch.device("cpu"))
            tell(done + 1, len(layers))

    write_tensors(file, layout, tensors(), about)


def replace_layers(
    model: nn.Module, bits: int, device: torch.device, dtype: torch.dtype, packed: Path | None = None
) -> None:
    """Replace the linear layers of a model by quantised ones: those of a file that pack_layers wrote, or made anew.

    One whose weight is an embedding's too gets its own.
    """
    kept = dict(read_tensors([packed])) if packed else {}
    # By their names, as a list of the layers would keep all of them until the last is replaced.
    for path in [path for path, _ in _linear_layers(model)]:
        layer, (parent, _, name) = model.get_submodule(path), path.rpartition(".")
        assert isinstance(layer, nn.Linear)
        if kept:
            n, k = layer.out_features, layer.in_features
            stored = Quantised(**{part: kept[f"{path}.{part}"] for part in PARTS}, n=n, k=k, bits=bits)
        else:
            stored = _quantise(layer, bits)
        setattr(model.get_submodule(parent), name, QuantisedLinear(stored, device, dtype))
        del layer
    return_memory(device)


def weights_bytes(model: nn.Module) -> int:
    """Bytes of the weights of a model, quantised or not."""
    plain = sum({t.data_ptr(): t.numel() * t.element_size() for t in model.parameters()}.values())
    return plain + sum(m.stored_bytes for m in model.modules() if isinstance(m, QuantisedLinear))


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    # Of the type itself: those that inherit from it are used otherwise than as a map.
    return ((path, layer) for path, layer in model.named_modules() if type(layer) is nn.Linear)


def _quantise(layer: nn.Linear, bits: int) -> Quantised:
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    return quantise(layer.weight.detach(), bias, bits)


def _layout(layer: nn.Linear, bits: int) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of a layer's PARTS."""
    n, k = layer.out_features, layer.in_features
    panels = -(-n // PANEL)
    rows = (panels * PANEL,)
    return [
        (torch.uint8, (panels, panel_bytes(k, bits))),
        (torch.float32, rows),
        (torch.int32, rows),
        (torch.float32, rows),
        (torch.float32, (k,)),
    ]
