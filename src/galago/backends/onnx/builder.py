"""Building ONNX graphs of a transformer's operations: each function adds nodes and gives the name of what they compute.

They compute what the functions of the same names in nn/ and precision/ do, which exports are checked against.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from galago.nn.vit import VitWeights
from galago.precision.linear import Dense, LinearWeight, Mlp, Norm

OPSET, IR_VERSION = 20, 9
"""Of 2023 and 2024: runtimes in browsers are some versions behind."""
ZERO = 128
"""The whole number that stands for 0 in activations."""
LEAST_OUTSIDE = 1024
"""Bytes of an array from which on it may lie outside of its graph's file: runtimes look at small ones beforehand."""
PAGE = 4096
"""Arrays in a file begin at multiples of it, so that a runtime can map them."""
LOWEST = float(np.finfo(np.float32).min)
Name = str
Shape = Sequence[int | str]
"""Sizes, or names of those that may be any."""


class Builder:
    """A graph under construction."""

    def __init__(self, name: str, int8: bool = False) -> None:
        """With `int8` linear maps and tables have whole numbers for weights, with a scale for each of their rows."""
        self.name, self.int8 = name, int8
        self._nodes: list[Any] = []
        self._weights: dict[Name, NDArray[Any]] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[tuple[Any, ...], Name] = {}

    def input(self, name: Name, shape: Shape, kind: int = TensorProto.FLOAT) -> Name:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: Name, value: Name, shape: Shape) -> None:
        """Give a value this name for the outside."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, kind: str, *inputs: Name, **attributes: Any) -> Name:
        """The output of a node."""
        return self.ops(1, kind, *inputs, **attributes)[0]

    def ops(self, count: int, kind: str, *inputs: Name, **attributes: Any) -> list[Name]:
        """The outputs of a node that has several."""
        names = [f"{kind.lower()}_{len(self._nodes)}" + (f"_{i}" if i else "") for i in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def weight(self, array: NDArray[Any]) -> Name:
        name = f"weight_{len(self._weights)}"
        # Mostly a view of the model's own: a copy is made when it is written, of one at a time.
        self._weights[name] = array
        return name

    def constant(self, value: Any, kind: Any = np.int64) -> Name:
        """A number or a list of them; equal ones are the same."""
        array = np.array(value, kind)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(array)
        return self._constants[key]

    def reshape(self, x: Name, *shape: int) -> Name:
        """0 keeps a size, one -1 follows from the others."""
        return self.op("Reshape", x, self.constant(shape))

    def size(self, x: Name, axis: int) -> Name:
        """The size along an axis, as int64 [1]."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def save(self, file: Path, data: Path, most_inline: int) -> None:
        """Write the graph; what has more bytes of weights than `most_inline` has them in the file `data`."""
        if sum(array.nbytes for array in self._weights.values()) <= most_inline:
            weights = [_tensor(name, array) for name, array in self._weights.items()]
        else:
            with data.open("wb") as out:
                weights = [_tensor(name, array, out) for name, array in self._weights.items()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="galago")
        onnx.save_model(model, file)


