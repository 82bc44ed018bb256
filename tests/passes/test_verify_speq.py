# ruff: noqa: E501 (lines of IR)
"""Messages of `verify-speq`, each from one change to a legal module."""

import pytest
from conftest import RunPasses

from speqc.runtime.errors import SpeqcError

LEGAL = """
speq.weight @w from "w" : tensor<8x272xf16> {digest = "sha256:0"}
speq.cache @kv0 {heads = 2 : i64, key_dim = 4 : i64, value_dim = 4 : i64, element_type = f16}
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x272xf16> {
  %shape = onnx.Constant dense<[1, -1, 2, 4]> : tensor<4xi64>
  %flat = onnx.Constant dense<[1, -1, 8]> : tensor<3xi64>
  %one = onnx.Constant dense<1> : tensor<i64>
  %x = speq.embedding @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x8xf16>
  %x4 = onnx.Reshape %x, %shape : (tensor<1x?x8xf16>, tensor<4xi64>) -> tensor<1x?x2x4xf16>
  %q = onnx.Transpose %x4 {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x2x4xf16>) -> tensor<1x2x?x4xf16>
  %a = speq.attention @kv0, %q, %q, %q {score_type = f16, probability_type = f16} : (tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>
  speq.cache_append @kv0, %q, %q : (tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>) loc("append")
  %b = onnx.Transpose %a {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x2x?x4xf16>) -> tensor<1x?x2x4xf16>
  %c = onnx.Reshape %b, %flat : (tensor<1x?x2x4xf16>, tensor<3xi64>) -> tensor<1x?x8xf16>
  %v = speq.view @w : !speq.view<8x272, full>
  %l = speq.matmul %c, %v : (tensor<1x?x8xf16>, !speq.view<8x272, full>) -> tensor<1x?x272xf16>
  func.return %l : tensor<1x?x272xf16>
}
"""

APPEND = (
    '  speq.cache_append @kv0, %q, %q : (tensor<1x2x?x4xf16>, tensor<1x2x?x4xf16>) loc("append")\n'
)
ATTENTION = LEGAL[LEGAL.index("  %a = speq.att") : LEGAL.index(APPEND)]
READER = "  %a = onnx.Neg %q : (tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>\n"
LATER = ATTENTION.replace("%a =", "%a2 =")


def with_line(line: str) -> tuple[str, str]:
    """The change that puts a line in front of the append."""
    return APPEND, f"{line}\n{APPEND}"


CASES = {
    "no step function @full": ("@full(", "@main("),
    r"@full: expected one argument tensor<1x\?xi64>": (
        "%tokens: tensor<1x?xi64>",
        "%tokens: tensor<1x?xi64>, %mask: tensor<1x?xi64>",
    ),
    r"@full: expected one result .*got \(tensor<1x\?x2x4xf16>\)": (
        "func.return %l : tensor<1x?x272xf16>\n}",
        "func.return %b : tensor<1x?x2x4xf16>\n}",
    ),
    "onnx.Det 'odd': the machine has no such operation": with_line(
        '  %n = onnx.Det %x : (tensor<1x?x8xf16>) -> tensor<?xi64> loc("odd")'
    ),
    "more than one dynamic size": with_line(
        "  %m = onnx.Mul %x, %x : (tensor<1x?x8xf16>, tensor<1x?x8xf16>) -> tensor<?x?x8xf16>"
    ),
    "no speq.weight @nothing is declared": ("speq.view @w", "speq.view @nothing"),
    r"a view of \[8, 272\], but the weight is \[8, 200\]": (
        "tensor<8x272xf16> {digest",
        "tensor<8x200xf16> {digest",
    ),
    r"result has 8 channels, but the weight is \[4, 272\]": (
        "tensor<8x272xf16> {digest",
        "tensor<4x272xf16> {digest",
    ),
    "no speq.cache @kv1 is declared": ("speq.attention @kv0", "speq.attention @kv1"),
    "'append': @kv0 is appended to before any attention reads it": (ATTENTION, READER),
    "@kv0 is read after it was appended to": (ATTENTION, ATTENTION + APPEND + LATER),
    "@kv0 is appended to twice": (APPEND, APPEND + APPEND),
    "speq.cache @kv0 is never appended to": (APPEND, ""),
    "speq.attention: key has type": ("key_dim = 4", "key_dim = 5"),
    "the rows appended to @kv0 are not those": (
        APPEND,
        "  %r = onnx.Neg %q : (tensor<1x2x?x4xf16>) -> tensor<1x2x?x4xf16>\n"
        + APPEND.replace("@kv0, %q, %q", "@kv0, %r, %q"),
    ),
    "'sum': it combines the rows of different tokens": with_line(
        "  %s = onnx.CumSum %x, %one : (tensor<1x?x8xf16>, tensor<i64>) "
        '-> tensor<1x?x8xf16> loc("sum")'
    ),
    "'mean': it combines the rows of different tokens": with_line(
        '  %s = onnx.ReduceMean %x : (tensor<1x?x8xf16>) -> tensor<1x1x1xf16> loc("mean")'
    ),
    "'gram': it combines the rows of different tokens": with_line(
        "  %t = onnx.Transpose %x {perm = array<i64: 0, 2, 1>} : (tensor<1x?x8xf16>) "
        "-> tensor<1x8x?xf16>\n"
        "  %s = onnx.MatMul %t, %x : (tensor<1x8x?xf16>, tensor<1x?x8xf16>) "
        '-> tensor<1x8x8xf16> loc("gram")'
    ),
    "'first': it counts tokens from the first of a step": with_line(
        "  %zero = onnx.Constant dense<0> : tensor<i64>\n"
        "  %n1 = onnx.Shape %tokens {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>\n"
        "  %n = onnx.Squeeze %n1 : (tensor<1xi64>) -> tensor<i64>\n"
        "  %r = onnx.Range %zero, %n, %one : (tensor<i64>, tensor<i64>, tensor<i64>) "
        '-> tensor<?xi64> loc("first")'
    ),
    "'count': the dynamic size .* is not the number of tokens": with_line(
        "  %ten = onnx.Constant dense<10> : tensor<i64>\n"
        "  %r = onnx.Range %one, %ten, %one : (tensor<i64>, tensor<i64>, tensor<i64>) "
        '-> tensor<?xi64> loc("count")'
    ),
}


def test_a_legal_module_passes(run_passes: RunPasses) -> None:
    run_passes(LEGAL, "verify-speq")


@pytest.mark.parametrize("message", CASES)
def test_says_what_is_wrong(message: str, run_passes: RunPasses) -> None:
    old, new = CASES[message]
    assert LEGAL.count(old) == 1
    text = LEGAL.replace(old, new)
    if "func.return %b" in text:
        text = text.replace("-> tensor<1x?x272xf16> {", "-> tensor<1x?x2x4xf16> {")
    with pytest.raises(SpeqcError, match=message) as error:
        run_passes(text, "verify-speq")
    assert "\n" not in str(error.value)
