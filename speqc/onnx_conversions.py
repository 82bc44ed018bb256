"""Weights behind `DequantizeLinear` and `Cast`: the numbers that the graph makes of them.

Such numbers are constants. They become tensors of the model in place of the nodes, so that what is
compiled is the FP16 model that the file computes. Nothing is converted before it is read, and of
what was read the last tensor alone is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from threading import RLock

import numpy as np
import onnx_ir as ir

from speqc.runtime.vector_quantization import dequantize
from speqc.tensor_store import CHUNK

Rows = Callable[[np.ndarray, int, int], np.ndarray]
"""Converts rows of a tensor, given with the number of the first and of the one behind the last."""

RESULTS = (ir.DataType.FLOAT16, ir.DataType.FLOAT)
"""What a weight may become."""

WIDER = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
"""What a conversion to FP16 may start from."""


class ConvertedTensor(ir.LazyTensor):
    """A tensor that is computed from another whenever it is read."""


def convert_weights(graph: ir.Graph) -> None:
    """Replace conversions of constant matrices, and dequantisations of any constant.

    A node whose parameters do not fit its tensor is left as it is.
    """
    for node in list(graph):
        made = _converted(node) if node.domain in ("", "ai.onnx") else None
        output = node.outputs[0]
        if made is None or output.is_graph_output():
            continue
        value = ir.Value(
            name=output.name, type=ir.TensorType(made.dtype), shape=made.shape, const_value=made
        )
        sources = [value for value in node.inputs if value is not None]
        ir.convenience.replace_all_uses_with(output, value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)
        for source in sources:
            if not source.uses() and source.is_initializer():
                graph.initializers.pop(source.name or "")


def notes_on_conversions(graph: ir.Graph) -> list[str]:
    """What the user should know of the converted matrices of a graph: a line, or none."""
    tensors = (value.const_value for value in graph.initializers.values() if value.uses())
    count = sum(isinstance(one, ConvertedTensor) and len(one.shape) > 1 for one in tensors)
    note = f"weights behind DequantizeLinear or Cast, stored as the numbers they become: {count}"
    return [note] if count else []


def _converted(node: ir.Node) -> ConvertedTensor | None:
    """What a node makes of a constant; None if it is no such node."""
    if node.op_type not in ("Cast", "DequantizeLinear"):
        return None
    inputs = [
        None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs
    ]
    if not inputs or inputs[0] is None:
        return None
    if node.op_type == "Cast":
        return _cast(inputs[0], node.attributes.get_int("to", 0))
    return _dequantized(node, inputs)


def _cast(source: ir.TensorProtocol, to: int) -> ConvertedTensor | None:
    if to != ir.DataType.FLOAT16 or source.dtype not in WIDER or len(source.shape) < 2:
        return None
    return _lazy(source, ir.DataType.FLOAT16, lambda: _rounded)


def _rounded(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return rows.astype(np.float16)


def _dequantized(node: ir.Node, inputs: list[ir.TensorProtocol | None]) -> ConvertedTensor | None:
    source, scale, *others = inputs
    zero = others[0] if others else None
    is_computed = zero is None and len(node.inputs) > 2 and node.inputs[2] is not None
    if source is None or scale is None or is_computed:
        return None
    number = node.attributes.get_int("output_dtype", 0) or scale.dtype
    if number not in RESULTS or scale.dtype not in RESULTS or source.dtype.bitwidth > 32:
        return None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    layout = _Layout(tuple(source.shape.numpy()), axis, block)
    if not all(layout.admits(one) for one in (scale, zero) if one is not None):
        return None
    to = ir.DataType(number)
    return _lazy(source, to, lambda: layout.dequantizer(scale, zero, to))


@dataclass(frozen=True)
class _Layout:
    """How scales and zero points lie on a tensor of `sizes`: along `axis`, or in blocks of it."""

    sizes: tuple[int, ...]
    axis: int
    block: int

    def admits(self, parameter: ir.TensorProtocol) -> bool:
        """Whether a tensor has as many elements as are needed."""
        shape = tuple(parameter.shape.numpy())
        if prod(shape) == 1 and not self.block:
            return True
        if not -len(self.sizes) <= self.axis < len(self.sizes) or self.block < 0:
            return False
        axis = self.axis % len(self.sizes)
        if not self.block:
            return shape == self.sizes[axis : axis + 1]
        blocks = -(-self.sizes[axis] // self.block)
        return shape == (*self.sizes[:axis], blocks, *self.sizes[axis + 1 :])

    def dequantizer(
        self, scale: ir.TensorProtocol, zero: ir.TensorProtocol | None, to: ir.DataType
    ) -> Rows:
        """The function that dequantises rows."""
        # Files pack tensors without regard to alignment.
        scales = np.require(scale.numpy(), requirements=["C", "A"])
        zeros = None if zero is None else zero.numpy()
        is_first = self.axis % max(len(self.sizes), 1) == 0
        block = min(self.block, 1) if is_first else self.block

        def rows(numbers: np.ndarray, start: int, stop: int) -> np.ndarray:
            points = None if zeros is None else self._rows(zeros, start, stop)
            with np.errstate(over="ignore", invalid="ignore"):
                return dequantize(
                    numbers, self._rows(scales, start, stop), points, self.axis, block, to
                )

        return rows

    def _rows(self, parameter: np.ndarray, start: int, stop: int) -> np.ndarray:
        """What belongs to rows `start` to `stop` of the tensor."""
        if parameter.size == 1 and not self.block:
            return parameter
        if self.axis % len(self.sizes) == 0:
            return parameter[np.arange(start, stop) // (self.block or 1)]
        return parameter[start:stop] if self.block else parameter


def _lazy(
    source: ir.TensorProtocol, dtype: ir.DataType, prepare: Callable[[], Rows]
) -> ConvertedTensor:
    """A tensor of the shape of `source`; `prepare` gives what converts its rows."""

    def made() -> ir.TensorProtocol:
        return ir.Tensor(_LATEST.get(tensor, lambda: _whole(source, dtype, prepare())), dtype)

    tensor = ConvertedTensor(made, dtype, ir.Shape(source.shape.numpy()), name=source.name)
    return tensor


def _whole(source: ir.TensorProtocol, dtype: ir.DataType, rows: Rows) -> np.ndarray:
    numbers = source.numpy()
    if not numbers.ndim:
        return rows(numbers, 0, 1)
    result = np.empty(numbers.shape, dtype.numpy())
    step = max(1, CHUNK // max(1, prod(numbers.shape[1:])))
    for start in range(0, len(numbers), step):
        stop = min(start + step, len(numbers))
        result[start:stop] = rows(numbers[start:stop], start, stop)
    return result


class _Latest:
    """The array of the tensor that was asked for last."""

    def __init__(self) -> None:
        # A conversion may read another: the thread that holds the lock takes it again.
        self._lock = RLock()
        self._entry: tuple[ConvertedTensor, np.ndarray] | None = None

    def get(self, tensor: ConvertedTensor, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of `tensor`, made if another was asked for before."""
        with self._lock:
            if self._entry is not None and self._entry[0] is tensor:
                return self._entry[1]
            self._entry = None
            array = make()
            self._entry = (tensor, array)
            return array


_LATEST = _Latest()
