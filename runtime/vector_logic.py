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


def dtype_of(number: int, operator: str) -> np.dtype:
    """Return the dtype of an ONNX data type; SpeqcError names the operator if there is none."""
    dtype = DTYPE_OF_ONNX.get(number)
    if dtype is None:
        raise _unknown_data_type(operator, f"number {number} of ONNX")
    return dtype


def cast(x: Array, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """Return `x` in the ONNX data type `to`.

    `saturate` and `round_mode` matter only for 8-bit floats, which the machine doesn't have.
    Raises SpeqcError for a data type that the machine doesn't have.
    """
    return converted(x, dtype_of(to, "Cast"))


def cast_like(x: Array, target: Array, saturate: int = 1, round_mode: str = "up") -> Array:
    """Return `x` in the dtype of `target`; attributes and errors are those of `cast`."""
    if target.dtype not in MACHINE_DTYPES:
        raise _unknown_data_type("CastLike", target.dtype)
    return converted(x, target.dtype)


def is_nan(x: Array) -> Array:
    """Return where x is NaN."""
    return half.is_nan(x) if x.dtype == HALF else np.isnan(x)


def is_infinite(x: Array, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Return where x is an infinity of a sign that is asked for."""
    found = np.zeros(x.shape, np.bool_)
    if detect_negative:
        found |= x == -np.inf
    if detect_positive:
        found |= x == np.inf
    return found


def bit_cast(x: Array, to: int) -> Array:
    """Return the bits of x as the ONNX data type `to`, which has as many."""
    return x.view(dtype_of(to, "BitCast"))


def bit_shift(x: Array, places: Array, direction: str) -> Array:
    """Return unsigned integers shifted to the "LEFT" or the "RIGHT", zeros moving in."""
    return np.left_shift(x, places) if direction == "LEFT" else np.right_shift(x, places)


def where(condition: Array, x: Array, y: Array) -> Array:
    """Return x where the condition holds, else y."""
    return np.where(condition, x, y)


def _comparison(function: Callable[..., Array]) -> VectorOp:
    return arithmetic(half.through_single(function), 1)


LOGIC: Mapping[str, VectorOp] = {
    "And": VectorOp(np.logical_and, 1),
    "BitCast": VectorOp(bit_cast, 1),
    "BitShift": VectorOp(bit_shift, 1),
    "BitwiseAnd": VectorOp(np.bitwise_and, 1),
    "BitwiseNot": VectorOp(np.bitwise_not, 1),
    "BitwiseOr": VectorOp(np.bitwise_or, 1),
    "BitwiseXor": VectorOp(np.bitwise_xor, 1),
    "Cast": arithmetic(cast, 1),
    "CastLike": arithmetic(cast_like, 1),
    "Equal": _comparison(np.equal),
    "Greater": _comparison(np.greater),
    "GreaterOrEqual": _comparison(np.greater_equal),
    "IsInf": VectorOp(is_infinite, 1),
    "IsNaN": VectorOp(is_nan, 1),
    "Less": _comparison(np.less),
    "LessOrEqual": _comparison(np.less_equal),
    "Not": VectorOp(np.logical_not, 1),
    "Or": VectorOp(np.logical_or, 1),
    "Where": VectorOp(where, 1),
    "Xor": VectorOp(np.logical_xor, 1),
}
