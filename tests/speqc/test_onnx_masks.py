"""Tables of masks and biases become computations with the same bits."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from speqc.onnx_masks import compute_masks

SIZE = 40
ROWS, COLUMNS = np.indices((SIZE, SIZE))
CAUSAL = COLUMNS <= ROWS
WINDOW = CAUSAL & (ROWS - COLUMNS < 6)
SLOPES = (2.0 ** (-8 / 3 * np.arange(1, 4))).astype(np.float32)[:, None, None]
BIAS = SLOPES * np.arange(1 - SIZE, 1, dtype=np.float32)


def computed(table: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """What a graph that gives `table` gives without it, and the initializers that it has then."""
    kind = helper.np_dtype_to_tensor_dtype(table.dtype)
    output = helper.make_tensor_value_info("y", kind, table.shape)
    node = helper.make_node("Identity", ["table"], ["y"], name="node")
    graph = helper.make_graph([node], "g", [], [output], [numpy_helper.from_array(table, "table")])
    opsets = [helper.make_opsetid("", 14)]
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets))
    compute_masks(model.graph)
    used = [value.name or "" for value in model.graph.initializers.values() if value.uses()]
    (found,) = ReferenceEvaluator(ir.serde.serialize_model(model)).run(None, {})
    return np.asarray(found), used


@pytest.mark.parametrize(
    "table",
    [
        CAUSAL,
        ~CAUSAL[None, None],
        WINDOW[None, None],
        WINDOW.astype(np.uint8),
        np.where(WINDOW, np.float16(0), np.float16(-65504))[None],
        np.where(CAUSAL, np.float32(0), np.float32(-np.inf)),
        BIAS,
        -BIAS[:, :, ::-1] + 0,
        np.tile(np.arange(4 - SIZE, 30, dtype=np.float16), (1, 2, 1, 1)),
    ],
)
def test_a_table_is_computed(table: np.ndarray) -> None:
    found, used = computed(table)
    np.testing.assert_array_equal(found, table, strict=True)
    assert found.tobytes() == table.tobytes()
    assert "table" not in used


def changed(table: np.ndarray, place: tuple[int, ...], value: object) -> np.ndarray:
    copy = table.copy()
    copy[place] = value
    return copy


@pytest.mark.parametrize(
    "table",
    [
        changed(CAUSAL, (9, 12), True),
        changed(WINDOW, (9, 9), False),
        changed(np.where(CAUSAL, 0, -1).astype(np.float32), (0, -1), -2),
        changed(BIAS, (1, 0, 4), 0.1),
        np.ones((SIZE, SIZE), np.bool_),
        np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float16),
        CAUSAL[:, 1:],
    ],
)
def test_another_table_stays(table: np.ndarray) -> None:
    found, used = computed(table)
    np.testing.assert_array_equal(found, table, strict=True)
    assert used == ["table"]


def test_a_small_table_stays() -> None:
    assert computed(CAUSAL[:8, :8])[1] == ["table"]


def test_a_table_that_only_a_subgraph_reads_stays() -> None:
    output = helper.make_tensor_value_info("y", 9, CAUSAL.shape)
    branch = helper.make_graph([helper.make_node("Identity", ["table"], ["y"])], "b", [], [output])
    choice = helper.make_tensor_value_info("choice", 9, [])
    node = helper.make_node("If", ["choice"], ["y"], then_branch=branch, else_branch=branch)
    table = numpy_helper.from_array(CAUSAL, "table")
    graph = helper.make_graph([node], "g", [choice], [output], [table])
    model = ir.serde.deserialize_model(helper.make_model(graph))
    compute_masks(model.graph)
    assert model.graph.initializers["table"].uses()
