"""Do the sizes and attributes of each standard operator fit together, by ONNX's own rules?

Symbolic inference only leaves a size unknown where operands contradict each other. ONNX's inference
says what is wrong, and is asked here about one node at a time, with numbers for the symbols.
"""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir
from onnx import helper, numpy_helper

from speqc.onnx_missing import MissingTensor
from speqc.onnx_quiet import first_cause
from speqc.onnx_symbols import PAST, SEQUENCE, Dim
from speqc.runtime.errors import SpeqcError

SIZES = {PAST: 11, SEQUENCE: 7}
"""Sizes to try: primes, so that no two expressions in them are equal by chance."""

UNKNOWN = (None, ir.DataType.UNDEFINED)

LARGEST_OPERAND = 1024
"""Elements up to which a constant operand is handed over: shapes, axes and the like."""


REFUSALS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the libraries raise for a node that is not valid."""


def check_nodes(model: ir.Model) -> None:
    """Raise SpeqcError, naming the first node that ONNX refuses; needs a simplified model."""
    version = model.opset_imports[""]
    opsets = [helper.make_opsetid("", version)]
    for node in model.graph:
        if node.domain != "" or (schema := _schema(node.op_type, version)) is None:
            continue
        inputs = [value for value in node.inputs if value is not None]
        if any(value.dtype in UNKNOWN or value.shape is None for value in inputs):
            continue
        try:
            onnx.shape_inference.infer_node_outputs(
                schema,
                ir.to_proto(node),
                {value.name or "": _type(value) for value in inputs},
                {value.name or "": data for value in inputs if (data := _data(value)) is not None},
                opset_imports=opsets,
            )
        except REFUSALS as error:
            shapes = ", ".join(f"'{value.name}' {value.shape}" for value in inputs)
            reason = first_cause(error).removeprefix("[ShapeInferenceError] ")
            raise SpeqcError(f"node '{node.name}' ({node.op_type}): {reason} ({shapes})") from error


def _schema(operator: str, version: int) -> onnx.defs.OpSchema | None:
    """The operator's schema in an operator set, or None where that has no such operator."""
    try:
        return onnx.defs.get_schema(operator, version)
    except onnx.defs.SchemaError:
        return None


def _type(value: ir.Value) -> onnx.TypeProto:
    assert value.dtype is not None and value.shape is not None
    return helper.make_tensor_type_proto(int(value.dtype), [_size(dim) for dim in value.shape])


def _size(dim: Dim) -> int | str | None:
    if isinstance(dim, int):
        return dim
    size = dim.evaluate(SIZES) if dim.value is not None else None
    return size if isinstance(size, int) else None


def _data(value: ir.Value) -> onnx.TensorProto | None:
    tensor = value.const_value
    if tensor is None or tensor.size > LARGEST_OPERAND or isinstance(tensor, MissingTensor):
        return None
    return numpy_helper.from_array(tensor.numpy(), value.name)
