"""Elementary functions whose bits depend on the argument alone.

Vendors' vectorised libraries compute an element differently in a vector, in the tail of an array
and on another processor. Here every function is plain FP64 arithmetic (additions, products and
quotients in a fixed order, no fused multiply-add), rounded once to FP32: an element has the same
bits wherever it stands, and within 1 unit in the last place of the exact value.

`NAME64(x)` is a numba function from a number that FP32 holds to FP64, not yet rounded, for use
inside kernels; `NAME(x)` takes an array. Arrays may be FP16 or FP32 of any shape; the result has
the same shape and dtype, with FP16 results rounded from the FP32 ones.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numpy.typing import NDArray

from speqc.runtime.fp16 import bits_of_double, double_of_bits, inlined, to_dtype, to_single

FloatArray = NDArray[np.floating[Any]]

LN2 = math.log(2.0)
LOG2_E = 1.0 / LN2
# Adding 1.5 * 2^52 to a small number rounds it to an integer, which then is the sum's low bits.
ROUNDER = 6755399441055744.0
# 2^-216 and 2^187: beyond them exp is 0 or infinite in FP32, and 2^k is still normal in FP64.
EXP_LEAST = -150.0
EXP_MOST = 130.0
ROUNDER_BITS = 0x4338000000000000
ONE_BITS = 0x3FF0000000000000
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
TWO_OVER_PI = 2.0 / math.pi
# tanh(10) is 1 in FP32.
TANH_MOST = 20.0


# pi / 2 in three parts; the first two have 33 bits, so that their products with k are exact.
HALF_PI_HIGH = float.fromhex("0x1.921fb544p+0")
HALF_PI_MIDDLE = float.fromhex("0x1.0b4611a6p-34")
HALF_PI_LOW = float.fromhex("0x1.3198a2e037073p-69")
LARGEST_REDUCED = 2.0**20
# 2 pi * 2^200, to reduce arguments beyond that with whole numbers.
TWO_PI_SHIFT = 200
TWO_PI_SCALED = (
    2
    * 31415926535897932384626433832795028841971693993751058209749445923078164062862089986280348
    * 2**TWO_PI_SHIFT
    // 10**88
)

# erf(x) / x at x^2 = 8 + 8 t, -1 <= t <= 1, as a polynomial in t: the interpolation at the 23
# Chebyshev nodes, computed with 50 digits; relative error below 4e-13. erf(4) is 1 in FP32.
ERF_MOST = 4.0
ERF_TERMS = (
    0.35353099564340495,
    -0.17657623330392602,
    0.13167511689547207,
    -0.10771044230403215,
    0.09020899404424358,
    -0.07472787156784315,
    0.05988690674393009,
    -0.04576504084136504,
    0.033060611596419896,
    -0.02247402944863727,
    0.01434973873577006,
    -0.008604359881842768,
    0.004852986669306072,
    -0.0025830290325423205,
    0.0012940700205056187,
    -0.0006048631720031436,
    0.0002730868781407246,
    -0.00012649419013464726,
    5.0516480984461565e-05,
    -1.2635295810882527e-05,
    5.069598611100321e-06,
    -4.586436654384096e-06,
    1.4883137738024427e-06,
)


def _jit(function: Callable[..., Any]) -> Any:
    """Compile with NumPy's rules for division, which raise nothing and so can be vectorised."""
    return njit(cache=True, nogil=True, error_model="numpy")(function)


def _polynomial(terms: tuple[float, ...]) -> Any:
    """Return a numba function x -> sum(terms[n] * x**n) that inlines Horner's rule."""

    def emit(_context: Any, builder: Any, x: Any) -> Any:
        total = ir.Constant(x.type, terms[-1])
        for term in reversed(terms[:-1]):
            total = builder.fadd(builder.fmul(total, x), ir.Constant(x.type, term))
        return total

    return inlined(types.float64, types.float64, emit)


exp_series = _polynomial(tuple(1.0 / math.factorial(n) for n in range(12)))
expm1_series = _polynomial(tuple(1.0 / math.factorial(n + 1) for n in range(12)))
atanh_series = _polynomial(tuple(1.0 / (2 * n + 1) for n in range(13)))
sin_series = _polynomial(tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(8)))
cos_series = _polynomial(tuple((-1.0) ** n / math.factorial(2 * n) for n in range(9)))
erf_series = _polynomial(ERF_TERMS)


