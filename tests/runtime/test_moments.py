import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speqc.runtime.moments import CHUNK, DAMPING, Moments, feedback, metric


def rows(count, k, seed=0, dtype=np.float16):
    random = np.random.default_rng(seed)
    mix = np.eye(k) + random.standard_normal((k, k)) / np.sqrt(k)
    return (random.standard_normal((count, k)) @ mix).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 63, 64, 130])
def test_moments_are_the_sum_of_outer_products(k, dtype):
    x = rows(CHUNK + 7, k, dtype=dtype)
    moments = Moments(k)
    moments.add(x[:5])
    moments.add(x[5:])
    exact = x.astype(np.float64).T @ x.astype(np.float64)
    assert moments.rows == len(x)
    assert np.array_equal(moments.matrix(), moments.matrix().T)
    assert np.allclose(moments.matrix(), exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_rows_with_inf_or_nan_are_left_out():
    x = rows(9, 5)
    bad = x.copy()
    bad[2, 1], bad[7, 4] = np.inf, np.nan
    one, other = Moments(5), Moments(5)
    one.add(bad)
    other.add(np.delete(x, [2, 7], axis=0))
    assert one.rows == 7
    assert np.array_equal(one.matrix(), other.matrix())


@given(st.integers(1, 80), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_feedback_factors_the_damped_moments_in_their_order(k, seed):
    moments = Moments(k)
    moments.add(rows(max(1, k // 2), k, seed))
    found = metric(moments)
    assert found is not None
    diagonal = np.diagonal(found.moments)
    assert np.all(np.diff(diagonal[found.order]) <= 0)
    ordered = found.moments[np.ix_(found.order, found.order)].astype(np.float64)
    assert not np.triu(found.feedback).any()
    upper = np.eye(k) + found.feedback.T.astype(np.float64)
    inverse = np.linalg.inv(upper)
    middle = inverse @ ordered @ inverse.T
    assert np.allclose(middle, np.diag(np.diagonal(middle)), atol=1e-5 * diagonal.max())
    rescaled = found.descent * np.diagonal(ordered)[:, None]
    assert np.allclose(rescaled, ordered - np.diag(np.diagonal(ordered)), atol=1e-5)


def test_feedback_of_many_stripes_is_the_factor():
    x = rows(300, 150, 1).astype(np.float64)
    h = x.T @ x / 300 + np.eye(150)
    # The upper factor U D U^T is numpy's lower one with both orders turned round.
    lower = np.linalg.cholesky(h[::-1, ::-1])
    unit = (lower / np.diagonal(lower))[::-1, ::-1]
    assert np.allclose(feedback(h), np.triu(unit, 1).T, atol=1e-6)


def test_importance_is_the_mean_square_of_each_input():
    x = rows(500, 20, 2)
    moments = Moments(20)
    moments.add(x)
    found = metric(moments)
    assert found is not None and found.damping == DAMPING
    squares = (x.astype(np.float64) ** 2).mean(axis=0)
    assert np.allclose(found.importance / found.importance.mean(), squares / squares.mean(), 1e-3)


def test_inputs_that_say_nothing_give_no_metric():
    assert metric(Moments(3)) is None
    zero = Moments(3)
    zero.add(np.zeros((4, 3), np.float16))
    assert metric(zero) is None
