"""Numerics of the vector unit beyond ONNX's node tests: rounding, places, zeros, older forms."""

from collections.abc import Mapping
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speqc.runtime.errors import SpeqcError
from speqc.runtime.vector_logic import DTYPE_OF_ONNX
from speqc.runtime.vector_ops import VECTOR_OPS, evaluate
from speqc.runtime.vector_upgrade import UPGRADES

NEWEST = 24
INT64, BOOL, HALF = 7, 9, 10
MINUS_ONE = np.array([-1])

# Operators on one tensor that keep its shape, with elementary functions or choices inside.
ELEMENTWISE = (
    *("Abs", "Cos", "Erf", "Exp", "Gelu", "HardSigmoid", "Log", "Neg", "Reciprocal", "Relu"),
    *("Sigmoid", "Sin", "Softplus", "Sqrt", "Swish", "Tanh"),
)
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Mod", "Greater", "Equal", "Less")
# Operators that work on rows: inputs after the first, attributes.
ROW_WISE: Mapping[str, tuple[list[Any], dict[str, Any]]] = {
    "ArgMax": ([], {"axis": -1}),
    "CumSum": ([np.array(-1)], {}),
    "LayerNormalization": ([np.linspace(0.5, 2.0, 40), np.linspace(-1.0, 1.0, 40)], {}),
    "LogSoftmax": ([], {}),
    "MatMul": ([np.linspace(-1.0, 1.0, 40 * 7).reshape(40, 7)], {}),
    "Gemm": ([np.linspace(-1.0, 1.0, 40 * 7).reshape(7, 40)], {"transB": 1}),
    "ReduceMax": ([MINUS_ONE], {}),
    "ReduceMean": ([MINUS_ONE], {}),
    "ReduceMin": ([MINUS_ONE], {}),
    "ReduceProd": ([MINUS_ONE], {}),
    "ReduceSum": ([MINUS_ONE], {}),
    "RMSNormalization": ([np.linspace(0.5, 2.0, 40)], {}),
    "Softmax": ([], {}),
    "TopK": ([np.array([5])], {}),
}


def run(name: str, *inputs: Any, **attributes: Any) -> np.ndarray:
    return VECTOR_OPS[name].run(inputs, attributes)[0]


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """NaN equals NaN, but -0 doesn't equal +0."""
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    if actual.dtype.kind == "f":
        numbers = ~np.isnan(actual)
        assert (np.signbit(actual) == np.signbit(expected))[numbers].all()


def every_half() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def bit_patterns(dtype: Any, most: int = 70) -> st.SearchStrategy[np.ndarray]:
    """Vectors of any bit patterns: subnormals, infinities and NaN among them."""
    bits = np.uint16 if dtype == np.float16 else np.uint32
    return arrays.arrays(bits, st.integers(1, most)).map(lambda x: x.view(dtype))


both_floats = st.sampled_from([np.float16, np.float32])


@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    "shapes", [((9999,), (9999,)), ((33, 257), (257,)), ((33, 257), (33, 1)), ((1, 257), ())]
)
def test_half_arithmetic_is_exactly_rounded(name: str, shapes: Any) -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 1 << 16, s, np.uint16).view(np.float16) for s in map(list, shapes))
    exact = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[name]
    with np.errstate(all="ignore"):
        # FP64 holds sums and products of FP16 numbers exactly, and has more than twice the bits
        # that a quotient needs for two roundings to be one.
        expected = exact(a.astype(np.float64), b.astype(np.float64)).astype(np.float16)
    assert_same_bits(run(name, a, b), expected)
    with np.errstate(all="ignore"):
        swapped = exact(b.astype(np.float64), a.astype(np.float64)).astype(np.float16)
    assert_same_bits(run(name, b, a), swapped)


