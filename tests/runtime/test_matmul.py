"""Matrix products: the reference's bits, whatever rows, tiles, threads and buffers compute them."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speqc.runtime import matmul
from speqc.runtime import reference_kernels as reference

DTYPES = st.sampled_from([np.float16, np.float32])
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 6e-8, -6e-5], np.float32)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays have the same bits, any NaN being like any other."""
    as_bits = f"u{a.itemsize}"
    alike = (a.view(as_bits) == b.view(as_bits)) | (np.isnan(a) & np.isnan(b))
    return a.dtype == b.dtype and a.shape == b.shape and bool(alike.all())


def numbers(seed: int, shape: tuple[int, ...], dtype: Any, special: float = 0.0) -> NDArray[Any]:
    """Random numbers of many magnitudes, a share `special` of them special ones."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape) * 2.0 ** generator.integers(-12, 3, shape)
    x = np.where(generator.random(shape) < special, generator.choice(SPECIAL, shape), x)
    return x.astype(dtype)


@pytest.fixture
def everything_shared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Share the smallest products out to threads as well."""
    monkeypatch.setattr(matmul, "_PARALLEL_WORK", 0)
    before = matmul.thread_count()
    yield
    matmul.set_thread_count(before)


@given(
    st.integers(0, 10**6),
    st.integers(1, 14),
    st.integers(1, 150),
    st.integers(1, 200),
    DTYPES,
    DTYPES,
    DTYPES,
    st.sampled_from([0.0, 0.0, 0.01]),
)
@settings(deadline=None, max_examples=60)
def test_full_product_has_the_bits_of_the_reference(
    seed: int, m: int, k: int, n: int, x_dtype: Any, w_dtype: Any, out_dtype: Any, special: float
) -> None:
    x = numbers(seed, (m, k), x_dtype, special)
    panels = matmul.pack_panels(numbers(seed + 1, (k, n), w_dtype, special))
    result = matmul.matmul_full(x, panels, n, out_dtype)
    assert same_bits(result, reference.matmul_full(x, panels, n, out_dtype))


@given(
    st.integers(0, 10**6),
    st.integers(1, 10),
    st.integers(1, 150),
    st.integers(1, 140),
    st.integers(1, 160),
    DTYPES,
    DTYPES,
)
@settings(deadline=None, max_examples=60)
def test_draft_product_has_the_bits_of_the_reference(
    seed: int, m: int, k: int, n: int, group_size: int, x_dtype: Any, out_dtype: Any
) -> None:
    x = numbers(seed, (m, k), x_dtype)
    panels = matmul.pack_panels(numbers(seed + 1, (k, n), np.float16))
    scales = numbers(seed + 2, (panels.shape[0], -(-k // group_size), 64), np.float16)
    result = matmul.matmul_draft(x, panels, scales, group_size, n, out_dtype)
    expected = reference.matmul_draft(x, panels, scales, group_size, n, out_dtype)
    assert same_bits(result, expected)
    unsigned = matmul.matmul_draft(x, panels, np.abs(scales), group_size, n, out_dtype)
    assert same_bits(result, unsigned)


@given(st.integers(0, 10**6), st.integers(1, 20), st.lists(st.integers(0, 20), max_size=4))
@settings(deadline=None, max_examples=40)
def test_a_row_depends_on_no_other_row(seed: int, m: int, cuts: list[int]) -> None:
    x = numbers(seed, (m, 100), np.float16, 0.001)
    panels = matmul.pack_panels(numbers(seed + 1, (100, 130), np.float16))
    scales = numbers(seed + 2, (3, 2, 64), np.float16)
    chunks = [chunk for chunk in np.split(x, sorted(min(cut, m) for cut in cuts)) if len(chunk)]
    full = [matmul.matmul_full(chunk, panels, 130) for chunk in chunks]
    draft = [matmul.matmul_draft(chunk, panels, scales, 64, 130) for chunk in chunks]
    assert same_bits(np.concatenate(full), matmul.matmul_full(x, panels, 130))
    assert same_bits(np.concatenate(draft), matmul.matmul_draft(x, panels, scales, 64, 130))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 17])
def test_the_number_of_threads_changes_nothing(m: int, everything_shared: None) -> None:
    x = numbers(1, (m, 200), np.float16)
    panels = matmul.pack_panels(numbers(2, (200, 1000), np.float16))
    expected = reference.matmul_full(x, panels, 1000)
    for threads in (1, 2, 5):
        matmul.set_thread_count(threads)
        for _ in range(50):
            assert same_bits(matmul.matmul_full(x, panels, 1000), expected)


def test_calls_from_several_threads_do_not_mix(everything_shared: None) -> None:
    matmul.set_thread_count(3)
    panels = matmul.pack_panels(numbers(2, (100, 500), np.float16))
    rows = [numbers(seed, (3, 100), np.float16) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: matmul.matmul_full(x, panels, 500), rows))
    for x, result in zip(rows, results, strict=True):
        assert same_bits(result, reference.matmul_full(x, panels, 500))


