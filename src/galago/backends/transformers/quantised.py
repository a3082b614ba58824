"""The linear layers of a model of the transformers library, over whole numbers that our own kernels multiply."""

import torch
from torch import Tensor, nn

from galago.precision.quantise import quantise
from galago.precision.quantised import weight_for


class QuantisedLinear(nn.Module):
    """An nn.Linear whose weight is quantised, for activations of this type."""

    def __init__(self, layer: nn.Linear, bits: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        stored = quantise(layer.weight.detach(), bias, bits)
        self.stored_bytes = stored.panels.numel()
        self._map = weight_for(stored, device, dtype)
        # Some models look up in which type and on which device a layer is.
        self.register_buffer("weight", torch.empty(0, dtype=dtype, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._map.forward(x)


def quantise_layers(model: nn.Module, bits: int, device: torch.device, dtype: torch.dtype) -> None:
    """Replace the linear layers of a model, one after another. One whose weight is an embedding's too gets a copy."""
    # By their names, as a list of the layers would keep all of them until the last is replaced.
    for path in [path for path, layer in model.named_modules() if type(layer) is nn.Linear]:
        parent, _, name = path.rpartition(".")
        layer = model.get_submodule(path)
        setattr(model.get_submodule(parent), name, QuantisedLinear(layer, bits, device, dtype))  # type: ignore[arg-type]
        del layer


def weights_bytes(model: nn.Module) -> int:
    """Bytes of the weights of a model, quantised or not."""
    plain = sum({t.data_ptr(): t.numel() * t.element_size() for t in model.parameters()}.values())
    return plain + sum(m.stored_bytes for m in model.modules() if isinstance(m, QuantisedLinear))