@pytest.mark.parametrize("name, exact", [("Sqrt", np.sqrt), ("Reciprocal", np.reciprocal)])
def test_half_roots_and_reciprocals_are_exactly_rounded(name: str, exact: np.ufunc) -> None:
    with np.errstate(all="ignore"):
        expected = exact(every_half().astype(np.float64)).astype(np.float16)
    assert_same_bits(run(name, every_half()), expected)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_half_functions_are_single_functions_rounded_once(name: str) -> None:
    with np.errstate(all="ignore"):
        expected = run(name, every_half().astype(np.float32)).astype(np.float16)
    assert_same_bits(run(name, every_half()), expected)


@pytest.mark.parametrize("exponent", [-1.0, 0.5, 2.0, 3.0])
def test_power_has_one_rounding_in_half(exponent: float) -> None:
    x = np.linspace(0.01, 6.0, 500).astype(np.float16)
    expected = (x.astype(np.float64) ** exponent).astype(np.float16)
    for y in (np.float16(exponent), np.full(x.shape, exponent)):
        assert_same_bits(run("Pow", x, np.asarray(y)), expected)


@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), dtype=both_floats)
def test_an_element_has_the_same_bits_in_any_place(name: str, data: Any, dtype: Any) -> None:
    x = data.draw(bit_patterns(dtype))
    start = data.draw(st.integers(0, x.size - 1))
    stop = data.draw(st.integers(start + 1, x.size))
    assert_same_bits(run(name, x)[start:stop], run(name, x[start:stop].copy()))


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), dtype=both_floats)
def test_a_pair_has_the_same_bits_in_any_place(name: str, data: Any, dtype: Any) -> None:
    x = data.draw(bit_patterns(dtype))
    y = np.roll(x, data.draw(st.integers(0, x.size - 1)))
    if name == "Mod":
        whole = run(name, x, y, fmod=1)
        single = [run(name, x[i : i + 1], y[i : i + 1], fmod=1) for i in range(x.size)]
    else:
        whole = run(name, x, y)
        single = [run(name, x[i : i + 1], y[i : i + 1]) for i in range(x.size)]
    assert_same_bits(whole, np.concatenate(single))


@pytest.mark.parametrize("name", ROW_WISE)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 9), first=st.integers(0, 8), dtype=both_floats, seed=st.integers(0, 99))
def test_a_row_has_the_same_bits_among_any_rows(
    name: str, rows: int, first: int, dtype: Any, seed: int
) -> None:
    others, attributes = ROW_WISE[name]
    others = [x.astype(dtype) if x.dtype.kind == "f" else x for x in others]
    x = np.random.default_rng(seed).standard_normal((rows, 40)).astype(dtype)
    row = first % rows
    whole, single = run(name, x, *others, **attributes), run(name, x[[row]], *others, **attributes)
    assert_same_bits(whole[row], single[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 31, 64, 65])
