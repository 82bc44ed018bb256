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
    *("Abs", "Celu", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"),
    *("Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
)
BINARY = (
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Mod", "Greater", "Equal", "Less"),
    *("Mean", "PRelu", "Sum", "SwiGLU"),
)
# Operators that work on rows: inputs after the first, attributes.
ROW_WISE: Mapping[str, tuple[list[Any], dict[str, Any]]] = {
    "ArgMax": ([], {"axis": -1}),
    "CumProd": ([np.array(-1)], {}),
    "CumSum": ([np.array(-1)], {}),
    "Einsum": ([np.linspace(-1.0, 1.0, 40 * 7).reshape(7, 40)], {"equation": "mk,nk->mn"}),
    "GroupNormalization": ([np.linspace(0.5, 2.0, 40), np.ones(40)], {"num_groups": 5}),
    "Hardmax": ([], {}),
    "LayerNormalization": ([np.linspace(0.5, 2.0, 40), np.linspace(-1.0, 1.0, 40)], {}),
    "LogSoftmax": ([], {}),
    "LpNormalization": ([], {}),
    "MatMul": ([np.linspace(-1.0, 1.0, 40 * 7).reshape(40, 7)], {}),
    "Gemm": ([np.linspace(-1.0, 1.0, 40 * 7).reshape(7, 40)], {"transB": 1}),
    "ReduceL1": ([MINUS_ONE], {}),
    "ReduceL2": ([MINUS_ONE], {}),
    "ReduceLogSumExp": ([MINUS_ONE], {}),
    "ReduceMax": ([MINUS_ONE], {}),
    "ReduceMean": ([MINUS_ONE], {}),
    "ReduceMin": ([MINUS_ONE], {}),
    "ReduceProd": ([MINUS_ONE], {}),
    "ReduceSum": ([MINUS_ONE], {}),
    "ReduceSumSquare": ([MINUS_ONE], {}),
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
    "Dropout": (11, {"ratio": 0.5}, [], {}),
    "GroupNormalization": (
        20,
        {"num_groups": 3},
        [np.array([0, 0, 2, 2, 4, 4], np.float32), np.ones(6, np.float32)],
        {"num_groups": 3},
    ),
    "Hardmax": (12, {"axis": 2}, [], {"axis": 2}),
    "LogSoftmax": (12, {"axis": 2}, [], {"axis": 2}),
    "Pad": (
        10,
        {"pads": [0, 1, 0, 0, 0, -2], "value": 5.0},
        [np.array([0, 1, 0, 0, 0, -2]), np.float32(5)],
        {},
    ),
    "ReduceL1": (13, {"axes": [1]}, [np.array([1])], {}),
    "ReduceL2": (13, {"axes": [2]}, [np.array([2])], {}),
    "ReduceLogSum": (13, {"axes": [2]}, [np.array([2])], {}),
    "ReduceLogSumExp": (13, {"axes": [0]}, [np.array([0])], {}),
    "ReduceMax": (13, {"axes": [1], "keepdims": 0}, [np.array([1])], {"keepdims": 0}),
    "ReduceMean": (17, {"axes": [-1]}, [MINUS_ONE], {}),
    "ReduceMin": (13, {}, [], {}),
    "ReduceProd": (11, {"axes": [0]}, [np.array([0])], {}),
    "ReduceSum": (11, {"axes": [0, 2]}, [np.array([0, 2])], {}),
    "ReduceSumSquare": (13, {"axes": [1]}, [np.array([1])], {}),
    "Slice": (9, {"starts": [1], "ends": [9]}, [np.array([1]), np.array([9])], {}),
    "Softmax": (12, {"axis": -1}, [], {}),
    "Split": (11, {"split": [1, 3], "axis": 2}, [np.array([1, 3])], {"axis": 2}),
    "Squeeze": (11, {"axes": [0]}, [np.array([0])], {}),
    "TopK": (9, {"k": 2}, [np.array([2])], {}),
    "Unsqueeze": (11, {"axes": [0, 2]}, [np.array([0, 2])], {}),
}

# Inputs after the first of older forms that have such.
OLD_PARAMETERS: Mapping[str, list[Any]] = {
    "GroupNormalization": [np.array([0, 2, 4], np.float32), np.ones(3, np.float32)]
}


@pytest.mark.parametrize("name", UPGRADES)
def test_older_forms_equal_the_newest(name: str) -> None:
    opset, old_attributes, inputs, attributes = OLD_FORMS[name]
    x = X[:1] if name == "Squeeze" else X.reshape(2, 6, 2) if name in OLD_PARAMETERS else X
    opset = max(opset, 7)
    actual = evaluate(name, [x, *OLD_PARAMETERS.get(name, [])], old_attributes, opset)
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


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("bhmd,bhnd->bhmn", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bmd,dhk->bhmk", [(2, 3, 4), (4, 5, 6)]),
        ("...mk,...kn", [(2, 3, 4), (2, 4, 5)]),
        ("...mk,kn->...mn", [(7, 2, 3, 4), (4, 5)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("ij,kl->j", [(2, 3), (4, 5)]),
        ("ii->i", [(4, 4)]),
        ("bij->ji", [(2, 3, 4)]),
        ("i,i", [(5,), (5,)]),
        (",ij->ji", [(), (2, 3)]),
    ],
)
def test_einstein_sums(equation: str, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(7)
    # Small integers: every order of additions gives the same numbers.
    operands = [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]
    expected = np.einsum(equation, *operands).astype(np.float32)
    result = run("Einsum", *operands, equation=equation)
    assert_same_bits(result + np.float32(0), expected + np.float32(0))
    half = run("Einsum", *(x.astype(np.float16) for x in operands), equation=equation)
    assert half.dtype == np.float16


def test_an_einstein_sum_of_matrices_is_their_product() -> None:
    rng = np.random.default_rng(8)
    a, b = (rng.standard_normal(s).astype(np.float16) for s in [(3, 100), (100, 5)])
    assert_same_bits(run("Einsum", a, b, equation="mk,kn->mn"), run("MatMul", a, b))


def test_reductions_of_half_round_once() -> None:
    x = np.random.default_rng(9).standard_normal((7, 100)).astype(np.float16)
    for name in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "LpNormalization"):
        others = [] if name == "LpNormalization" else [MINUS_ONE]
        wide = run(name, x.astype(np.float32), *others)
        assert_same_bits(run(name, x, *others), wide.astype(np.float16))


def test_the_logarithm_of_a_sum_of_exponentials_stands_infinities() -> None:
    x = np.array([[-np.inf, -np.inf], [np.inf, 1], [1000, 1000], [-np.inf, 3]], np.float32)
    result = run("ReduceLogSumExp", x, MINUS_ONE, keepdims=0)
    expected = np.array([-np.inf, np.inf, 1000 + np.log(2), 3])
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_sums_of_squares_without_axes_may_stay_apart() -> None:
    x = np.array([-2.0, 3.0], np.float32)
    assert run("ReduceSumSquare", x, noop_with_empty_axes=1).tolist() == [4, 9]
    assert run("ReduceSum", x, noop_with_empty_axes=1).tolist() == [-2, 3]


def test_moments_of_a_layer_norm() -> None:
    x = np.random.default_rng(10).standard_normal((2, 3, 50)).astype(np.float16)
    inputs = [x, np.ones(50, np.float16), None]
    result, means, inverses = evaluate("LayerNormalization", inputs, {}, NEWEST, outputs=3)
    assert means.shape == inverses.shape == (2, 3, 1)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(means[..., 0], wide.mean(-1), atol=1e-6)
    np.testing.assert_allclose(inverses[..., 0], (wide.var(-1) + 1e-5) ** -0.5, rtol=1e-5)
    (alone,) = evaluate("LayerNormalization", inputs, {}, NEWEST)
    assert_same_bits(result, alone)


def test_there_are_no_norms_of_double() -> None:
    for name in ("LayerNormalization", "RMSNormalization"):
        with pytest.raises(SpeqcError, match="no norms of float64"):
            run(name, np.ones((2, 4)), np.ones(4))


QUANTIZED = st.sampled_from([np.int8, np.uint8, np.int16, np.uint16])


@settings(max_examples=30, deadline=None)
@given(kind=QUANTIZED, dtype=both_floats, blocked=st.booleans(), seed=st.integers(0, 99))
def test_quantised_numbers_come_back(kind: Any, dtype: Any, blocked: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(kind)
    x = rng.integers(limits.min, limits.max + 1, (6, 10)).astype(kind)
    # Powers of two: products and quotients are exact, where FP16 holds them.
    scale = np.exp2(rng.integers(-9, -6, (6, 3) if blocked else 6)).astype(dtype)
    zero = rng.integers(-3, 4, scale.shape).clip(limits.min).astype(kind)
    options = {"axis": 1, "block_size": 4} if blocked else {"axis": 0}
    numbers = run("DequantizeLinear", x, scale, zero, **options)
    assert numbers.dtype == dtype
    spread = [p.repeat(4, 1)[:, :10] if blocked else p[:, None] for p in (scale, zero)]
    exact = (x.astype(np.float64) - spread[1]) * spread[0].astype(np.float64)
    assert_same_bits(numbers + dtype(0), exact.astype(dtype) + dtype(0))
    if dtype == np.float32 or np.dtype(kind).itemsize == 1:
        assert_same_bits(run("QuantizeLinear", numbers, scale, zero, **options), x)


def test_quantised_numbers_are_limited_and_rounded_to_even() -> None:
    x = np.array([-1e4, -2.5, -1.5, 0.5, 1.5, 1e4], np.float16)
    result = run("QuantizeLinear", x, np.float16(1), np.int8(0))
    assert result.tolist() == [-128, -2, -2, 0, 2, 127]


def test_padding_adds_and_takes_off() -> None:
    x = np.arange(12).reshape(3, 4)
    padded = run("Pad", x, np.array([1, -1, 2, 0]), np.array(7))
    assert padded.tolist() == np.pad(x[:, 1:], [(1, 2), (0, 0)], constant_values=7).tolist()
    mirrored = run("Pad", x, np.array([2, 1]), None, MINUS_ONE, mode="reflect")
    assert mirrored[0].tolist() == [2, 1, 0, 1, 2, 3, 2]


def test_infinities_of_each_sign() -> None:
    x = np.array([np.inf, -np.inf, np.nan, 65504], np.float16)
    assert run("IsInf", x).tolist() == [True, True, False, False]
    assert run("IsInf", x, detect_negative=0).tolist() == [True, False, False, False]


def test_dropout_passes_but_in_training() -> None:
    x = np.ones(3, np.float16)
    result, mask = VECTOR_OPS["Dropout"].run([x, np.float32(0.5)], {})
    assert result.tolist() == [1, 1, 1] and mask.all()
    with pytest.raises(SpeqcError, match="training mode"):
        VECTOR_OPS["Dropout"].run([x, np.float32(0.5), np.array(True)], {})
