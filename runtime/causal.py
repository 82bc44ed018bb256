"""Softmax and products over the tokens of a sequence, where a row sees no later token.

For programs that recompute their prefix. A row's bits depend on its own and earlier tokens alone,
not on how many stand behind it, nor on what they hold: not even where that is infinite or NaN.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speqc.runtime.matmul import matmul_plain
from speqc.runtime.norms import softmax

FloatArray = NDArray[np.floating[Any]]


def causal_softmax(scores: FloatArray) -> FloatArray:
    """Return the softmax of scores [..., T, T], row t over columns 0 to t; zero behind them."""
    out = np.zeros(scores.shape, scores.dtype)
    for t in range(scores.shape[-1]):
        seen = np.s_[..., t, : t + 1]
        out[seen] = softmax(np.ascontiguousarray(scores[seen]))
    return out


def causal_matmul(weights: FloatArray, rows: FloatArray, dtype: np.dtype) -> FloatArray:
    """Return weights [..., T, T] times rows [..., T, N], row t over rows 0 to t, in `dtype`.

    Products are added in ascending position, as in `matmul_plain`. There a weight of zero adds
    nothing to a sum, so that all rows may be computed at once; only what is infinite or NaN would
    reach earlier rows, and then each is computed by itself.
    """
    if np.isfinite(rows).all():
        return matmul_plain(np.tril(weights), rows, dtype)
    out = [
        matmul_plain(weights[..., t : t + 1, : t + 1], rows[..., : t + 1, :], dtype)
        for t in range(weights.shape[-1])
    ]
    return np.concatenate(out, axis=-2)
