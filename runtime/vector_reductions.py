"""Reductions along axes.

Sums keep the order of `norms`. Other reductions here take one element after another, or give the
same bits in any order. FP16 is computed in FP32 and rounded once.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from speqc.runtime import norms
from speqc.runtime.vector_functions import divide, exp, log
from speqc.runtime.vector_half import through_single
from speqc.runtime.vector_logic import converted
from speqc.runtime.vector_op import (
    DOUBLE,
    HALF,
    SINGLE,
    Array,
    VectorOp,
    arithmetic,
    contiguous,
    integers,
)

RowFunction = Callable[[Array], Array]


def _order(rank: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return all axes of a tensor, with `axes` moved to the end."""
    return tuple(axis for axis in range(rank) if axis not in axes) + axes


def rows_along(x: Array, axes: tuple[int, ...]) -> Array:
    """Return x with `axes` flattened into a last dimension, the others before it."""
    if axes == (x.ndim - 1,):
        return x
    moved = x.transpose(_order(x.ndim, axes))
    kept = moved.shape[: x.ndim - len(axes)]
    return contiguous(moved.reshape(*kept, math.prod(moved.shape[len(kept) :])))


def _reduction(of_rows: RowFunction, keeps_one: bool = True) -> Callable[..., Array]:
    """Return the ONNX reduction that maps rows [..., K] to [...] by `of_rows`.

    `keeps_one` says that a row of one element gives the element.
    """

    def reduction(
        x: Array, axes: Array | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        over = () if axes is None else tuple(sorted(axis % x.ndim for axis in integers(axes)))
        if not over and noop_with_empty_axes:
            return x if keeps_one else of_rows(x[..., None])
        over = over or tuple(range(x.ndim))
        result = of_rows(rows_along(x, over))
        if not keepdims:
            return result
        return np.reshape(result, [1 if i in over else n for i, n in enumerate(x.shape)])

    return reduction


def sum_of(rows: Array) -> Array:
    """Return the sum of each row, rounded once."""
    if rows.shape[-1] == 0:
        return np.zeros(rows.shape[:-1], rows.dtype)
    if rows.dtype in (HALF, SINGLE):
        return norms.reduce_sum_lastdim(rows)
    if rows.dtype == DOUBLE:
        return contiguous(np.add.accumulate(rows, -1)[..., -1])
    return np.sum(rows, -1, dtype=rows.dtype)


def mean_of(rows: Array) -> Array:
    """Return the mean of each row, rounded once."""
    if rows.dtype in (HALF, SINGLE) and rows.shape[-1]:
        return norms.reduce_mean_lastdim(rows)
    return divide(sum_of(rows), np.array(rows.shape[-1], rows.dtype))


def _in_kind(function: RowFunction, numbers: Array) -> Array:
    """Return `function` of FP32 or FP64 numbers; integers are computed in FP64 and cut off."""
    if numbers.dtype.kind == "f":
        return function(numbers)
    return function(numbers.astype(DOUBLE)).astype(numbers.dtype)


@through_single
def sum_of_magnitudes(rows: Array) -> Array:
    """Return the sum of the magnitudes of each row."""
    return sum_of(np.abs(rows))


@through_single
def _sum_of_squares(rows: Array) -> Array:
    return sum_of(rows * rows)


@through_single
def length_of(rows: Array) -> Array:
    """Return the root of the sum of squares of each row."""
    return _in_kind(np.sqrt, sum_of(rows * rows))


@through_single
def _log_of_sum(rows: Array) -> Array:
    return _in_kind(log, sum_of(rows))


@through_single
def _log_of_sum_of_exponentials(rows: Array) -> Array:
    return _in_kind(_shifted_log_sum, rows)


def _shifted_log_sum(rows: Array) -> Array:
    largest = largest_of(rows)
    shift = np.where(np.isfinite(largest), largest, rows.dtype.type(0))
    return shift + log(sum_of(exp(rows - shift[..., None])))


def _product(rows: Array) -> Array:
    if rows.shape[-1] == 0:
        return np.ones(rows.shape[:-1], rows.dtype)
    wide = SINGLE if rows.dtype == HALF else rows.dtype
    products = np.multiply.accumulate(rows, -1, dtype=wide)
    return converted(contiguous(products[..., -1]), rows.dtype)


def _extreme(reduce: Callable[..., Array], rows: Array, sign: int) -> Array:
    """Return the largest (sign +1) or smallest elements, of no elements the least or largest one.

    Which zero NumPy returns for a row with both depends on their places: here it is always +0.
    """
    kind = rows.dtype.kind
    if kind == "f":
        return reduce(rows, -1, initial=-sign * np.inf) + rows.dtype.type(0)
    if kind == "b":
        return reduce(rows, -1, initial=sign < 0)
    limits = np.iinfo(rows.dtype)
    return reduce(rows, -1, initial=limits.min if sign > 0 else limits.max)


@through_single
def largest_of(rows: Array) -> Array:
    """Return the largest element of each row."""
    return _extreme(np.max, rows, 1)


@through_single
def _smallest(rows: Array) -> Array:
    """Return the smallest element of each row."""
    return _extreme(np.min, rows, -1)


def along(of_rows: RowFunction, x: Array, axis: int | tuple[int, ...]) -> Array:
    """Return x with each row along `axis` (or several axes, flattened) mapped by `of_rows`."""
    axes = tuple(one % x.ndim for one in ((axis,) if isinstance(axis, int) else axis))
    if axes == (x.ndim - 1,):
        return of_rows(x)
    order = _order(x.ndim, axes)
    moved = of_rows(rows_along(x, axes)).reshape([x.shape[one] for one in order])
    return contiguous(moved.transpose(np.argsort(order)))


reduce_sum = _reduction(sum_of)

REDUCTIONS: Mapping[str, VectorOp] = {
    "ReduceL1": arithmetic(_reduction(sum_of_magnitudes, False), 2, "input"),
    "ReduceL2": arithmetic(_reduction(length_of, False), 1, "input"),
    "ReduceLogSum": arithmetic(_reduction(_log_of_sum, False), 1, "input"),
    "ReduceLogSumExp": arithmetic(_reduction(_log_of_sum_of_exponentials, False), 7, "input"),
    "ReduceMax": arithmetic(_reduction(largest_of), 1, "input"),
    "ReduceMean": arithmetic(_reduction(mean_of), 1, "input"),
    "ReduceMin": arithmetic(_reduction(_smallest), 1, "input"),
    "ReduceProd": arithmetic(_reduction(_product), 1, "input"),
    "ReduceSum": arithmetic(reduce_sum, 1, "input"),
    "ReduceSumSquare": arithmetic(_reduction(_sum_of_squares, False), 1, "input"),
}
