"""Symbols of weights."""

import pytest
from xdsl.dialects.builtin import f16

from speqc.dialects.onnx import ConstantOp, node_location
from speqc.passes.weight_names import WeightNames


def user(name: str):
    from xdsl.dialects.builtin import DenseIntOrFPElementsAttr, TensorType

    op = ConstantOp(DenseIntOrFPElementsAttr.from_list(TensorType(f16, [1]), [0.0]))
    op.location = node_location(name)
    return op


@pytest.mark.parametrize(
    ("tensor", "node", "symbol"),
    [
        ("model.layers.0.q.weight", "node_linear_3", "model.layers.0.q"),
        ("model.layers.0.q.weight_t", "q/MatMul_node_3", "model.layers.0.q"),
        ("val_84", "node_linear_3", "linear_3"),
        ("onnx::MatMul_742", "/model/layers.0/mlp/up_proj/MatMul", "model.layers.0.mlp.up_proj"),
        ("onnx::MatMul_742", "/lm_head/MatMul_1", "lm_head"),
        ("val_84", "", "val_84"),
        ("7", "", "w7"),
        ("!", "", "weight"),
    ],
)
def test_says_what_the_file_knows(tensor: str, node: str, symbol: str) -> None:
    assert WeightNames().choose(user(node), tensor) == symbol


def test_no_symbol_twice() -> None:
    names = WeightNames()
    chosen = [names.choose(user(""), tensor) for tensor in ("a.b", "a.b", "a/b", "a_b", "a b")]
    assert chosen == ["a.b", "a.b_1", "a_b", "a_b_1", "a_b_2"]
