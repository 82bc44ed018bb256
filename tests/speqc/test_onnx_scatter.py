"""`ScatterND` of whole slices becomes a concatenation with the same elements."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from speqc.onnx_scatter import join_scattered

OUTWARDS, WIDTH = (3, 1, 2, 0), 7
DATA = np.arange(2 * 3 * WIDTH, dtype=np.float32).reshape(1, 2, 3, WIDTH)


def written(*indices: list[int]) -> tuple[list[np.ndarray], list[str]]:
    """Copies of slices to `DATA`, as PyTorch's exporter writes them: results and operators then.

    The first result is that of the graph as it was, the second that after the rewriting.
    """
    nodes, tensors, feeds, value = [], [numpy_helper.from_array(DATA, "data")], {}, "data"
    inputs = []
    for count, places in enumerate(indices):
        sizes = [1, 2, 3, len(places)]
        tensors.append(numpy_helper.from_array(np.array(places)[:, None], f"i{count}"))
        inputs.append(helper.make_tensor_value_info(f"x{count}", TensorProto.FLOAT, sizes))
        feeds[f"x{count}"] = -1 - np.arange(np.prod(sizes), dtype=np.float32).reshape(sizes)
        names = [f"d{count}", f"i{count}", f"u{count}"]
        nodes += [
            helper.make_node("Transpose", [value], names[:1], perm=OUTWARDS),
            helper.make_node("Transpose", [f"x{count}"], names[2:], perm=OUTWARDS),
            helper.make_node("ScatterND", names, [f"s{count}"], name=f"scatter{count}"),
            helper.make_node("Transpose", [f"s{count}"], [f"v{count}"], perm=OUTWARDS),
        ]
        value = f"v{count}"
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, DATA.shape)
    graph = helper.make_graph(nodes, "g", inputs, [output], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model = ir.serde.deserialize_model(proto)
    for node in model.graph:
        first, *_ = node.inputs
        assert first is not None
        if node.op_type == "Transpose" and first.shape is not None:
            dims = [first.shape[place] for place in OUTWARDS]
            node.outputs[0].shape, node.outputs[0].type = ir.Shape(dims), first.type
        elif node.op_type == "ScatterND":
            node.outputs[0].shape, node.outputs[0].type = first.shape, first.type
    join_scattered(model.graph)
    common.RemoveUnusedNodesPass()(model)
    changed = ir.serde.serialize_model(model)
    runs = [ReferenceEvaluator(each).run(None, feeds) for each in (proto, changed)]
    return [np.asarray(next(iter(run))) for run in runs], [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("indices", "cuts"),
    [
        ([[0, 1, 2, 3], [4, 5, 6]], 0),
        ([[0, 1, 2]], 1),
        ([[2, 3]], 2),
        ([[0, 1], [1, 2, 3, 4, 5, 6]], 1),
        ([[0, 1, 2, 3, 4, 5, 6]], 0),
    ],
)
def test_is_joined(indices: list[list[int]], cuts: int) -> None:
    (expected, found), operators = written(*indices)
    np.testing.assert_array_equal(found, expected)
    assert "ScatterND" not in operators and operators.count("Slice") == cuts


@pytest.mark.parametrize("places", [[1, 0], [0, 2], [-1], [3, 3]])
def test_other_places_stay(places: list[int]) -> None:
    (expected, found), operators = written(places)
    np.testing.assert_array_equal(found, expected)
    assert operators.count("ScatterND") == 1