@_jit
def exp64(x: float) -> float:
    """Return e**x; beyond FP32's range a value that rounds to 0 or infinity there."""
    clamped = min(max(np.float64(x), EXP_LEAST), EXP_MOST)
    shifted = clamped * LOG2_E + ROUNDER
    remainder = clamped - (shifted - ROUNDER) * LN2
    exponent = bits_of_double(shifted) << 52
    value = double_of_bits(bits_of_double(exp_series(remainder)) + exponent)
    return x if x != x else value


@_jit
def sigmoid64(x: float) -> float:
    """Return 1 / (1 + e**-x)."""
    return 1.0 / (1.0 + exp64(-x))


@_jit
def tanh64(x: float) -> float:
    """Return the hyperbolic tangent as q / (q + 2) with q = e**2x - 1, free of cancellation."""
    doubled = min(2.0 * abs(np.float64(x)), TANH_MOST)
    shifted = doubled * LOG2_E + ROUNDER
    remainder = doubled - (shifted - ROUNDER) * LN2
    power = double_of_bits(ONE_BITS + (bits_of_double(shifted) << 52))
    quotient = power * (remainder * expm1_series(remainder)) + (power - 1.0)
    value = math.copysign(quotient / (quotient + 2.0), x)
    return x if x != x else value


@_jit
def erf64(x: float) -> float:
    """Return the error function: a polynomial in x**2, times x."""
    clamped = min(max(np.float64(x), -ERF_MOST), ERF_MOST)
    value = clamped * erf_series(clamped * clamped * 0.125 - 1.0)
    return x if x != x else value


@_jit
def twice_atanh64(s: float) -> float:
    """Return log((1 + s) / (1 - s)) for |s| <= 1/3 by the Taylor series."""
    return 2.0 * s * atanh_series(s * s)


@_jit
def log64(x: float) -> float:
    """Return the natural logarithm: minus infinity at 0, NaN below."""
    bits = bits_of_double(np.float64(x))
    # Counting from the square root of one half makes the fraction lie around 1.
    steps = bits - SQRT_HALF_BITS
    exponent = steps >> 52
    fraction = double_of_bits(bits - (exponent << 52))
    whole = double_of_bits(ROUNDER_BITS + exponent) - ROUNDER
    value = whole * LN2 + twice_atanh64((fraction - 1.0) / (fraction + 1.0))
    value = np.inf if x == np.inf else value
    value = -np.inf if x == 0.0 else value
    return value if x >= 0.0 else np.nan


@_jit
def softplus64(x: float) -> float:
    """Return log(1 + e**x)."""
    small = exp64(-abs(x))
    return max(np.float64(x), 0.0) + twice_atanh64(small / (2.0 + small))


@_jit
def sine64(x: float, quarter_turns: int) -> float:
    """Return sin(x + quarter_turns * pi / 2) for |x| <= `LARGEST_REDUCED`."""
    shifted = np.float64(x) * TWO_OVER_PI + ROUNDER
    turns = shifted - ROUNDER
    reduced = x - turns * HALF_PI_HIGH - turns * HALF_PI_MIDDLE - turns * HALF_PI_LOW
    square = reduced * reduced
    quadrant = bits_of_double(shifted) + quarter_turns
    sine = reduced * sin_series(square)
    value = cos_series(square) if quadrant & 1 else sine
    return -value if quadrant & 2 else value


@_jit
def pow64(x: float, y: float) -> float:
    """Return x**y with the special cases of C's pow; powers 2, 3 and 1/2 have no other error."""
    if y == 2.0:
        return np.float64(x) * x
    if y == 3.0:
        return np.float64(x) * x * x
    if y == 0.5 and x > 0.0:
        return math.sqrt(np.float64(x))
    if y == 0.0 or x == 1.0:
        return 1.0
    if x == -1.0 and abs(y) == np.inf:
        return 1.0
    half = 0.5 * np.float64(y)
    is_odd = half != np.floor(half) and y == np.floor(y)
    if -np.inf < x < 0.0 and y != np.floor(y):
        return np.nan
    value = exp64(y * log64(abs(x)))
    return -value if is_odd and math.copysign(1.0, x) < 0.0 else value


