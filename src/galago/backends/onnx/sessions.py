"""Running ONNX graphs with ONNX Runtime, on the processor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galago.errors import CheckpointError, UnsupportedTask

Value = Any
"""An onnxruntime.OrtValue: an array that ONNX Runtime holds, which is given back to it without a copy."""


def runtime() -> Any:
    """The module onnxruntime. Raises UnsupportedTask where it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UnsupportedTask("ONNX models are run by ONNX Runtime: pip install 'galago[onnx]'") from None
    return onnxruntime


class Graph:
    """One graph in memory. It may be run from one thread at a time."""

    def __init__(self, file: Path, threads: int) -> None:
        """Raises CheckpointError for a file that is damaged, or made for another runtime."""
        ort = runtime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Every prompt and every step has another shape: memory that is kept for each shape only grows.
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        # Without it int8 products are cut off at 16 bits on processors before VNNI, and answers are wrong.
        options.add_session_config_entry("session.x64quantprecision", "1")
        # Threads that wait would take the cores from the other graphs' threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library has a type for each of its codes, and no base for them
            why = str(error).rpartition(": ")[2] or type(error).__name__
            raise CheckpointError(f"{file} cannot be run by ONNX Runtime {ort.__version__}: {why}") from error
        self.inputs = [one.name for one in self._session.get_inputs()]
        self.outputs = [one.name for one in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Value], outputs: Sequence[str] | None = None) -> list[Value]:
        """The outputs, by default all in the graph's order."""
        found: list[Value] = self._session.run_with_ort_values(list(outputs or self.outputs), dict(inputs))
        return found

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[Any]:
        """The first output of arrays."""
        (found, *_) = self.run({name: value_of(array) for name, array in inputs.items()}, self.outputs[:1])
        return array_of(found)


def value_of(array: NDArray[Any]) -> Value:
    """An array as ONNX Runtime takes it, without a copy."""
    return runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def array_of(value: Value) -> NDArray[Any]:
    """A copy of what ONNX Runtime holds."""
    found: NDArray[Any] = value.numpy()
    return found