def _tensor(name: Name, array: NDArray[Any], out: BinaryIO | None = None) -> Any:
    """An array as a graph has it; with `out`, unless it is small, as a place in that file."""
    array = np.ascontiguousarray(array)
    if out is None or array.nbytes < LEAST_OUTSIDE:
        return numpy_helper.from_array(array, name)
    out.seek(-(-out.tell() // PAGE) * PAGE)
    made = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    made.data_location = TensorProto.EXTERNAL
    for key, value in {"location": Path(out.name).name, "offset": out.tell(), "length": array.nbytes}.items():
        made.external_data.add(key=key, value=str(value))
    out.write(array.data)
    return made


def linear(b: Builder, x: Name, w: LinearWeight) -> Name:
    assert isinstance(w, Dense)  # models are exported from float32
    weight, bias = w.weight.numpy(), w.bias.numpy()
    y = _integer_product(b, x, weight) if b.int8 else b.op("MatMul", x, b.weight(weight.T))
    return b.op("Add", y, b.weight(bias)) if bias.any() else y


def _integer_product(b: Builder, x: Name, weight: NDArray[np.float32]) -> Name:
    """x times a weight [out, in], both as whole numbers: each row of x with a scale of its own, found as it comes."""
    whole, scales = quantise_rows(weight)
    largest = b.op("ReduceMax", b.op("Abs", x), b.constant([-1]))
    scale = b.op("Mul", b.op("Max", largest, b.constant(1e-30, np.float32)), b.constant(1 / 127, np.float32))
    shifted = b.op("Add", b.op("Round", b.op("Div", x, scale)), b.constant(ZERO, np.float32))
    number = b.op("Cast", shifted, to=TensorProto.UINT8)
    product = b.op("MatMulInteger", number, b.weight(whole.T), b.constant(ZERO, np.uint8))
    return b.op("Mul", b.op("Mul", b.op("Cast", product, to=TensorProto.FLOAT), scale), b.weight(scales))


def quantise_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole numbers from -127 to 127 for a weight [rows, n], and what one of them is in each row."""
    scales = np.maximum(np.abs(weight).max(1), np.float32(1e-30)) / np.float32(127)
    return np.round(weight / scales[:, None]).astype(np.int8), scales


def look_up(b: Builder, ids: Name, table: NDArray[np.float32]) -> Name:
    """The rows of a table [n, dim] with these numbers."""
    if not b.int8:
        return b.op("Gather", b.weight(table), ids)
    whole, scales = quantise_rows(table)
    rows = b.op("Cast", b.op("Gather", b.weight(whole), ids), to=TensorProto.FLOAT)
    return b.op("Mul", rows, b.op("Gather", b.weight(scales[:, None]), ids))


def mlp(b: Builder, x: Name, w: Mlp) -> Name:
    return linear(b, b.op("Gelu", linear(b, x, w.fc1), approximate="tanh"), w.fc2)


def layer_norm(b: Builder, x: Name, w: Norm, eps: float) -> Name:
    parts = [b.weight(part.numpy()) for part in (w.weight, w.bias) if part is not None]
    return b.op("LayerNormalization", x, *parts, axis=-1, epsilon=eps)


def rms_norm(b: Builder, x: Name, gain: Any, eps: float) -> Name:
    squares = b.op("ReduceMean", b.op("Mul", x, x), b.constant([-1]))
    root = b.op("Sqrt", b.op("Add", squares, b.constant(eps, np.float32)))
    return b.op("Mul", b.op("Div", x, root), b.weight(gain.numpy()))


def attention(b: Builder, q: Name, k: Name, v: Name, head_dim: int, bias: Name | None = None) -> Name:
    """Softmax(q k^T / sqrt(d) + bias) v, where q is [..., T, d] and k and v are [..., S, d]."""
    axes = [0, 1, 3, 2] if bias is None else [0, 1, 2, 4, 3]
    scaled = b.op("Mul", q, b.constant(head_dim**-0.5, np.float32))
    scores = b.op("MatMul", scaled, b.op("Transpose", k, perm=axes))
    if bias is not None:
        scores = b.op("Add", scores, bias)
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), v)


def patchify(b: Builder, images: Name, patch: int, grid: int) -> Name:
    """Images [n, 3, H, W] to patches [n, grid * grid, 3 * patch * patch]."""
    x = b.reshape(images, 0, 3, grid, patch, grid, patch)
    return b.reshape(b.op("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), 0, grid * grid, 3 * patch * patch)


def vit(b: Builder, patches: Name, w: VitWeights, heads: int, eps: float) -> Name:
    """Patches [n, T, C] to features [n, T, dim]."""
    dim, length = w.pos_emb.shape[-1], w.pos_emb.shape[1]
    x = b.op("Add", linear(b, patches, w.patch_emb), b.weight(w.pos_emb.numpy()))
    for block in w.blocks:
        qkv = b.reshape(linear(b, layer_norm(b, x, block.ln1, eps), block.qkv), 0, length, 3, heads, dim // heads)
        parts = b.ops(3, "Split", b.op("Transpose", qkv, perm=[2, 0, 3, 1, 4]), axis=0, num_outputs=3)
        q, k, v = (b.op("Squeeze", part, b.constant([0])) for part in parts)
        mixed = b.op("Transpose", attention(b, q, k, v, dim // heads), perm=[0, 2, 1, 3])
        x = b.op("Add", x, linear(b, b.reshape(mixed, 0, length, dim), block.proj))
        x = b.op("Add", x, mlp(b, layer_norm(b, x, block.ln2, eps), block.mlp))
    return layer_norm(b, x, w.post_ln, eps)
