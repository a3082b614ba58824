"""Our own CPU kernels (C++ with vector instructions, see kernels.h), called through ctypes.

Where the package was built without a compiler, or on a processor that has none of the instruction sets,
`kernels()` is None and torch does the work.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_void_p, pointer
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from galago.kernels.build import digest, whole

log = logging.getLogger(__name__)
PANEL = 64
"""Output channels that are packed together; kPanel in kernels.h."""
GROUP = 32
"""Input channels that share an int4 scale; kGroup in kernels.h."""


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that `dense` takes; their places are `type` in kernels.h."""
KVBuffer = tuple[int, int, int, int]
"""Addresses of keys and of values, bfloat16 [layers, kv heads, capacity, dim]; positions kept, capacity. `Place` in
kernels.h."""


class _Weight(ctypes.Structure):
    _fields_ = [(n, c_void_p) for n in ("multiply", "w", "sum", "scale", "bias")] + [
        (n, c_int64) for n in ("k", "n", "bits")
    ]


class _Gemm(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("x", "y")),
        *((n, c_int64) for n in ("m", "ldx", "ldy")),
        *((n, c_int32) for n in ("gelu", "threads")),
    ]


class _Dense(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("x", "w", "bias", "y")),
        *((n, c_int64) for n in ("m", "n", "k", "ldx")),
        *((n, c_int32) for n in ("type", "threads")),
    ]


class _Segment(ctypes.Structure):
    _fields_ = [(n, c_void_p) for n in ("k", "v")] + [(n, c_int64) for n in ("length", "stride")]


class _Decode(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("q", "out")),
        ("segments", POINTER(_Segment)),
        *((n, c_int64) for n in ("n_segments", "t", "heads", "kv_heads", "dim")),
        *((n, c_int64) for n in ("q_head", "q_row", "out_head", "out_row", "free")),
        ("threads", c_int32),
    ]


class _Store(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("x", "y")),
        *((n, c_int64) for n in ("heads", "t", "dim", "x_head", "x_row", "y_head", "y_row")),
        ("threads", c_int32),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")),
        *((n, POINTER(_Weight)) for n in ("qkv", "proj", "fc1", "fc2")),
    ]


class _Place(ctypes.Structure):
    _fields_ = [*((n, c_void_p) for n in ("k", "v")), *((n, c_int64) for n in ("length", "capacity"))]


class _Sequence(ctypes.Structure):
    _fields_ = [("places", POINTER(_Place)), *((n, c_int64) for n in ("n_places", "rows"))]


class _Stack(ctypes.Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        *((n, c_void_p) for n in ("x", "cos", "sin")),
        ("sequences", POINTER(_Sequence)),
        *((n, c_int64) for n in ("first", "end", "n_sequences", "dim", "heads", "kv_heads", "ff", "half")),
        ("eps", c_float),
        *((n, c_int32) for n in ("together", "keys_only", "threads")),
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("q", "k", "v", "out")),
        *((n, c_int64) for n in ("batch", "heads", "kv_heads", "t", "s", "dim")),
        *((f"{t}_{axis}", c_int64) for t in ("q", "k", "v", "out") for axis in ("batch", "head", "row")),
        ("bytes", c_int32),
        ("threads", c_int32),
    ]


class _Rotate(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("x", "cos", "sin")),
        *((n, c_int64) for n in ("rows", "heads", "half", "x_row", "x_head")),
        ("threads", c_int32),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("x", "weight", "bias", "y")),
        *((n, c_int64) for n in ("m", "k", "ldx")),
        ("eps", c_float),
        ("threads", c_int32),
    ]


class _Table(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("gemm", ctypes.CFUNCTYPE(c_int32, POINTER(_Weight), POINTER(_Gemm))),
        ("dense", ctypes.CFUNCTYPE(c_int32, POINTER(_Dense))),
        ("decode", ctypes.CFUNCTYPE(c_int32, POINTER(_Decode))),
        ("store", ctypes.CFUNCTYPE(c_int32, POINTER(_Store))),
        ("stack", ctypes.CFUNCTYPE(c_int32, POINTER(_Stack))),
        ("attention", ctypes.CFUNCTYPE(c_int32, POINTER(_Attention))),
        ("rotate", ctypes.CFUNCTYPE(c_int32, POINTER(_Rotate))),
        ("norm", ctypes.CFUNCTYPE(c_int32, POINTER(_Norm))),
        ("add", ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int32)),
        ("read", ctypes.CFUNCTYPE(c_int32, c_void_p, c_int64, c_int32, POINTER(c_int64))),
    ]


def _address(t: Tensor, dtype: torch.dtype = torch.float32, contiguous: bool = True) -> int:
    """The address of a tensor of this type on the CPU: C++ cannot see what lies there.

    `contiguous`: it lies in one piece, row by row. Raises ValueError for any other.
    """
    if t.dtype is not dtype or not t.is_cpu or (contiguous and not t.is_contiguous()):
        wanted, given = (str(d).removeprefix("torch.") for d in (dtype, t.dtype))
        kind = f"contiguous {wanted}" if contiguous else wanted
        raise ValueError(f"a kernel takes {kind} on the CPU here, not {given} on {t.device} with strides {t.stride()}")
    return t.data_ptr()