def test_the_sign_of_zero_does_not_depend_on_the_place(dtype: Any, size: int) -> None:
    plus, minus = np.zeros(size, dtype), np.full(size, -0.0, dtype)
    for name in ("Max", "Min"):
        for a, b in ((plus, minus), (minus, plus)):
            signs = np.signbit(run(name, a, b))
            assert signs.min() == signs.max()
            assert signs[0] == np.signbit(run(name, a[:1], b[:1]))[0]
    for place in range(size):
        x = np.where(np.arange(size) == place, minus, plus)
        for name in ("ReduceMax", "ReduceMin"):
            assert not np.signbit(run(name, x, keepdims=0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sums_over_several_axes_are_sums_over_the_flattened_axes(dtype: Any) -> None:
    x = np.random.default_rng(3).standard_normal((4, 5, 6, 7)).astype(dtype)
    flat = np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(4, 6, 35)
    for name in ("ReduceSum", "ReduceMean", "ReduceProd"):
        expected = run(name, flat, MINUS_ONE, keepdims=0)
        assert_same_bits(run(name, x, np.array([3, 1]), keepdims=0), expected)


def test_softmax_along_another_axis_is_softmax_of_the_transpose() -> None:
    x = np.random.default_rng(4).standard_normal((5, 6, 7)).astype(np.float16)
    expected = run("Softmax", np.ascontiguousarray(x.transpose(0, 2, 1))).transpose(0, 2, 1)
    assert_same_bits(run("Softmax", x, axis=1), expected)


def test_products_in_double_add_in_ascending_order() -> None:
    # In any other order the small terms would not all be lost.
    a = np.array([[2.0**60, *[1.0] * 100, -(2.0**60)]])
    assert run("MatMul", a, np.ones((102, 1)))[0, 0] == 0.0
    assert run("ReduceSum", a, MINUS_ONE)[0, 0] == 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", (*ELEMENTWISE, "Add", "Div", "Max", "Pow", "Clip", "Where"))
def test_scalars_stay_scalars(name: str, dtype: Any) -> None:
    x = np.array(0.5, dtype)
    first = {"Clip": [x, x], "Where": [np.array(True), x]}
    inputs = [x] if name in ELEMENTWISE else [*first.get(name, [x]), x]
    (result,) = VECTOR_OPS[name].run(inputs, {})
    assert isinstance(result, np.ndarray)
    assert result.shape == ()
    assert result.dtype == dtype


def test_half_and_single_do_not_mix() -> None:
    with pytest.raises(TypeError, match="float16"):
        run("Add", np.ones((1, 2), np.float16), np.ones((1, 1), np.float32))


def test_integer_division_rounds_towards_zero() -> None:
    a, b = np.array([7, -7, 7, -7, 6, -6]), np.array([2, 2, -2, -2, -3, 3])
    assert run("Div", a, b).tolist() == [3, -3, -3, 3, -2, -2]
    small = np.array([-7], np.int8)
    assert run("Div", small, small).dtype == np.int8


def test_the_lowest_index_of_equal_elements_comes_first() -> None:
    x = np.array([[1, 3, 3, 0, 3]], np.float16)
    values, indices = VECTOR_OPS["TopK"].run([x, np.array([4])], {})
    assert indices.tolist() == [[1, 2, 4, 0]]
    assert values.tolist() == [[3, 3, 3, 1]]
    _, smallest = VECTOR_OPS["TopK"].run([-x, np.array([2])], {"largest": 0})
    assert smallest.tolist() == [[1, 2]]
    assert run("ArgMax", x, axis=-1).tolist() == [[1]]


def test_scattered_half_sums_are_rounded_once() -> None:
    # 2048 + 1 is a tie in FP16 that falls back to 2048: added one by one, nothing would change.
    x, ones = np.array([2048, 5], np.float16), np.ones(4, np.float16)
    result = run("ScatterElements", x, np.zeros(4, np.int64), ones, reduction="add")
    assert result.tolist() == [2052, 5]


def test_running_half_sums_do_not_stall() -> None:
    sums = run("CumSum", np.ones(4096, np.float16), np.array(0))
    assert sums.dtype == np.float16
    assert sums[-1] == 4096


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
OLD_FORMS: Mapping[str, tuple[int, dict[str, Any], list[Any], dict[str, Any]]] = {
    "Clip": (6, {"min": 3.0, "max": 9.0}, [np.float32(3), np.float32(9)], {}),
    "LogSoftmax": (12, {"axis": 2}, [], {"axis": 2}),
    "ReduceMax": (13, {"axes": [1], "keepdims": 0}, [np.array([1])], {"keepdims": 0}),
    "ReduceMean": (17, {"axes": [-1]}, [MINUS_ONE], {}),
    "ReduceMin": (13, {}, [], {}),
    "ReduceProd": (11, {"axes": [0]}, [np.array([0])], {}),
    "ReduceSum": (11, {"axes": [0, 2]}, [np.array([0, 2])], {}),
    "Slice": (9, {"starts": [1], "ends": [9]}, [np.array([1]), np.array([9])], {}),
    "Softmax": (12, {"axis": -1}, [], {}),
    "Split": (11, {"split": [1, 3], "axis": 2}, [np.array([1, 3])], {"axis": 2}),
    "Squeeze": (11, {"axes": [0]}, [np.array([0])], {}),
    "TopK": (9, {"k": 2}, [np.array([2])], {}),
    "Unsqueeze": (11, {"axes": [0, 2]}, [np.array([0, 2])], {}),
}


@pytest.mark.parametrize("name", UPGRADES)
def test_older_forms_equal_the_newest(name: str) -> None:
    opset, old_attributes, inputs, attributes = OLD_FORMS[name]
    x = X[:1] if name == "Squeeze" else X
    opset = max(opset, 7)
    actual = evaluate(name, [x], old_attributes, opset)
    expected = VECTOR_OPS[name].run([x, *inputs], attributes)
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, other)


def test_softmax_before_opset_13_runs_to_the_end() -> None:
    (result,) = evaluate("Softmax", [X], {}, 12)
    expected = run("Softmax", X.reshape(2, 12)).reshape(X.shape)
    assert_same_bits(result, expected)


@pytest.mark.parametrize("opset", [11, 13, NEWEST])
def test_split_takes_the_number_of_parts_from_the_node(opset: int) -> None:
    parts = evaluate("Split", [X], {"axis": -1}, opset, outputs=2)
    assert [part.shape for part in parts] == [(2, 3, 2), (2, 3, 2)]


def test_slices_clamp_and_run_backwards() -> None:
    x = np.arange(10)
    for start, end, step in [(-3, 99, 1), (99, -99, -3), (-99, 4, 2), (5, 0, -1), (4, 4, 1)]:
        result = run("Slice", x, *(np.array([n]) for n in (start, end, 0, step)))
        # Python's own slices count the same way, but for "before the first element".
        expected = x[start : None if end < -10 else end : step]
        assert result.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "operator, attributes, opset, message",
    [
        ("Conv", {}, NEWEST, "Conv: the vector unit has no such operator"),
        ("Add", {}, 6, "opset 6 is older than 7"),
        ("Cast", {"to": 16}, NEWEST, "no data type number 16"),
    ],
)
def test_errors_name_the_operator(
    operator: str, attributes: dict[str, Any], opset: int, message: str
) -> None:
    with pytest.raises(SpeqcError, match=message):
        evaluate(operator, [X, X][: 2 if operator == "Add" else 1], attributes, opset)


