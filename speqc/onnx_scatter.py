"""`ScatterND` of whole slices, as PyTorch's in-place copies become, as a concatenation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from speqc.onnx_missing import MissingTensor
from speqc.onnx_shapes import initializer


def join_scattered(graph: ir.Graph) -> None:
    """Replace each `ScatterND` of slices, one behind another along a static first dimension."""
    for node in list(graph):
        if node.op_type != "ScatterND" or node.attributes.get_string("reduction", "none") != "none":
            continue
        data, indices, updates = node.inputs
        if data is None or updates is None or data.shape is None or updates.shape is None:
            continue
        first, count, size = _first_of_range(indices), updates.shape[0], data.shape[0]
        if first is None or not isinstance(count, int) or not isinstance(size, int):
            continue
        builder = _Builder(graph, node)
        ends = [(start, end) for start, end in ((0, first), (first + count, size)) if start < end]
        kept = {start: builder.part(data, 0, start, end) for start, end in ends}
        parts = dict(sorted({**kept, first: updates}.items())).values()
        node.outputs[0].replace_all_uses_with(
            builder.joined(list(parts), 0), replace_graph_outputs=True
        )


def _first_of_range(indices: ir.Value | None) -> int | None:
    """The first of indices [n, 1] that count on, None if they do not."""
    tensor = None if indices is None else indices.const_value
    if tensor is None or isinstance(tensor, MissingTensor):
        return None
    places = tensor.numpy()
    if places.ndim != 2 or places.shape[1] != 1 or not len(places) or places[0, 0] < 0:
        return None
    counted = np.arange(places[0, 0], places[0, 0] + len(places))
    return int(places[0, 0]) if np.array_equal(places[:, 0], counted) else None


class _Builder:
    """Appends nodes that cut and join tensors, before another node."""

    def __init__(self, graph: ir.Graph, before: ir.Node):
        self.graph = graph
        self.before = before

    def part(self, value: ir.Value, axis: int, start: int, end: int) -> ir.Value:
        """Elements `start` to `end` along a static axis, from where they were put together."""
        assert value.shape is not None
        if (start, end) == (0, value.shape[axis]):
            return value
        if (order := _order(value)) is not None:
            return self.transposed(self.part(_source(value), order[axis], start, end), order)
        node, begin = value.producer(), 0
        if node is not None and _is_concat(node, axis):
            for operand in node.inputs:
                size = None if operand is None or operand.shape is None else operand.shape[axis]
                if operand is None or not isinstance(size, int):
                    break
                if begin <= start and end <= begin + size:
                    return self.part(operand, axis, start - begin, end - begin)
                begin += size
        bounds = [
            initializer(self.graph, np.array([number]), "slice_bound")
            for number in (start, end, axis)
        ]
        return self.node("Slice", [value, *bounds], _resized(value, axis, end - start))

    def joined(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """Parts joined along a static axis; transposed behind that, if each part is transposed."""
        if len(parts) == 1:
            return parts[0]
        order = _order(parts[0])
        if order is not None and all(_order(part) == order for part in parts):
            sources = [_source(part) for part in parts]
            return self.transposed(self.joined(sources, order[axis]), order)
        sizes = [part.shape[axis] for part in parts if part.shape is not None]
        total = sum(size for size in sizes if isinstance(size, int))
        dims = _resized(parts[0], axis, total)
        return self.node("Concat", parts, dims, ir.AttrInt64("axis", axis))

    def transposed(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        """A transposition, none where it undoes another."""
        inner = _order(value)
        if inner is not None and [inner[place] for place in order] == list(range(len(order))):
            return _source(value)
        assert value.shape is not None
        dims = [value.shape[place] for place in order]
        return self.node("Transpose", [value], dims, ir.AttrInt64s("perm", order))

    def node(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        dims: Sequence[int | ir.SymbolicDim],
        *attributes: ir.Attr,
    ) -> ir.Value:
        name = f"{self.before.name}_{operator}"
        node = ir.Node("", operator, inputs, attributes, name=name)
        self.graph.insert_before(self.before, node)
        output = node.outputs[0]
        output.shape, output.type = ir.Shape(dims), inputs[0].type
        return output


def _order(value: ir.Value) -> list[int] | None:
    """The permutation of the transposition that makes a value, None if none does."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return None
    return list(node.attributes["perm"].as_ints())


def _source(value: ir.Value) -> ir.Value:
    """The first input of the node that makes a value."""
    node = value.producer()
    assert node is not None and node.inputs[0] is not None
    return node.inputs[0]


def _is_concat(node: ir.Node, axis: int) -> bool:
    rank = len(node.outputs[0].shape or ())
    return node.op_type == "Concat" and node.attributes["axis"].as_int() % rank == axis


def _resized(value: ir.Value, axis: int, size: int) -> list[int | ir.SymbolicDim]:
    assert value.shape is not None
    return [size if place == axis else dim for place, dim in enumerate(value.shape)]
