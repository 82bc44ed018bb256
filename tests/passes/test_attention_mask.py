"""Causal masks with and without a window."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from speqc.passes.attention_mask import causal_mask


@given(rows=st.integers(1, 6), past=st.integers(0, 9), window=st.none() | st.integers(1, 12))
def test_rows_see_what_the_operation_says(rows: int, past: int, window: int | None) -> None:
    mask = causal_mask(rows, past, window)
    assert mask.shape == (rows, past + rows)
    for m in range(rows):
        first = 0 if window is None else max(0, past + m + 1 - window)
        np.testing.assert_array_equal(np.flatnonzero(mask[m]), np.arange(first, past + m + 1))
