# ruff: noqa: E501 (lines of IR)
"""Texts of attention as exporters spell it, in parts that tests put together."""

from dataclasses import dataclass

HEADS, KV_HEADS, WIDTH = 4, 2, 8

CAUSAL = """
  %rows1 = onnx.Shape %input_ids {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
  %past1 = onnx.Shape %past_key {start = 2 : i64, end = 3 : i64} : (tensor<1x2x?x8xKV>) -> tensor<1xi64>
  %rows = onnx.Squeeze %rows1 : (tensor<1xi64>) -> tensor<i64>
  %past = onnx.Squeeze %past1 : (tensor<1xi64>) -> tensor<i64>
  %total = onnx.Add %rows, %past : (tensor<i64>, tensor<i64>) -> tensor<i64>
  %arange = onnx.Range %zero, %rows, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
  %absolute = onnx.Add %arange, %past : (tensor<?xi64>, tensor<i64>) -> tensor<?xi64>
  %queries = onnx.Unsqueeze %absolute, %axis1 : (tensor<?xi64>, tensor<1xi64>) -> tensor<?x1xi64>
  %keys = onnx.Range %zero, %total, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
  %seen = onnx.LessOrEqual %keys, %queries : (tensor<?xi64>, tensor<?x1xi64>) -> tensor<?x?xi1>
"""

WINDOW = (
    CAUSAL.replace("%seen", "%causal")
    + """
  %window = onnx.Constant dense<WINDOW> : tensor<i64>
  %first = onnx.Sub %queries, %window : (tensor<?x1xi64>, tensor<i64>) -> tensor<?x1xi64>
  %inside = onnx.Greater %keys, %first : (tensor<?xi64>, tensor<?x1xi64>) -> tensor<?x?xi1>
  %seen = onnx.And %causal, %inside : (tensor<?x?xi1>, tensor<?x?xi1>) -> tensor<?x?xi1>
"""
)

FULL = """
  %shape = onnx.Shape %attention_mask : (tensor<1x?xi64>) -> tensor<2xi64>
  %seen = onnx.Cast %attention_mask {to = 9 : i64} : (tensor<1x?xi64>) -> tensor<1x?xi1>
"""

ADDED = """
  %bias = onnx.Where %seen, %nothing, %lowest : (tensor<?x?xi1>, tensor<F>, tensor<F>) -> tensor<?x?xF>
  %masked = onnx.Add %scaled, %bias : (tensor<1x4x?x?xF>, tensor<?x?xF>) -> tensor<1x4x?x?xF>
"""

REPLACED = """
  %masked = onnx.Where %seen, %scaled, %lowest : (tensor<?x?xi1>, tensor<1x4x?x?xF>, tensor<F>) -> tensor<1x4x?x?xF>
"""

SLOPES = """
  %slopes = onnx.Constant dense<[[[0.5]], [[0.25]], [[0.1]], [[0.7071067812]]]> : tensor<4x1x1xf32>
"""

ADDED_TO_BIASED = ADDED.replace("%scaled", "%biased")

ALIBI_OF_KEYS = (
    SLOPES
    + """
  %keys32 = onnx.Cast %keys {to = 1 : i64} : (tensor<?xi64>) -> tensor<?xf32>
  %alibi32 = onnx.Mul %slopes, %keys32 : (tensor<4x1x1xf32>, tensor<?xf32>) -> tensor<4x1x?xf32>
  %alibi = onnx.Cast %alibi32 {to = 10 : i64} : (tensor<4x1x?xf32>) -> tensor<4x1x?xf16>
  %biased = onnx.Add %scaled, %alibi : (tensor<1x4x?x?xF>, tensor<4x1x?xf16>) -> tensor<1x4x?x?xF>
"""
)
"""As BLOOM has it: slope * key position, rounded to FP16."""

ALIBI_OF_DISTANCES = (
    SLOPES
    + """
  %distances = onnx.Sub %keys, %queries : (tensor<?xi64>, tensor<?x1xi64>) -> tensor<?x?xi64>
  %distances32 = onnx.Cast %distances {to = 1 : i64} : (tensor<?x?xi64>) -> tensor<?x?xf32>
  %alibi = onnx.Mul %slopes, %distances32 : (tensor<4x1x1xf32>, tensor<?x?xf32>) -> tensor<4x?x?xf32>
"""
)
"""Slope * -(distance of query and key), in FP32."""

