"""Arithmetic, choices and elementary functions of tensors, element by element."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from speqc.runtime import elementary
from speqc.runtime import vector_half as half
from speqc.runtime.vector_op import DOUBLE, HALF, SINGLE, Array


def add(a: Array, b: Array) -> Array:
    """Return a + b."""
    return half.add(a, b) if a.dtype == HALF else np.add(a, b)


def subtract(a: Array, b: Array) -> Array:
    """Return a - b."""
    return half.subtract(a, b) if a.dtype == HALF else np.subtract(a, b)


def multiply(a: Array, b: Array) -> Array:
    """Return a * b."""
    return half.multiply(a, b) if a.dtype == HALF else np.multiply(a, b)


def divide(a: Array, b: Array) -> Array:
    """Return a / b; the quotient of integers is rounded towards zero, as in C."""
    if a.dtype == HALF:
        return half.divide(a, b)
    if a.dtype.kind == "f":
        return np.divide(a, b)
    floor, rest = np.divmod(a, b)
    return np.add(floor, (rest != 0) & ((a < 0) != (b < 0)), dtype=a.dtype)


def modulo(a: Array, b: Array, fmod: int = 0) -> Array:
    """Return a modulo b with the sign of b, or with that of a if `fmod`."""
    return np.fmod(a, b) if fmod else np.mod(a, b)


def _each(function: Callable[..., float], *operands: Array) -> Array:
    """Return function(*elements) in FP64, one scalar after another.

    FP64 stands in graphs for a few scalars at most; on whole arrays NumPy's bits would depend on
    an element's place.
    """
    operands = tuple(np.broadcast_arrays(*operands))
    values = [function(*elements) for elements in zip(*(x.flat for x in operands), strict=True)]
    return np.array(values, np.float64).reshape(operands[0].shape)


def _elementary(
    single: Callable[[Array], Array], double: Callable[[Any], float]
) -> Callable[[Array], Array]:
    """Return a function of FP32 tensors (`single`) and FP64 tensors (`double` on scalars)."""

    @functools.wraps(single)
    def function(x: Array) -> Array:
        return _each(double, x) if x.dtype == DOUBLE else single(x)

    return function


exp = _elementary(elementary.exp, np.exp)
log = _elementary(elementary.log, np.log)
sin = _elementary(elementary.sin, np.sin)
cos = _elementary(elementary.cos, np.cos)
tanh = _elementary(elementary.tanh, np.tanh)
erf = _elementary(elementary.erf, math.erf)
sigmoid = _elementary(elementary.sigmoid, lambda x: 1.0 / (1.0 + np.exp(-x)))
softplus = _elementary(elementary.softplus, lambda x: np.logaddexp(x, 0.0))


def power(x: Array, y: Array) -> Array:
    """Return x**y in the dtype of x; the exponents may have another."""
    if x.dtype.kind != "f" and y.dtype.kind != "f":
        return np.power(x, y).astype(x.dtype, copy=False)
    if x.dtype.kind != "f" or x.dtype == DOUBLE:
        return _each(np.power, x.astype(DOUBLE), y.astype(DOUBLE)).astype(x.dtype)
    if y.size != 1 or y.ndim > x.ndim:
        return elementary.pow(x, y.astype(SINGLE))
    exponent = float(y.item())
    return multiply(x, x) if exponent == 2.0 else _power_of_all(x, exponent=exponent)


@half.tabulated
def _power_of_all(x: Array, exponent: float) -> Array:
    """Return x**exponent."""
    return elementary.pow(x, np.array(exponent, np.float32))


def reciprocal(x: Array) -> Array:
    """Return 1 / x."""
    return np.divide(1, x, dtype=x.dtype)


def clip(x: Array, low: Any = None, high: Any = None) -> Array:
    """Return x limited to low..high (each a scalar, or None); high wins if they cross."""
    if low is not None:
        x = np.where(x < low, low, x)
    if high is not None:
        x = np.where(x > high, high, x)
    return x


def larger(a: Array, b: Array) -> Array:
    """Return the larger of a and b: NaN if either is, b if they are equal."""
    return np.where((a > b) | (a != a), a, b)


def smaller(a: Array, b: Array) -> Array:
    """Return the smaller of a and b: NaN if either is, b if they are equal."""
    return np.where((a < b) | (a != a), a, b)


def maximum(*operands: Array) -> Array:
    """Return the largest of the operands."""
    return functools.reduce(larger, operands)


def minimum(*operands: Array) -> Array:
    """Return the smallest of the operands."""
    return functools.reduce(smaller, operands)


def total(*operands: Array) -> Array:
    """Return the sum of the operands, added from left to right; FP16 is rounded once."""
    return functools.reduce(np.add, operands)


def average(*operands: Array) -> Array:
    """Return the mean of the operands: their sum over their number; FP16 is rounded once."""
    return np.divide(total(*operands), len(operands), dtype=operands[0].dtype)
