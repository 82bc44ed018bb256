"""Tables by position that attention adds or compares, kept by older exporters, as computations.

A square matrix with one value where 0 <= row - column < w and another elsewhere is a causal mask,
with a window where w is less than the size. A table whose rows are multiples of position - k is a
bias by distance (ALiBi). Passes evaluate what is done to scores, and the IR holds no large tensor;
so the importer computes such a table from ranges of positions. It has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from speqc.dialects.onnx import LARGEST_CONSTANT
from speqc.onnx_missing import MissingTensor
from speqc.onnx_shapes import initializer
from speqc.onnx_state import FLOATS


def compute_masks(graph: ir.Graph) -> None:
    """Let the users of each such table read a computed one; changes no value of it."""
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, MissingTensor):
            continue
        if not value.uses() or tensor.size <= LARGEST_CONSTANT:
            continue
        first = next((node for node in graph if value in node.inputs), None)
        if first is None:
            continue
        builder = _Builder(graph, first)
        if _may_be_mask(tensor):
            table = tensor.numpy()
            if (width := _band(table.reshape(table.shape[-2:]))) is not None:
                value.replace_all_uses_with(builder.band(table, width))
        elif _may_be_bias(tensor):
            table = tensor.numpy()
            if (origin := _origin(table)) is not None:
                value.replace_all_uses_with(builder.multiples(table, origin))


def _may_be_mask(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is a large square matrix, perhaps behind dimensions of 1."""
    sizes = tensor.shape.numpy()
    if len(sizes) < 2 or tensor.size <= LARGEST_CONSTANT or sizes[-1] != sizes[-2]:
        return False
    return tensor.size == sizes[-1] ** 2 and tensor.dtype.bitwidth >= 8


def _may_be_bias(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is a row of floats, for one or several heads, behind a dimension of 1."""
    sizes = tensor.shape.numpy()
    return len(sizes) >= 3 and sizes[-2] == 1 < sizes[-1] and tensor.dtype in FLOATS


def _origin(table: np.ndarray) -> int | None:
    """k, if each row is its slope times (position - k), rounded once."""
    zeros = np.flatnonzero((table == 0).all(axis=tuple(range(table.ndim - 1))))
    if len(zeros) != 1:
        return None
    distances = (np.arange(table.shape[-1]) - zeros[0]).astype(table.dtype)
    multiples = _slopes(table, int(zeros[0])) * distances
    return int(zeros[0]) if table.tobytes() == multiples.tobytes() else None


def _slopes(table: np.ndarray, origin: int) -> np.ndarray:
    """The slope of each row, from the neighbour of its zero."""
    if origin + 1 < table.shape[-1]:
        return table[..., origin + 1 : origin + 2]
    return -table[..., origin - 1 : origin]


def _band(matrix: np.ndarray) -> int | None:
    """w, if the matrix has one value where 0 <= row - column < w, and one other elsewhere."""
    inside, outside, size = matrix[0, 0], matrix[0, -1], len(matrix)
    if inside == outside:
        return None
    width = int(np.count_nonzero(matrix[-1] == inside))
    for row, values in enumerate(matrix):
        band = np.full(size, outside, matrix.dtype)
        band[max(0, row - width + 1) : row + 1] = inside
        if values.tobytes() != band.tobytes():
            return None
    return width


class _Builder:
    """Appends the nodes that compute a table, before another node."""

    def __init__(self, graph: ir.Graph, before: ir.Node):
        self.graph = graph
        self.before = before

    def multiples(self, table: np.ndarray, origin: int) -> ir.Value:
        """The same as `table`, whose rows are multiples of position - `origin`."""
        size, type = table.shape[-1], ir.DataType.from_numpy(table.dtype)
        ends = [self.constant(np.array(number)) for number in (-origin, size - origin, 1)]
        places = self.node("Range", ends, (size,), ir.DataType.INT64)
        slopes = self.constant(_slopes(table, origin))
        distances = self.node("Cast", [places], (size,), type, ir.AttrInt64("to", type.value))
        return self.node("Mul", [slopes, distances], table.shape, type)

    def band(self, table: np.ndarray, width: int) -> ir.Value:
        """The same matrix as `table`, whose band is `width` wide."""
        size, boolean, integer = table.shape[-1], ir.DataType.BOOL, ir.DataType.INT64
        ends = [self.constant(np.array(number)) for number in (0, size, 1)]
        columns = self.node("Range", ends, (size,), integer)
        axis = self.constant(np.array([1]))
        rows = self.node("Unsqueeze", [columns, axis], (size, 1), integer)
        distance = self.node("Sub", [rows, columns], (size, size), integer)
        seen = self.node("GreaterOrEqual", [distance, ends[0]], (size, size), boolean)
        if width < size:
            bound = self.constant(np.array(width))
            near = self.node("Less", [distance, bound], (size, size), boolean)
            seen = self.node("And", [seen, near], (size, size), boolean)
        choices = [self.constant(table[..., 0, place].reshape(())) for place in (0, -1)]
        type = ir.DataType.from_numpy(table.dtype)
        matrix = self.node("Where", [seen, *choices], (size, size), type)
        shape = self.constant(np.array(table.shape))
        return self.node("Reshape", [matrix, shape], table.shape, type)

    def constant(self, array: np.ndarray) -> ir.Value:
        return initializer(self.graph, array, "mask_constant")

    def node(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        shape: Sequence[int],
        type: ir.DataType,
        *attributes: ir.Attr,
    ) -> ir.Value:
        name = f"{self.before.name}_mask_{operator}"
        node = ir.Node("", operator, inputs, attributes, name=name)
        self.graph.insert_before(self.before, node)
        output = node.outputs[0]
        output.shape, output.type = ir.Shape(shape), ir.TensorType(type)
        return output
