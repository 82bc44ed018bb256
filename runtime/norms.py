"""Reductions along the last axis: norms, softmax, arg max; each in one fixed order.

Sums and means (and so the norms) use the vector unit's order: 16 FP32 partial sums start at +0,
partial sum j takes elements j, j + 16, j + 32, ... in ascending order, and then they are added in a
tree, j with j + 8, with j + 4, with j + 2, with j + 1. Softmax adds in ascending order, one
exponential after another. Rows do not influence each other.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

from speqc.runtime.elementary import exp64
from speqc.runtime.fp16 import as_bytes, is_half, number_at, rounded, set_number, to_single

FloatArray = NDArray[np.floating[Any]]

LANES = 16
"""Partial sums of a reduction."""

_CHUNK = 64


@njit(inline="always")
def _lane_sum(row: NDArray[np.float32], lanes: NDArray[np.float32]) -> Any:
    """Return the sum of a row in the order of the vector unit; `lanes` is scratch space."""
    for lane in range(LANES):
        lanes[lane] = 0.0
    whole = row.size // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += row[start + lane]
    for i in range(whole, row.size):
        lanes[i - whole] += row[i]
    half = LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@njit(inline="always")
def _load_row(x: Any, m: int, x_half: bool, row: NDArray[np.float32]) -> None:
    """Read row m of an array of such rows, given as bytes."""
    for i in range(row.size):
        row[i] = number_at(x, m * row.size + i, x_half)


@njit(cache=True, nogil=True, error_model="numpy")
def _reduce(
    x: Any, x_half: bool, size: int, divisor: Any, out: Any, out_half: bool, rows: int
) -> None:
    """Put sum(row) / divisor into `out` for each row of `size` numbers."""
    row = np.empty(size, np.float32)
    lanes = np.empty(LANES, np.float32)
    for m in range(rows):
        _load_row(x, m, x_half, row)
        set_number(out, m, _lane_sum(row, lanes) / divisor, out_half)


@njit(cache=True, nogil=True, error_model="numpy")
def _normalize(
    x: Any,
    x_half: bool,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    epsilon: Any,
    is_centred: bool,
    is_divided: bool,
    has_bias: bool,
    weight_half: bool,
    out: Any,
) -> None:
    """Normalise rows; `weight_half` rounds to FP16 before the weight is applied and after it."""
    row = np.empty(weight.size, np.float32)
    squares = np.empty(weight.size, np.float32)
    lanes = np.empty(LANES, np.float32)
    size = np.float32(row.size)
    for m in range(x.size // (row.size * (2 if x_half else 4))):
        _load_row(x, m, x_half, row)
        if is_centred:
            mean = _lane_sum(row, lanes) / size
            for i in range(row.size):
                row[i] = row[i] - mean
        for i in range(row.size):
            squares[i] = row[i] * row[i]
        root = np.sqrt(_lane_sum(squares, lanes) / size + epsilon)
        factor = np.float32(1.0) / root
        for i in range(row.size):
            normal = row[i] / root if is_divided else row[i] * factor
            value = rounded(rounded(normal, weight_half) * weight[i], weight_half)
            value = value + bias[i] if has_bias else value
            set_number(out, m * row.size + i, value, x_half)


@njit(inline="always")
def softmax_in_place(row: NDArray[np.float32], half: bool) -> None:
    """Replace a row by its softmax, computed in FP32; round it to FP16 if `half`.

    The row becomes all NaN if there is a NaN or a positive infinity in it.
    """
    largest = np.float32(-np.inf)
    for t in range(row.size):
        largest = row[t] if row[t] > largest else largest
    for t in range(row.size):
        row[t] = exp64(row[t] - largest)
    total = np.float32(0.0)
    for t in range(row.size):
        total += row[t]
    for t in range(row.size):
        row[t] = rounded(row[t] / total, half)


@njit(cache=True, nogil=True, error_model="numpy")
def _softmax(x: Any, x_half: bool, size: int, out: Any) -> None:
    """Put the softmax of each row of `size` numbers into `out`."""
    row = np.empty(size, np.float32)
    for m in range(x.size // (size * (2 if x_half else 4))):
        _load_row(x, m, x_half, row)
        softmax_in_place(row, False)
        for i in range(size):
            set_number(out, m * size + i, row[i], x_half)


@njit(cache=True, nogil=True)
def _argmax(x: Any, x_half: bool, size: int, out: NDArray[np.int64]) -> None:
    """Put the place of the largest number in each row of `size` into `out`."""
    row = np.empty(size, np.float32)
    for m in range(out.size):
        _load_row(x, m, x_half, row)
        largest = np.float32(-np.inf)
        place = -1
        # Most chunks hold nothing larger, which a vectorised comparison finds out.
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            found = 0
            for i in range(start, stop):
                found |= row[i] > largest
            if found or place < 0:
                for i in range(start, stop):
                    if row[i] > largest or (place < 0 and row[i] == largest):
                        largest, place = row[i], i
        out[m] = max(place, 0)


@njit(cache=True, nogil=True, error_model="numpy")
def _top_probability(logits: Any, half: bool, size: int) -> Any:
    """Return the largest probability of the softmax of `logits`."""
    row = np.empty(size, np.float32)
    _load_row(logits, 0, half, row)
    largest = np.float32(-np.inf)
    for i in range(size):
        largest = row[i] if row[i] > largest else largest
    for i in range(size):
        row[i] = exp64(row[i] - largest)
    total = np.float32(0.0)
    for i in range(size):
        total += row[i]
    return np.float32(1.0) / total


def _reduced(x: FloatArray, divisor: float, out_dtype: DTypeLike | None) -> FloatArray:
    """Return sum / divisor along the last axis."""
    out = np.empty(x.shape[:-1], x.dtype if out_dtype is None else out_dtype)
    factor = np.float32(divisor)
    _reduce(as_bytes(x), is_half(x), x.shape[-1], factor, as_bytes(out), is_half(out), out.size)
    return out


def reduce_sum_lastdim(x: FloatArray, out_dtype: DTypeLike | None = None) -> FloatArray:
    """Return the sums [...] of x [..., C], added in FP32 and rounded once (default: to x's dtype).

    The order is the vector unit's, described at the top of this module.
    """
    return _reduced(x, 1.0, out_dtype)


def reduce_mean_lastdim(x: FloatArray, out_dtype: DTypeLike | None = None) -> FloatArray:
    """Return the means [...] of x [..., C]: FP32 sums over C, rounded as the sums would be."""
    return _reduced(x, x.shape[-1], out_dtype)


def _normalized(
    x: FloatArray,
    weight: FloatArray,
    bias: FloatArray | None,
    epsilon: float,
    is_centred: bool,
    weight_in_f32: bool,
    divide: bool,
) -> FloatArray:
    """Return rows divided by their root mean square, after taking off the mean if `is_centred`."""
    if weight.shape != x.shape[-1:] or (bias is not None and bias.shape != weight.shape):
        raise ValueError(f"weight {weight.shape} and bias do not fit x {x.shape}")
    out = np.empty(x.shape, x.dtype)
    single = to_single(weight)
    x_half = is_half(x)
    _normalize(
        as_bytes(x),
        x_half,
        single,
        single if bias is None else to_single(bias),
        np.float32(epsilon),
        is_centred,
        divide,
        bias is not None,
        x_half and not weight_in_f32,
        as_bytes(out),
    )
    return out


def rms_norm(
    x: FloatArray,
    weight: FloatArray,
    epsilon: float,
    *,
    weight_in_f32: bool = False,
    divide: bool = False,
) -> FloatArray:
    """Return x / sqrt(mean(x**2) + epsilon) * weight along the last axis, in the dtype of `x`.

    Rounds to FP32 after each step as exported graphs do: square, mean, sum, root, reciprocal,
    product; then to x's dtype; then the product with `weight`, in x's dtype.

    Args:
        x: [..., C], float16 or float32.
        weight: [C], float16 or float32.
        epsilon: added to the mean, as FP32 holds it.
        weight_in_f32: multiply by `weight` in FP32 and round only the result to x's dtype.
        divide: divide by the root instead of multiplying by its reciprocal.
    """
    return _normalized(x, weight, None, epsilon, False, weight_in_f32, divide)


def layer_norm(
    x: FloatArray,
    scale: FloatArray,
    bias: FloatArray | None,
    epsilon: float,
    *,
    weight_in_f32: bool = False,
    divide: bool = False,
) -> FloatArray:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias along the last axis.

    The variance is the mean of the squared differences. Rounding is that of `rms_norm`, with
    `scale` for the weight and one more rounding after `bias` [C] (None: no bias) is added.
    """
    return _normalized(x, scale, bias, epsilon, True, weight_in_f32, divide)


def softmax(x: FloatArray, axis: int = -1) -> FloatArray:
    """Return the softmax along an axis, computed in FP32 and rounded once to the dtype of `x`.

    exp(x - maximum), added in ascending order; each is divided by the sum. A row with NaN or
    positive infinity, or with nothing but negative infinity, becomes all NaN.
    """
    moved = np.moveaxis(x, axis, -1)
    out = np.empty(moved.shape, x.dtype)
    _softmax(as_bytes(moved), is_half(x), moved.shape[-1], as_bytes(out))
    return np.moveaxis(out, -1, axis)


def argmax_rows(logits: FloatArray) -> NDArray[np.int64]:
    """Return the place of the largest number in each row of logits [M, V]: the lowest of a tie.

    NaN never wins; a row of nothing but NaN gives 0.
    """
    out = np.empty(logits.shape[0], np.int64)
    _argmax(as_bytes(logits), is_half(logits), logits.shape[1], out)
    return out


def top_probability(logits: FloatArray) -> float:
    """Return the largest softmax probability of logits [V]: 1 / sum(exp(l - maximum)).

    In FP32, added in ascending order; NaN if there is a NaN or an infinity at the top.
    """
    return float(_top_probability(as_bytes(logits), is_half(logits), logits.size))
