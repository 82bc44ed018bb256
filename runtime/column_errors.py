"""How errors of a weight count in its layer's output, and sweeps over its rows that make them less.

All is done on panels of 64 columns, which know nothing of each other.
"""

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import BLOCK, for_each
from speqc.runtime.matmul import matmul_full
from speqc.runtime.moments import Metric

_STRIPE = 32
"""Rows between two products with the errors so far."""

_RIDGE = 1e-6
"""Part of the mean diagonal that keeps a refit of scales solvable."""

Choose = Callable[[NDArray, NDArray, NDArray, NDArray], None]
"""Chooses the levels of M rows: (rows [M], target [M, 64], inner [M, M], errors [M, 64]).

`target` counts the errors as they come in; `inner` says how much of a change of an error goes to
the rows after it; the new errors are written in the place of the old.
"""

Sweep = Callable[[NDArray[np.float32], NDArray[np.float32], Choose], NDArray[np.float32]]
"""Visits all rows of weights [K, 64] with errors [K, 64]; gives the errors that are left."""

Part = TypeVar("Part")


def in_blocks(columns: int, choose: Callable[[int], Part]) -> list[Part]:
    """What `choose` gives for the first column of each block of 64, in order; see `for_each`."""
    found: dict[int, Part] = {}
    starts = range(0, columns, BLOCK)

    def choose_at(start: int) -> None:
        found[start] = choose(start)

    for_each(starts, choose_at)
    return [found[start] for start in starts]


class ColumnErrors:
    """Errors of 64 columns, counted by the moments of the layer's input."""

    def __init__(self, metric: Metric):
        self.metric = metric

    def loss(self, errors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Squared error of the layer's output for errors [K, 64] of its weights, float64[64]."""
        exact = errors.astype(np.float64)
        damped = np.sum(exact * times(self.metric.moments, errors), axis=0)
        return np.maximum(damped - self.metric.damping * np.sum(exact * exact, axis=0), 0)

    def settle(
        self, weights: NDArray[np.float32], errors: NDArray[np.float32], choose: Choose
    ) -> NDArray[np.float32]:
        """Choose all rows anew, each with its share of the errors before it."""
        return self._sweep(weights, errors, choose, self.metric.feedback, causal=True)

    def descend(
        self, weights: NDArray[np.float32], errors: NDArray[np.float32], choose: Choose
    ) -> NDArray[np.float32]:
        """Choose each row anew with all others as they are: no step makes the output worse."""
        return self._sweep(weights, errors, choose, self.metric.descent, causal=False)

    def _sweep(
        self,
        weights: NDArray[np.float32],
        errors: NDArray[np.float32],
        choose: Choose,
        coupling: NDArray[np.float32],
        *,
        causal: bool,
    ) -> NDArray[np.float32]:
        """Visit rows in the metric's order, a stripe at a time.

        Each row's target is its weight plus its row of `coupling` (in that order) times the errors;
        those of later rows count unless `causal`.
        """
        order = self.metric.order
        found = np.ascontiguousarray(errors[order])
        for first in range(0, len(order), _STRIPE):
            stop = min(first + _STRIPE, len(order))
            reach = first if causal else len(order)
            if causal:
                found[first:stop] = 0
            target = weights[order[first:stop]]
            if reach:
                rows = np.ascontiguousarray(coupling[first:stop, :reach])
                target += times(rows, found[:reach])
            inner = np.ascontiguousarray(coupling[first:stop, first:stop])
            choose(order[first:stop], target, inner, found[first:stop])
        left = np.empty_like(found)
        left[order] = found
        return left

    def normal_equations(
        self, drafts: NDArray[np.float32], errors: NDArray[np.float32], size: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What scales' changes do to the squared error of the output: the quadratic of each column.

        `drafts` [K, 64] are what scales are multiplied by. Gives float64[G, G, 64], lower triangles
        alone, and float64[G, 64]: the least is where their product with the changes equals the
        latter.
        """
        h = self.metric.moments
        groups = -(-len(drafts) // size)
        normal = np.zeros((groups, groups, BLOCK))
        for group in range(groups):
            start, stop = group * size, (group + 1) * size
            columns = np.ascontiguousarray(h[start:, start:stop])
            spread = drafts[start:] * times(columns, drafts[start:stop])
            normal[group:, group] = _group_sums(spread, size)
        return normal, _group_sums(drafts * times(h, errors), size)


def times(matrix: NDArray[np.float32], panel: NDArray[np.float32]) -> NDArray:
    """The product of float32[M, K] and a panel float32[K, 64], by the machine's kernel."""
    return matmul_full(matrix, np.ascontiguousarray(panel)[None], BLOCK, np.float32)


def _group_sums(values: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Sums of float32[K, 64] over the rows of each group, float64[G, 64]."""
    return np.add.reduceat(values.astype(np.float64), np.arange(0, len(values), size), axis=0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def solve(normal, right):
    """Solve normal[G, G, 64] x = right[G, 64] column by column into `right`.

    The lower triangles hold symmetric matrices, positive definite once a ridge is added.
    """
    size = normal.shape[0]
    for n in range(right.shape[1]):
        ridge = 0.0
        for i in range(size):
            ridge += normal[i, i, n]
        ridge = max(ridge / size * _RIDGE, 1e-300)
        for j in range(size):
            normal[j, j, n] += ridge
            for i in range(j, size):
                for k in range(j):
                    normal[i, j, n] -= normal[i, k, n] * normal[j, k, n]
                if i == j:
                    normal[j, j, n] = np.sqrt(max(normal[j, j, n], ridge))
                else:
                    normal[i, j, n] /= normal[j, j, n]
        for i in range(size):
            for k in range(i):
                right[i, n] -= normal[i, k, n] * right[k, n]
            right[i, n] /= normal[i, i, n]
        for i in range(size - 1, -1, -1):
            for k in range(i + 1, size):
                right[i, n] -= normal[k, i, n] * right[k, n]
            right[i, n] /= normal[i, i, n]
