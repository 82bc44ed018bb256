"""Where each token was likely: the inputs of the head by which the draft of its column is judged.

A draft is accepted for its probabilities, and the logit of a token matters where that token is a
candidate. To second order the divergence of a draft whose logits are off by e is half the variance
of e under the model's probabilities p; with errors that know nothing of each other that is half of
sum_v p_v (1 - p_v) e_v^2. So each column of the head has rows of its own, weighted by p (1 - p).
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from speqc.runtime.fp16 import to_single
from speqc.runtime.norms import softmax

LEAST = 0.005
"""Probability under which a token is no candidate."""

ENOUGH = 0.05
"""Sum of weights under which a column is not judged by rows of its own."""

_ROWS = 64
"""Rows whose probabilities are computed together."""


@dataclass(frozen=True)
class LikelyRows:
    """Inputs of the head, and for some of its columns which of them count, and how much.

    Attributes:
        inputs: float32[K, M], shared by all columns: an input's numbers stand in a column.
        starts: int64[N + 1]; column n has the entries from starts[n] to starts[n + 1].
        rows: int32[E], which inputs, ascending for each column.
        weights: float32[E], p (1 - p).
    """

    inputs: NDArray[np.float32]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    weights: NDArray[np.float32]

    def judged(self) -> NDArray[np.int64]:
        """Columns whose weights add up to something, ascending."""
        columns = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        sums = np.bincount(columns, self.weights, len(self.starts) - 1)
        return np.flatnonzero(sums >= ENOUGH)

    def pick(self, columns: NDArray[np.int64]) -> "LikelyRows":
        """Those of some columns, in the order that is given."""
        counts = self.starts[columns + 1] - self.starts[columns]
        starts = np.concatenate([[0], np.cumsum(counts)])
        entries = np.arange(starts[-1]) + np.repeat(self.starts[columns] - starts[:-1], counts)
        return LikelyRows(self.inputs, starts, self.rows[entries], self.weights[entries])


class LikelyTokens:
    """Collects where tokens were likely, from inputs of the head and the logits they gave."""

    def __init__(self) -> None:
        self._vocabulary = 0
        self._inputs: list[NDArray] = []
        self._found: list[tuple[NDArray, NDArray, NDArray]] = []
        self._count = 0

    def add(self, x: NDArray, logits: NDArray, counts: NDArray[np.bool_]) -> None:
        """Add inputs [M, K] and their logits [M, V], of the rows that count, bool[M].

        Rows with Inf or NaN are left out.
        """
        self._vocabulary = logits.shape[1]
        wanted = np.flatnonzero(counts & np.isfinite(x).all(axis=1))
        for start in range(0, len(wanted), _ROWS):
            rows = wanted[start : start + _ROWS]
            p = softmax(to_single(logits[rows]))
            sound = ~np.isnan(p[:, 0])
            self._add_rows(x[rows[sound]], p[sound])

    def _add_rows(self, x: NDArray, p: NDArray[np.floating]) -> None:
        rows, tokens = np.nonzero(p >= np.float32(LEAST))
        chance = p[rows, tokens]
        weights = chance * (np.float32(1) - chance)
        self._found.append(((rows + self._count).astype(np.int32), tokens, weights))
        self._inputs.append(x)
        self._count += len(x)

    def take(self) -> LikelyRows | None:
        """What was collected, by columns; None where there was nothing."""
        if not self._count:
            return None
        rows, tokens, weights = (np.concatenate(part) for part in zip(*self._found, strict=True))
        order = np.argsort(tokens, kind="stable")
        starts = np.searchsorted(tokens[order], np.arange(self._vocabulary + 1))
        inputs = np.empty((self._inputs[0].shape[1], self._count), np.float32)
        ends = accumulate(map(len, self._inputs), initial=0)
        for (start, stop), part in zip(pairwise(ends), self._inputs, strict=True):
            inputs[:, start:stop] = to_single(part).T
        return LikelyRows(inputs, starts, rows[order], weights[order])
