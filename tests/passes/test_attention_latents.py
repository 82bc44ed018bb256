# ruff: noqa: E501 (lines of IR)
"""Keys and values computed from caches of latents (MLA): their new rows are cached instead."""

import numpy as np
import pytest
from attention_text import ADDED, CAUSAL, SCALED_SCORES, SOFTMAX
from conftest import RunPasses
from xdsl.dialects.builtin import ModuleOp

from speqc.dialects.speq import AttentionOp, CacheOp
from speqc.passes.probe import Probe
from speqc.runtime.errors import SpeqcError

KEYS = """
  %parts, %v = onnx.Split %split, %sizes {axis = 3 : i64} : (tensor<1x4x?x8xF>, tensor<2xi64>) -> (tensor<1x4x?x5xF>, tensor<1x4x?x3xF>)
  %shared = onnx.Expand %turned, %four : (tensor<1x1x?x3xF>, tensor<4xi64>) -> tensor<1x4x?x3xF>
  %keys8 = onnx.Concat %parts, %shared {axis = -1 : i64} : (tensor<1x4x?x5xF>, tensor<1x4x?x3xF>) -> tensor<1x4x?x8xF>
"""

MIXED = (
    KEYS
    + """
  %keys_of_all = onnx.CumSum %keys8, %axis : (tensor<1x4x?x8xF>, tensor<i64>) -> tensor<1x4x?x8xF>
"""
)

TEXT = """
builtin.module attributes {onnx.opset = 20 : i64, onnx.kv_pairs = [array<i64: 1, 1>, array<i64: 2, 2>]} {
func.func @main(
  %input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]},
  %past_key: tensor<1x1x?x6xF> {onnx.name = "past.latent", onnx.dims = ["1", "1", "past", "6"]},
  %past_rotary: tensor<1x1x?x3xF> {onnx.name = "past.rotary", onnx.dims = ["1", "1", "past", "3"]},
  %q: tensor<1x4x?x8xF> {onnx.name = "q", onnx.dims = ["1", "4", "sequence", "8"]},
  %new: tensor<1x1x?x6xF> {onnx.name = "new", onnx.dims = ["1", "1", "sequence", "6"]},
  %new_rotary: tensor<1x1x?x3xF> {onnx.name = "new_rotary", onnx.dims = ["1", "1", "sequence", "3"]}
) -> (tensor<1x4x?x3xF>, tensor<1x1x?x6xF>, tensor<1x1x?x3xF>) {
  %zero = onnx.Constant dense<0> : tensor<i64>
  %one = onnx.Constant dense<1> : tensor<i64>
  %axis = onnx.Constant dense<2> : tensor<i64>
  %axis1 = onnx.Constant dense<1> : tensor<1xi64>
  %sizes = onnx.Constant dense<[5, 3]> : tensor<2xi64>
  %four = onnx.Constant dense<[1, 4, 1, 1]> : tensor<4xi64>
  %by_head = onnx.Constant dense<[1, -1, 4, 8]> : tensor<4xi64>
  %factor = onnx.Constant dense<0.25> : tensor<F>
  %nothing = onnx.Constant dense<0.0> : tensor<F>
  %lowest = onnx.Constant dense<-3.4028234663852886e+38> : tensor<F>
  %up = onnx.initializer "up", "sha256:00" : tensor<6x32xF>
  %latent = onnx.Concat %past_key, %new {axis = -2 : i64} : (tensor<1x1x?x6xF>, tensor<1x1x?x6xF>) -> tensor<1x1x?x6xF>
  %turned = onnx.Concat %past_rotary, %new_rotary {axis = 2 : i64} : (tensor<1x1x?x3xF>, tensor<1x1x?x3xF>) -> tensor<1x1x?x3xF>
  %wide = onnx.MatMul %latent, %up : (tensor<1x1x?x6xF>, tensor<6x32xF>) -> tensor<1x1x?x32xF>
  %rows_first = onnx.Reshape %wide, %by_head : (tensor<1x1x?x32xF>, tensor<4xi64>) -> tensor<1x?x4x8xF>
  %split = onnx.Transpose %rows_first {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x4x8xF>) -> tensor<1x4x?x8xF>
KEYS
  %kt = onnx.Transpose %KEY {perm = array<i64: 0, 1, 3, 2>} : (tensor<1x4x?x8xF>) -> tensor<1x4x8x?xF>
ATTENTION
  %y = onnx.MatMul %p, %v : (tensor<1x4x?x?xF>, tensor<1x4x?x3xF>) -> tensor<1x4x?x3xF>
  func.return %y, %latent, %turned : tensor<1x4x?x3xF>, tensor<1x1x?x6xF>, tensor<1x1x?x3xF>
}
}
"""


def text(keys: str, key: str) -> str:
    attention = (CAUSAL + SCALED_SCORES + ADDED + SOFTMAX).replace("1x2x?x8xKV", "1x1x?x6xF")
    return (
        TEXT.replace("KEYS", keys)
        .replace("%KEY", key)
        .replace("ATTENTION", attention)
        .replace("xF>", "xf32>")
        .replace("<F>", "<f32>")
    )


def raised(run_passes: RunPasses) -> tuple[ModuleOp, AttentionOp, CacheOp]:
    module = run_passes(text(KEYS, "%keys8"), "raise-attention")
    (attention,) = (op for op in module.walk() if isinstance(op, AttentionOp))
    (cache,) = (op for op in module.walk() if isinstance(op, CacheOp))
    return module, attention, cache


def test_the_cache_holds_keys_and_values_of_each_head(run_passes: RunPasses) -> None:
    module, attention, cache = raised(run_passes)
    sizes = (cache.heads, cache.key_dim, cache.value_dim)
    assert [size.value.data for size in sizes] == [4, 8, 3]
    assert attention.key.type != attention.value.type
    (function,) = (op for op in module.body.block.ops if op.name == "func.func")
    names = [argument.name_hint for argument in function.regions[0].block.args]
    assert names == ["input_ids", "q", "new", "new_rotary"]


def test_new_rows_are_those_of_what_is_appended(run_passes: RunPasses) -> None:
    """With 3 new rows, given what the product with the weight is."""
    module, attention, _ = raised(run_passes)
    (function,) = (op for op in module.body.block.ops if op.name == "func.func")
    arguments = {arg.name_hint: arg for arg in function.regions[0].block.args}
    rotary = np.random.default_rng(1).standard_normal((1, 1, 3, 3)).astype(np.float32)
    own = np.random.default_rng(2).standard_normal((1, 1, 3, 32)).astype(np.float32)
    products = [op for op in module.walk() if op.name == "onnx.MatMul"]
    assert all(product.operands[0] is arguments["new"] for product in products)
    bound = {product.results[0]: own for product in products}
    probe = Probe({arguments["new_rotary"]: rotary, **bound}, 20)
    key, value = probe.value(attention.key), probe.value(attention.value)
    heads = own.reshape(1, 3, 4, 8).swapaxes(1, 2)
    assert key is not None and value is not None
    np.testing.assert_array_equal(key[..., :5], heads[..., :5])
    np.testing.assert_array_equal(key[..., 5:], np.repeat(rotary, 4, axis=1))
    np.testing.assert_array_equal(value, heads[..., 5:])


def test_what_mixes_positions_is_no_key(run_passes: RunPasses) -> None:
    with pytest.raises(SpeqcError, match="no attention over a cache found"):
        run_passes(text(MIXED, "%keys_of_all"), "raise-attention")
