"""Shapes behind an `Expand` whose operand's shape only a later round of inference knows."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx_models import HIDDEN, Graph, decoder, save
from onnx_shape_inference import infer_symbolic_shapes

from speqc.onnx_inference import extend_inference
from speqc.onnx_reader import open_model
from speqc.onnx_shapes import check_expanded, remove_shape_arithmetic
from speqc.onnx_simplify import simplify
from speqc.runtime.errors import SpeqcError

COPIES = 2


def thrice_expanded(g: Graph, hidden: str) -> str:
    """Copies of each row, averaged again; as TorchScript writes "-1 keeps the size", three times.

    How many there are is read off a tensor that is expanded in the same way.
    """
    g.integers("by_two", [0, -1, COPIES, HIDDEN // COPIES])
    g.integers("keep", [-1])
    parts = g.node("Reshape", [hidden, "by_two"], "parts")
    one = g.node("Unsqueeze", [hidden, "at1"], "one_copy")
    first = expanded(g, one, ["keep", size(g, parts, 2), "keep", "keep"], "first")
    second = expanded(g, one, ["keep", size(g, first, 1), "keep", "keep"], "second")
    third = expanded(g, second, ["keep", size(g, second, 1), "keep", "keep"], "third")
    return g.node("ReduceMean", [third, "at1"], "mean", keepdims=0)


def size(g: Graph, data: str, axis: int) -> str:
    """A vector with one of the sizes of a tensor."""
    g.integers(f"axis_of_{data}_{axis}", axis)
    sizes = g.node("Shape", [data], f"sizes_of_{data}_{axis}")
    count = g.node("Gather", [sizes, f"axis_of_{data}_{axis}"], f"count_of_{data}_{axis}", axis=0)
    return g.node("Unsqueeze", [count, "at0"], f"vector_of_{data}_{axis}")


def expanded(g: Graph, data: str, sizes: list[str], name: str) -> str:
    wanted = g.node("Concat", sizes, f"{name}_wanted", axis=0)
    flat = g.node("Reshape", [wanted, "keep"], f"{name}_flat")
    length = g.node("Shape", [flat], f"{name}_length")
    one = numpy_helper.from_array(np.array([1], np.int64))
    ones = g.node("ConstantOfShape", [length], f"{name}_ones", value=one)
    g.integers(f"{name}_minus", -1)
    minus = g.node("Mul", [ones, f"{name}_minus"], f"{name}_keeps")
    keeps = g.node("Equal", [flat, minus], f"{name}_equal")
    shape = g.node("Where", [keeps, ones, flat], f"{name}_shape")
    return g.node("Expand", [data, shape], name)


def test_expansions_in_a_row(tmp_path: Path) -> None:
    model = open_model(save(decoder(last=thrice_expanded), tmp_path))
    simplify(model)
    (mean,) = (node for node in model.graph if node.op_type == "ReduceMean")
    value = mean.inputs[0]
    assert value is not None and value.shape is not None
    assert [str(dim) for dim in value.shape] == ["1", str(COPIES), "sequence", str(HIDDEN)]


def of_unknown_shape() -> ir.Model:
    """An `Expand` of what no rule gives a shape, and a sum with it."""
    text = """<ir_version: 9, opset_import: ["" : 20, "org.example" : 1]>
        g (float[2] x, float[1, 3] z) => (float[a, b] w)
        <int64[2] sizes = {2, 1}> {
            u = org.example.Mystery (x)
            [wide] y = Expand (u, sizes)
            w = Add (y, z)
        }"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    model.graph.outputs[0].shape = None
    return model


def test_nothing_is_guessed_of_an_unknown_shape() -> None:
    """It is more than the sizes alone say: [2, 3] or [4, 2, 1] expand to more than [2, 1]."""
    model = of_unknown_shape()
    extend_inference()
    infer_symbolic_shapes(model, warn_on_missing=False)
    remove_shape_arithmetic(model.graph)
    assert [node.outputs[0].shape for node in model.graph] == [None, None, None]
    with pytest.raises(SpeqcError, match=r"^node 'wide' \(Expand\): the shape of 'u' can't be"):
        check_expanded(model.graph)
