"""Shapes that onnx_shape_inference leaves open, in expressions of `sequence` and `past`.

Its rules for `Slice` by computed bounds and for a `Reshape` to -1 invent a new symbol. What is
computed from such a size is unknown too, layer by layer; so our rules stand before its own.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_shape_inference import ShapeInferenceContext, registry

from speqc.onnx_shapes import exact_reshape
from speqc.onnx_slices import slice_size
from speqc.onnx_symbols import Dim, is_ours

OPSET = 14
"""From this version of the operators on our rules hold; the library's are older."""

Rule = Callable[[ShapeInferenceContext, ir.Node], None]


def extend_inference() -> None:
    """Register our rules with onnx_shape_inference, once."""
    registry.collect()
    rules = {"Expand": _expand_rule, "Reshape": _reshape_rule, "Slice": _slice_rule}
    for name, extend in rules.items():
        library = registry.get("", name, version=OPSET)
        if library is not None and library.__module__ != __name__:
            registry.register("", name, since_version=OPSET)(extend(library))


def _expand_rule(library: Rule) -> Rule:
    def infer(ctx: ShapeInferenceContext, node: ir.Node) -> None:
        # The library takes an unknown shape to add nothing, which a later round may prove wrong.
        if node.inputs[0] is not None and node.inputs[0].shape is not None:
            library(ctx, node)

    return infer


def _reshape_rule(library: Rule) -> Rule:
    def infer(ctx: ShapeInferenceContext, node: ir.Node) -> None:
        library(ctx, node)
        data, output = node.inputs[0], node.outputs[0]
        if data is not None and data.shape is not None and output.shape is not None:
            output.shape = exact_reshape(data.shape, output.shape)

    return infer


def _slice_rule(library: Rule) -> Rule:
    def infer(ctx: ShapeInferenceContext, node: ir.Node) -> None:
        data, dims = node.inputs[0], _sliced(ctx, node)
        if data is None or dims is None:
            library(ctx, node)
        else:
            ctx.set_shape_and_dtype(node.outputs[0], ir.Shape(dims), data.dtype)

    return infer


def _sliced(ctx: ShapeInferenceContext, node: ir.Node) -> list[Dim] | None:
    data, arguments = node.inputs[0], [_integers(ctx, value) for value in node.inputs[1:]]
    if data is None or data.shape is None or len(arguments) < 3 or None in arguments:
        return None
    starts, ends, axes, *steps = (argument or [] for argument in arguments)
    computed = [bound for bound in (*starts, *ends) if not isinstance(bound, int)]
    if not computed or not all(is_ours(bound) for bound in computed):
        return None
    dims: list[Dim] = list(data.shape)
    for place, axis in enumerate(axes):
        if not isinstance(axis, int) or (steps and steps[0][place] != 1):
            return None
        size = slice_size(dims[axis], starts[place], ends[place])
        if size is None:
            return None
        dims[axis] = size
    return dims


def _integers(ctx: ShapeInferenceContext, value: ir.Value | None) -> list[Dim] | None:
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy().ravel().tolist()
    found = ctx.get_symbolic_value(value)
    return None if found is None else list(found)