ALIBI_IN_MASK = (
    ALIBI_OF_DISTANCES
    + """
  %bias = onnx.Where %seen, %alibi, %lowest : (tensor<?x?xi1>, tensor<4x?x?xf32>, tensor<F>) -> tensor<4x?x?xF>
  %masked = onnx.Add %scaled, %bias : (tensor<1x4x?x?xF>, tensor<4x?x?xF>) -> tensor<1x4x?x?xF>
"""
)

ALIBI_FROM_LAST = (
    SLOPES
    + """
  %last = onnx.Sub %total, %one : (tensor<i64>, tensor<i64>) -> tensor<i64>
  %distances = onnx.Sub %keys, %last : (tensor<?xi64>, tensor<i64>) -> tensor<?xi64>
  %distances32 = onnx.Cast %distances {to = 1 : i64} : (tensor<?xi64>) -> tensor<?xf32>
  %alibi = onnx.Mul %slopes, %distances32 : (tensor<4x1x1xf32>, tensor<?xf32>) -> tensor<4x1x?xf32>
  %bias = onnx.Where %seen, %alibi, %lowest : (tensor<?x?xi1>, tensor<4x1x?xf32>, tensor<F>) -> tensor<4x?x?xF>
  %masked = onnx.Add %scaled, %bias : (tensor<1x4x?x?xF>, tensor<4x?x?xF>) -> tensor<1x4x?x?xF>
"""
)
"""As MPT has it: positions count from the last key of the step."""

SQUARES = """
  %squares = onnx.Mul %alibi, %distances32 : (tensor<4x?x?xf32>, tensor<?x?xf32>) -> tensor<4x?x?xf32>
  %biased = onnx.Add %scaled, %squares : (tensor<1x4x?x?xF>, tensor<4x?x?xf32>) -> tensor<1x4x?x?xF> loc("square")
"""

SCALED_BEHIND = """
  %masked = onnx.Mul %m0, %factor : (tensor<1x4x?x?xF>, tensor<F>) -> tensor<1x4x?x?xF>
"""

PLAIN_SCORES = """
  %scaled = onnx.MatMul %q, %kt : (tensor<1x4x?x8xF>, tensor<1x4x8x?xF>) -> tensor<1x4x?x?xF>
"""

HALF_SOFTMAX = """
  %half = onnx.Cast %masked {to = 10 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xf16>
  %p16 = onnx.Softmax %half {axis = -1 : i64} : (tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xf16>
  %p = onnx.Cast %p16 {to = 1 : i64} : (tensor<1x4x?x?xf16>) -> tensor<1x4x?x?xF>
"""

REPEATED = """
  %k5 = onnx.Unsqueeze %k, %axis2 : (tensor<1x2x?x8xKV>, tensor<1xi64>) -> tensor<1x2x1x?x8xKV>
  %k6 = onnx.Expand %k5, %group : (tensor<1x2x1x?x8xKV>, tensor<5xi64>) -> tensor<1x2x2x?x8xKV>
  %kr = onnx.Reshape %k6, %heads : (tensor<1x2x2x?x8xKV>, tensor<4xi64>) -> tensor<1x4x?x8xKV>
  %v5 = onnx.Unsqueeze %v, %axis2 : (tensor<1x2x?x8xKV>, tensor<1xi64>) -> tensor<1x2x1x?x8xKV>
  %v6 = onnx.Expand %v5, %group : (tensor<1x2x1x?x8xKV>, tensor<5xi64>) -> tensor<1x2x2x?x8xKV>
  %vr = onnx.Reshape %v6, %heads : (tensor<1x2x2x?x8xKV>, tensor<4xi64>) -> tensor<1x4x?x8xKV>
"""

TILED = """
  %kr = onnx.Concat %k, %k {axis = 1 : i64} : (tensor<1x2x?x8xKV>, tensor<1x2x?x8xKV>) -> tensor<1x4x?x8xKV>
  %vr = onnx.Concat %v, %v {axis = 1 : i64} : (tensor<1x2x?x8xKV>, tensor<1x2x?x8xKV>) -> tensor<1x4x?x8xKV>
"""

PLAIN = """
  %kw = onnx.Identity %kr : (tensor<1x4x?x8xKV>) -> tensor<1x4x?x8xF>
  %vw = onnx.Identity %vr : (tensor<1x4x?x8xKV>) -> tensor<1x4x?x8xF>
"""

