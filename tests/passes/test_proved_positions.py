# ruff: noqa: E501 (lines of IR)
"""Up to how many positions masks, positions and replacements are known, and what lies behind."""

import pytest
from attention_text import CAUSAL, NAN_REPLACED, SOFTMAX, WINDOW, AttentionText
from conftest import RunPasses
from xdsl.dialects.builtin import ModuleOp

from speqc.dialects.speq import AttentionOp, PositionsOp
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import limit_proved, proved_positions

TABLE = """
  %begin = onnx.Constant dense<[0]> : tensor<1xi64>
  %rows_of_table = onnx.Constant dense<SIZE> : tensor<i64>
  %end = onnx.Unsqueeze %total, %begin : (tensor<i64>, tensor<1xi64>) -> tensor<1xi64>
  %table = onnx.Range %zero, %rows_of_table, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<SIZExi64>
  %keys = onnx.Slice %table, %begin, %end : (tensor<SIZExi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<?xi64>
"""
"""Key positions from a table with so many rows."""


def of_table(size: int, mask: str = CAUSAL) -> str:
    line = next(line for line in mask.splitlines() if line.startswith("  %keys ="))
    return mask.replace(line, TABLE.replace("SIZE", str(size)))


@pytest.mark.parametrize(("mask", "positions"), [(CAUSAL, 262_144), (of_table(700), 700)])
def test_masks_are_proved_as_far_as_they_can_be_evaluated(
    mask: str, positions: int, run_passes: RunPasses
) -> None:
    module = run_passes(str(AttentionText(mask=mask)), "raise-attention")
    assert proved_positions(module) == positions


@pytest.mark.parametrize("window", [698, 699])
def test_a_window_as_long_as_the_table_but_for_little(window: int, run_passes: RunPasses) -> None:
    text = str(AttentionText(mask=of_table(700, WINDOW), window=window))
    (op,) = (op for op in run_passes(text, "raise-attention").walk() if isinstance(op, AttentionOp))
    assert op.window is not None and op.window.value.data == window


def test_a_window_of_the_table_s_length_is_none(run_passes: RunPasses) -> None:
    text = str(AttentionText(mask=of_table(700, WINDOW), window=700))
    module = run_passes(text, "raise-attention")
    (op,) = (op for op in module.walk() if isinstance(op, AttentionOp))
    assert op.window is None and proved_positions(module) == 700


def test_the_least_limit_holds() -> None:
    module = ModuleOp([])
    assert proved_positions(module) is None
    for positions, least in ((900, 900), (1_000, 900), (64, 64)):
        limit_proved(module, positions)
        assert proved_positions(module) == least


LATE = """
  %million = onnx.Constant dense<1000000> : tensor<i64>
  %late = onnx.Greater %total, %million : (tensor<i64>, tensor<i64>) -> tensor<i1>
  %doubled = onnx.Add %q, %q : (tensor<1x4x?x8xF>, tensor<1x4x?x8xF>) -> tensor<1x4x?x8xF>
  %q_late = onnx.Where %late, %doubled, %q : (tensor<i1>, tensor<1x4x?x8xF>, tensor<1x4x?x8xF>) -> tensor<1x4x?x8xF>
"""


def test_only_guards_of_attention_are_dropped(run_passes: RunPasses) -> None:
    """A replacement of queries that no sample shows stays in the graph, and with it what it reads."""
    text = str(AttentionText(mask=CAUSAL + LATE)).replace("MatMul %q,", "MatMul %q_late,")
    with pytest.raises(SpeqcError, match=r"it uses the cache 'past\.key' outside any attention"):
        run_passes(text, "raise-attention")


GUARD = """
  %p0 = onnx.Softmax %masked {axis = -1 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
  %blind = onnx.Less %queries, %zero : (tensor<?x1xi64>, tensor<i64>) -> tensor<?x1xi1>
  %p = onnx.Where %blind, %nothing, %p0 : (tensor<?x1xi1>, tensor<F>, tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
"""


