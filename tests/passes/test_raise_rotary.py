# ruff: noqa: E501 (lines of IR)
"""What `raise-rotary` takes for a rotation, and for its tables."""

import numpy as np
import pytest
from conftest import RunPasses
from hypothesis import given
from hypothesis import strategies as st
from xdsl.dialects.func import FuncOp

from speqc.dialects.speq import RotaryOp
from speqc.passes.argument_roles import Role
from speqc.passes.raise_rotary import rotate
from speqc.passes.step_samples import step_arguments
from speqc.runtime.rotary import rotary


@given(pairs=st.integers(1, 8), rows=st.integers(1, 4), interleaved=st.booleans())
def test_rotation_is_that_of_the_kernel(pairs: int, rows: int, interleaved: bool) -> None:
    x = np.arange(1, 1 + 2 * rows * 2 * pairs).reshape(1, 2, rows, 2 * pairs).astype(np.float32)
    table = np.zeros((1, 1, rows, 2 * pairs), np.float32)
    np.testing.assert_array_equal(
        rotary(x, table, table + 1, interleaved), rotate(x, interleaved=interleaved)
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_four_quarter_turns_are_none(interleaved: bool) -> None:
    x = np.arange(1, 13).reshape(1, 12)
    half_turn = rotate(rotate(x, interleaved=interleaved), interleaved=interleaved)
    np.testing.assert_array_equal(half_turn, -x)


ROTARY = """
builtin.module attributes {onnx.opset = 23 : i64} {
func.func @main(
  %input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]},
  %position_ids: tensor<1x?xi64> {onnx.name = "position_ids", onnx.dims = ["1", "sequence"]},
  %x: tensor<1x4x?x8xf16> {onnx.name = "x", onnx.dims = ["1", "4", "sequence", "8"]}
) -> (tensor<1x4x?x8xf16>, tensor<1x?x4xf16>) {
  %table = onnx.initializer "table", "sha256:00" : tensor<9x4xf16>
  %embedding = onnx.Gather %table, %input_ids : (tensor<9x4xf16>, tensor<1x?xi64>) -> tensor<1x?x4xf16>
  %cosines = onnx.initializer "cosines", "sha256:01" : tensor<999x4xf16>
  %zero = onnx.Constant dense<0> : tensor<i64>
  %one = onnx.Constant dense<1> : tensor<i64>
  %axis = onnx.Constant dense<0> : tensor<1xi64>
  %row = onnx.Constant dense<[1, -1]> : tensor<2xi64>
  %rows1 = onnx.Shape %input_ids {start = 1 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
  %rows = onnx.Squeeze %rows1 : (tensor<1xi64>) -> tensor<i64>
  %counted = onnx.Range START, %rows, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
  %index = onnx.Reshape %counted, %row : (tensor<?xi64>, tensor<2xi64>) -> tensor<1x?xi64>
  %column = onnx.Constant dense<[-1, 1]> : tensor<2xi64>
  %frequencies = onnx.Constant dense<[1.0, 0.5, 0.25, 0.125]> : tensor<4xf32>
  %places = onnx.Reshape %position_ids, %column : (tensor<1x?xi64>, tensor<2xi64>) -> tensor<?x1xi64>
  %numbers = onnx.Cast %places {to = 1 : i64} : (tensor<?x1xi64>) -> tensor<?x1xf32>
  %angles = onnx.Mul %numbers, %frequencies : (tensor<?x1xf32>, tensor<4xf32>) -> tensor<?x4xf32>
  %made32 = onnx.Cos %angles : (tensor<?x4xf32>) -> tensor<?x4xf32>
  %made = onnx.Cast %made32 {to = 10 : i64} : (tensor<?x4xf32>) -> tensor<?x4xf16>
  %y = onnx.microsoft.RotaryEmbedding %x, INDEX, TABLE, TABLE : (tensor<1x4x?x8xf16>, tensor<1x?xi64>, TYPE, TYPE) -> tensor<1x4x?x8xf16>
  func.return %y, %embedding : tensor<1x4x?x8xf16>, tensor<1x?x4xf16>
}
}
"""


def rotary_text(index: str, table: str, start: str = "%zero") -> str:
    type = {"%made": "tensor<?x4xf16>", "%cosines": "tensor<999x4xf16>"}[table]
    text = ROTARY.replace("INDEX", index).replace("TABLE", table).replace("TYPE", type)
    return text.replace("START", start)


@pytest.mark.parametrize(
    ("text", "gathers"),
    [
        (rotary_text("%index", "%made"), 0),
        (rotary_text("%index", "%made", "%one"), 2),
        (rotary_text("%index", "%cosines"), 2),
    ],
)
def test_rows_made_for_a_step_are_taken_as_they_are(
    text: str, gathers: int, run_passes: RunPasses
) -> None:
    """A gather of all rows of a computed table, in their order, is none."""
    module = run_passes(text, "raise-rotary")
    tables = (op for op in module.walk() if isinstance(op, RotaryOp))
    found = [op for op in module.walk() if op.name == "onnx.Gather"]
    assert len(list(tables)) == 1
    assert len(found) == gathers + 1  # that of the embeddings


def test_a_larger_table_of_cosines_makes_no_tokens(run_passes: RunPasses) -> None:
    module = run_passes(rotary_text("%position_ids", "%cosines"), "raise-rotary")
    (function,) = (op for op in module.body.block.ops if isinstance(op, FuncOp))
    roles = {arg.name: arg.role for arg in step_arguments(module, function)}
    assert roles["input_ids"] is Role.TOKENS and roles["position_ids"] is Role.POSITIONS
