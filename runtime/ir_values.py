"""IR attributes and types as Python and NumPy values."""

import numpy as np
from numpy.typing import DTypeLike, NDArray
from xdsl.dialects.builtin import (
    ArrayAttr,
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    DictionaryAttr,
    Float16Type,
    Float32Type,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    Signedness,
    StringAttr,
    TensorType,
    UnitAttr,
)
from xdsl.ir import Attribute

from speqc.runtime.errors import SpeqcError


def numpy_dtype(element: Attribute) -> np.dtype:
    """The NumPy dtype of an element type; SpeqcError where NumPy has none."""
    match element:
        case Float16Type():
            return np.dtype(np.float16)
        case Float32Type():
            return np.dtype(np.float32)
        case Float64Type():
            return np.dtype(np.float64)
        case IntegerType() if element.width.data == 1:
            return np.dtype(np.bool_)
        case IntegerType() if element.width.data in (8, 16, 32, 64):
            sign = "u" if element.signedness.data == Signedness.UNSIGNED else "i"
            return np.dtype(f"{sign}{element.width.data // 8}")
        case _:
            raise SpeqcError(f"tensors of {element} are not supported")


def dense_array(value: DenseIntOrFPElementsAttr) -> NDArray:
    """A dense attribute as an array of its shape and element type."""
    type = value.type
    assert isinstance(type, TensorType)
    dtype: DTypeLike = numpy_dtype(type.element_type)
    return np.array(list(value.get_values()), dtype).reshape(type.get_shape())


def python_value(attribute: Attribute) -> object:
    """An operator's attribute as int, float, str, list or array; SpeqcError for other kinds."""
    match attribute:
        case IntegerAttr() | FloatAttr():
            return attribute.value.data
        case StringAttr():
            return attribute.data
        case UnitAttr():
            return True
        case DenseArrayBase():
            return list(attribute.elt_type.unpack(attribute.data.data, len(attribute)))
        case ArrayAttr():
            return [python_value(item) for item in attribute]
        case DenseIntOrFPElementsAttr():
            return dense_array(attribute)
        case _:
            raise SpeqcError(f"attribute {attribute} has no value that a kernel could take")


def python_values(attributes: DictionaryAttr | None) -> dict[str, object]:
    """The entries of a dictionary attribute as Python values; {} for None."""
    if attributes is None:
        return {}
    return {name: python_value(value) for name, value in attributes.data.items()}
