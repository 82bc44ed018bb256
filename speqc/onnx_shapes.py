"""Shape arithmetic that symbolic shapes make superfluous, and its removal.

Once every tensor's shape is known up to the symbols `sequence` and `past`, a `Reshape` with one
unknown dimension takes a constant shape with -1 there, an `Expand` of constant dimensions a
constant shape with 1 elsewhere, a `Slice` that keeps everything goes, and integers that are known
or computed twice are constants or computed once. What is left serves masks and positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import onnx_ir as ir
from onnx_shape_inference import SYM_DATA_KEY

from speqc.onnx_bounds import decided_operand
from speqc.onnx_slices import FAR, slice_size
from speqc.onnx_symbols import PAST, SEQUENCE, TOTAL, Dim, elements, is_ours, same
from speqc.runtime.errors import SpeqcError


def remove_shape_arithmetic(graph: ir.Graph) -> None:
    """Rewrite nodes whose shapes or integers the symbolic shapes determine, in place.

    Raises SpeqcError for a `Slice` of fixed bounds on an axis of unknown size.
    """
    rules = {
        "Reshape": _fix_reshape,
        "Expand": _fix_expand,
        "Max": _fix_choice,
        "Min": _fix_choice,
        "Shape": _fix_shape,
        "Slice": _fix_slice,
    }
    known: dict[tuple, ir.Value] = {}
    for node in graph:
        for output in node.outputs:
            _reuse_known_integers(graph, output, known)
        if node.domain == "" and (rule := rules.get(node.op_type)) is not None:
            rule(graph, node)


def check_expanded(graph: ir.Graph) -> None:
    """Raise SpeqcError for an `Expand` of a tensor whose shape no round of inference has found."""
    for node in graph:
        data = node.inputs[0] if node.domain == "" and node.op_type == "Expand" else None
        if data is not None and data.shape is None:
            raise SpeqcError(
                f"node '{node.name}' (Expand): the shape of '{data.name}' can't be inferred"
            )


def forget_unknown_shapes(graph: ir.Graph) -> None:
    """Drop what inference said in symbols of its own, so that it may say better next time."""
    for node in graph:
        for output in node.outputs:
            if output.shape is not None and not all(is_ours(dim) for dim in output.shape):
                output.shape = None
            output.metadata_props.pop(SYM_DATA_KEY, None)


def expand_constants_of_shape(graph: ir.Graph) -> None:
    """Write `ConstantOfShape` as `Expand` of a scalar, whose symbolic shape inference knows."""
    for node in graph:
        if node.domain != "" or node.op_type != "ConstantOfShape":
            continue
        attribute = node.attributes.get("value")
        filler = attribute.as_tensor().numpy() if attribute is not None else np.zeros(1, np.float32)
        output = node.outputs[0]
        scalar = initializer(graph, filler.reshape(()), f"{output.name}_filler")
        _replace(graph, node, ir.Node("", "Expand", [scalar, node.inputs[0]], name=node.name))


def _replace(graph: ir.Graph, node: ir.Node, replacement: ir.Node) -> None:
    """Put a node of one result in the place of another."""
    old, new = node.outputs[0], replacement.outputs[0]
    new.type, new.shape = old.type, old.shape
    new.name, old.name = old.name, f"{old.name}_replaced"
    graph.insert_before(node, replacement)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _constant(graph: ir.Graph, elements: Sequence[int], name: str) -> ir.Value:
    """A new initializer of the graph: a vector of 64-bit integers."""
    return initializer(graph, np.array(elements, np.int64), name)


def initializer(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """A new initializer of the graph, under a name like the given one."""
    while name in graph.initializers:
        name += "_"
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def _reuse_known_integers(graph: ir.Graph, value: ir.Value, known: dict[tuple, ir.Value]) -> None:
    """Replace integers that are constant, or equal to some computed before."""
    data = value.metadata_props.get(SYM_DATA_KEY)
    if data is None or value.is_graph_output() or not value.uses():
        return
    if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return
    if value.shape is None or not value.shape.is_static() or (dims := elements(value)) is None:
        return
    if all(isinstance(dim, int) for dim in dims):
        integer = np.int64 if value.dtype == ir.DataType.INT64 else np.int32
        array = np.array(dims, integer).reshape(value.shape.numpy())
        value.replace_all_uses_with(initializer(graph, array, f"{value.name}_value"))
        return
    key = (value.dtype, value.shape.numpy(), json.dumps([str(dim) for dim in dims]))
    if (first := known.setdefault(key, value)) is not value:
        value.replace_all_uses_with(first)


def _fix_choice(graph: ir.Graph, node: ir.Node) -> None:
    """Drop a `Min` or `Max` that always gives the same operand."""
    operand, output = decided_operand(graph, node), node.outputs[0]
    if operand is not None and operand.shape == output.shape and operand.dtype == output.dtype:
        _bypass(node, operand)


def _fix_shape(graph: ir.Graph, node: ir.Node) -> None:
    """Read the sizes of an inner tensor off the graph's inputs, so that it need not be there."""
    data, output = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None or data.is_graph_input() or output.is_graph_output():
        return
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", FAR)
    dims = list(data.shape)[start:end]
    if all(isinstance(dim, int) for dim in dims):
        return
    sizes = [_size(graph, node, dim) for dim in dims]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        joined = _insert(graph, node, "Concat", known, {"axis": 0}) if len(known) > 1 else known[0]
        output.replace_all_uses_with(joined)