@pytest.mark.parametrize("softmax", [SOFTMAX, GUARD, NAN_REPLACED])
def test_guards_of_rows_that_see_nothing_are_dropped(softmax: str, run_passes: RunPasses) -> None:
    module = run_passes(str(AttentionText(softmax=softmax)), "raise-attention")
    assert not any(op.name == "onnx.Where" for op in module.walk())


def test_a_guard_that_replaces_something_is_none(run_passes: RunPasses) -> None:
    guard = GUARD.replace("onnx.Less %queries, %zero", "onnx.LessOrEqual %queries, %zero")
    with pytest.raises(SpeqcError, match="no attention over a cache found"):
        run_passes(str(AttentionText(softmax=guard)), "raise-attention")


COUNTED = """
builtin.module attributes {onnx.opset = 20 : i64} {
func.func @main(%tokens: tensor<1x?xi64> {onnx.name = "tokens", onnx.dims = ["1", "sequence"]}) -> (tensor<1x?x8xf32>, tensor<?xi64>) {
  %embedding = onnx.initializer "embedding", "none" : tensor<99x8xf32>
  %x = onnx.Gather %embedding, %tokens : (tensor<99x8xf32>, tensor<1x?xi64>) -> tensor<1x?x8xf32>
  %zero = onnx.Constant dense<0> : tensor<i64>
  %one = onnx.Constant dense<1> : tensor<i64>
  %limit = onnx.Constant dense<LIMIT> : tensor<i64>
  %rows1 = onnx.Shape %tokens {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
  %rows = onnx.Squeeze %rows1 : (tensor<1xi64>) -> tensor<i64>
  %range = onnx.Range %zero, %rows, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
  %places = onnx.Min %range, %limit : (tensor<?xi64>, tensor<i64>) -> tensor<?xi64>
  func.return %x, %places : tensor<1x?x8xf32>, tensor<?xi64>
}
}
"""


def test_computed_positions_limit_what_is_proved(run_passes: RunPasses) -> None:
    module = run_passes(COUNTED.replace("LIMIT", "5000"), "raise-positions")
    assert any(isinstance(op, PositionsOp) for op in module.walk())
    # Without caches a mask of more rows would be too large to evaluate.
    assert proved_positions(module) == 4_200
    late = run_passes(COUNTED.replace("LIMIT", "4000"), "raise-positions")
    returned = next(op for op in late.walk() if op.name == "func.return")
    assert returned.operands[1].owner.name == "onnx.Min"  # pyright: ignore[reportAttributeAccessIssue]


LEARNED = """
builtin.module attributes {onnx.opset = 20 : i64} {
func.func @main(%tokens: tensor<1x?xi64> {onnx.name = "tokens", onnx.dims = ["1", "sequence"]}, %position_ids: tensor<1x?xi64> {onnx.name = "position_ids", onnx.dims = ["1", "sequence"]}) -> tensor<1x?x8xf32> {
  %embedding = onnx.initializer "embedding", "none" : tensor<99x8xf32>
  %learned = onnx.initializer "learned", "none" : tensor<300x8xf32>
  %x = onnx.Gather %embedding, %tokens : (tensor<99x8xf32>, tensor<1x?xi64>) -> tensor<1x?x8xf32>
  %two = onnx.Constant dense<2> : tensor<i64>
  %places = onnx.Add %position_ids, %two : (tensor<1x?xi64>, tensor<i64>) -> tensor<1x?xi64>
  %z = onnx.Gather %learned, %places : (tensor<300x8xf32>, tensor<1x?xi64>) -> tensor<1x?x8xf32>
  %y = onnx.Add %x, %z : (tensor<1x?x8xf32>, tensor<1x?x8xf32>) -> tensor<1x?x8xf32>
  func.return %y : tensor<1x?x8xf32>
}
}
"""
"""As OPT has it: the third row is that of the first position."""


def test_a_table_of_learned_positions_ends(run_passes: RunPasses) -> None:
    assert proved_positions(run_passes(LEARNED, "raise-positions")) == 298
    without = LEARNED.replace("Gather %learned, %places", "Gather %learned, %tokens")
    assert proved_positions(run_passes(without, "raise-positions")) is None
