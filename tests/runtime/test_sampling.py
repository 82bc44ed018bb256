from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from math import erfc, exp, gamma, pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speqc.runtime.errors import SpeqcError
from speqc.runtime.sampling import Sampler, SamplingOptions

DRAWS = 20_000

FULL = np.array([1.0, 0.5, -0.5, 2.0, 0.0], np.float16)
DRAFT = np.array([2.0, 0.0, 0.5, 1.0, -1.0], np.float16)
"""Logits of five tokens that draft and full model see differently."""


def softmax(row: NDArray) -> NDArray[np.float64]:
    """The plain formula, in double precision."""
    powers = np.exp(row.astype(np.float64) - row.max())
    return powers / powers.sum()


def probability_of_fit(counts: NDArray, expected: NDArray) -> float:
    """The chi-squared test's p-value, in closed form."""
    assert counts.sum() == pytest.approx(expected.sum())
    half, odd = divmod(len(counts) - 1, 2)
    x = float(((counts - expected) ** 2 / expected).sum()) / 2
    # Q(half + odd / 2, x), by its recurrence from Q(0, x) = 0 or Q(1 / 2, x) = erfc(sqrt(x)).
    powers = (x ** (i + odd / 2) / gamma(i + odd / 2 + 1) for i in range(half))
    return (erfc(sqrt(x)) if odd else 0.0) + exp(-x) * sum(powers)


def fits(draw: Callable[[], int], probabilities: NDArray[np.float64]) -> bool:
    """Whether draws follow a distribution; wrong for one sound sampler of ten thousand."""
    drawn = Counter(draw() for _ in range(DRAWS))
    possible = np.flatnonzero(probabilities)
    counts = np.array([drawn[token] for token in possible])
    if counts.sum() < DRAWS:
        return False
    return probability_of_fit(counts, DRAWS * probabilities[possible]) > 1e-4


class Quick(Sampler):
    """Computes the distribution of a row of logits once."""

    def __init__(self, options: SamplingOptions):
        super().__init__(options)
        self._known: dict[bytes, NDArray[np.float64]] = {}

    def distribution(self, row: NDArray) -> NDArray[np.float64]:
        known = self._known.get(row.tobytes())
        if known is None:
            known = self._known[row.tobytes()] = super().distribution(row)
        return known


def sampler(temperature: float = 1.0, **options: float) -> Sampler:
    return Quick(SamplingOptions(temperature, **options))  # type: ignore[arg-type]


def test_the_test_of_fit() -> None:
    # For 2 degrees of freedom the p-value is exp(-chi2 / 2); chi2 = 16 / 10 + 16 / 10 here.
    counts, expected = np.array([14, 6, 10]), np.array([10.0, 10.0, 10.0])
    assert probability_of_fit(counts, expected) == pytest.approx(exp(-1.6))
    # For 1 degree chi2 is the square of a normal variable, here of 2; for 3 degrees the density
    # adds sqrt(2 / pi) * 2 * exp(-2) to that.
    counts, expected = np.array([20, 0]), np.array([10.0, 10.0])
    assert probability_of_fit(counts, expected) == pytest.approx(erfc(sqrt(20 / 2)))
    counts, expected = np.array([12, 8, 12, 8]), np.array([10.0, 10.0, 10.0, 10.0])
    tail = erfc(sqrt(0.8)) + sqrt(2 / pi) * sqrt(1.6) * exp(-0.8)
    assert probability_of_fit(counts, expected) == pytest.approx(tail)


def test_greedy_takes_the_lowest_index_of_a_tie() -> None:
    row = np.array([0.0, 3.0, 1.0, 3.0], np.float16)
    token, probability = Sampler(SamplingOptions()).sample(row)
    assert token == 1
    assert probability == pytest.approx(softmax(row)[1], rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    found = sampler(temperature).distribution(FULL)
    np.testing.assert_allclose(found, softmax(FULL / temperature), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 5e-324])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    # The numbers in between leave the range of single precision, and of double precision.
    assert sampler(temperature).distribution(FULL).tolist() == [0, 0, 0, 1, 0]


def test_masked_logits_are_never_drawn() -> None:
    row = np.array([-np.inf, 0.0, 0.0], np.float32)
    np.testing.assert_allclose(sampler().distribution(row), [0, 0.5, 0.5])


