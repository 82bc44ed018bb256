"""Errors of the head counted where their token was likely: a metric for each column of a panel.

A column's error e costs e^T H e, with H the moments that all columns share, plus the sum of
w (x . e)^2 / `PRIOR` over the inputs x where its token was a candidate (see `likely_tokens`). These
are few for most tokens, so that their part is never formed as a matrix: what each logit is off by
is kept up instead.
"""

from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import BLOCK, for_each
from speqc.runtime.column_errors import Choose, ColumnErrors, times
from speqc.runtime.likely_tokens import LikelyRows
from speqc.runtime.moments import Metric

PRIOR = 5.0
"""Rows that the moments of all text count as, beside those where a column's token was likely."""

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


class LikelyColumns(ColumnErrors):
    """Errors of at most 64 columns of the head, each judged where its token was likely.

    `settle` is that of all text.
    """

    def __init__(self, metric: Metric, likely: LikelyRows):
        super().__init__(metric)
        self._inputs = likely.inputs
        self._starts = np.pad(likely.starts, (0, BLOCK + 1 - len(likely.starts)), mode="edge")
        self._rows = likely.rows
        self._weights = likely.weights / np.float32(metric.power * PRIOR)
        self._diagonal = np.repeat(np.diagonal(metric.moments)[:, None], BLOCK, axis=1)
        _add_squares(self._inputs, self._starts, self._rows, self._weights, self._diagonal)

    def loss(self, errors: NDArray[np.float32]) -> NDArray[np.float64]:
        """What errors [K, 64] cost each column, damping included, float64[64]."""
        exact = errors.astype(np.float64)
        shared = np.sum(exact * times(self.metric.moments, errors), axis=0)
        own = self._weights * self._residuals(errors).astype(np.float64) ** 2
        places = np.repeat(np.arange(BLOCK), np.diff(self._starts))
        return shared + np.bincount(places, own, BLOCK)

    def descend(
        self, weights: NDArray[np.float32], errors: NDArray[np.float32], choose: Choose
    ) -> NDArray[np.float32]:
        """Choose each row anew with all others as they are, one row after another."""
        found = np.array(errors)
        coupling = self.metric.moments
        pull, residuals = times(coupling, found), self._residuals(found)
        entries = self._starts, self._rows
        target = np.empty((1, BLOCK), np.float32)
        alone = np.zeros((1, 1), np.float32)
        for k in self.metric.order:
            x, before = self._inputs[k], found[k].copy()
            aim = self._weights, weights[k], before, pull[k], self._diagonal[k], residuals
            _aim(x, *entries, *aim, target[0])
            choose(np.arange(k, k + 1), target, alone, found[k : k + 1])
            _pass_on(x, *entries, found[k] - before, coupling[k], pull, residuals)
        return found

    def normal_equations(
        self, drafts: NDArray[np.float32], errors: NDArray[np.float32], size: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As those of all text."""
        normal, slope = super().normal_equations(drafts, errors, size)
        entries = self._starts, self._rows, self._weights
        _add_normal(self._inputs, *entries, drafts, self._residuals(errors), size, normal, slope)
        return normal, slope

    def _residuals(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the logit of each entry is off by, float32[E]."""
        residuals = np.zeros(len(self._rows), np.float32)
        _add_products(self._inputs, self._starts, self._rows, errors, residuals)
        return residuals


def improve_judged(
    metric: Metric,
    likely: LikelyRows | None,
    improve: Callable[[NDArray[np.int64], LikelyColumns], None],
) -> None:
    """Call `improve` for the columns that are judged, 64 at a time, with what judges them."""
    if likely is None:
        return
    judged = likely.judged()

    def improve_at(start: int) -> None:
        columns = judged[start : start + BLOCK]
        improve(columns, LikelyColumns(metric, likely.pick(columns)))

    for_each(range(0, len(judged), BLOCK), improve_at)


@_jit
def _add_squares(inputs, starts, rows, weights, diagonal):
    """Add the sums of w x[k]^2 over each column's entries to diagonal[K, 64]."""
    for k in range(inputs.shape[0]):
        for n in range(diagonal.shape[1]):
            total = np.float32(0)
            for entry in range(starts[n], starts[n + 1]):
                x = inputs[k, rows[entry]]
                total += weights[entry] * x * x
            diagonal[k, n] += total


@_jit
def _add_products(inputs, starts, rows, values, products):
    """Add x . values[:, n] to products[E], for the input x of each entry of column n."""
    for k in range(inputs.shape[0]):
        for n in range(values.shape[1]):
            for entry in range(starts[n], starts[n + 1]):
                products[entry] += inputs[k, rows[entry]] * values[k, n]


@_jit
def _add_normal(inputs, starts, rows, weights, drafts, residuals, size, normal, slope):
    """Add the entries' part to normal[G, G, 64], lower triangles alone, and slope[G, 64]."""
    groups = slope.shape[0]
    for n in range(slope.shape[1]):
        entries = rows[starts[n] : starts[n + 1]]
        parts = np.zeros((groups, entries.size), np.float32)
        for k in range(inputs.shape[0]):
            for i in range(entries.size):
                parts[k // size, i] += inputs[k, entries[i]] * drafts[k, n]
        for g in range(groups):
            for i in range(entries.size):
                entry = starts[n] + i
                pulled = np.float64(weights[entry] * parts[g, i])
                for h in range(g + 1):
                    normal[g, h, n] += pulled * parts[h, i]
                slope[g, n] += pulled * residuals[entry]


@_jit
def _aim(x, starts, rows, weights, source, errors, pull, diagonal, residuals, target):
    """The weights of a row that would be best, with those of all other rows as they are."""
    for n in range(target.size):
        total = pull[n]
        for entry in range(starts[n], starts[n + 1]):
            total += weights[entry] * x[rows[entry]] * residuals[entry]
        part = total / diagonal[n] if diagonal[n] > 0 else np.float32(0)
        target[n] = source[n] + part - errors[n]


@_jit
def _pass_on(x, starts, rows, change, coupling, pull, residuals):
    """Count a change [64] of a row's errors in what pulls at all rows, and in the residuals."""
    for k in range(pull.shape[0]):
        for n in range(change.size):
            pull[k, n] += coupling[k] * change[n]
    for n in range(change.size):
        if change[n] != 0:
            for entry in range(starts[n], starts[n + 1]):
                residuals[entry] += x[rows[entry]] * change[n]
