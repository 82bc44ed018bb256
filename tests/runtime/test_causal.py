import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speqc.runtime.causal import causal_matmul, causal_softmax
from speqc.runtime.matmul import matmul_plain
from speqc.runtime.norms import softmax

TYPES = pytest.mark.parametrize("dtype", [np.float16, np.float32])
LATER = (0.0, -0.0, np.inf, -np.inf, np.nan)


def scores(tokens: int, dtype, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (2, tokens, tokens)).astype(dtype)


@TYPES
def test_a_row_is_the_softmax_of_what_it_sees(dtype):
    x = scores(19, dtype, 1)
    found = causal_softmax(x)
    for t in range(19):
        assert found[:, t, : t + 1].tobytes() == softmax(x[:, t, : t + 1]).tobytes()
        assert not found[:, t, t + 1 :].any()


@TYPES
@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(2, 20), cut=st.integers(1, 19), value=st.sampled_from(LATER))
def test_later_scores_change_no_bit(dtype, tokens: int, cut: int, value: float):
    cut = min(cut, tokens - 1)
    x = scores(tokens, dtype, tokens)
    other = x.copy()
    other[:, :, cut:] = value
    expected = causal_softmax(x)[:, :cut]
    assert causal_softmax(other)[:, :cut].tobytes() == expected.tobytes()
    short = causal_softmax(x[:, :cut, :cut])
    assert short.tobytes() == np.ascontiguousarray(expected[:, :, :cut]).tobytes()


@TYPES
@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(2, 20), cut=st.integers(1, 19), value=st.sampled_from(LATER))
def test_later_rows_change_no_bit(dtype, tokens: int, cut: int, value: float):
    cut = min(cut, tokens - 1)
    weights = scores(tokens, dtype, tokens)
    rows = np.random.default_rng(cut).normal(0, 1, (2, tokens, 5)).astype(dtype)
    expected = causal_matmul(weights, rows, np.dtype(dtype))[:, :cut]
    for t in range(cut):
        seen = matmul_plain(weights[:, t : t + 1, : t + 1], rows[:, : t + 1], dtype)
        assert seen[:, 0].tobytes() == np.ascontiguousarray(expected[:, t]).tobytes()
    rows[:, cut:] = value
    weights[:, :cut, cut:] = value
    found = causal_matmul(weights, rows, np.dtype(dtype))[:, :cut]
    assert found.tobytes() == expected.tobytes()
