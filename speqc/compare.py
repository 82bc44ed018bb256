"""A tensor of a program beside the original graph's: which elements differ by more than rounding.

Integers and truth values must be equal. A floating-point element differs where

    |ours - original| > tolerance * row + slack

with `row` the largest finite magnitude in the element's row (its last dimension; in the whole
tensor where rows have fewer than 16 elements). A sum of K products has an error in proportion to
its terms, not to itself, so that an element is measured by its neighbours. Equal infinities are
equal, and so are two NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST_LISTED = 10
"""Elements of a tensor that are listed, those with the largest errors."""

SHORT_ROW = 16
"""Rows with fewer elements say too little about the size of the terms behind them."""

UNITS: Mapping[str, int] = {"float16": 8, "float32": 128, "float64": 128}
"""By how many units in the last place of a row's largest element two computations may differ.

A node rounds a few times in FP16. In FP32, sums of thousands of terms are added in another order.
"""


@dataclass(frozen=True)
class Difference:
    """An element that differs."""

    index: tuple[int, ...]
    ours: float | int | bool
    original: float | int | bool


@dataclass(frozen=True)
class Verdict:
    """How a tensor compares.

    Attributes:
        equal: it is equal bit for bit.
        elements: how many elements it has.
        differing: how many differ by more than the tolerance.
        largest_error: the largest |ours - original|, infinite where one is not finite.
        relative_error: the largest share of an error in its row's largest magnitude.
        share: the largest share of an error in what its element is allowed; above 1 where any
            differs.
        differences: the differing elements with the largest errors, at most `MOST_LISTED`.
    """

    equal: bool
    elements: int
    differing: int
    largest_error: float
    relative_error: float
    share: float
    differences: tuple[Difference, ...]

    @property
    def matches(self) -> bool:
        """Whether no element differs."""
        return not self.differing


def unit(dtype: DTypeLike) -> float:
    """One unit in the last place of 1; 0 for integers and truth values."""
    return float(np.finfo(dtype).eps) if np.dtype(dtype).kind == "f" else 0.0


def rounding(dtype: DTypeLike) -> float:
    """The relative tolerance for one node that rounds to `dtype`; 0 for other than floats."""
    return UNITS[np.dtype(dtype).name] * unit(dtype) if np.dtype(dtype).kind == "f" else 0.0


def compare(
    ours: NDArray, original: NDArray, tolerance: float = 0.0, slack: float = 0.0
) -> Verdict:
    """Compare two tensors of one shape; ValueError where they have two.

    `tolerance` is relative, `slack` absolute; neither counts where both are integers or booleans.
    """
    if ours.shape != original.shape:
        raise ValueError(f"shapes {ours.shape} and {original.shape} differ")
    if ours.dtype.kind != "f" and original.dtype.kind != "f":
        tolerance = slack = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        error = _errors(ours, original)
        row = _row_magnitudes(original)
        allowed = tolerance * row + slack + _smallest(tolerance)
        wrong = error > allowed
    return Verdict(
        equal=ours.dtype == original.dtype and _same_bits(ours, original),
        elements=ours.size,
        differing=int(wrong.sum()),
        largest_error=float(error.max(initial=0.0)),
        relative_error=_largest_share(error, row),
        share=_largest_share(error, allowed),
        differences=_listed(ours, original, np.where(wrong, error, -1.0)),
    )


def _errors(ours: NDArray, original: NDArray) -> NDArray[np.float64]:
    """|ours - original|; infinite where only one is finite, or both are not and differ."""
    if ours.dtype.kind != "f" and original.dtype.kind != "f":
        # FP64 does not tell large integers apart.
        same = ours == original
        distance = np.abs(ours.astype(np.float64) - original.astype(np.float64))
        return np.where(same, 0.0, np.maximum(distance, 1.0))
    first, second = ours.astype(np.float64), original.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    finite = np.isfinite(first) & np.isfinite(second)
    return np.where(same, 0.0, np.where(finite, np.abs(first - second), np.inf))


def _row_magnitudes(original: NDArray) -> NDArray[np.float64]:
    """For each element the largest finite magnitude around it."""
    finite = np.nan_to_num(np.abs(original.astype(np.float64)), nan=0.0, posinf=0.0)
    if original.ndim == 0 or original.shape[-1] < SHORT_ROW:
        return np.full(original.shape, finite.max(initial=0.0))
    return np.broadcast_to(finite.max(axis=-1, keepdims=True), original.shape)


def _largest_share(error: NDArray, whole: NDArray) -> float:
    """The largest error / whole; an error of nothing is infinite, none of nothing is 0."""
    with np.errstate(invalid="ignore"):
        shares = np.divide(error, whole, out=np.where(error > 0, np.inf, 0.0), where=whole > 0)
    return float(shares.max(initial=0.0))


def _smallest(tolerance: float) -> float:
    """Two units of the subnormal numbers of the type that a tolerance is for."""
    if not tolerance:
        return 0.0
    kind = np.float16 if tolerance >= rounding(np.float16) else np.float32
    return 2 * float(np.finfo(kind).smallest_subnormal)


def _same_bits(ours: NDArray, original: NDArray) -> bool:
    if ours.dtype.kind != "f":
        return np.array_equal(ours, original)
    kind = f"u{ours.dtype.itemsize}"
    first, second = (np.ascontiguousarray(array).view(kind) for array in (ours, original))
    return np.array_equal(first, second)


def _listed(ours: NDArray, original: NDArray, error: NDArray) -> tuple[Difference, ...]:
    """The elements with the largest errors, the first of equal ones first; none below 0."""
    flat = error.reshape(-1)
    order = np.argsort(-flat, kind="stable")[:MOST_LISTED]
    places = [np.unravel_index(place, ours.shape) for place in order if flat[place] >= 0]
    return tuple(
        Difference(tuple(map(int, place)), ours[place].item(), original[place].item())
        for place in places
    )
