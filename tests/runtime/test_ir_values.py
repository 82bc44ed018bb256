import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, DenseIntOrFPElementsAttr, DictionaryAttr
from xdsl.ir import Attribute
from xdsl.parser import Parser

from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import dense_array, numpy_dtype, python_value, python_values


def parser(text: str) -> Parser:
    context = Context()
    context.load_dialect(Builtin)
    return Parser(context, text)


def attribute(text: str) -> Attribute:
    return parser(text).parse_attribute()


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("f16", np.float16),
        ("f32", np.float32),
        ("f64", np.float64),
        ("i1", np.bool_),
        ("i8", np.int8),
        ("i16", np.int16),
        ("i32", np.int32),
        ("i64", np.int64),
        ("si32", np.int32),
        ("ui8", np.uint8),
        ("ui64", np.uint64),
    ],
)
def test_dtypes(text: str, dtype: type) -> None:
    assert numpy_dtype(parser(text).parse_type()) == np.dtype(dtype)


@pytest.mark.parametrize("text", ["bf16", "i4", "index", "tensor<2xf16>"])
def test_types_without_dtype(text: str) -> None:
    with pytest.raises(SpeqcError, match=f"tensors of {text} are not supported"):
        numpy_dtype(parser(text).parse_type())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dense<[[1, -2], [3, 4]]> : tensor<2x2xi64>", np.array([[1, -2], [3, 4]])),
        ("dense<7> : tensor<3xi32>", np.array([7, 7, 7], np.int32)),
        ("dense<1.5> : tensor<f16>", np.array(1.5, np.float16)),
        ("dense<[true, false]> : tensor<2xi1>", np.array([True, False])),
        ("dense<[255, 0]> : tensor<2xui8>", np.array([255, 0], np.uint8)),
        ("dense<> : tensor<0xi64>", np.zeros(0, np.int64)),
        ('dense<"0x0000807F000080FF"> : tensor<2xf32>', np.array([np.inf, -np.inf], np.float32)),
        # FP16 has 11 bits: 1/3 is 0x3555.
        ("dense<0.333251953> : tensor<1xf16>", np.array([0x3555], np.uint16).view(np.float16)),
    ],
)
def test_dense_arrays(text: str, expected: np.ndarray) -> None:
    value = attribute(text)
    assert isinstance(value, DenseIntOrFPElementsAttr)
    found = dense_array(value)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 : i64", 3),
        ("-1 : i32", -1),
        ("2.500000e+00 : f32", 2.5),
        ('"name"', "name"),
        ("unit", True),
        ("array<i64: 1, 2>", [1, 2]),
        ("array<f32: 0.5>", [0.5]),
        ('[1 : i64, "two"]', [1, "two"]),
    ],
)
def test_python_values(text: str, expected: object) -> None:
    assert python_value(attribute(text)) == expected


def test_float_attributes_have_their_own_precision() -> None:
    assert python_value(attribute("1.000000e-05 : f32")) == float(np.float32(1e-5))
    assert python_value(attribute("1.000000e-05 : f64")) == 1e-5


def test_tensors_are_arrays() -> None:
    found = python_value(attribute("dense<[1, 2]> : tensor<2xi64>"))
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [1, 2]


def test_values_of_a_dictionary() -> None:
    entries = attribute("{axis = -1 : i64, keep}")
    assert isinstance(entries, DictionaryAttr)
    assert python_values(entries) == {"axis": -1, "keep": True}
    assert python_values(None) == {}


def test_attribute_without_value() -> None:
    with pytest.raises(SpeqcError, match="attribute f16 has no value that a kernel could take"):
        python_value(attribute("f16"))
