"""FP16 conversions round exactly; elementary functions have bits that position can't change."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from speqc.runtime import elementary, fp16
from speqc.runtime import reference_kernels as reference

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0, -2.0, 0.5, 3.0, -3.0, 7.5, 1e-45]
SPECIAL += [-1e-45, 1e-38, 88.7, 88.73, -87.4, -103.9, -104.0, 3.4e38, -3.4e38, 1e5, 1048576.0]

EXACT: dict[str, Any] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "log": np.log,
    "softplus": lambda x: np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))),
    "sin": np.sin,
    "cos": np.cos,
}
REFERENCED = ["exp", "sigmoid", "tanh", "erf", "log", "softplus"]


def samples() -> NDArray[np.float32]:
    """Numbers of every exponent, numbers of everyday size, and the special ones."""
    generator = np.random.default_rng(7)
    patterns = generator.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    everyday = generator.standard_normal(20000).astype(np.float32) * np.float32(5.0)
    return np.concatenate([patterns, everyday, np.array(SPECIAL, np.float32)])


def steps_between(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many FP32 numbers apart; 0 between two NaN, enormous between NaN and a number."""

    def order(x: NDArray[np.float32]) -> NDArray[np.int64]:
        bits = x.view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    steps = np.abs(order(a) - order(b))
    steps[np.isnan(a) != np.isnan(b)] = 2**40
    steps[np.isnan(a) & np.isnan(b)] = 0
    return steps


@njit
def _portable_extend(bits: Any, out: Any) -> None:
    for i in range(bits.size):
        out[i] = fp16.half_to_single_portable(bits[i])


@njit
def _portable_truncate(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = fp16.single_to_half_portable(values[i])


def extend(bits: NDArray[np.uint16], portable: bool) -> NDArray[np.float32]:
    if not portable:
        return fp16.to_single(bits.view(np.float16))
    out = np.empty(bits.shape, np.float32)
    _portable_extend(bits, out)
    return out


def truncate(values: NDArray[np.float32], portable: bool) -> NDArray[np.float16]:
    if not portable:
        return fp16.to_half(values)
    out = np.empty(values.shape, np.uint16)
    _portable_truncate(values, out)
    return out.view(np.float16)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays have the same bits, any NaN being like any other."""
    as_bits = f"u{a.itemsize}"
    alike = (a.view(as_bits) == b.view(as_bits)) | (np.isnan(a) & np.isnan(b))
    return a.dtype == b.dtype and a.shape == b.shape and bool(alike.all())


@pytest.mark.parametrize("portable", [False, True])
def test_every_half_becomes_the_same_single(portable: bool) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    exact = bits.view(np.float16).astype(np.float32)
    assert same_bits(extend(bits, portable), exact)
    assert same_bits(truncate(exact, portable), bits.view(np.float16))


@pytest.mark.parametrize("portable", [False, True])
def test_halves_round_to_nearest_even_around_every_boundary(portable: bool) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = ((halves + np.append(halves[1:], 65536.0)) / 2).astype(np.float32)
    down, up = np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))
    values = np.concatenate([middles, down, up])
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore"):
        assert same_bits(truncate(values, portable), values.astype(np.float16))


@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.booleans())
@settings(deadline=None)
def test_halves_round_as_numpy_rounds(numbers: list[float], portable: bool) -> None:
    values = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        assert same_bits(truncate(values, portable), values.astype(np.float16))


def test_conversions_keep_shape_and_refuse_other_dtypes() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert fp16.to_single(x) is x
    assert np.array_equal(fp16.to_half(x.transpose(2, 0, 1)), x.transpose(2, 0, 1))
    assert fp16.to_half(np.array(1.5, np.float32)).shape == ()
    with pytest.raises(TypeError, match="float64"):
        fp16.to_half(np.zeros(3))


@pytest.mark.parametrize("name", EXACT)
def test_functions_are_within_one_step_of_the_exact_value(name: str) -> None:
    x = samples()
    result = getattr(elementary, name)(x)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64)).astype(np.float32)
    assert steps_between(result, exact).max() <= 1
    zero = exact == 0
    assert np.array_equal(np.signbit(result[zero]), np.signbit(exact[zero]))


@pytest.mark.parametrize("name", REFERENCED)
def test_functions_have_the_bits_of_the_reference(name: str) -> None:
    x = samples()[::5]
    result = reference.each(getattr(reference, name), x)
    assert same_bits(getattr(elementary, name)(x), result)


@pytest.mark.parametrize("name", REFERENCED)
def test_products_and_sums_round_separately(name: str) -> None:
    """Before the result is rounded to FP32 a fused multiply-add would show in its last bits."""
    fast, slow = getattr(elementary, f"{name}64"), getattr(reference, name)
    for number in samples()[20000:21000]:
        expected = slow(float(number))
        assert fast(number) == expected or math.isnan(expected)


@pytest.mark.parametrize("name", EXACT)
def test_neither_place_nor_length_changes_an_element(name: str) -> None:
    function = getattr(elementary, name)
    x = samples()[19980:20060]
    alone = np.concatenate([function(x[i : i + 1]) for i in range(x.size)])
    for offset in range(40):
        for length in range(1, 41):
            part = slice(offset, offset + length)
            assert same_bits(function(x[part]), alone[part])


def test_pow_has_the_special_cases_of_c() -> None:
    base, exponent = (grid.reshape(-1) for grid in np.meshgrid(SPECIAL, SPECIAL))
    base, exponent = base.astype(np.float32), exponent.astype(np.float32)
    with np.errstate(all="ignore"):
        exact = np.power(base.astype(np.float64), exponent.astype(np.float64)).astype(np.float32)
    result = elementary.pow(base, exponent)
    assert steps_between(result, exact).max() <= 1
    assert np.array_equal(np.signbit(result[exact == 0]), np.signbit(exact[exact == 0]))


@given(st.floats(0, 1e9, width=32), st.floats(-20, 20, width=32))
@settings(deadline=None)
def test_pow_is_within_one_step(base: float, exponent: float) -> None:
    with np.errstate(all="ignore"):
        exact = np.power([base], [exponent]).astype(np.float32)
    result = elementary.pow(np.array([base], np.float32), np.array([exponent], np.float32))
    assert steps_between(result, exact)[0] <= 1


def test_pow_broadcasts_both_operands() -> None:
    x, y = np.array([[2.0], [3.0]], np.float16), np.array([0.0, 1.0, 4.0], np.float32)
    assert np.array_equal(elementary.pow(x, y), [[1, 2, 16], [1, 3, 81]])
    assert elementary.pow(x, y).dtype == np.float16


def test_squares_are_products() -> None:
    x = samples()
    with np.errstate(all="ignore"):
        assert same_bits(elementary.pow(x, np.array(2.0, np.float32)), x * x)


def test_half_results_are_rounded_single_results() -> None:
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    with np.errstate(over="ignore"):
        single = elementary.exp(x.astype(np.float32)).astype(np.float16)
    assert same_bits(elementary.exp(x), single)


def test_shapes_are_kept_and_doubles_refused() -> None:
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    assert elementary.tanh(x).shape == (2, 3, 4)
    assert elementary.sin(np.array(1e30, np.float32)).shape == ()
    assert np.array_equal(elementary.exp(x.T), elementary.exp(x).T)
    with pytest.raises(TypeError, match="float64"):
        elementary.exp(np.zeros(3))
