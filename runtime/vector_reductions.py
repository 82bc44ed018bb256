"""Reductions, running sums, softmax and norms.

Sums keep the order of `norms`. Other reductions here take one element after another, or give the
same bits in any order.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from speqc.runtime import norms
from speqc.runtime.fp16 import to_single
from speqc.runtime.vector_elementwise import divide, exp, log
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


def _rows(x: Array, axes: tuple[int, ...]) -> Array:
    """Return x with `axes` flattened into a last dimension, the others before it."""
    if axes == (x.ndim - 1,):
        return x
    moved = x.transpose(_order(x.ndim, axes))
    kept = moved.shape[: x.ndim - len(axes)]
    return contiguous(moved.reshape(*kept, math.prod(moved.shape[len(kept) :])))


def _reduction(of_rows: RowFunction) -> Callable[..., Array]:
    """Return the ONNX reduction that maps rows [..., K] to [...] by `of_rows`."""

    def reduction(
        x: Array, axes: Array | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        along = () if axes is None else tuple(sorted(axis % x.ndim for axis in integers(axes)))
        if not along and noop_with_empty_axes:
            return x
        along = along or tuple(range(x.ndim))
        result = of_rows(_rows(x, along))
        if not keepdims:
            return result
        return np.reshape(result, [1 if i in along else n for i, n in enumerate(x.shape)])

    return reduction


def _sum(rows: Array) -> Array:
    if rows.shape[-1] == 0:
        return np.zeros(rows.shape[:-1], rows.dtype)
    if rows.dtype in (HALF, SINGLE):
        return norms.reduce_sum_lastdim(rows)
    if rows.dtype == DOUBLE:
        return contiguous(np.add.accumulate(rows, -1)[..., -1])
    return np.sum(rows, -1, dtype=rows.dtype)


def _mean(rows: Array) -> Array:
    if rows.dtype in (HALF, SINGLE) and rows.shape[-1]:
        return norms.reduce_mean_lastdim(rows)
    return divide(_sum(rows), np.array(rows.shape[-1], rows.dtype))


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
def _largest(rows: Array) -> Array:
    """Return the largest element of each row."""
    return _extreme(np.max, rows, 1)


@through_single
def _smallest(rows: Array) -> Array:
    """Return the smallest element of each row."""
    return _extreme(np.min, rows, -1)


def _along(of_rows: RowFunction, x: Array, axis: int | tuple[int, ...]) -> Array:
    """Return x with each row along `axis` (or several axes, flattened) mapped by `of_rows`."""
    axes = tuple(one % x.ndim for one in ((axis,) if isinstance(axis, int) else axis))
    if axes == (x.ndim - 1,):
        return of_rows(x)
    order = _order(x.ndim, axes)
    moved = of_rows(_rows(x, axes)).reshape([x.shape[one] for one in order])
    return contiguous(moved.transpose(np.argsort(order)))


def softmax(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Return e**x over its sum along `axis`; FP16 is computed in FP32 and rounded once."""
    if x.dtype == DOUBLE:
        return exp(log_softmax(x, axis))
    return _along(norms.softmax, x, axis)


def log_softmax(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Return the logarithm of the softmax along `axis`, rounded once."""
    wide = to_single(x) if x.dtype == HALF else x
    return converted(_along(_log_softmax, wide, axis), x.dtype)


def _log_softmax(rows: Array) -> Array:
    shifted = rows - _largest(rows)[..., None]
    return shifted - log(_sum(exp(shifted)))[..., None]


def cum_sum(x: Array, axis: Array, exclusive: int = 0, reverse: int = 0) -> Array:
    """Return the running sums of x along `axis`, each one addition after another."""
    along = int(axis.item())
    rows = np.flip(x, along) if reverse else x
    wide = SINGLE if x.dtype == HALF else x.dtype
    sums = np.add.accumulate(rows, along, dtype=wide)
    if exclusive:
        sums = np.roll(sums, 1, along)
        sums[(slice(None),) * (along % x.ndim) + (0,)] = 0
    return contiguous(converted(np.flip(sums, along) if reverse else sums, x.dtype))


def _columns(x: Array, sizes: tuple[int, ...]) -> Array:
    """Return x broadcast to `sizes`, as a vector."""
    return (x if x.shape == sizes else np.broadcast_to(x, sizes)).reshape(-1)


def layer_norm(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Array:
    """Return x normalised over the dimensions from `axis` on, scaled and shifted.

    Rounded as in `norms`. The optional outputs (means and inverse deviations) exist for training
    and aren't computed.
    """
    sizes = x.shape[axis % x.ndim :]
    rows = x.reshape(-1, math.prod(sizes))
    shift = None if bias is None else _columns(bias, sizes)
    return norms.layer_norm(rows, _columns(scale, sizes), shift, epsilon).reshape(x.shape)


def rms_norm(
    x: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    """Return x over its root mean square over the dimensions from `axis` on, times `scale`.

    Divides by the root, as ONNX's definition does; rounded as in `norms`.
    """
    sizes = x.shape[axis % x.ndim :]
    rows = x.reshape(-1, math.prod(sizes))
    weight = _columns(scale, sizes)
    return norms.rms_norm(rows, weight, epsilon, divide=True).reshape(x.shape)


REDUCTIONS: Mapping[str, VectorOp] = {
    "CumSum": arithmetic(cum_sum, 1),
    "LayerNormalization": arithmetic(layer_norm, 5),
    "LogSoftmax": arithmetic(log_softmax, 8),
    "RMSNormalization": arithmetic(rms_norm, 3),
    "ReduceMax": arithmetic(_reduction(_largest), 1, "input"),
    "ReduceMean": arithmetic(_reduction(_mean), 1, "input"),
    "ReduceMin": arithmetic(_reduction(_smallest), 1, "input"),
    "ReduceProd": arithmetic(_reduction(_product), 1, "input"),
    "ReduceSum": arithmetic(_reduction(_sum), 1, "input"),
    "Softmax": arithmetic(softmax, 9),
}
