"""Comparisons, logic, selection and conversion, element by element."""

from collections.abc import Callable, Mapping

import numpy as np

from speqc.runtime import vector_half as half
from speqc.runtime.errors import SpeqcError
from speqc.runtime.fp16 import to_half, to_single
from speqc.runtime.vector_op import HALF, SINGLE, Array, VectorOp, arithmetic

# The dtypes that the machine holds, by their numbers in ONNX's TensorProto.DataType.
DTYPE_OF_ONNX: Mapping[int, np.dtype] = {
    1: SINGLE,
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: HALF,
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
}
MACHINE_DTYPES = frozenset(DTYPE_OF_ONNX.values())


def _unknown_data_type(operator: str, name: object) -> SpeqcError:
    return SpeqcError(
        f"{operator}: the machine has no data type {name}; export the model in float16 or float32"
    )


def converted(x: Array, dtype: np.dtype) -> Array:
    """Return `x` in `dtype`, rounded to nearest even among floats and towards zero to integers."""
    if x.dtype == dtype:
        return x
    if x.dtype == HALF and dtype == SINGLE:
        return to_single(x)
    if x.dtype == SINGLE and dtype == HALF:
        return to_half(x)
    return x.astype(dtype)


def cast(x: Array, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """Return `x` in the ONNX data type `to`.

    `saturate` and `round_mode` matter only for 8-bit floats, which the machine doesn't have.
    Raises SpeqcError for a data type that the machine doesn't have.
    """
    dtype = DTYPE_OF_ONNX.get(to)
    if dtype is None:
        raise _unknown_data_type("Cast", f"number {to} of ONNX")
    return converted(x, dtype)


def cast_like(x: Array, target: Array, saturate: int = 1, round_mode: str = "up") -> Array:
    """Return `x` in the dtype of `target`; attributes and errors are those of `cast`."""
    if target.dtype not in MACHINE_DTYPES:
        raise _unknown_data_type("CastLike", target.dtype)
    return converted(x, target.dtype)


def is_nan(x: Array) -> Array:
    """Return where x is NaN."""
    return half.is_nan(x) if x.dtype == HALF else np.isnan(x)


def where(condition: Array, x: Array, y: Array) -> Array:
    """Return x where the condition holds, else y."""
    return np.where(condition, x, y)


def _comparison(function: Callable[..., Array]) -> VectorOp:
    return arithmetic(half.through_single(function), 1)


LOGIC: Mapping[str, VectorOp] = {
    "And": VectorOp(np.logical_and, 1),
    "Cast": arithmetic(cast, 1),
    "CastLike": arithmetic(cast_like, 1),
    "Equal": _comparison(np.equal),
    "Greater": _comparison(np.greater),
    "GreaterOrEqual": _comparison(np.greater_equal),
    "IsNaN": VectorOp(is_nan, 1),
    "Less": _comparison(np.less),
    "LessOrEqual": _comparison(np.less_equal),
    "Not": VectorOp(np.logical_not, 1),
    "Or": VectorOp(np.logical_or, 1),
    "Where": VectorOp(where, 1),
}