@_jit
def _exp(x: FloatArray, out: FloatArray) -> None:
    for i in range(x.size):
        out[i] = exp64(x[i])


@_jit
def _sigmoid(x: FloatArray, out: FloatArray) -> None:
    for i in range(x.size):
        out[i] = sigmoid64(x[i])


@_jit
def _tanh(x: FloatArray, out: FloatArray) -> None:
    for i in range(x.size):
        out[i] = tanh64(x[i])


@_jit
def _erf(x: FloatArray, out: FloatArray) -> None:
    for i in range(x.size):
        out[i] = erf64(x[i])


@_jit
def _log(x: FloatArray, out: FloatArray) -> None:
    for i in range(x.size):
        out[i] = log64(x[i])


@_jit
def _softplus(x: FloatArray, out: FloatArray) -> None:
    for i in range(x.size):
        out[i] = softplus64(x[i])


@_jit
def _sine(x: FloatArray, out: FloatArray, quarter_turns: int) -> None:
    for i in range(x.size):
        out[i] = sine64(x[i], quarter_turns)


@_jit
def _pow(x: FloatArray, y: FloatArray, out: FloatArray) -> None:
    for i in range(x.size):
        out[i] = pow64(x[i], y[i])


def _apply(kernel: Any, x: FloatArray, *parameters: Any) -> FloatArray:
    """Return kernel(x) element by element, in the shape and dtype of `x`."""
    flat = to_single(x).reshape(-1)
    out = np.empty_like(flat)
    kernel(flat, out, *parameters)
    return to_dtype(out.reshape(x.shape), x.dtype)


def exp(x: FloatArray) -> FloatArray:
    """Return e**x for each element."""
    return _apply(_exp, x)


def sigmoid(x: FloatArray) -> FloatArray:
    """Return 1 / (1 + e**-x) for each element."""
    return _apply(_sigmoid, x)


def tanh(x: FloatArray) -> FloatArray:
    """Return the hyperbolic tangent of each element."""
    return _apply(_tanh, x)


def erf(x: FloatArray) -> FloatArray:
    """Return the error function of each element."""
    return _apply(_erf, x)


def log(x: FloatArray) -> FloatArray:
    """Return the natural logarithm of each element: minus infinity at 0, NaN below."""
    return _apply(_log, x)


def softplus(x: FloatArray) -> FloatArray:
    """Return log(1 + e**x) for each element."""
    return _apply(_softplus, x)


def sin(x: FloatArray) -> FloatArray:
    """Return the sine of each element (radians, any size)."""
    return _circular(x, 0)


def cos(x: FloatArray) -> FloatArray:
    """Return the cosine of each element (radians, any size)."""
    return _circular(x, 1)


def pow(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return x**y for each pair of elements, broadcast against each other as NumPy does.

    The result has the dtype of `x` (as ONNX's Pow). Special cases are those of C's pow.
    """
    shape = np.broadcast_shapes(x.shape, y.shape)
    exponents = to_single(np.broadcast_to(y, shape)).reshape(-1)
    return _apply(lambda bases, out: _pow(bases, exponents, out), np.broadcast_to(x, shape))


def _circular(x: FloatArray, quarter_turns: int) -> FloatArray:
    """Return sin(x + quarter_turns * pi / 2) for each element."""
    out = _apply(_sine, x, quarter_turns)
    is_large = np.abs(x) > LARGEST_REDUCED
    if is_large.any():
        out[is_large] = [
            sine64(_within_a_turn(float(value)), quarter_turns) for value in x[is_large]
        ]
    return out


def _within_a_turn(x: float) -> float:
    """Return x modulo 2 pi, or NaN if x is not finite."""
    if not math.isfinite(x):
        return math.nan
    return int(math.ldexp(x, TWO_PI_SHIFT)) % TWO_PI_SCALED / 2.0**TWO_PI_SHIFT
