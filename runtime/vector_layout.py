"""Shapes and the arrangement of elements: no arithmetic on values but that of `Range`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from speqc.runtime.vector_logic import dtype_of
from speqc.runtime.vector_op import HALF, SINGLE, Array, VectorOp, contiguous, integers


def identity(x: Array) -> Array:
    """Return x."""
    return x


def concat(*inputs: Array, axis: int) -> Array:
    """Return the inputs joined along `axis`."""
    return np.concatenate(inputs, axis)


def constant_of_shape(shape: Array, value: Array | None = None) -> Array:
    """Return a tensor filled with the one element of `value`, or with FP32 zeros."""
    if value is None:
        return np.zeros(integers(shape), SINGLE)
    return np.full(integers(shape), value.item(), value.dtype)


def expand(x: Array, shape: Array) -> Array:
    """Return x broadcast against `shape` (to the larger of each pair of dimensions)."""
    sizes = integers(shape)
    rank = max(x.ndim, len(sizes))
    own = (1,) * (rank - x.ndim) + x.shape
    asked = [1] * (rank - len(sizes)) + sizes
    full = tuple(b if a == 1 else a for a, b in zip(own, asked, strict=True))
    if full == x.shape:
        return x
    result = np.empty(full, x.dtype)
    result[...] = x
    return result


def flatten(x: Array, axis: int = 1) -> Array:
    """Return x as a matrix: dimensions before `axis` make the rows."""
    if axis < 0:
        axis += x.ndim
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def reshape(x: Array, shape: Array, allowzero: int = 0) -> Array:
    """Return x in `shape`, where -1 is what remains and 0 copies a size (unless `allowzero`)."""
    sizes = integers(shape)
    if not allowzero and 0 in sizes:
        sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
    return contiguous(x.reshape(sizes))


def shape_of(x: Array, start: int = 0, end: int | None = None) -> Array:
    """Return the sizes of dimensions start..end of x."""
    return np.array(x.shape[start:end], np.int64)


def size_of(x: Array) -> Array:
    """Return the number of elements of x."""
    return np.array(x.size, np.int64)


def _part(size: int, start: int, end: int, step: int) -> slice:
    """Return ONNX's (start, end, step) on a dimension of `size` as a Python slice.

    Both count negative positions from the back; after that Python has no number for "before the
    first element", which is None.
    """
    first, last = (0, size) if step > 0 else (-1, size - 1)
    start = min(max(start + size if start < 0 else start, 0), last)
    end = min(max(end + size if end < 0 else end, first), last)
    return slice(start, None if end < 0 else end, step)


def slice_of(
    x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    """Return elements starts..ends by steps along `axes` (without them the first ones)."""
    first, last = integers(starts), integers(ends)
    along = range(len(first)) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    parts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, strides, strict=True):
        parts[axis] = _part(x.shape[axis], start, end, step)
    return contiguous(x[tuple(parts)])


def _sizes_of_parts(size: int, parts: int) -> list[int]:
    """Return `parts` equal sizes that sum up to `size`, the last ones smaller if need be."""
    most = -(-size // parts)
    return [min(most, max(size - index * most, 0)) for index in range(parts)]


def split(x: Array, split: Array | None = None, axis: int = 0, num_outputs: int = 1) -> list[Array]:
    """Return parts of x along `axis`: of the sizes in `split`, or `num_outputs` equal ones."""
    sizes = _sizes_of_parts(x.shape[axis], num_outputs) if split is None else integers(split)
    before = (slice(None),) * (axis % x.ndim)
    parts: list[Array] = []
    start = 0
    for size in sizes:
        parts.append(contiguous(x[(*before, slice(start, start + size))]))
        start += size
    return parts


def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Return x without the dimensions `axes`, which have size 1 (without `axes`: all such)."""
    return x.squeeze(None if axes is None else tuple(integers(axes)))


