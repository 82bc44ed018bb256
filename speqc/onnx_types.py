"""ONNX types, small tensors and attributes -> those of IR."""

from __future__ import annotations

import onnx_ir as ir
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    AnyFloat,
    ArrayAttr,
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    Signedness,
    StringAttr,
    TensorType,
    bf16,
    f16,
    f32,
    f64,
    i1,
    i8,
    i16,
    i32,
    i64,
)
from xdsl.ir import Attribute

from speqc.runtime.errors import SpeqcError

ELEMENT_TYPES: dict[ir.DataType, IntegerType | AnyFloat] = {
    ir.DataType.FLOAT16: f16,
    ir.DataType.BFLOAT16: bf16,
    ir.DataType.FLOAT: f32,
    ir.DataType.DOUBLE: f64,
    ir.DataType.BOOL: i1,
    ir.DataType.INT8: i8,
    ir.DataType.INT16: i16,
    ir.DataType.INT32: i32,
    ir.DataType.INT64: i64,
    ir.DataType.UINT8: IntegerType(8, Signedness.UNSIGNED),
    ir.DataType.UINT16: IntegerType(16, Signedness.UNSIGNED),
    ir.DataType.UINT32: IntegerType(32, Signedness.UNSIGNED),
    ir.DataType.UINT64: IntegerType(64, Signedness.UNSIGNED),
}
"""ONNX element type -> type in IR."""


def element_type(dtype: ir.DataType | None, name: str | None) -> IntegerType | AnyFloat:
    """The element type in IR of the tensor `name`."""
    if dtype is None or dtype not in ELEMENT_TYPES:
        raise SpeqcError(f"tensor '{name}': element type {dtype} is not supported")
    return ELEMENT_TYPES[dtype]


def tensor_type(value: ir.Value) -> TensorType:
    """The tensor type of a value whose shape has been inferred."""
    if value.shape is None or value.dtype is None:
        node = value.producer()
        origin = f" of node '{node.name}' ({node.op_type})" if node is not None else ""
        raise SpeqcError(f"tensor '{value.name}'{origin}: its shape can't be inferred")
    dims = [dim if isinstance(dim, int) else DYNAMIC_INDEX for dim in value.shape]
    return TensorType(element_type(value.dtype, value.name), dims)


def dense_value(tensor: ir.TensorProtocol) -> DenseIntOrFPElementsAttr:
    """A small tensor, written out."""
    array = tensor.numpy()
    kind = element_type(tensor.dtype, tensor.name)
    elements = array.ravel().tolist()
    if isinstance(kind, IntegerType):
        return DenseIntOrFPElementsAttr.from_list(TensorType(kind, array.shape), elements)
    return DenseIntOrFPElementsAttr.from_list(TensorType(kind, array.shape), elements)


def property_value(attribute: ir.Attr) -> Attribute:
    """An ONNX attribute as a property."""
    match attribute.type:
        case ir.AttributeType.INT:
            return IntegerAttr(attribute.as_int(), i64)
        case ir.AttributeType.FLOAT:
            return FloatAttr(attribute.as_float(), f32)
        case ir.AttributeType.STRING:
            return StringAttr(attribute.as_string())
        case ir.AttributeType.INTS:
            return DenseArrayBase.from_list(i64, attribute.as_ints())
        case ir.AttributeType.FLOATS:
            return DenseArrayBase.from_list(f32, attribute.as_floats())
        case ir.AttributeType.STRINGS:
            return ArrayAttr([StringAttr(text) for text in attribute.as_strings()])
        case ir.AttributeType.TENSOR:
            return dense_value(attribute.as_tensor())
    raise SpeqcError(f"attribute '{attribute.name}' of type {attribute.type} is not supported")