def test_top_k_keeps_the_first_of_equal_logits() -> None:
    row = np.array([0.0, 1.0, 1.0, 1.0], np.float32)
    np.testing.assert_allclose(sampler(top_k=2).distribution(row), [0, 0.5, 0.5, 0])


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    whole = sampler().distribution(FULL)
    assert np.array_equal(sampler(top_k=99).distribution(FULL), whole)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    # The probabilities are 0.1, 0.2, 0.3, 0.4; tokens stay until they have top_p together.
    [(1.0, [0, 1, 2, 3]), (0.95, [0, 1, 2, 3]), (0.8, [1, 2, 3]), (0.5, [2, 3]), (1e-9, [3])],
)
def test_top_p(top_p: float, kept: list[int]) -> None:
    row = np.log(np.array([0.1, 0.2, 0.3, 0.4])).astype(np.float32)
    found = sampler(top_p=top_p).distribution(row)
    assert np.flatnonzero(found).tolist() == kept
    assert found.sum() == pytest.approx(1)


def test_top_p_counts_what_top_k_left() -> None:
    # Of 0.4 and 0.3 alone, the first has 4 / 7 = 0.57: enough for 0.55, though not of the whole.
    row = np.log(np.array([0.1, 0.2, 0.3, 0.4])).astype(np.float32)
    assert np.flatnonzero(sampler(top_k=2, top_p=0.55).distribution(row)).tolist() == [3]
    assert np.flatnonzero(sampler(top_k=2, top_p=0.6).distribution(row)).tolist() == [2, 3]


@given(
    st.lists(st.floats(-20, 20, width=16), min_size=2, max_size=40),
    st.floats(0.1, 3),
    st.integers(0, 10),
    st.floats(0.05, 1),
)
@settings(max_examples=100, deadline=None)
def test_distribution(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    row = np.array(logits, np.float16)
    found = sampler(temperature, top_k=top_k, top_p=top_p).distribution(row)
    assert found.sum() == pytest.approx(1)
    kept = np.flatnonzero(found)
    # What is kept is the most probable, in its own proportions.
    assert row[kept].min() >= np.delete(row, kept).max(initial=-np.inf)
    np.testing.assert_allclose(found[kept], softmax(row[kept].astype(float) / temperature), 1e-4)
    assert not top_k or len(kept) <= top_k


def test_seed_repeats_a_run() -> None:
    def draws(seed: int) -> list[int]:
        one = sampler(seed=seed)
        return [one.sample(FULL)[0] for _ in range(50)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_samples_follow_the_distribution(options: dict[str, float]) -> None:
    one = sampler(0.7, seed=1, **options)
    expected = one.distribution(FULL)
    assert np.count_nonzero(expected) == (3 if options else 5)
    assert fits(lambda: one.sample(FULL)[0], expected)


def test_sample_gives_the_top_probability() -> None:
    one = sampler(0.7, top_k=3, seed=1)
    drawn = [one.sample(FULL) for _ in range(50)]
    assert len({token for token, _ in drawn}) > 1
    assert {probability for _, probability in drawn} == {one.distribution(FULL).max()}


def first_token(one: Sampler, options: Sequence[NDArray]) -> int:
    """The first token of a round that drafts one token, with the logits of draft and full model."""
    draft, *rows = options
    drafted, _ = one.sample(draft)
    accepted, token = one.accept([drafted], draft[None], np.stack(rows))
    return [*accepted, token][0]


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.5},
    {"top_k": 2},
    {"top_k": 3},
    {"top_p": 0.6},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 4, "top_p": 0.8},
]
"""Options under which draft and full model differ, in the tokens left or in their probabilities."""

settings_of_sampling = pytest.mark.parametrize("options", SETTINGS, ids=str)


@settings_of_sampling
def test_accept_keeps_the_full_distribution(options: dict[str, float]) -> None:
    one = sampler(**options, seed=5)
    expected = one.distribution(FULL)
    assert not np.allclose(expected, one.distribution(DRAFT), atol=0.1)
    assert fits(lambda: first_token(one, (DRAFT, FULL, FULL)), expected)


class AcceptsAll(Quick):
    """Wrong: takes what the draft says."""

    def accept(
        self, drafted: Sequence[int], draft_rows: NDArray, rows: NDArray
    ) -> tuple[list[int], int]:
        return list(drafted), self.sample(rows[-1])[0]