def _size(graph: ir.Graph, before: ir.Node, dim: Dim) -> ir.Value | None:
    """A vector of one integer, the size `dim`; None if no input of the graph has that size."""
    if isinstance(dim, int):
        return _constant(graph, [dim], "size")
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if same(size, dim):
                sizes = _insert(graph, before, "Shape", [value])
                return _insert(graph, before, "Gather", [sizes, _constant(graph, [axis], "axis")])
    if dim.value != TOTAL:
        return None
    parts = [_size(graph, before, ir.SymbolicDim(name)) for name in (PAST, SEQUENCE)]
    return None if None in parts else _insert(graph, before, "Add", parts)


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int] | None = None,
) -> ir.Value:
    """The result of a new node in front of another one."""
    name = f"{before.name}_{operator}"
    listed = [ir.AttrInt64(key, value) for key, value in (attributes or {}).items()]
    node = ir.Node("", operator, inputs, listed, name=name)
    graph.insert_before(before, node)
    return node.outputs[0]


def _fix_reshape(graph: ir.Graph, node: ir.Node) -> None:
    """Give a `Reshape` a constant shape: known sizes, -1 for an unknown one, 0 for those copied."""
    data, target = node.inputs[0], node.inputs[1]
    output = node.outputs[0]
    if data is None or target is None or data.shape is None or output.shape is None:
        return
    output.shape = exact_reshape(data.shape, output.shape)
    dims = _reshape_dims(data.shape, output.shape)
    if dims is None:
        _reshape_by_units(graph, node, data)
    elif target.const_value is None or target.const_value.numpy().tolist() != dims:
        node.attributes.pop("allowzero", None)
        node.replace_input_with(1, _constant(graph, dims, f"{output.name}_shape"))


def exact_reshape(source: ir.Shape, target: ir.Shape) -> ir.Shape:
    """The target of a `Reshape` with its one quotient of symbols, made by a -1, simplified."""
    dims: list[Dim] = list(target)
    plain = {None, SEQUENCE, PAST, TOTAL}
    odd = [
        position
        for position, dim in enumerate(dims)
        if isinstance(dim, ir.SymbolicDim) and dim.value not in plain
    ]
    if len(odd) != 1:
        return target
    others = (str(dim) for position, dim in enumerate(dims) if position != odd[0])
    quotient = _quotient(tuple(str(dim) for dim in source), tuple(others))
    if quotient is not None:
        dims[odd[0]] = int(quotient) if quotient.isdecimal() else ir.SymbolicDim(quotient)
    return ir.Shape(dims)


@cache
def _quotient(numerators: tuple[str, ...], denominators: tuple[str, ...]) -> str | None:
    """The product of some sizes by that of others, simplified; None if one is unknown.

    Cached, as layers repeat themselves and simplifying takes milliseconds.
    """
    quotient = ir.SymbolicDim("1")
    for numerator in numerators:
        quotient = quotient * ir.SymbolicDim(numerator)
    for denominator in denominators:
        quotient = quotient / ir.SymbolicDim(denominator)
    return None if "None" in (*numerators, *denominators) else quotient.simplify().value


