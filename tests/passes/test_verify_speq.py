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
    "onnx.NonZero: how many entries it gives depends on values": with_line(
        "  %m = onnx.NonZero %x : (tensor<1x?x8xf16>) -> tensor<3x?xi64>"
    ),
    "speq.matmul: it combines the rows of different tokens": (
        "%l = speq.matmul %c, %v :",
        "%k = onnx.Cast %tokens {to = 9 : i64} : (tensor<1x?xi64>) -> tensor<1x?x1xi1>\n"
        "  %y = onnx.Concat %c, %c {axis = -1 : i64} : (tensor<1x?x8xf16>, tensor<1x?x8xf16>) -> tensor<1x?x16xf16>\n"
        "  %z = onnx.Reshape %y, %flat : (tensor<1x?x16xf16>, tensor<3xi64>) -> tensor<1x?x8xf16>\n"
        "  %l = speq.matmul %z, %v when %k : tensor<1x?x1xi1> :",
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

ROW = "tensor<1x?x8xf16>"
TABLE = '%table = onnx.initializer "t", "sha256:0" : tensor<8x8xf16>\n'

MIXING = {
    "normalisation over rows": f"%s = onnx.LayerNormalization %x, %x {{axis = 1 : i64}} : ({ROW}, {ROW}) -> {ROW}",
    "arg max over rows": f"%s = onnx.ArgMax %x {{axis = 1 : i64}} : ({ROW}) -> tensor<1x1x8xi64>",
    "first row": f"%s = onnx.Gather %x, %one {{axis = 1 : i64}} : ({ROW}, tensor<i64>) -> tensor<1x8xf16>",
    "triangle": f"%s = onnx.Trilu %x : ({ROW}) -> {ROW}",
    "size": f"%s = onnx.Size %x : ({ROW}) -> tensor<i64>",
    "maximum with a table": f"{TABLE}%s = onnx.Max %x, %table : ({ROW}, tensor<8x8xf16>) -> {ROW}",
    "columns for rows": "%to = onnx.Constant dense<[1, 8, -1]> : tensor<3xi64>\n"
    f"%s = onnx.Reshape %x, %to : ({ROW}, tensor<3xi64>) -> tensor<1x8x?xf16>",
    "two rows in one": "%to = onnx.Constant dense<[1, -1, 16]> : tensor<3xi64>\n"
    f"%s = onnx.Reshape %x, %to : ({ROW}, tensor<3xi64>) -> tensor<1x?x16xf16>",
    "heads for rows": "%to = onnx.Constant dense<[1, -1, 4]> : tensor<3xi64>\n"
    f"%h = onnx.Reshape %x, %to : ({ROW}, tensor<3xi64>) -> tensor<1x?x4xf16>\n"
    "%part = onnx.Slice %x, %zero, %four, %two : "
    f"({ROW}, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x?x4xf16>\n"
    "%s = onnx.Add %h, %part : (tensor<1x?x4xf16>, tensor<1x?x4xf16>) -> tensor<1x?x4xf16>",
    "rows joined": f"%s = onnx.Concat %x, %x {{axis = 1 : i64}} : ({ROW}, {ROW}) -> {ROW}",
    "rows repeated": "%n = onnx.Constant dense<[1, 2, 1]> : tensor<3xi64>\n"
    f"%s = onnx.Tile %x, %n : ({ROW}, tensor<3xi64>) -> {ROW}",
    "softmax over rows": f"%s = onnx.Softmax %x {{axis = 1 : i64}} : ({ROW}) -> {ROW}",
    "rows at coordinates": "%at = onnx.Constant dense<0> : tensor<1x2xi64>\n"
    f"%s = onnx.GatherND %x, %at : ({ROW}, tensor<1x2xi64>) -> tensor<1x8xf16>",
    "elements by their row in the step": '%far = onnx.initializer "f", "sha256:0" : tensor<1x9x8xf16>\n'
    f"%i = onnx.Cast %x {{to = 7 : i64}} : ({ROW}) -> tensor<1x?x8xi64>\n"
    "%s = onnx.GatherElements %far, %i {axis = 2 : i64} : "
    f"(tensor<1x9x8xf16>, tensor<1x?x8xi64>) -> {ROW}",
    "Einstein sum over rows": '%s = onnx.Einsum %x, %x {equation = "bij,bik->bjk"} : '
    f"({ROW}, {ROW}) -> tensor<1x8x8xf16>",
    "Einstein product of all rows": f'{TABLE}%s = onnx.Einsum %x, %x {{equation = "bij,bkj->bik"}} : '
    f"({ROW}, {ROW}) -> {ROW}",
    "padded rows": "%pads = onnx.Constant dense<[0, 1, 0, 0, 0, 0]> : tensor<6xi64>\n"
    f"%s = onnx.Pad %x, %pads : ({ROW}, tensor<6xi64>) -> {ROW}",
    "groups over rows": "%s = onnx.InstanceNormalization %x, %scale1, %scale1 : "
    f"({ROW}, tensor<1xf16>, tensor<1xf16>) -> {ROW}",
    "a scale for each row": "%s = onnx.DequantizeLinear %ints, %scales {axis = 1 : i64} : "
    f"(tensor<1x?x8xi8>, tensor<4xf16>) -> {ROW}",
    "product with all rows": f"{TABLE}%t = onnx.Transpose %x {{perm = array<i64: 0, 2, 1>}} : "
    f"({ROW}) -> tensor<1x8x?xf16>\n"
    f"%s = onnx.MatMul %x, %t : ({ROW}, tensor<1x8x?xf16>) -> {ROW}",
}
"""Lines in front of the append whose last one gives %s out of rows of several tokens."""

SCALES = (
    '%scale1 = onnx.initializer "s1", "sha256:0" : tensor<1xf16>\n'
    '%scales = onnx.initializer "s4", "sha256:0" : tensor<4xf16>\n'
    f"%ints = onnx.Cast %x {{to = 3 : i64}} : ({ROW}) -> tensor<1x?x8xi8>\n"
)
CONSTANTS = "".join(
    f"%{name} = onnx.Constant dense<{value}> : tensor<1xi64>\n"
    for name, value in {"zero": 0, "two": 2, "four": 4}.items()
)


@pytest.mark.parametrize("what", MIXING)
def test_refuses_what_mixes_rows(what: str, run_passes: RunPasses) -> None:
    text = LEGAL.replace(APPEND, f'{CONSTANTS}{SCALES}{MIXING[what]} loc("node")\n{APPEND}')
    with pytest.raises(SpeqcError, match="'node': it combines the rows of different tokens"):
        run_passes(text, "verify-speq")


def test_refuses_to_compute_with_the_number_of_tokens(run_passes: RunPasses) -> None:
    lines = (
        f"%n = onnx.Shape %x {{start = 1 : i64, end = 2 : i64}} : ({ROW}) -> tensor<1xi64>\n"
        "%f = onnx.Cast %n {to = 10 : i64} : (tensor<1xi64>) -> tensor<1xf16>\n"
    )
    with pytest.raises(SpeqcError, match=r"onnx\.Cast: it computes with the number of tokens"):
        run_passes(LEGAL.replace(APPEND, lines + APPEND), "verify-speq")
    lines = lines.splitlines()[0] + (
        f"\n%top, %i = onnx.TopK %x, %n : ({ROW}, tensor<1xi64>) -> ({ROW}, tensor<1x?x8xi64>)\n"
    )
    with pytest.raises(SpeqcError, match=r"onnx\.TopK: it computes with the number of tokens"):
        run_passes(LEGAL.replace(APPEND, lines + APPEND), "verify-speq")


APART = {
    "heads in the rows and back": "%to = onnx.Constant dense<[1, -1, 4]> : tensor<3xi64>\n"
    f"%h = onnx.Reshape %x, %to : ({ROW}, tensor<3xi64>) -> tensor<1x?x4xf16>\n"
    "%e = onnx.Exp %h : (tensor<1x?x4xf16>) -> tensor<1x?x4xf16>\n"
    f"%r = onnx.Reshape %e, %flat : (tensor<1x?x4xf16>, tensor<3xi64>) -> {ROW}\n"
    f"%s = onnx.Add %r, %x : ({ROW}, {ROW}) -> {ROW}",
    "normalisation of each row": f"%s = onnx.LayerNormalization %x, %x1 : ({ROW}, tensor<8xf16>) -> {ROW}",
    "rows as columns": f"%t = onnx.Transpose %x {{perm = array<i64: 2, 1, 0>}} : ({ROW}) -> tensor<8x?x1xf16>\n"
    "%s = onnx.Softmax %t {axis = 0 : i64} : (tensor<8x?x1xf16>) -> tensor<8x?x1xf16>",
    "a column": f"%s = onnx.Gather %x, %one {{axis = 2 : i64}} : ({ROW}, tensor<i64>) -> tensor<1x?xf16>",
    "rows of a table by their elements": '%far = onnx.initializer "f", "sha256:0" : tensor<1x9x8xf16>\n'
    "%to = onnx.Constant dense<[1, -1, 1]> : tensor<3xi64>\n"
    "%wide = onnx.Constant dense<[1, 1, 8]> : tensor<3xi64>\n"
    "%i = onnx.Reshape %tokens, %to : (tensor<1x?xi64>, tensor<3xi64>) -> tensor<1x?x1xi64>\n"
    "%e = onnx.Expand %i, %wide : (tensor<1x?x1xi64>, tensor<3xi64>) -> tensor<1x?x8xi64>\n"
    "%s = onnx.GatherElements %far, %e {axis = 1 : i64} : "
    f"(tensor<1x9x8xf16>, tensor<1x?x8xi64>) -> {ROW}",
    "a head at coordinates": "%t = onnx.Transpose %x4 {perm = array<i64: 2, 0, 1, 3>} : "
    "(tensor<1x?x2x4xf16>) -> tensor<2x1x?x4xf16>\n"
    "%at = onnx.Constant dense<1> : tensor<1x1xi64>\n"
    "%s = onnx.GatherND %t, %at : "
    "(tensor<2x1x?x4xf16>, tensor<1x1xi64>) -> tensor<1x1x?x4xf16>",
    "an Einstein product": f'{TABLE}%s = onnx.Einsum %x, %table {{equation = "...i,ij"}} : '
    f"({ROW}, tensor<8x8xf16>) -> {ROW}",
    "a product of each row with itself": '%s = onnx.Einsum %x, %x {equation = "bmi,bmj->bmij"} : '
    f"({ROW}, {ROW}) -> tensor<1x?x8x8xf16>",
    "padded columns": "%pads = onnx.Constant dense<[0, 8]> : tensor<2xi64>\n"
    "%last = onnx.Constant dense<-1> : tensor<1xi64>\n%none = onnx.NoValue\n"
    f"%s = onnx.Pad %x, %pads, %none, %last : ({ROW}, tensor<2xi64>, none, tensor<1xi64>) "
    "-> tensor<1x?x16xf16>",
    "groups of each row": f"%t = onnx.Transpose %x {{perm = array<i64: 1, 2, 0>}} : ({ROW}) "
    "-> tensor<?x8x1xf16>\n"
    "%s = onnx.GroupNormalization %t, %x1, %x1 {num_groups = 2 : i64} : "
    "(tensor<?x8x1xf16>, tensor<8xf16>, tensor<8xf16>) -> tensor<?x8x1xf16>",
    "numbers in eight bits and back": '%scale = onnx.initializer "q", "sha256:0" : tensor<f16>\n'
    f"%i = onnx.QuantizeLinear %x, %scale : ({ROW}, tensor<f16>) -> tensor<1x?x8xui8>\n"
    "%s = onnx.DequantizeLinear %i, %x1 {axis = 2 : i64} : "
    f"(tensor<1x?x8xui8>, tensor<8xf16>) -> {ROW}",
    "length of each row": "%last = onnx.Constant dense<-1> : tensor<1xi64>\n"
    f"%s = onnx.ReduceL2 %x, %last : ({ROW}, tensor<1xi64>) -> tensor<1x?x1xf16>",
    "a product": f"{TABLE}%s = onnx.MatMul %x, %table : ({ROW}, tensor<8x8xf16>) -> {ROW}",
}


@pytest.mark.parametrize("what", APART)
def test_admits_what_keeps_rows_apart(what: str, run_passes: RunPasses) -> None:
    scale = '%x1 = onnx.initializer "s", "sha256:0" : tensor<8xf16>\n'
    run_passes(LEGAL.replace(APPEND, f"{scale}{APART[what]}\n{APPEND}"), "verify-speq")


def test_logits_have_a_row_for_each_token(run_passes: RunPasses) -> None:
    line = "  func.return %l"
    lines = (
        "%to = onnx.Constant dense<[1, -1, 136]> : tensor<3xi64>\n"
        "%l2 = onnx.Reshape %l, %to : (tensor<1x?x272xf16>, tensor<3xi64>) -> tensor<1x?x136xf16>\n"
        "func.return %l2 : tensor<1x?x136xf16>\n}\n"
    )
    text = LEGAL[: LEGAL.index(line)].replace(
        "-> tensor<1x?x272xf16> {", "-> tensor<1x?x136xf16> {"
    )
    with pytest.raises(SpeqcError, match=r"func\.return: it combines the rows"):
        run_passes(text + lines, "verify-speq")


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