@pytest.mark.parametrize("source", DTYPE_OF_ONNX.values(), ids=str)
@pytest.mark.parametrize("to", DTYPE_OF_ONNX)
def test_casts_keep_what_both_types_hold(source: np.dtype, to: int) -> None:
    x = np.array([0, 1, 1] if source == np.bool_ else [0, 1, 100]).astype(source)
    result = run("Cast", x, to=to)
    assert result.dtype == DTYPE_OF_ONNX[to]
    assert result.tolist() == (x != 0 if to == BOOL else x).tolist()
    assert_same_bits(run("CastLike", x, np.zeros(2, DTYPE_OF_ONNX[to])), result)


def test_casts_of_floats_round_to_even_or_towards_zero() -> None:
    x = np.array([2049.0, 2051.0, 65519.9, 65520.0, -2.75, 2.0**-25, np.nan])
    for source in (np.float32, np.float64):
        half = run("Cast", x.astype(source), to=HALF)
        expected = np.array([2048, 2052, 65504, np.inf, -2.75, 0, np.nan], np.float16)
        assert_same_bits(half, expected)
    assert run("Cast", x[:5], to=INT64).tolist() == [2049, 2051, 65519, 65520, -2]
    assert run("Cast", x, to=BOOL).all()


def test_unknown_attributes_are_refused() -> None:
    with pytest.raises(TypeError):
        run("Add", X, X, broadcast=1)