def _reshape_dims(source: ir.Shape, target: ir.Shape) -> list[int] | None:
    """The constant second operand of a `Reshape` to `target`, or None if there is none."""
    dims = [dim if isinstance(dim, int) else -1 for dim in target]
    if dims.count(-1) > 1:
        for position in range(min(len(source), len(dims))):
            if dims[position] == -1 and same(source[position], target[position]):
                dims[position] = 0
    return dims if dims.count(-1) <= 1 and 0 not in list(target) else None


def _reshape_by_units(graph: ir.Graph, node: ir.Node, data: ir.Value) -> None:
    """Turn a `Reshape` that only adds or removes sizes of 1 into `Unsqueeze` or `Squeeze`."""
    output = node.outputs[0]
    if data.shape is None or output.shape is None:
        return
    for operator, longer, shorter in (
        ("Unsqueeze", output.shape, data.shape),
        ("Squeeze", data.shape, output.shape),
    ):
        if (axes := _added_units(list(longer), list(shorter))) is not None:
            operands = [data, _constant(graph, axes, f"{output.name}_axes")]
            _replace(graph, node, ir.Node("", operator, operands, name=node.name))
            return


def _added_units(longer: list[Dim], shorter: list[Dim]) -> list[int] | None:
    """Positions of sizes of 1 in `longer` whose removal leaves `shorter`, or None."""
    axes: list[int] = []
    for position, dim in enumerate(longer):
        kept = position - len(axes)
        if kept < len(shorter) and same(dim, shorter[kept]):
            continue
        if not same(dim, 1):
            return None
        axes.append(position)
    return axes if len(longer) - len(axes) == len(shorter) else None


def _fix_expand(graph: ir.Graph, node: ir.Node) -> None:
    """Drop an `Expand` to the same shape; give the others a constant shape where possible."""
    data, target = node.inputs[0], node.inputs[1]
    output = node.outputs[0]
    if data is None or data.shape is None or target is None or output.shape is None:
        return
    source: list[Dim] = [1] * (len(output.shape) - len(data.shape)) + list(data.shape)
    if (wanted := elements(target)) is not None:
        wanted = [1] * (len(source) - len(wanted)) + wanted
        output.shape = ir.Shape(b if a == 1 else a for a, b in zip(wanted, source, strict=True))
    kept = [same(a, b) for a, b in zip(source, output.shape, strict=True)]
    if all(kept) and len(data.shape) == len(output.shape):
        _bypass(node, data)
    elif target.const_value is None and all(
        keep or isinstance(dim, int) for keep, dim in zip(kept, output.shape, strict=True)
    ):
        dims = [dim if isinstance(dim, int) else 1 for dim in output.shape]
        node.replace_input_with(1, _constant(graph, dims, f"{output.name}_shape"))


def _fix_slice(graph: ir.Graph, node: ir.Node) -> None:
    """Compute the shape of a `Slice` exactly; drop one that keeps everything."""
    data, output = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None:
        return
    arguments = [elements(value) for value in node.inputs[1:]]
    if len(arguments) < 2 or arguments[0] is None or arguments[1] is None:
        return
    starts, ends = arguments[0], arguments[1]
    axes = arguments[2] if len(arguments) > 2 and arguments[2] else list(range(len(starts)))
    steps = arguments[3] if len(arguments) > 3 and arguments[3] else [1] * len(starts)
    dims: list[Dim] = list(data.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(axis, int) or step != 1:
            return
        size = slice_size(dims[axis], start, end)
        if size is None:
            _refuse_fixed_bounds(node, dims[axis], start, end)
            return
        dims[axis] = size
    output.shape = ir.Shape(dims)
    if all(same(a, b) for a, b in zip(data.shape, dims, strict=True)):
        _bypass(node, data)


def _refuse_fixed_bounds(node: ir.Node, size: Dim, start: Dim, end: Dim) -> None:
    """Inference takes fixed bounds to lie inside an axis of unknown size, which may be wrong."""
    if isinstance(size, int) or not isinstance(start, int) or not isinstance(end, int):
        return
    if start >= 0 and end >= 0:
        raise SpeqcError(
            f"node '{node.name}' (Slice): positions {start} to {end} of an axis of size {size} may "
            "not exist; export the model without cutting a dynamic axis"
        )


def _bypass(node: ir.Node, data: ir.Value) -> None:
    """Let the users of a node's result read `data` instead."""
    output = node.outputs[0]
    if not output.is_graph_output():
        output.replace_all_uses_with(data)
