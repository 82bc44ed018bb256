"""What `raise-rotary` takes for a rotation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speqc.passes.raise_rotary import rotate
from speqc.runtime.rotary import rotary


@given(pairs=st.integers(1, 8), rows=st.integers(1, 4), interleaved=st.booleans())
def test_rotation_is_that_of_the_kernel(pairs: int, rows: int, interleaved: bool) -> None:
    x = np.arange(1, 1 + 2 * rows * 2 * pairs).reshape(1, 2, rows, 2 * pairs).astype(np.float32)
    table = np.zeros((1, 1, rows, 2 * pairs), np.float32)
    np.testing.assert_array_equal(
        rotary(x, table, table + 1, interleaved), rotate(x, interleaved=interleaved)
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_four_quarter_turns_are_none(interleaved: bool) -> None:
    x = np.arange(1, 13).reshape(1, 12)
    half_turn = rotate(rotate(x, interleaved=interleaved), interleaved=interleaved)
    np.testing.assert_array_equal(half_turn, -x)
