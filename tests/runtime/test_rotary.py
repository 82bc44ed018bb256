import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speqc.runtime.rotary import rotary


def slowly(x: NDArray, cos: NDArray, sin: NDArray, interleaved: bool) -> NDArray:
    """The formula, element by element: products and sum in FP32, each rounded to x's dtype."""
    width = cos.shape[-1]
    out = x.copy()
    for index in np.ndindex(*x.shape[:-1], width):
        *_, row, channel = index
        if interleaved:
            partner, sign = channel ^ 1, 1 if channel % 2 else -1
        else:
            half = width // 2
            partner, sign = (channel + half) % width, 1 if channel >= half else -1
        table = (0, 0, row, channel)
        first = x.dtype.type(np.float32(x[index]) * np.float32(cos[table]))
        turned = np.float32(sign) * np.float32(x[(*index[:-1], partner)])
        second = x.dtype.type(turned * np.float32(sin[table]))
        out[index] = x.dtype.type(np.float32(first) + np.float32(second))
    return out


@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 3),
    rows=st.integers(1, 4),
    pairs=st.integers(1, 4),
    rest=st.sampled_from([0, 1, 6]),
    interleaved=st.booleans(),
    dtype=st.sampled_from([np.float16, np.float32]),
)
@settings(max_examples=60, deadline=None)
def test_formula(
    seed: int, heads: int, rows: int, pairs: int, rest: int, interleaved: bool, dtype: type
) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(1, heads, rows, 2 * pairs + rest)).astype(dtype)
    angles = random.uniform(0, 7, size=(1, 1, rows, 2 * pairs))
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    before = x.copy()
    found = rotary(x, cos, sin, interleaved)
    assert found.dtype == dtype
    assert found.tobytes() == slowly(x, cos, sin, interleaved).tobytes()
    assert np.array_equal(x, before)


@pytest.mark.parametrize("interleaved", [False, True])
def test_length_of_pairs_stays(interleaved: bool) -> None:
    x = np.array([[[[3.0, 0.0, 0.0, 4.0]]]], np.float32)
    angles = np.full((1, 1, 1, 4), np.pi / 2)
    found = rotary(x, np.cos(angles).astype("f4"), np.sin(angles).astype("f4"), interleaved)
    expected = [0, 3, -4, 0] if interleaved else [0, -4, 3, 0]
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


def test_infinities_are_values() -> None:
    x = np.array([[[[np.inf, 6e4]]]], np.float16)
    table = np.full((1, 1, 1, 2), 2.0, np.float16)
    found = rotary(x, table, table)
    assert found[0, 0, 0, 1] == np.inf
    assert np.isnan(found[0, 0, 0, 0])