class DrawsFromTheFullModel(Quick):
    """Wrong: after a rejection it draws from p, not from max(p - q, 0)."""

    def _draw_residual(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> int:
        return self._draw(p)


class AcceptsTooOften(Quick):
    """Wrong: a draw of 0.9 u in place of u, which accepts a tenth more."""

    def accept(
        self, drafted: Sequence[int], draft_rows: NDArray, rows: NDArray
    ) -> tuple[list[int], int]:
        random, self._random = self._random, Lower(self._random)  # type: ignore[assignment]
        try:
            return super().accept(drafted, draft_rows, rows)
        finally:
            self._random = random


class Lower:
    def __init__(self, random: np.random.Generator):
        self._random, self._draws = random, 0

    def random(self) -> float:
        """The first draw decides on acceptance; the next picks a token."""
        self._draws += 1
        return self._random.random() * (0.9 if self._draws == 1 else 1)


@pytest.mark.parametrize(
    ("wrong", "options"),
    [
        *((AcceptsAll, options) for options in SETTINGS[::3]),
        (DrawsFromTheFullModel, {}),
        (DrawsFromTheFullModel, {"temperature": 0.7, "top_p": 0.9}),
        (AcceptsTooOften, {}),
    ],
    ids=str,
)
def test_the_test_rejects_wrong_samplers(wrong: type[Quick], options: dict[str, float]) -> None:
    one = wrong(SamplingOptions(**{"temperature": 1.0, "seed": 7} | options))  # type: ignore[arg-type]
    assert not fits(lambda: first_token(one, (DRAFT, FULL, FULL)), one.distribution(FULL))


def test_accept_keeps_the_distribution_of_pairs() -> None:
    """Two drafted tokens, the second one's distributions depending on the first."""
    random = np.random.default_rng(0)
    first, first_draft = random.normal(size=(2, 3)).astype(np.float32)
    second, second_draft = random.normal(size=(2, 3, 3)).astype(np.float32)
    one = sampler(seed=8)

    def pair() -> int:
        a = one.sample(first_draft)[0]
        b = one.sample(second_draft[a])[0]
        draft_rows = np.stack([first_draft, second_draft[a]])
        accepted, token = one.accept([a, b], draft_rows, np.stack([first, second[a], first]))
        tokens = [*accepted, token]
        if len(tokens) == 1:
            tokens.append(one.sample(second[token])[0])
        return 3 * tokens[0] + tokens[1]

    joint = [softmax(first)[a] * softmax(second[a])[b] for a, b in product(range(3), repeat=2)]
    assert fits(pair, np.array(joint))


def test_equal_distributions_are_always_accepted() -> None:
    one = sampler(seed=9)
    for _ in range(100):
        token, _ = one.sample(FULL)
        assert one.accept([token], FULL[None], np.stack([FULL, DRAFT]))[0] == [token]


def test_impossible_tokens_are_never_accepted() -> None:
    # The full model's only token is 3 at top-k 1; the draft proposes token 0.
    one = sampler(top_k=1, seed=10)
    for _ in range(20):
        assert one.accept([0], DRAFT[None], np.stack([FULL, DRAFT])) == ([], 3)


@pytest.mark.parametrize(
    ("drafted", "accepted", "following"),
    # The full model says 3 after each of the first two rows, 0 after the last.
    [
        ([], [], 3),
        ([3], [3], 3),
        ([0], [], 3),
        ([3, 3], [3, 3], 0),
        ([3, 1], [3], 3),
        ([1, 3], [], 3),
    ],
)
def test_greedy_accepts_the_agreeing_prefix(
    drafted: list[int], accepted: list[int], following: int
) -> None:
    rows = np.stack([FULL, FULL, DRAFT])[: len(drafted) + 1]
    found = Sampler(SamplingOptions()).accept(drafted, np.zeros((len(drafted), 5)), rows)
    assert found == (accepted, following)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature must be finite and at least 0, got -0.5"),
        ({"temperature": float("nan")}, "temperature must be finite and at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be finite and at least 0, got inf"),
        ({"top_k": -1}, "top-k must be at least 0, got -1"),
        ({"top_p": 0.0}, r"top-p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top-p must lie in \(0, 1\], got 1.5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(SpeqcError, match=message):
        SamplingOptions(**options)
