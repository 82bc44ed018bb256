"""Between numbers and integers with a scale: per tensor, along an axis, or in blocks."""

from collections.abc import Mapping

import numpy as np

from speqc.runtime.errors import SpeqcError
from speqc.runtime.vector_functions import divide
from speqc.runtime.vector_logic import converted, dtype_of
from speqc.runtime.vector_op import SINGLE, Array, VectorOp, arithmetic


def _spread(parameter: Array, x: Array, axis: int, block_size: int) -> Array:
    """Return scales or zero points of x in a shape that broadcasts against it."""
    if block_size:
        repeated = parameter.repeat(block_size, axis)
        return repeated[tuple(slice(size) for size in x.shape)]
    if parameter.size == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def dequantize(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """Return (x - zero_point) * scale in the dtype of `scale`, or in ONNX's `output_dtype`.

    The difference is exact (8 and 16 bits) or rounded to FP32 (32 bits), the product computed in
    FP32 and rounded once. `x` may also be of the small types of `ml_dtypes`.
    """
    dtype = dtype_of(output_dtype, "DequantizeLinear") if output_dtype else scale.dtype
    steps = x.astype(SINGLE)
    if zero_point is not None:
        steps = steps - _spread(zero_point.astype(SINGLE), x, axis, block_size)
    factors = _spread(converted(scale, SINGLE), x, axis, block_size)
    return converted(steps * factors, dtype)


def quantize(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Array:
    """Return x / scale + zero_point as an integer: the quotient rounded to even, the sum limited.

    The quotient has the dtype of `scale` (or ONNX's data type `precision`); the result has that of
    `zero_point`, or `output_dtype`, or uint8. `saturate` matters for 8-bit floats alone. Raises
    SpeqcError for a data type that the machine doesn't have.
    """
    dtype = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    if output_dtype:
        dtype = dtype_of(output_dtype, "QuantizeLinear")
    if dtype.kind not in "iu":
        raise SpeqcError(f"QuantizeLinear: the machine has no data type {dtype}")
    computed = dtype_of(precision, "QuantizeLinear") if precision else scale.dtype
    factors = _spread(converted(scale, computed), x, axis, block_size)
    quotient = divide(converted(x, computed), factors)
    steps = np.rint(quotient.astype(np.float64))
    if zero_point is not None:
        steps = steps + _spread(zero_point.astype(np.float64), x, axis, block_size)
    limits = np.iinfo(dtype)
    return np.clip(steps, limits.min, limits.max).astype(dtype)


QUANTIZATION: Mapping[str, VectorOp] = {
    "DequantizeLinear": arithmetic(dequantize, 2),
    "QuantizeLinear": arithmetic(quantize, 5),
}