WIDENED = """
  %kw = onnx.Cast %kr {to = 1 : i64} : (tensor<1x4x?x8xKV>) -> tensor<1x4x?x8xF>
  %vw = onnx.Cast %vr {to = 1 : i64} : (tensor<1x4x?x8xKV>) -> tensor<1x4x?x8xF>
"""

SCALED_KEYS = """
  %ks = onnx.Mul %kt, %factor : (tensor<1x4x8x?xF>, tensor<F>) -> tensor<1x4x8x?xF>
  %scores = onnx.MatMul %q, %ks : (tensor<1x4x?x8xF>, tensor<1x4x8x?xF>) -> tensor<1x4x?x?xF>
  %scaled = onnx.Identity %scores : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
"""

SCALED_SCORES = """
  %scores = onnx.MatMul %q, %kt : (tensor<1x4x?x8xF>, tensor<1x4x8x?xF>) -> tensor<1x4x?x?xF> loc("attention/scores")
  %scaled = onnx.Mul %scores, %factor : (tensor<1x4x?x?xF>, tensor<F>) -> tensor<1x4x?x?xF>
"""

SOFTCAPPED = """
  %cap = onnx.Constant dense<3.0> : tensor<F>
  %scores = onnx.MatMul %q, %kt : (tensor<1x4x?x8xF>, tensor<1x4x8x?xF>) -> tensor<1x4x?x?xF>
  %small = onnx.Mul %scores, %factor : (tensor<1x4x?x?xF>, tensor<F>) -> tensor<1x4x?x?xF>
  %cap1 = onnx.Div %small, %cap : (tensor<1x4x?x?xF>, tensor<F>) -> tensor<1x4x?x?xF>
  %cap2 = onnx.Tanh %cap1 : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
  %scaled = onnx.Mul %cap2, %cap : (tensor<1x4x?x?xF>, tensor<F>) -> tensor<1x4x?x?xF>
"""

DIVIDED = SCALED_SCORES.replace("onnx.Mul", "onnx.Div")

SOFTMAX = """
  %p = onnx.Softmax %masked {axis = -1 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
"""

WIDE_SOFTMAX = """
  %wide = onnx.Cast %masked {to = 1 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xf32>
  %p32 = onnx.Softmax %wide {axis = -1 : i64} : (tensor<1x4x?x?xf32>) -> tensor<1x4x?x?xf32>
  %p = onnx.Cast %p32 {to = 10 : i64} : (tensor<1x4x?x?xf32>) -> tensor<1x4x?x?xF>
"""

NAN_REPLACED = """
  %p0 = onnx.Softmax %masked {axis = -1 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
  %nan = onnx.IsNaN %p0 : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xi1>
  %p = onnx.Where %nan, %nothing, %p0 : (tensor<1x4x?x?xi1>, tensor<F>, tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
"""


SINKS = """
  %heads4 = onnx.Constant dense<4> : tensor<1xi64>
  %columns = onnx.Constant dense<[[[[0.5]], [[-1.0]], [[0.25]], [[2.0]]]]> : tensor<1x4x1x1xF>
  %last_axis = onnx.Constant dense<-1> : tensor<1xi64>
  %first_column = onnx.Constant dense<0> : tensor<1xi64>
  %column_sizes = onnx.Concat %axis1, %heads4, %rows1, %axis1 {axis = 0 : i64} : (tensor<1xi64>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<4xi64>
  %sinks = onnx.Expand %columns, %column_sizes : (tensor<1x4x1x1xF>, tensor<4xi64>) -> tensor<1x4x?x1xF>
  %with_sinks = onnx.Concat %masked, %sinks {axis = -1 : i64} : (tensor<1x4x?x?xF>, tensor<1x4x?x1xF>) -> tensor<1x4x?x?xF> loc("sinks")
  %largest = onnx.ReduceMax %with_sinks, %last_axis {keepdims = 1 : i64} : (tensor<1x4x?x?xF>, tensor<1xi64>) -> tensor<1x4x?x1xF>
  %shifted = onnx.Sub %with_sinks, %largest : (tensor<1x4x?x?xF>, tensor<1x4x?x1xF>) -> tensor<1x4x?x?xF>
  %p_all = onnx.Softmax %shifted {axis = -1 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
  %p = onnx.Slice %p_all, %first_column, %last_axis, %last_axis, %axis1 : (tensor<1x4x?x?xF>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x4x?x?xF> loc("cut")
"""
"""As GPT-OSS has it."""

