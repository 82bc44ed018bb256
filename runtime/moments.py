"""Second moments of a layer's inputs, and the factor that carries rounding errors onwards.

With H the sum of x x^T over the rows x that a linear layer was given, an error E [K, N] of its
weight changes the layer's outputs by sum_n E[:, n]^T H E[:, n] in squares. The products are those
of the machine's matrix kernel and the factorisation is written out here, so the same rows give the
same bits whatever the number of threads and whichever linear algebra library numpy has.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.matmul import matmul_full, pack_panels

BLOCK = 64
"""Columns of the moments that are computed together."""

CHUNK = 256
"""Rows whose products are summed in FP32 before they are added to the FP64 sums."""

DAMPING = 0.01
"""What is added to the diagonal, as a part of its mean."""

_STRIPE = 32
"""Columns that the factorisation finishes before it updates the rest."""


class Moments:
    """The running sum of x x^T over input rows x [K], float64[K, K].

    Attributes:
        rows: how many rows have been added; those with Inf or NaN are left out.
    """

    def __init__(self, k: int):
        self._sum = np.zeros((k, k))
        self.rows = 0

    def add(self, x: NDArray) -> None:
        """Add the rows of x [M, K], float16 or float32."""
        x = x[np.isfinite(x).all(axis=1)]
        for start in range(0, len(x), CHUNK):
            self._add_chunk(x[start : start + CHUNK])
        self.rows += len(x)

    def _add_chunk(self, x: NDArray) -> None:
        panels, columns = pack_panels(x), np.ascontiguousarray(x.T)
        for block in range(len(panels)):
            first = block * BLOCK
            width = min(BLOCK, len(columns) - first)
            # The sum is symmetric: what stands above this block of rows is filled in at the end.
            part = matmul_full(columns[first:], panels[block : block + 1], width, np.float32)
            self._sum[first:, first : first + width] += part

    def matrix(self) -> NDArray[np.float64]:
        """The sum so far, a new symmetric matrix [K, K]."""
        lower = np.tril(self._sum)
        return lower + np.tril(lower, -1).T


@dataclass(frozen=True)
class Metric:
    """How errors of one layer's weight count, and in which order its rows are settled.

    Attributes:
        moments: float32[K, K], H over its mean diagonal, with `damping` added to the diagonal.
        damping: that number.
        power: mean square of the inputs, which is what the moments are in units of.
        order: int64[K], rows of the weight by falling diagonal, the lower index first in ties.
        feedback: float32[K, K], in that order. With H = (U + I) D (U + I)^T for a strictly upper U,
            row j holds column j of U: what row j of the weight takes up of the errors before it.
        descent: float32[K, K], in that order: rows of H over their diagonal, which itself is 0.
    """

    moments: NDArray[np.float32]
    damping: float
    power: float
    order: NDArray[np.int64]
    feedback: NDArray[np.float32]
    descent: NDArray[np.float32]

    @property
    def importance(self) -> NDArray[np.float32]:
        """float32[K], E[x^2] of each input but for a factor, for `bsfp.encode`."""
        return np.maximum(np.diagonal(self.moments) - np.float32(self.damping), 0)


def metric(moments: Moments, damping: float = DAMPING) -> Metric | None:
    """The metric of a layer with these input moments; None where they say nothing.

    The greedy choice that `feedback` serves is GPTQ (Frantar et al., arXiv 2210.17323) in the form
    of QuIP's LDLQ (Chee et al., arXiv 2307.13304), which needs no inverse.
    """
    h = moments.matrix()
    mean = float(np.mean(np.diagonal(h)))
    if not (moments.rows and np.isfinite(mean) and mean > 0):
        return None
    h /= mean
    order = np.argsort(-np.diagonal(h), kind="stable")
    np.fill_diagonal(h, np.diagonal(h) + damping)
    ordered = h[np.ix_(order, order)]
    descent = (ordered / np.diagonal(ordered)[:, None]).astype(np.float32)
    np.fill_diagonal(descent, 0)
    power = mean / moments.rows
    return Metric(h.astype(np.float32), damping, power, order, feedback(ordered), descent)


def feedback(h: NDArray[np.float64]) -> NDArray[np.float32]:
    """`Metric.feedback` of a positive definite float64[K, K] in its order."""
    # With rows and columns reversed, the upper factor is a transposed lower one.
    upper = np.ascontiguousarray(h[::-1, ::-1])
    _factorise(upper)
    unit = (upper / np.diagonal(upper)[:, None])[::-1, ::-1]
    return np.ascontiguousarray(np.tril(unit, -1).astype(np.float32))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _factorise(a):
    """Replace the upper triangle of float64[K, K] by R with R^T R = a, a stripe at a time."""
    size = a.shape[0]
    for start in range(0, size, _STRIPE):
        stop = min(start + _STRIPE, size)
        for j in range(start, stop):
            for k in range(start, j):
                _subtract(a[j, j:], a[k, j], a[k, j:])
            a[j, j:] /= np.sqrt(a[j, j])
        for i in range(stop, size):
            for k in range(start, stop - 3, 4):
                target, rows = a[i, i:], a[k : k + 4, i:]
                _subtract_four(target, rows[0], rows[1], rows[2], rows[3])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _subtract(target, factor, row):
    for i in range(target.size):
        target[i] -= factor * row[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _subtract_four(target, first, second, third, fourth):
    """Subtract four rows, each times its own first element: they begin in the target's column."""
    f0, f1, f2, f3 = first[0], second[0], third[0], fourth[0]
    for i in range(target.size):
        target[i] -= (f0 * first[i] + f1 * second[i]) + (f2 * third[i] + f3 * fourth[i])
