"""Sizes that onnx_shape_inference leaves open, and those that the model's own tables decide."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_shape_inference import infer_symbolic_shapes

from speqc.onnx_bounds import decided_operand
from speqc.onnx_inference import extend_inference
from speqc.onnx_shapes import remove_shape_arithmetic
from speqc.onnx_slices import slice_size
from speqc.onnx_symbols import PAST, SEQUENCE, TOTAL, Dim

S, P, T = (ir.SymbolicDim(name) for name in (SEQUENCE, PAST, TOTAL))


@pytest.mark.parametrize(
    ("size", "start", "end", "expected"),
    [
        (128, P, T, SEQUENCE),
        (128, 0, T, TOTAL),
        (128, 0, 2**63 - 1, "128"),
        (T, 0, T, TOTAL),
        (T, P, 2**63 - 1, SEQUENCE),
        (T, 0, 128, None),
        (T, -1, 2**63 - 1, "1"),
        (128, T, P, None),
        (S, 0, T, SEQUENCE),
        (S, P, T, None),
    ],
)
def test_the_size_of_a_slice(size: Dim, start: Dim, end: Dim, expected: str | None) -> None:
    found = slice_size(size, start, end)
    assert (None if found is None else str(found)) == expected


def inferred(nodes: list, tables: dict[str, np.ndarray]) -> ir.Model:
    """A graph of tokens `[1, sequence]` and a cache of `past` positions, shapes inferred."""
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, SEQUENCE])
    places = helper.make_tensor_value_info("places", TensorProto.INT64, [1, SEQUENCE])
    cache = helper.make_tensor_value_info("cache", TensorProto.FLOAT16, [1, 2, PAST, 4])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)
    initializers = [numpy_helper.from_array(array, name) for name, array in tables.items()]
    graph = helper.make_graph(nodes, "g", [tokens, places, cache], [output], initializers)
    opsets = [helper.make_opsetid("", 18)]
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets))
    extend_inference()
    extend_inference()
    return infer_symbolic_shapes(model, warn_on_missing=False, adopt_declared_symbols=False)


LENGTHS = [
    helper.make_node("Shape", ["tokens"], ["s"], start=1, end=2),
    helper.make_node("Shape", ["cache"], ["p"], start=2, end=3),
    helper.make_node("Add", ["p", "s"], ["t"]),
]


def node_of(model: ir.Model, operator: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == operator)


def test_a_slice_of_a_table_by_positions() -> None:
    table = np.zeros((128, 8), np.float16)
    nodes = [*LENGTHS, helper.make_node("Slice", ["table", "p", "t", "axes"], ["y"])]
    model = inferred(nodes, {"table": table, "axes": np.array([0])})
    assert str(node_of(model, "Slice").outputs[0].shape) == f"[{SEQUENCE},8]"


def test_a_reshape_that_keeps_the_tokens() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["x"]),
        helper.make_node("Reshape", ["x", "by_head"], ["h"]),
        helper.make_node("Reshape", ["h", "joined"], ["y"]),
    ]
    tables = {
        "table": np.zeros((9, 8), np.float16),
        "by_head": np.array([1, -1, 2, 4]),
        "joined": np.array([1, -1, 8]),
    }
    model = inferred(nodes, tables)
    last = list(model.graph)[-1]
    assert str(last.outputs[0].shape) == f"[1,{SEQUENCE},8]"


def choice(operator: str, first: str, second: str, limit: int, rows: int | None) -> str | None:
    """The name of the operand that a choice always is."""
    nodes = [*LENGTHS, helper.make_node(operator, [first, second], ["c"])]
    tables = {
        "words": np.zeros((300, 8), np.float16),
        "c128": np.array([limit]),
        "zero": np.array([0]),
    }
    if rows is not None:
        tables["table"] = np.zeros((rows, 8), np.float16)
        nodes.append(helper.make_node("Gather", ["table", "places"], ["y"]))
    nodes.append(helper.make_node("Gather", ["words", "tokens"], ["z"]))
    model = inferred(nodes, tables)
    found = decided_operand(model.graph, node_of(model, operator))
    return None if found is None else found.name


@pytest.mark.parametrize(
    ("operator", "first", "second", "limit", "rows", "expected"),
    [
        ("Min", "c128", "t", 128, 128, "t"),
        ("Min", "p", "c128", 200, 128, "p"),
        ("Min", "c128", "t", 127, 128, None),
        ("Min", "c128", "t", 4096, None, None),
        ("Max", "c128", "t", 128, 128, "c128"),
        ("Max", "zero", "s", 128, None, "s"),
        ("Min", "p", "t", 128, None, "p"),
    ],
)
def test_a_table_of_positions_decides(
    operator: str, first: str, second: str, limit: int, rows: int | None, expected: str | None
) -> None:
    assert choice(operator, first, second, limit, rows) == expected


def test_a_table_of_something_else_decides_nothing() -> None:
    """Eight rows that remainders index say nothing of how many positions there are."""
    nodes = [
        *LENGTHS,
        helper.make_node("Min", ["c128", "t"], ["c"]),
        helper.make_node("Mod", ["places", "eight"], ["rest"]),
        helper.make_node("Gather", ["table", "rest"], ["y"]),
    ]
    tables = {
        "c128": np.array([128]),
        "eight": np.array([8]),
        "table": np.zeros((8, 8), np.float16),
    }
    model = inferred(nodes, tables)
    assert decided_operand(model.graph, node_of(model, "Min")) is None


def test_sizes_of_inner_tensors_are_read_off_the_inputs() -> None:
    nodes = [
        *LENGTHS,
        helper.make_node("Gather", ["table", "tokens"], ["x"]),
        helper.make_node("Shape", ["x"], ["sizes"], name="inner"),
        helper.make_node("Expand", ["one", "sizes"], ["y"]),
    ]
    tables = {"table": np.zeros((9, 8), np.float16), "one": np.ones((1, 1, 1), np.float16)}
    model = inferred(nodes, tables)
    remove_shape_arithmetic(model.graph)
    (inner,) = (node for node in model.graph if node.name == "inner")
    assert not inner.outputs[0].uses()
    joined = node_of(model, "Expand").inputs[1]
    assert joined is not None and joined.producer() is not None
    sizes = joined.producer()
    assert sizes is not None and sizes.op_type == "Concat"
    assert [value.const_value is not None for value in sizes.inputs if value] == [True, False, True]
