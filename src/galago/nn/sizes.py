"""The sizes of a decoder that its sequences depend on. This file needs no PyTorch."""

from typing import Protocol


class TextSizes(Protocol):
    """As a family's config has them."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_context(self) -> int: ...