def unsqueeze(x: Array, axes: Array) -> Array:
    """Return x with dimensions of size 1 inserted, which are `axes` of the result."""
    rank = x.ndim + axes.size
    inserted = {axis % rank for axis in integers(axes)}
    sizes = iter(x.shape)
    return x.reshape([1 if axis in inserted else next(sizes) for axis in range(rank)])


def tile(x: Array, repeats: Array) -> Array:
    """Return x repeated along each dimension."""
    return np.tile(x, integers(repeats))


def transpose(x: Array, perm: Sequence[int] | None = None) -> Array:
    """Return x with dimensions in the order `perm` (by default reversed)."""
    return contiguous(x.transpose(perm))


def triangle(x: Array, k: Array | None = None, upper: int = 1) -> Array:
    """Return the matrices of x with zeros below (`upper`) or above their k-th diagonal."""
    diagonal = 0 if k is None else int(k.item())
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


def eye_like(x: Array, dtype: int = 0, k: int = 0) -> Array:
    """Return a matrix as large as x, with ones on its k-th diagonal and zeros elsewhere."""
    kind = dtype_of(dtype, "EyeLike") if dtype else x.dtype
    rows, columns = x.shape
    return np.eye(rows, columns, k, kind)


def _cropped(x: Array, widths: Sequence[tuple[int, int]]) -> Array:
    """Return x without as many elements at each end as negative widths say."""
    parts = (
        slice(max(-before, 0), size - max(-behind, 0))
        for size, (before, behind) in zip(x.shape, widths, strict=True)
    )
    return x[tuple(parts)]


def pad(
    x: Array,
    pads: Array,
    constant_value: Array | None = None,
    axes: Array | None = None,
    mode: str = "constant",
) -> Array:
    """Return x with elements added along `axes` (by default all), or taken off.

    `pads` holds the numbers of elements before, for each axis, and then those behind. `mode` is
    "constant" (of the value, or 0), "edge", "reflect" or "wrap".
    """
    along = range(x.ndim) if axes is None else integers(axes)
    sizes = integers(pads)
    widths = [(0, 0)] * x.ndim
    for axis, before, behind in zip(along, sizes, sizes[len(along) :], strict=False):
        widths[axis] = (before, behind)
    inner = _cropped(x, widths)
    added = [(max(before, 0), max(behind, 0)) for before, behind in widths]
    if mode == "constant":
        filler = x.dtype.type(0) if constant_value is None else constant_value.item()
        return np.pad(inner, added, constant_values=filler)
    return np.pad(inner, added, mode)  # pyright: ignore[reportArgumentType, reportCallIssue]


def range_of(start: Array, limit: Array, delta: Array, stash_type: int = 1) -> Array:
    """Return start, start + delta, ... up to `limit` (exclusive).

    FP16 numbers are computed in FP32 and rounded once (`stash_type` 1, the only one known).
    """
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    wide = SINGLE if start.dtype == HALF else start.dtype
    steps = np.arange(count).astype(wide) * delta.astype(wide)
    return (start.astype(wide) + steps).astype(start.dtype, copy=False)


LAYOUT: Mapping[str, VectorOp] = {
    "Concat": VectorOp(concat, 1),
    "ConstantOfShape": VectorOp(constant_of_shape, 1),
    "Expand": VectorOp(expand, 1),
    "EyeLike": VectorOp(eye_like, 1),
    "Flatten": VectorOp(flatten, 0),
    "Identity": VectorOp(identity, 0),
    "Pad": VectorOp(pad, 1),
    "Range": VectorOp(range_of, 1),
    "Reshape": VectorOp(reshape, 0),
    "Shape": VectorOp(shape_of, 1),
    "Size": VectorOp(size_of, 1),
    "Slice": VectorOp(slice_of, 1),
    "Split": VectorOp(split, 1),
    "Squeeze": VectorOp(squeeze, 0),
    "Tile": VectorOp(tile, 1),
    "Transpose": VectorOp(transpose, 1),
    "Trilu": VectorOp(triangle, 1),
    "Unsqueeze": VectorOp(unsqueeze, 0),
}
