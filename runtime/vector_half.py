"""FP16 tensors on the vector unit: exactly rounded arithmetic, and functions by table.

NumPy does FP16 arithmetic one element at a time, up to 40 times slower than these kernels. They
are NumPy ufuncs on the bit patterns, compiled on first use. A function of one FP16 variable has
65,536 values: it is computed once for all of them, then looked up.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types, vectorize

from speqc.runtime.fp16 import half_to_single, single_to_half, to_half, to_single
from speqc.runtime.vector_op import HALF, SINGLE, Array

BITS = np.dtype(np.uint16)
MOST_TABLES = 128  # of 128 KiB each
_MAGNITUDE = np.uint16(0x7FFF)
_INFINITY = np.uint16(0x7C00)


def _add(a: Any, b: Any) -> Any:
    return single_to_half(half_to_single(a) + half_to_single(b))


def _subtract(a: Any, b: Any) -> Any:
    return single_to_half(half_to_single(a) - half_to_single(b))


def _multiply(a: Any, b: Any) -> Any:
    return single_to_half(half_to_single(a) * half_to_single(b))


def _divide(a: Any, b: Any) -> Any:
    return single_to_half(half_to_single(a) / half_to_single(b))


@functools.cache
def _compiled(function: Callable[..., Any]) -> Any:
    """Return `function` of two numbers as a NumPy ufunc on FP16 bits."""
    return vectorize([types.uint16(types.uint16, types.uint16)], cache=True)(function).ufunc


def _with_rows_of_one_length(a: Array, b: Array) -> tuple[Array, Array]:
    """Repeat the operand whose last dimension is 1 along the other's last dimension.

    The kernels handle vectors only where both operands advance through memory.
    """
    columns_a = a.shape[-1] if a.ndim else 1
    columns_b = b.shape[-1] if b.ndim else 1
    if columns_b == 1 < columns_a:
        return a, b.repeat(columns_a, axis=-1 if b.ndim else None)
    if columns_a == 1 < columns_b:
        return a.repeat(columns_b, axis=-1 if a.ndim else None), b
    return a, b


def _binary(function: Callable[..., Any], a: Array, b: Array) -> Array:
    """Return `function` of two FP16 tensors that broadcast against each other.

    Raises TypeError if one has another dtype: its bits would be misread.
    """
    if a.dtype != HALF or b.dtype != HALF:
        raise TypeError(f"expected two float16 tensors, not {a.dtype} and {b.dtype}")
    if a.shape != b.shape:
        a, b = _with_rows_of_one_length(a, b)
    return _compiled(function)(a.view(BITS), b.view(BITS)).view(HALF)


def add(a: Array, b: Array) -> Array:
    """Return a + b of two FP16 tensors, exactly rounded."""
    return _binary(_add, a, b)


def subtract(a: Array, b: Array) -> Array:
    """Return a - b of two FP16 tensors, exactly rounded."""
    return _binary(_subtract, a, b)


def multiply(a: Array, b: Array) -> Array:
    """Return a * b of two FP16 tensors, exactly rounded."""
    return _binary(_multiply, a, b)


def divide(a: Array, b: Array) -> Array:
    """Return a / b of two FP16 tensors, exactly rounded."""
    return _binary(_divide, a, b)


@functools.lru_cache(maxsize=MOST_TABLES)
def _table(function: Callable[..., Array], **parameters: Any) -> Array:
    """Return function(x) rounded to FP16 for each FP16 bit pattern x."""
    every_half = np.arange(1 << 16, dtype=BITS).view(HALF)
    with np.errstate(all="ignore"):
        return to_half(function(to_single(every_half), **parameters))


def tabulated(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return `function` (of one tensor and parameters), extended to FP16 by way of FP32."""

    @functools.wraps(function)
    def extended(x: Array, **parameters: Any) -> Array:
        if x.dtype != HALF:
            return function(x, **parameters)
        return _table(function, **parameters).take(x.view(BITS))

    return extended


def through_single(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return `function` of tensors of one dtype, which computes on FP32 in place of FP16.

    Numbers are rounded to FP16 once, at the end.
    """

    @functools.wraps(function)
    def extended(x: Array, *others: Array | None, **parameters: Any) -> Array:
        if x.dtype != HALF:
            return function(x, *others, **parameters)
        wide = (None if other is None else to_single(other) for other in others)
        result = function(to_single(x), *wide, **parameters)
        return to_half(result) if result.dtype == SINGLE else result

    return extended


def is_nan(x: Array) -> Array:
    """Return where an FP16 tensor is NaN."""
    return (x.view(BITS) & _MAGNITUDE) > _INFINITY
