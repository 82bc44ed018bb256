import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gptq import SETS, blocks, gaussian

from speqc.runtime.bsfp import decode, draft_values
from speqc.runtime.column_errors import ColumnErrors
from speqc.runtime.copies import copied_values
from speqc.runtime.copy_formats import copy_format
from speqc.runtime.gptq import choose
from speqc.runtime.gptq_copies import choose_copy
from speqc.runtime.likely_columns import PRIOR, LikelyColumns
from speqc.runtime.likely_tokens import LEAST, LikelyRows, LikelyTokens
from speqc.runtime.moments import Metric, Moments, metric

FLOAT_ERROR = 1e-4


def collected(k: int, vocabulary: int, count: int, seed: int) -> tuple[Metric, LikelyRows]:
    """Correlated inputs, and logits in which a few tokens stand out."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, k)) @ (np.eye(k) + random.standard_normal((k, k)) / 3)
    x = x.astype(np.float16)
    moments, tokens = Moments(k), LikelyTokens()
    moments.add(x)
    logits = (3 * random.standard_normal((count, vocabulary))).astype(np.float32)
    tokens.add(x, logits, np.ones(count, bool))
    found, likely = metric(moments), tokens.take()
    assert found is not None and likely is not None
    return found, likely


def hessian(found: Metric, likely: LikelyRows, n: int) -> np.ndarray:
    """The matrix by which column n is judged, by its definition, float64[K, K]."""
    part = slice(likely.starts[n], likely.starts[n + 1])
    x = likely.inputs[:, likely.rows[part]].astype(np.float64)
    own = (x * likely.weights[part]) @ x.T / found.power
    return found.moments.astype(np.float64) + own / PRIOR


def judged_loss(errors: np.ndarray, found: Metric, likely: LikelyRows) -> np.ndarray:
    exact = errors.astype(np.float64)
    return np.array([e @ hessian(found, likely, n) @ e for n, e in enumerate(exact.T)])


def test_tokens_count_where_they_are_likely():
    random = np.random.default_rng(1)
    logits = (4 * random.standard_normal((150, 30))).astype(np.float32)
    x = random.standard_normal((150, 5)).astype(np.float16)
    x[7, 2], logits[90, 3] = np.inf, np.nan
    tokens = LikelyTokens()
    counts = np.arange(150) != 20
    tokens.add(x[:100], logits[:100], counts[:100])
    tokens.add(x[100:], logits[100:], counts[100:])
    likely = tokens.take()
    assert likely is not None
    sound = np.delete(np.arange(150), [7, 20, 90])
    exponents = np.exp(logits[sound].astype(np.float64))
    p = exponents / exponents.sum(axis=1, keepdims=True)
    assert np.array_equal(likely.inputs.T, x[sound].astype(np.float32))
    for token in range(30):
        part = slice(likely.starts[token], likely.starts[token + 1])
        chance = p[:, token]
        assert np.array_equal(likely.rows[part], np.flatnonzero(chance >= LEAST))
        wanted = (chance * (1 - chance))[chance >= LEAST]
        assert likely.weights[part] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_nothing_collected_is_nothing():
    assert LikelyTokens().take() is None


def test_columns_are_picked_in_the_order_given():
    _, likely = collected(4, 70, 50, 0)
    wanted = np.array([69, 3, 40])
    part = likely.pick(wanted)
    for place, column in enumerate(wanted):
        here = slice(part.starts[place], part.starts[place + 1])
        there = slice(likely.starts[column], likely.starts[column + 1])
        assert np.array_equal(part.rows[here], likely.rows[there])
        assert np.array_equal(part.weights[here], likely.weights[there])


def test_columns_with_little_weight_are_not_judged():
    weights = np.float32([0.04, 0.03, 0.049, 0.2])
    likely = LikelyRows(
        np.zeros((1, 1), np.float32), np.array([0, 2, 2, 3, 4]), np.zeros(4), weights
    )
    assert likely.judged().tolist() == [0, 3]


def test_normal_equations_are_those_of_each_columns_matrix():
    found, likely = collected(24, 64, 60, 2)
    random = np.random.default_rng(3)
    drafts, errors = random.standard_normal((2, 24, 64)).astype(np.float32)
    judge = LikelyColumns(found, likely)
    assert judge.loss(errors) == pytest.approx(judged_loss(errors, found, likely), rel=1e-3)
    normal, slope = judge.normal_equations(drafts, errors, 10)
    groups = np.arange(24) // 10
    for n in range(64):
        spread = (groups[:, None] == np.arange(3)) * drafts[:, n : n + 1].astype(np.float64)
        h = hessian(found, likely, n)
        assert np.tril(normal[:, :, n]) == pytest.approx(np.tril(spread.T @ h @ spread), rel=1e-3)
        assert slope[:, n] == pytest.approx(spread.T @ h @ errors[:, n], rel=1e-3, abs=1e-2)


def test_descent_finds_the_least_of_each_column():
    """Where any number may be taken, descent is Gauss-Seidel, and ends without any error."""
    found, likely = collected(12, 64, 40, 4)
    weights = np.random.default_rng(5).standard_normal((12, 64)).astype(np.float32)
    values = np.zeros_like(weights)

    def choose_any(rows, target, _inner, errors):
        values[rows] = target
        errors[:] = weights[rows] - target

    judge, errors = LikelyColumns(found, likely), weights.copy()
    losses = [judged_loss(errors, found, likely)]
    for _ in range(300):
        errors = judge.descend(weights, errors, choose_any)
        losses.append(judged_loss(errors, found, likely))
    assert np.all(losses[1] <= losses[0] * (1 + FLOAT_ERROR))
    assert values == pytest.approx(weights, abs=0.02)


@settings(deadline=None, max_examples=40)
@given(blocks(), st.integers(1, 50), st.integers(0, 5))
def test_every_block_still_comes_back_exactly(bits, group_size, seed):
    found, likely = collected(len(bits), bits.shape[1], 30, seed)
    chosen = choose(bits, SETS, group_size, 0, found, likely=likely)
    assert np.array_equal(decode(chosen.encoded, SETS), bits)
    plain = choose(bits, SETS, group_size, 0, found)
    unseen = ~np.isfinite(bits.view(np.float16)).all(axis=0)
    unseen |= ~np.isin(np.arange(bits.shape[1]), likely.judged())
    assert np.array_equal(chosen.encoded.codes[:, unseen], plain.encoded.codes[:, unseen])
    assert np.array_equal(chosen.after[unseen], plain.after[unseen])


def test_columns_are_better_where_their_token_was_likely():
    bits = gaussian(48, 100)
    found, likely = collected(48, 100, 400, 6)
    weights = bits.view(np.float16).astype(np.float32)

    def loss(chosen):
        encoded = chosen.encoded
        scales = np.abs(encoded.scales).astype(np.float32).repeat(16, axis=0)
        return judged_loss(
            weights - draft_values(encoded.codes, SETS).astype(np.float32) * scales, found, likely
        )

    plain = choose(bits, SETS, 16, 0, found)
    judged = choose(bits, SETS, 16, 0, found, likely=likely)
    assert np.all(loss(judged) <= loss(plain) * (1 + FLOAT_ERROR)) and len(likely.judged()) == 100
    assert loss(judged).sum() < 0.95 * loss(plain).sum()
    # What it costs elsewhere is reported, not hidden.
    errors = np.zeros((48, 64), np.float32)
    encoded = judged.encoded
    draft = draft_values(encoded.codes, SETS).astype(np.float32)
    scales = np.abs(encoded.scales).astype(np.float32).repeat(16, axis=0)
    errors[:] = (weights - draft * scales)[:, :64]
    assert ColumnErrors(found).loss(errors) == pytest.approx(judged.after[:64], rel=1e-3)


@pytest.mark.parametrize("name", ["int4", "mxfp4", "nvfp4"])
def test_copies_are_judged_alike(name):
    form, bits = copy_format(name), gaussian(64, 70)
    found, likely = collected(64, 70, 300, 7)
    weights = bits.view(np.float16).astype(np.float32)

    def loss(chosen):
        return judged_loss(weights - copied_values(chosen.copied, form), found, likely)

    plain = choose_copy(bits, form, form.group_size, 0, found)
    judged = choose_copy(bits, form, form.group_size, 0, found, likely=likely)
    assert loss(judged).sum() < 0.97 * loss(plain).sum()