SHIFTED = """
  %last_axis = onnx.Constant dense<-1> : tensor<1xi64>
  %largest = onnx.ReduceMax %masked, %last_axis {keepdims = 1 : i64} : (tensor<1x4x?x?xF>, tensor<1xi64>) -> tensor<1x4x?x1xF>
  %shifted = onnx.Sub %masked, %largest : (tensor<1x4x?x?xF>, tensor<1x4x?x1xF>) -> tensor<1x4x?x?xF>
  %p = onnx.Softmax %shifted {axis = -1 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
"""


@dataclass(frozen=True)
class AttentionText:
    """A module with one attention. `F` stands for the type of queries, `KV` for that of caches."""

    mask: str = CAUSAL
    masking: str = ADDED
    repeat: str = REPEATED
    widen: str = PLAIN
    scores: str = SCALED_SCORES
    softmax: str = SOFTMAX
    factor: str = "0.25"
    window: int = 3
    type: str = "f16"
    cache_type: str = "f16"

    def __str__(self) -> str:
        parts = (self.mask, self.repeat, self.widen, TRANSPOSED, self.scores, self.masking)
        text = HEAD + "".join(parts) + self.softmax + TAIL
        lowest = {"f16": "-65504.0", "f32": "-3.4028234663852886e+38"}[self.type]
        for name, value in (
            ("WINDOW", str(self.window)),
            ("FACTOR", self.factor),
            ("LOWEST", lowest),
            ("xF>", f"x{self.type}>"),
            ("<F>", f"<{self.type}>"),
            ("xKV>", f"x{self.cache_type}>"),
        ):
            text = text.replace(name, value)
        return text


HEAD = """
builtin.module attributes {onnx.opset = 20 : i64, onnx.kv_pairs = [array<i64: 2, 1>, array<i64: 3, 2>]} {
func.func @main(
  %input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]},
  %attention_mask: tensor<1x?xi64> {onnx.name = "attention_mask", onnx.dims = ["1", "past + sequence"]},
  %past_key: tensor<1x2x?x8xKV> {onnx.name = "past.key", onnx.dims = ["1", "2", "past", "8"]},
  %past_value: tensor<1x2x?x8xKV> {onnx.name = "past.value", onnx.dims = ["1", "2", "past", "8"]},
  %q: tensor<1x4x?x8xF> {onnx.name = "q", onnx.dims = ["1", "4", "sequence", "8"]},
  %new_key: tensor<1x2x?x8xKV> {onnx.name = "k", onnx.dims = ["1", "2", "sequence", "8"]},
  %new_value: tensor<1x2x?x8xKV> {onnx.name = "v", onnx.dims = ["1", "2", "sequence", "8"]}
) -> (tensor<1x4x?x8xF>, tensor<1x2x?x8xKV>, tensor<1x2x?x8xKV>) {
  %zero = onnx.Constant dense<0> : tensor<i64>
  %one = onnx.Constant dense<1> : tensor<i64>
  %axis1 = onnx.Constant dense<1> : tensor<1xi64>
  %axis2 = onnx.Constant dense<2> : tensor<1xi64>
  %group = onnx.Constant dense<[1, 2, 2, 1, 8]> : tensor<5xi64>
  %heads = onnx.Constant dense<[1, 4, -1, 8]> : tensor<4xi64>
  %factor = onnx.Constant dense<FACTOR> : tensor<F>
  %nothing = onnx.Constant dense<0.0> : tensor<F>
  %lowest = onnx.Constant dense<LOWEST> : tensor<F>
  %k = onnx.Concat %past_key, %new_key {axis = 2 : i64} : (tensor<1x2x?x8xKV>, tensor<1x2x?x8xKV>) -> tensor<1x2x?x8xKV>
  %v = onnx.Concat %past_value, %new_value {axis = -2 : i64} : (tensor<1x2x?x8xKV>, tensor<1x2x?x8xKV>) -> tensor<1x2x?x8xKV>
"""

TRANSPOSED = """
  %kt = onnx.Transpose %kw {perm = array<i64: 0, 1, 3, 2>} : (tensor<1x4x?x8xF>) -> tensor<1x4x8x?xF>
"""

TAIL = """
  %y = onnx.MatMul %p, %vw : (tensor<1x4x?x?xF>, tensor<1x4x?x8xF>) -> tensor<1x4x?x8xF> loc("attention/values")
  func.return %y, %k, %v : tensor<1x4x?x8xF>, tensor<1x2x?x8xKV>, tensor<1x2x?x8xKV>
}
}
"""
