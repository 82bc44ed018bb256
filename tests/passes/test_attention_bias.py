"""Slopes, origins and roundings of position biases, found in samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import f16, f32

from speqc.dialects.speq import BiasOrigin
from speqc.passes.attention_bias import ROUNDINGS, Bias, BiasSample, find_bias
from speqc.passes.attention_mask import causal_mask

STEPS = ((1, 0), (2, 3), (5, 7), (1, 300))


def samples(bias: Bias, steps: tuple[tuple[int, int], ...] = STEPS) -> list[BiasSample]:
    """What a graph with a bias gives in some steps."""
    return [
        BiasSample(past, bias.values(rows, past), causal_mask(rows, past, None)[None])
        for rows, past in steps
    ]


@given(
    slopes=st.lists(st.floats(2**-9, 1, width=32), min_size=1, max_size=3),
    origin=st.sampled_from(BiasOrigin),
    rounding=st.sampled_from(ROUNDINGS),
)
@settings(deadline=None, max_examples=40)
def test_what_is_found_gives_the_same_bits(
    slopes: list[float], origin: BiasOrigin, rounding: tuple
) -> None:
    given = samples(Bias(origin, tuple(slopes), *rounding))
    found = find_bias(given)
    assert found is not None
    assert found.origin == origin
    for old, new in zip(given, samples(found), strict=True):
        np.testing.assert_array_equal(
            new.values[old.seen.repeat(len(slopes), 0)], old.values[old.seen.repeat(len(slopes), 0)]
        )


def test_fp32_slopes_are_found_exactly_and_short_ones_where_rounding_hides_them() -> None:
    slopes = (float(np.float32(0.1)), 0.5)
    assert find_bias(samples(Bias(BiasOrigin.ROW, slopes, f32, f32))) == Bias(
        BiasOrigin.ROW, slopes, f32, f32
    )
    exact = find_bias(samples(Bias(BiasOrigin.START, (0.25, 2.0**-8), f32, f16)))
    assert exact is not None and exact.slopes == (0.25, 2.0**-8)


def test_positions_from_the_last_key_count_as_from_the_row() -> None:
    found = find_bias(
        [
            BiasSample(
                past,
                np.broadcast_to(
                    np.float32(0.3) * (np.arange(past + rows, dtype=np.float32) - past - rows + 1),
                    (1, rows, past + rows),
                ),
                causal_mask(rows, past, None)[None],
            )
            for rows, past in STEPS
        ]
    )
    assert found == Bias(BiasOrigin.ROW, (float(np.float32(0.3)),), f32, f32, from_last=True)
    np.testing.assert_array_equal(
        found.values(2, 1)[0],
        np.float32(0.3) * np.array([[-2, -1, np.inf], [-2, -1, 0]], np.float32),
    )


@pytest.mark.parametrize("power", [0, 0.5, 2])
def test_other_functions_of_the_position_are_none(power: float) -> None:
    def other(sample: BiasSample) -> BiasSample:
        values = (np.abs(sample.values) ** power).astype(np.float32)
        return BiasSample(sample.past, values, sample.seen)

    line = Bias(BiasOrigin.START, (0.5,), f32, f32)
    assert find_bias([other(sample) for sample in samples(line)]) is None


def test_another_origin_in_one_step_is_none() -> None:
    one, other = (samples(Bias(origin, (0.5,), f32, f32)) for origin in BiasOrigin)
    assert find_bias([*one[:-1], other[-1]]) is None
