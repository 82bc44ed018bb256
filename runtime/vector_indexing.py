"""Gathering and scattering by index tensors, and operators that make indices."""

from collections.abc import Mapping

import numpy as np

from speqc.runtime.vector_half import through_single
from speqc.runtime.vector_logic import converted
from speqc.runtime.vector_op import HALF, SINGLE, Array, VectorOp, arithmetic, contiguous

Index = tuple[Array, ...]

# Their `at` methods take one update after the other, in the order of the index tensor.
REDUCTIONS: Mapping[str, np.ufunc] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def gather(x: Array, indices: Array, axis: int = 0) -> Array:
    """Return the slices of x along `axis` that `indices` (of any shape) name."""
    return x.take(indices, axis)


def _elements_along(indices: Array, axis: int) -> Index:
    """Return an index of the elements at indices[p] along `axis` and at p along other axes."""
    index: list[Array] = list(np.indices(indices.shape, sparse=True))
    index[axis] = indices
    return tuple(index)


def _coordinates(indices: Array) -> Index:
    """Return an index of the slices whose leading coordinates are the rows of `indices`."""
    return tuple(np.moveaxis(indices, -1, 0))


def gather_elements(x: Array, indices: Array, axis: int = 0) -> Array:
    """Return the element at indices[p] along `axis` for each position p of `indices`."""
    return contiguous(x[_elements_along(indices, axis)])


def gather_nd(x: Array, indices: Array, batch_dims: int = 0) -> Array:
    """Return the slices of x whose coordinates after `batch_dims` are the rows of `indices`."""
    batch = np.indices(indices.shape[:batch_dims], sparse=True)
    missing = (1,) * (indices.ndim - 1 - batch_dims)
    leading = tuple(part.reshape(part.shape + missing) for part in batch)
    return contiguous(x[leading + _coordinates(indices)])


def _scattered(x: Array, index: Index, updates: Array, reduction: str) -> Array:
    """Return x with `updates` written to, or combined with, the elements at `index`."""
    if reduction == "none":
        result = x.copy()
        result[index] = updates
        return result
    wide = SINGLE if x.dtype == HALF else x.dtype
    result = x.astype(wide)
    REDUCTIONS[reduction].at(result, index, updates.astype(wide))
    return converted(result, x.dtype)


def scatter_elements(
    x: Array, indices: Array, updates: Array, axis: int = 0, reduction: str = "none"
) -> Array:
    """Return x with updates[p] at indices[p] along `axis` for each position p of `indices`."""
    return _scattered(x, _elements_along(indices, axis), updates, reduction)


def scatter_nd(x: Array, indices: Array, updates: Array, reduction: str = "none") -> Array:
    """Return x with `updates` at the slices whose coordinates are the rows of `indices`."""
    return _scattered(x, _coordinates(indices), updates, reduction)


def one_hot(indices: Array, depth: Array, values: Array, axis: int = -1) -> Array:
    """Return values[1] where the position along the new `axis` is the index, else values[0].

    Negative indices count from the back; those beyond `depth` have values[0] everywhere.
    """
    size = int(depth.item())
    whole = indices.astype(np.int64)
    hot = np.expand_dims(np.where(whole < 0, whole + size, whole), -1) == np.arange(size)
    return contiguous(np.moveaxis(np.where(hot, values[1], values[0]), -1, axis))


def non_zero(x: Array) -> Array:
    """Return the coordinates of elements that aren't zero, one column for each."""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    return np.stack(np.nonzero(x)).astype(np.int64, copy=False)


def top_k(x: Array, k: Array, axis: int = -1, largest: int = 1, sorted: int = 1) -> list[Array]:
    """Return the k largest (or smallest) elements along `axis` in order, and their indices.

    Of equal elements the one with the lower index comes first; NaN counts as larger than all.
    The result is in order whether or not `sorted` asks for it.
    """
    if largest:
        last = x.shape[axis] - 1
        order = last - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    indices = contiguous(order.take(np.arange(int(k.item())), axis))
    return [contiguous(np.take_along_axis(x, indices, axis)), indices]


def arg_max(x: Array, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Return the index of the largest element along `axis`: the lowest (or last) of equal ones."""
    if not select_last_index:
        return np.argmax(x, axis, keepdims=bool(keepdims))
    backwards = np.argmax(np.flip(x, axis), axis, keepdims=bool(keepdims))
    return x.shape[axis] - 1 - backwards


def arg_min(x: Array, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Return the index of the smallest element along `axis`, as `arg_max` does of the largest."""
    if not select_last_index:
        return np.argmin(x, axis, keepdims=bool(keepdims))
    backwards = np.argmin(np.flip(x, axis), axis, keepdims=bool(keepdims))
    return x.shape[axis] - 1 - backwards


def compress(x: Array, condition: Array, axis: int | None = None) -> Array:
    """Return the slices of x along `axis` (without it: the elements) where `condition` holds."""
    return np.compress(condition, x, axis)


INDEXING: Mapping[str, VectorOp] = {
    "ArgMax": VectorOp(through_single(arg_max), 1, "input"),
    "ArgMin": VectorOp(through_single(arg_min), 1, "input"),
    "Compress": VectorOp(compress, 1),
    "Gather": VectorOp(gather, 1),
    "GatherElements": VectorOp(gather_elements, 1),
    "GatherND": VectorOp(gather_nd, 1),
    "NonZero": VectorOp(non_zero, 1, "input"),
    "OneHot": VectorOp(one_hot, 1),
    "ScatterElements": arithmetic(scatter_elements, 1),
    "ScatterND": arithmetic(scatter_nd, 1),
    # A comparison with each of the elements kept so far: 8, as in mixtures of experts.
    "TopK": VectorOp(top_k, 8, "input"),
}