def test_product_and_sum_round_separately() -> None:
    """The square of a is 1 + 2^-11 + 2^-24: a fused operation would not drop the last term."""
    a = np.float32(1 + 2.0**-12)
    rounded = np.float32(1 + 2.0**-11)
    assert Fraction(float(a)) ** 2 - Fraction(float(rounded)) == Fraction(1, 2**24)
    for m in range(1, 9):
        x = np.tile(np.array([-rounded, a], np.float32), (m, 1))
        panels = matmul.pack_panels(np.tile(np.array([[1.0], [a]], np.float32), (1, 64)))
        assert not matmul.matmul_full(x, panels, 64, np.float32).any()


def test_scaled_partial_sum_and_total_round_separately() -> None:
    """As above: the second group's partial sum is a, its scale too."""
    a = np.float32(1 + 2.0**-10)
    square = Fraction(float(a)) ** 2
    partial = np.float32(1 + 2.0**-14)
    product = np.float32(partial * a)
    assert Fraction(float(product)) != Fraction(float(partial)) * Fraction(float(a)) != square
    x = np.array([[-product, partial]], np.float32)
    panels = np.full((1, 2, 64), np.float16(1).view(np.uint16))
    scales = np.stack([np.ones((1, 64)), np.full((1, 64), a)], axis=1).astype(np.float16)
    assert not matmul.matmul_draft(x, panels, scales, 1, 64, np.float32).any()


def test_products_are_added_in_ascending_k() -> None:
    x = np.ones((1, 3), np.float32)
    panels = matmul.pack_panels(np.array([[2.0**24], [1.0], [-(2.0**24)]], np.float32))
    assert matmul.matmul_full(x, panels, 1, np.float32)[0, 0] == 0.0
    panels = matmul.pack_panels(np.array([[2.0**24], [-(2.0**24)], [1.0]], np.float32))
    assert matmul.matmul_full(x, panels, 1, np.float32)[0, 0] == 1.0


def test_sums_start_at_positive_zero_and_round_once() -> None:
    zeros = matmul.pack_panels(np.zeros((4, 2), np.float16))
    assert not np.signbit(matmul.matmul_full(np.full((1, 4), -1, np.float16), zeros, 2)).any()
    large = matmul.pack_panels(np.full((4, 1), 60000.0, np.float16))
    assert np.isposinf(matmul.matmul_full(np.ones((1, 4), np.float16), large, 1))[0, 0]


def test_nan_and_infinity_stay_in_their_row_and_column() -> None:
    x = np.ones((5, 8), np.float16)
    w = np.ones((8, 70), np.float16)
    x[1, 3], w[2, 66] = np.nan, np.inf
    result = matmul.matmul_full(x, matmul.pack_panels(w), 70)
    expected = np.full((5, 70), 8.0)
    expected[:, 66], expected[1] = np.inf, np.nan
    assert np.array_equal(result, expected, equal_nan=True)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), DTYPES, DTYPES)
@settings(deadline=None, max_examples=20)
def test_plain_product_broadcasts_batches(
    seed: int, batch: int, heads: int, a_dtype: Any, b_dtype: Any
) -> None:
    a = numbers(seed, (batch, heads, 3, 20), a_dtype)
    b = numbers(seed + 1, (heads, 70, 20), b_dtype).swapaxes(1, 2)
    result = matmul.matmul_plain(a, b)
    assert result.dtype == np.result_type(a, b)
    assert same_bits(result, reference.matmul_plain(a, b))


def test_read_only_operands_need_no_second_kernel() -> None:
    x, w = numbers(1, (3, 40), np.float16), numbers(2, (40, 100), np.float16)
    panels = matmul.pack_panels(w)
    expected = matmul.matmul_full(x, panels, 100)
    x.flags.writeable = False
    kernels = len(matmul._multiply.signatures)
    assert same_bits(matmul.matmul_full(x, panels, 100), expected)
    assert len(matmul._multiply.signatures) == kernels


def test_buffers_are_filled_and_misfits_refused() -> None:
    x, w = numbers(1, (3, 40), np.float16), numbers(2, (40, 100), np.float16)
    panels = matmul.pack_panels(w)
    out = np.empty((3, 100), np.float32)
    assert matmul.matmul_full(x, panels, 100, np.float32, out) is out
    assert same_bits(out, matmul.matmul_full(x.copy("F"), panels, 100, np.float32))
    with pytest.raises(ValueError, match="does not fit panels"):
        matmul.matmul_full(x[:, 1:], panels, 100)
    with pytest.raises(ValueError, match="200 columns"):
        matmul.matmul_full(x, panels, 200)
    with pytest.raises(ValueError, match="must be"):
        matmul.matmul_full(x, panels, 100, np.float16, out)
    with pytest.raises(ValueError, match="scales"):
        matmul.matmul_draft(x, panels, np.ones((2, 2, 64), np.float16), 40, 100)