def _with_dense_rows(x: Tensor) -> Tensor:
    """The same tensor, copied unless its last dimension is contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def kv_buffer(k: Tensor, v: Tensor, length: int) -> KVBuffer:
    """The buffer of keys and values, bfloat16 [layers, kv heads, capacity, dim], with `length` positions kept."""
    return _address(k, torch.bfloat16), _address(v, torch.bfloat16), length, k.shape[2]


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the kernels ran out of memory")


class Kernels:
    """The kernels for one instruction set. Tensors are on the CPU, and float32 unless said otherwise.

    Each runs on as many threads as torch gives to the thread that calls it. All raise ValueError for tensors of
    another kind than they take, and those that compute MemoryError when memory runs out; what they were to write
    is worth nothing then.
    """

    def __init__(self, table: _Table) -> None:
        self._table = table
        self.name = table.name.decode()

    def weight(
        self, panels: Tensor, total: Tensor, scale: Tensor, bias: Tensor, multiply: Tensor, n: int, k: int, bits: int
    ) -> _Weight:
        """A weight as `gemm` takes it, see precision/quantise.py; the tensors must outlive it."""
        quantised = (_address(panels, torch.uint8), _address(total, torch.int32))
        return _Weight(_address(multiply), *quantised, _address(scale), _address(bias), k, n, bits)

    def gemm(self, x: Tensor, w: _Weight, gelu: bool = False) -> Tensor:
        """x [..., k], quantised row by row, times the weight: [..., n]; then tanh-GELU where asked."""
        rows = _with_dense_rows(x.reshape(-1, w.k))
        at = _address(rows, contiguous=False)
        y = x.new_empty(*x.shape[:-1], w.n)
        if m := rows.shape[0]:
            call = _Gemm(at, y.data_ptr(), m, rows.stride(0), w.n, gelu, torch.get_num_threads())
            _check(self._table.gemm(byref(w), byref(call)))
        return y

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x [m, k], for a few rows, times a weight [n, k] of FLOATS, plus its bias [n]: [m, n]."""
        x = _with_dense_rows(x)
        kind = weight.dtype if weight.dtype in FLOATS else torch.float32
        read = (_address(x, contiguous=False), _address(weight, kind), _address(bias, kind))
        y = x.new_empty(x.shape[0], weight.shape[0])
        call = _Dense(
            *read, y.data_ptr(), x.shape[0], *weight.shape, x.stride(0), FLOATS.index(kind), torch.get_num_threads()
        )
        _check(self._table.dense(byref(call)))
        return y

    def decode(self, q: Tensor, segments: Sequence[tuple[Tensor, Tensor]], free: int) -> Tensor:
        """Attention of q [heads, t, dim] over bfloat16 keys and values [kv heads, n, dim] of each segment in turn.

        Query i sees the first free + i + 1 positions. dim is a multiple of 16.
        """
        heads, t, dim = q.shape
        q, half = _with_dense_rows(q), torch.bfloat16
        at = _address(q, contiguous=False)
        out = q.new_empty(t, heads, dim)
        parts_at = ((_address(k, half, False), _address(v, half, False), k.shape[1], k.stride(0)) for k, v in segments)
        parts = (_Segment * len(segments))(*(_Segment(*fields) for fields in parts_at))
        call = _Decode(
            *(at, out.data_ptr(), parts, len(segments), t, heads, segments[0][0].shape[0], dim),
            *(q.stride(0), q.stride(1), dim, heads * dim, free, torch.get_num_threads()),
        )
        _check(self._table.decode(byref(call)))
        return out.transpose(0, 1)

    def store(self, x: Tensor, y: Tensor) -> None:
        """Copy x [heads, t, dim] into the bfloat16 y of the same shape."""
        x = _with_dense_rows(x)
        call = _Store(
            *(_address(x, contiguous=False), _address(y, torch.bfloat16, False), *x.shape),
            *(x.stride(0), x.stride(1), y.stride(0), y.stride(1), torch.get_num_threads()),
        )
        _check(self._table.store(byref(call)))

    def layers(self, parts: Sequence[tuple[Sequence[Tensor | None], Sequence[_Weight]]]) -> "ctypes.Array[_Layer]":
        """Blocks as `stack` takes them: of each its norms' gain and bias (two or four), and qkv, proj, fc1, fc2.

        A norm without a bias is an RMSNorm. All of them must outlive it.
        """
        made = []
        for norms, weights in parts:
            addresses = [None if t is None else _address(t) for t in norms] + [None] * (4 - len(norms))
            made.append(_Layer(*addresses, *map(pointer, weights)))
        return (_Layer * len(made))(*made)

    def stack(
        self,
        layers: "ctypes.Array[_Layer]",
        x: Tensor,
        table: tuple[Tensor, Tensor] | None,
        sequences: Sequence[tuple[Sequence[KVBuffer], int]],
        sizes: tuple[int, int, int],
        eps: float,
        together: bool,
        keys_only: bool,
        blocks: range,
    ) -> None:
        """Run x [rows, dim] through these blocks in place, and store the keys and values.

        `table` is of cosines and sines [rows, half]; each sequence has its buffers and how many of the
        rows are its own; `sizes` are heads, kv heads and the MLP's inner width. With `together` there is
        one sequence, which begins here, and its rows see each other in both directions. With `keys_only` no
        more than keys and values is made of the last of these blocks, and x is worth nothing. x is contiguous.
        Raises ValueError unless `blocks` is a piece of the layers.
        """
        if blocks != range(len(layers))[blocks.start : blocks.stop]:
            raise ValueError(f"{blocks} is no piece of {len(layers)} blocks")
        kept = [(_Place * len(buffers))(*(_Place(*buffer) for buffer in buffers)) for buffers, _ in sequences]
        parts = (_Sequence(at, len(at), rows) for at, (_, rows) in zip(kept, sequences, strict=True))
        cos, sin, half = (None, None, 0) if table is None else (*map(_address, table), table[0].shape[-1])
        heads, kv_heads, ff = sizes
        call = _Stack(
            *(layers, _address(x), cos, sin, (_Sequence * len(kept))(*parts)),
            *(blocks.start, blocks.stop, len(kept), x.shape[1], heads, kv_heads, ff, half),
            *(eps, together, keys_only, torch.get_num_threads()),
        )
        _check(self._table.stack(byref(call)))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, int8: bool = False) -> Tensor:
        """Attention of q [B, heads, t, dim] over all of k and v [B, kv heads, s, dim]: [B, heads, t, dim].

        Products are of bfloat16, and where a set has none of whole numbers of 16 bits or of float32, which are finer.
        With `int8` those of q and k may be of 8 bits, row by row.
        """
        q, k, v = map(_with_dense_rows, (q, k, v))
        read = [_address(x, contiguous=False) for x in (q, k, v)]
        b, heads, t, dim = q.shape
        out = q.new_empty(b, t, heads, dim).transpose(1, 2)
        strides = (stride for x in (q, k, v, out) for stride in x.stride()[:3])
        call = _Attention(
            *(*read, out.data_ptr()),
            *(b, heads, k.shape[1], t, k.shape[2], dim, *strides, int8, torch.get_num_threads()),
        )
        _check(self._table.attention(byref(call)))
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turn x [heads, t, dim] in place by the angles [t, half]; see nn/rotary.py."""
        heads, t, _ = x.shape
        call = _Rotate(
            *(_address(x, contiguous=False), _address(cos), _address(sin), t, heads, cos.shape[-1]),
            *(x.stride(1), x.stride(0), torch.get_num_threads() if t > 16 else 1),
        )
        _check(self._table.rotate(byref(call)))

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """LayerNorm over the last dimension of x [..., k]; RMSNorm where there is no bias."""
        rows = _with_dense_rows(x.reshape(-1, x.shape[-1]))
        m, k = rows.shape
        read = (_address(rows, contiguous=False), _address(weight), None if bias is None else _address(bias))
        y = x.new_empty(x.shape)
        call = _Norm(*read, y.data_ptr(), m, k, rows.stride(0), eps, torch.get_num_threads())
        _check(self._table.norm(byref(call)))
        return y

    def add(self, x: Tensor, a: Tensor, b: Tensor | None = None) -> Tensor:
        """x + a, and + b; all contiguous and of one shape."""
        read = (_address(x), _address(a), None if b is None else _address(b))
        y = x.new_empty(x.shape)
        threads = torch.get_num_threads() if x.numel() > 1 << 16 else 1
        _check(self._table.add(*read, y.data_ptr(), x.numel(), threads))
        return y

    def read(self, x: Tensor) -> int:
        """Read every byte of a contiguous tensor, as fast as the machine can; the sum of its 32-bit words."""
        total = c_int64()
        _check(self._table.read(_address(x, x.dtype), x.nbytes // 4, torch.get_num_threads(), byref(total)))
        return total.value


@cache
def load(name: str | None = None) -> Kernels | None:
    """The kernels of this instruction set, by default the best that the processor has; None if there are none."""
    library = Path(__file__).with_name("_kernels.so")
    if not library.is_file():
        return None
    if not whole(library):
        log.warning("the kernels are damaged (%s) and are not used; install galago anew", library)
        return None
    try:
        opened = ctypes.CDLL(str(library))
        find, sources = opened.galago_kernels, opened.galago_sources
    except (OSError, AttributeError) as error:
        log.warning("the kernels cannot be loaded (%s); torch's are used, which are slower", error)
        return None
    sources.restype = c_char_p
    if sources().decode() != digest():
        log.warning("the kernels were built from other sources and are not used; install galago anew")
        return None
    find.restype, find.argtypes = POINTER(_Table), [c_char_p]
    table = find(name.encode() if name else None)
    return Kernels(table.contents) if table else None


def kernels() -> Kernels | None:
    """The kernels in use. GALAGO_KERNELS names an instruction set, or `none` to leave everything to torch."""
    chosen = os.environ.get("GALAGO_KERNELS", "")
    return None if chosen == "none" else load(chosen or None)
