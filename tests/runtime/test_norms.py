"""Norms, softmax and arg max: the reference's bits, row by row."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speqc.runtime import norms
from speqc.runtime import reference_kernels as reference

DTYPES = st.sampled_from([np.float16, np.float32])
SEEDS = st.integers(0, 10**6)
ROWS = st.integers(1, 4)
WIDTHS = st.integers(1, 100)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays have the same bits, any NaN being like any other."""
    as_bits = f"u{a.itemsize}"
    alike = (a.view(as_bits) == b.view(as_bits)) | (np.isnan(a) & np.isnan(b))
    return a.dtype == b.dtype and a.shape == b.shape and bool(alike.all())


def numbers(seed: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Random numbers of everyday size."""
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype)


@given(SEEDS, ROWS, WIDTHS, DTYPES, DTYPES, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_rms_norm_has_the_bits_of_the_reference(
    seed: int, m: int, c: int, dtype: Any, weight_dtype: Any, weight_in_f32: bool, divide: bool
) -> None:
    x, weight = numbers(seed, (m, c), dtype), numbers(seed + 1, (c,), weight_dtype)
    options = {"weight_in_f32": weight_in_f32, "divide": divide}
    result = norms.rms_norm(x, weight, 1e-5, **options)
    assert same_bits(result, reference.rms_norm(x, weight, 1e-5, **options))


@given(SEEDS, ROWS, WIDTHS, DTYPES, st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_layer_norm_has_the_bits_of_the_reference(
    seed: int, m: int, c: int, dtype: Any, has_bias: bool, weight_in_f32: bool, divide: bool
) -> None:
    x, scale = numbers(seed, (m, c), dtype), numbers(seed + 1, (c,), dtype)
    bias = numbers(seed + 2, (c,), dtype) if has_bias else None
    options = {"weight_in_f32": weight_in_f32, "divide": divide}
    result = norms.layer_norm(x, scale, bias, 1e-5, **options)
    assert same_bits(result, reference.layer_norm(x, scale, bias, 1e-5, **options))


def test_norms_are_the_ones_of_the_books() -> None:
    x, scale, bias = (numbers(seed, (3, 50), np.float32).astype(np.float64) for seed in range(3))
    rms = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * scale[0]
    centred = x - x.mean(1, keepdims=True)
    layer = centred / np.sqrt(x.var(1, keepdims=True) + 1e-5) * scale[0] + bias[0]
    single = [a.astype(np.float32) for a in (x, scale[0], bias[0])]
    assert np.allclose(norms.rms_norm(single[0], single[1], 1e-5), rms, atol=1e-5)
    assert np.allclose(norms.layer_norm(*single, 1e-5), layer, atol=1e-5)


def test_rounding_before_the_weight_shows_in_the_bits() -> None:
    x, weight = numbers(1, (2, 64), np.float16), numbers(2, (64,), np.float16)
    results = [
        norms.rms_norm(x, weight, 1e-5, weight_in_f32=in_f32, divide=divide)
        for in_f32 in (False, True)
        for divide in (False, True)
    ]
    single = norms.rms_norm(x.astype(np.float32), weight, 1e-5)
    assert not same_bits(results[0], results[1 + 1])
    assert same_bits(results[2], single.astype(np.float16))


@given(SEEDS, ROWS, WIDTHS, DTYPES, DTYPES)
@settings(deadline=None, max_examples=60)
def test_reductions_have_the_bits_of_the_reference(
    seed: int, m: int, c: int, dtype: Any, out_dtype: Any
) -> None:
    x = numbers(seed, (m, c), dtype)
    total = norms.reduce_sum_lastdim(x, out_dtype)
    mean = norms.reduce_mean_lastdim(x, out_dtype)
    assert same_bits(total, reference.reduce_sum_lastdim(x, out_dtype))
    assert same_bits(mean, reference.reduce_mean_lastdim(x, out_dtype))


def test_reductions_keep_leading_axes() -> None:
    x = np.ones((2, 3, 20), np.float16)
    assert np.array_equal(norms.reduce_sum_lastdim(x), np.full((2, 3), 20, np.float16))
    assert np.array_equal(norms.reduce_mean_lastdim(x.swapaxes(0, 2)), np.ones((20, 3)))


def test_partial_sums_take_every_sixteenth_element() -> None:
    """In partial sum 0 the large numbers cancel; had 1 met 2^24 first, it would be lost."""
    x = np.zeros((1, 33), np.float32)
    x[0, 0], x[0, 16], x[0, 1] = 2.0**24, -(2.0**24), 1.0
    assert norms.reduce_sum_lastdim(x)[0] == 1.0
    x[0, 16], x[0, 32] = 1.0, -(2.0**24)
    assert norms.reduce_sum_lastdim(x)[0] == 1.0


@given(SEEDS, ROWS, WIDTHS, DTYPES)
@settings(deadline=None, max_examples=40)
def test_softmax_has_the_bits_of_the_reference(seed: int, m: int, c: int, dtype: Any) -> None:
    x = numbers(seed, (m, c), dtype)
    assert same_bits(norms.softmax(x), reference.softmax(x))


def test_softmax_along_other_axes_and_of_special_numbers() -> None:
    x = numbers(1, (4, 5, 6), np.float32)
    swapped = norms.softmax(np.ascontiguousarray(x.swapaxes(1, 2)))
    assert same_bits(np.ascontiguousarray(norms.softmax(x, 1)), swapped.swapaxes(1, 2).copy())
    row = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert np.array_equal(norms.softmax(row), [[0.5, 0.0, 0.5]])
    for poison in (np.nan, np.inf):
        row[0, 1] = poison
        assert np.isnan(norms.softmax(row)).all()


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, -np.inf, np.inf, np.nan]), min_size=1),
    st.integers(0, 200),
    DTYPES,
)
@settings(deadline=None)
def test_argmax_takes_the_lowest_of_a_tie(values: list[float], before: int, dtype: Any) -> None:
    row = np.array([np.nan] * before + values, dtype)
    x = np.stack([row, row[::-1]])
    assert np.array_equal(norms.argmax_rows(x), reference.argmax_rows(x))


def test_argmax_of_long_rows() -> None:
    x = numbers(3, (5, 3001), np.float16)
    assert np.array_equal(norms.argmax_rows(x), x.argmax(1))
    x[:, 7] = np.nan
    expected = np.nanargmax(x.astype(np.float32), 1)
    assert np.array_equal(norms.argmax_rows(x), expected)


@given(SEEDS, st.integers(1, 200), DTYPES)
@settings(deadline=None, max_examples=40)
def test_top_probability_has_the_bits_of_the_reference(seed: int, c: int, dtype: Any) -> None:
    logits = numbers(seed, (c,), dtype)
    result = norms.top_probability(logits)
    assert result == reference.top_probability(logits)
    assert math.isclose(result, norms.softmax(logits.astype(np.float32)[None]).max(), rel_tol=1e-6)


def test_top_probability_of_special_numbers() -> None:
    assert norms.top_probability(np.array([1.0, -np.inf, 1.0], np.float16)) == 0.5
    assert math.isnan(norms.top_probability(np.array([1.0, np.nan], np.float16)))


@given(SEEDS, st.integers(1, 8), st.integers(0, 8))
@settings(deadline=None, max_examples=30)
def test_a_row_depends_on_no_other_row(seed: int, m: int, cut: int) -> None:
    x, weight = numbers(seed, (m, 70), np.float16), numbers(seed + 1, (70,), np.float16)
    parts = [part for part in (x[:cut], x[cut:]) if len(part)]
    for function in (
        norms.softmax,
        lambda rows: norms.rms_norm(rows, weight, 1e-5),
        lambda rows: norms.layer_norm(rows, weight, weight, 1e-5),
        norms.reduce_sum_lastdim,
    ):
        assert same_bits(np.concatenate([function(part) for part in parts]), function(x))


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        norms.rms_norm(np.ones((2, 8), np.float16), np.ones(7, np.float16), 1e-5)
