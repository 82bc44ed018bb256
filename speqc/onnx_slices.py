"""The size of a `Slice` whose bounds are expressions in `sequence` and `past`."""

from __future__ import annotations

from speqc.onnx_symbols import Affine, Dim, affine

FAR = 2**31 - 1
"""A bound from here on means the end of the axis."""


def slice_size(size: Dim, start: Dim, end: Dim) -> Dim | None:
    """How many elements from `start` to `end` an axis of `size` has, if that has one form."""
    if (whole := affine(size)) is None:
        return None
    first, last = _bound(start, whole), _bound(end, whole)
    if first is None or last is None or not (count := last - first).never_negative:
        return None
    return count.dim()


def _bound(bound: Dim, size: Affine) -> Affine | None:
    """A bound as a position from 0 to `size`, if that has one form.

    A table of fixed size has a place for each position that the model can take: a bound that counts
    positions lies inside it.
    """
    if (position := affine(bound)) is None:
        return None
    if position.always_negative:
        position = position.plus(size)
        if position.always_negative:
            return Affine(0)
    if position == size or (position - size).never_negative or position.constant >= FAR:
        return size
    is_inside = (size.is_fixed and not position.is_fixed) or (size - position).never_negative
    return position if position.never_negative and is_inside else None
