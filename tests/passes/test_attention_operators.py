# ruff: noqa: E501 (lines of IR)
"""`raise-rotary` and `raise-attention` on operators that are a whole attention or embedding."""

import numpy as np
import pytest
from conftest import RunPasses
from numpy.typing import NDArray
from xdsl.dialects.builtin import Float16Type, Float32Type, ModuleOp
from xdsl.dialects.func import FuncOp

from speqc.dialects.speq import AttentionOp, PositionsOp, RotaryOp
from speqc.passes.probe import Probe
from speqc.runtime.errors import SpeqcError
from speqc.runtime.rotary import rotary

ROTARY = """
func.func @main(%x: tensor<1x?x64xf32>, %p: tensor<1x?xi64>, %cos: tensor<32x8xf32>, %sin: tensor<32x8xf32>) -> tensor<1x?x64xf32> {
  %y = OPERATION : (TYPES) -> tensor<1x?x64xf32>
  func.return %y : tensor<1x?x64xf32>
}
"""

TABLES = "tensor<32x8xf32>, tensor<32x8xf32>"

OPERATIONS = {
    "ONNX": (
        "onnx.RotaryEmbedding %x, %cos, %sin, %p {num_heads = 4 : i64}",
        f"tensor<1x?x64xf32>, {TABLES}, tensor<1x?xi64>",
        False,
    ),
    "ONNX, interleaved": (
        "onnx.RotaryEmbedding %x, %cos, %sin, %p {num_heads = 4 : i64, interleaved = 1 : i64}",
        f"tensor<1x?x64xf32>, {TABLES}, tensor<1x?xi64>",
        True,
    ),
    "ONNX Runtime": (
        "onnx.microsoft.RotaryEmbedding %x, %p, %cos, %sin {interleaved = 0 : i64}",
        f"tensor<1x?x64xf32>, tensor<1x?xi64>, {TABLES}",
        False,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_rotary_operator(name: str, run_passes: RunPasses) -> None:
    operation, types, interleaved = OPERATIONS[name]
    text = ROTARY.replace("OPERATION", operation).replace("TYPES", types)
    module = run_passes(text, "raise-rotary")
    (op,) = (op for op in module.walk() if isinstance(op, RotaryOp))
    generator = np.random.default_rng(3)
    angles = generator.uniform(0, 6, (32, 8)).astype(np.float32)
    samples = {
        "x": generator.standard_normal((1, 3, 64)).astype(np.float32),
        "p": np.array([[7, 1, 31]]),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
    }
    x, cos, sin = values(module, samples, op.input, op.cos, op.sin)
    found = rotary(x, cos, sin, interleaved).transpose(0, 2, 1, 3).reshape(1, 3, 64)
    np.testing.assert_array_equal(found, rotated(samples, interleaved))


def rotated(samples: dict[str, NDArray], interleaved: bool) -> NDArray:
    """The operator as ONNX's documentation has it: real and imaginary parts of pairs."""
    cos, sin = (samples[name][samples["p"][0]][None, :, None] for name in ("cos", "sin"))
    x = samples["x"].reshape(1, 3, 4, 16)
    real, imaginary = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :8], x[..., 8:])
    parts = [cos * real - sin * imaginary, sin * real + cos * imaginary]
    joined = np.stack(parts, axis=-1) if interleaved else np.concatenate(parts, axis=-1)
    return joined.reshape(1, 3, 64)


def values(module: ModuleOp, samples: dict[str, NDArray], *wanted: object) -> list[NDArray]:
    (function,) = (op for op in module.walk() if isinstance(op, FuncOp))
    bound = {arg: samples[arg.name_hint or ""] for arg in function.args if arg.name_hint in samples}
    for op in module.walk():
        if isinstance(op, PositionsOp) and "positions" in samples:
            bound[op.result] = samples["positions"]
    probe = Probe(bound, 24)
    found = [probe.value(value) for value in wanted]  # pyright: ignore[reportArgumentType]
    assert all(value is not None for value in found)
    return [value for value in found if value is not None]


ATTENTION = """
builtin.module attributes {onnx.opset = 24 : i64, onnx.kv_pairs = [array<i64: 2, 1>, array<i64: 3, 2>]} {
  func.func @main(%input_ids: tensor<1x?xi64> {onnx.name = "input_ids", onnx.dims = ["1", "sequence"]}, %attention_mask: tensor<1x?xi64> {onnx.name = "attention_mask", onnx.dims = ["1", "past + sequence"]}, %past_key: tensor<1x2x?x16xf16> {onnx.name = "past_key", onnx.dims = ["1", "2", "past", "16"]}, %past_value: tensor<1x2x?x16xf16> {onnx.name = "past_value", onnx.dims = ["1", "2", "past", "16"]}, %q: tensor<1x?x64xf16> {onnx.name = "q", onnx.dims = ["1", "sequence", "64"]}, %k: tensor<1x?x32xf16> {onnx.name = "k", onnx.dims = ["1", "sequence", "32"]}, %v: tensor<1x?x32xf16> {onnx.name = "v", onnx.dims = ["1", "sequence", "32"]}, %qkv: tensor<1x?x128xf16> {onnx.name = "qkv", onnx.dims = ["1", "sequence", "128"]}) -> (tensor<1x?x64xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x?x16xf16>) {
    %table = onnx.initializer "table", "sha256:00" : tensor<272x16xf16>
    %x = onnx.Gather %table, %input_ids : (tensor<272x16xf16>, tensor<1x?xi64>) -> tensor<1x?x16xf16>
    %none = onnx.NoValue
    %one = onnx.Constant dense<1> : tensor<i64>
    %axes = onnx.Constant dense<1> : tensor<1xi64>
    %cos = onnx.initializer "cos", "sha256:01" : tensor<32x8xf16>
    %sin = onnx.initializer "sin", "sha256:02" : tensor<32x8xf16>
    %sum = onnx.ReduceSum %attention_mask, %axes {keepdims = 0 : i64} : (tensor<1x?xi64>, tensor<1xi64>) -> tensor<1xi64>
    %last = onnx.Sub %sum, %axes : (tensor<1xi64>, tensor<1xi64>) -> tensor<1xi64>
    %seqlens = onnx.Cast %last {to = 6 : i64} : (tensor<1xi64>) -> tensor<1xi32>
    %sizes = onnx.Shape %attention_mask : (tensor<1x?xi64>) -> tensor<2xi64>
    %size = onnx.Gather %sizes, %one : (tensor<2xi64>, tensor<i64>) -> tensor<i64>
    %total = onnx.Cast %size {to = 6 : i64} : (tensor<i64>) -> tensor<i32>
    %two = onnx.Constant dense<[1, 2]> : tensor<2xi64>
    %seen = onnx.Cast %attention_mask {to = 9 : i64} : (tensor<1x?xi64>) -> tensor<1x?xi1>
    %mask = onnx.Unsqueeze %seen, %two : (tensor<1x?xi1>, tensor<2xi64>) -> tensor<1x1x1x?xi1>
    %sinks = onnx.Constant dense<[0.5, 1.0, -1.0, 2.0]> : tensor<4xf16>
    %slopes = onnx.Constant dense<[[[0.5]], [[0.25]], [[0.1]], [[0.7]]]> : tensor<4x1x1xf32>
    %zero = onnx.Constant dense<0> : tensor<i64>
    %keys = onnx.Range %zero, %size, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    %keys32 = onnx.Cast %keys {to = 1 : i64} : (tensor<?xi64>) -> tensor<?xf32>
    %alibi = onnx.Mul %slopes, %keys32 : (tensor<4x1x1xf32>, tensor<?xf32>) -> tensor<4x1x?xf32>
    %y, %present_key, %present_value = OPERATION : (TYPES) -> (tensor<1x?x64xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) loc("attention")
    func.return %y, %present_key, %present_value, %x : tensor<1x?x64xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x?x16xf16>
  }
}
"""

CACHES = "tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>"
QKV = "tensor<1x?x64xf16>, tensor<1x?x32xf16>, tensor<1x?x32xf16>"
LENGTHS = "tensor<1xi32>, tensor<i32>"

ONNX = (
    "onnx.Attention %q, %k, %v, %mask, %past_key, %past_value "
    "{q_num_heads = 4 : i64, kv_num_heads = 2 : i64, scale = 0.25 : f32, is_causal = 1 : i64}",
    f"{QKV}, tensor<1x1x1x?xi1>, {CACHES}",
)
GROUPED = (
    "onnx.microsoft.GroupQueryAttention %q, %k, %v, %past_key, %past_value, %seqlens, %total "
    "{num_heads = 4 : i64, kv_num_heads = 2 : i64, softcap = 5.0 : f32}",
    f"{QKV}, {CACHES}, {LENGTHS}",
)
SINKS = (
    "onnx.microsoft.GroupQueryAttention %q, %k, %v, %past_key, %past_value, %seqlens, %total, "
    "%none, %none, %none, %none, %sinks {num_heads = 4 : i64, kv_num_heads = 2 : i64}",
    f"{QKV}, {CACHES}, {LENGTHS}, none, none, none, none, tensor<4xf16>",
)
BIASED = (
    "onnx.Attention %q, %k, %v, %alibi, %past_key, %past_value "
    "{q_num_heads = 4 : i64, kv_num_heads = 2 : i64, is_causal = 1 : i64}",
    f"{QKV}, tensor<4x1x?xf32>, {CACHES}",
)
PACKED = (
    "onnx.microsoft.GroupQueryAttention %qkv, %none, %none, %past_key, %past_value, %seqlens, "
    "%total, %cos, %sin {num_heads = 4 : i64, kv_num_heads = 2 : i64, do_rotary = 1 : i64}",
    f"tensor<1x?x128xf16>, none, none, {CACHES}, {LENGTHS}, tensor<32x8xf16>, tensor<32x8xf16>",
)


def raise_attention(run_passes: RunPasses, operation: str, types: str) -> ModuleOp:
    text = ATTENTION.replace("OPERATION", operation).replace("TYPES", types)
    return run_passes(text, "raise-attention")


def attention_of(module: ModuleOp) -> AttentionOp:
    (op,) = (op for op in module.walk() if isinstance(op, AttentionOp))
    return op


@pytest.mark.parametrize("form", [ONNX, GROUPED])
def test_heads_are_split(form: tuple[str, str], run_passes: RunPasses) -> None:
    module = raise_attention(run_passes, *form)
    op = attention_of(module)
    assert (op.score_type, op.probability_type) == (Float32Type(), Float16Type())
    assert op.score_scale is not None and op.score_scale.value.data == 0.25
    assert (op.softcap is not None) == (form is GROUPED)
    generator = np.random.default_rng(5)
    samples = {
        name: generator.standard_normal((1, 3, width)).astype(np.float16)
        for name, width in (("q", 64), ("k", 32), ("v", 32))
    }
    found = values(module, samples, op.query, op.key, op.value)
    for name, value in zip("qkv", found, strict=True):
        heads = samples[name].reshape(1, 3, -1, 16).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(value, heads)


OVER_CACHE = """
    %by_head = onnx.Constant dense<[1, -1, 4, 16]> : tensor<4xi64>
    %by_kv = onnx.Constant dense<[1, -1, 2, 16]> : tensor<4xi64>
    %flat = onnx.Constant dense<[1, -1, 64]> : tensor<3xi64>
    %q4 = onnx.Reshape %q, %by_head : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>
    %k4 = onnx.Reshape %k, %by_kv : (tensor<1x?x32xf16>, tensor<4xi64>) -> tensor<1x?x2x16xf16>
    %v4 = onnx.Reshape %v, %by_kv : (tensor<1x?x32xf16>, tensor<4xi64>) -> tensor<1x?x2x16xf16>
    %qt = onnx.Transpose %q4 {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x4x16xf16>) -> tensor<1x4x?x16xf16>
    %kt = onnx.Transpose %k4 {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x2x16xf16>) -> tensor<1x2x?x16xf16>
    %vt = onnx.Transpose %v4 {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x?x2x16xf16>) -> tensor<1x2x?x16xf16>
    %present_key = onnx.Concat %past_key, %kt {axis = 2 : i64} : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x2x?x16xf16>
    %present_value = onnx.Concat %past_value, %vt {axis = 2 : i64} : (tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>) -> tensor<1x2x?x16xf16>
    %m = onnx.Shape %input_ids {start = 1 : i64, end = 2 : i64} : (tensor<1x?xi64>) -> tensor<1xi64>
    %rows0 = onnx.Squeeze %m : (tensor<1xi64>) -> tensor<i64>
    %before = onnx.Sub %size, %rows0 : (tensor<i64>, tensor<i64>) -> tensor<i64>
    %places = onnx.Range %before, %size, %one : (tensor<i64>, tensor<i64>, tensor<i64>) -> tensor<?xi64>
    %column = onnx.Unsqueeze %places, %axes : (tensor<?xi64>, tensor<1xi64>) -> tensor<?x1xi64>
    %causal = onnx.LessOrEqual %keys, %column : (tensor<?xi64>, tensor<?x1xi64>) -> tensor<?x?xi1>
    %heads = onnx.Attention %qt, %present_key, %present_value, %causal {is_causal = 0 : i64} : (tensor<1x4x?x16xf16>, tensor<1x2x?x16xf16>, tensor<1x2x?x16xf16>, tensor<?x?xi1>) -> tensor<1x4x?x16xf16> loc("attention")
    %rows = onnx.Transpose %heads {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x4x?x16xf16>) -> tensor<1x?x4x16xf16>
    %y = onnx.Reshape %rows, %flat : (tensor<1x?x4x16xf16>, tensor<3xi64>) -> tensor<1x?x64xf16>
"""
"""Attention without past and present, over a cache that was appended to before."""


def over_cache() -> str:
    first = ATTENTION.index("    %y, %present_key")
    return ATTENTION[:first] + OVER_CACHE + ATTENTION[ATTENTION.index("    func.return", first) :]


def test_a_cache_that_was_appended_to(run_passes: RunPasses) -> None:
    op = attention_of(run_passes(over_cache(), "raise-attention"))
    assert op.key.name_hint == "kt" and op.value.name_hint == "vt"
    assert op.window is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("is_causal = 0", "is_causal = 1", "is_causal counts queries from the first of all"),
        ("%qt, %present_key", "%qt, %kt", "past and present are not a cache"),
        ("LessOrEqual", "GreaterOrEqual", "the mask is neither causal"),
    ],
)
def test_a_cache_that_is_read_otherwise(
    old: str, new: str, message: str, run_passes: RunPasses
) -> None:
    with pytest.raises(SpeqcError, match=message):
        run_passes(over_cache().replace(old, new), "raise-attention")


MULTI_HEAD = (
    "onnx.microsoft.MultiHeadAttention %k, %k, %v, %none, %none, %none, %past_key, %past_value "
    "{num_heads = 2 : i64, scale = 0.5 : f32, unidirectional = 1 : i64}"
)
MULTI_HEAD_TYPES = f"{', '.join(['tensor<1x?x32xf16>'] * 3)}, none, none, none, {CACHES}"


def multi_head(operation: str) -> str:
    """As many heads of keys as of queries: two, in the place of four."""
    text = ATTENTION.replace("OPERATION", operation).replace("TYPES", MULTI_HEAD_TYPES)
    return text.replace("tensor<1x?x64xf16>, tensor<1x2x", "tensor<1x?x32xf16>, tensor<1x2x")


def test_multi_head_attention(run_passes: RunPasses) -> None:
    op = attention_of(run_passes(multi_head(MULTI_HEAD), "raise-attention"))
    assert op.score_scale is not None and op.score_scale.value.data == 0.5
    assert op.window is None
    assert [str(value.type) for value in (op.query, op.key)] == ["tensor<1x2x?x16xf16>"] * 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("unidirectional = 1", "unidirectional = 0", "attention without a mask is not causal"),
        ("%v, %none,", "%v, %sinks,", "the input bias is not supported"),
        ("%past_key, %past_value {", "%past_value, %past_key {", "are not a cache"),
    ],
)
def test_multi_head_attention_of_other_forms(
    old: str, new: str, message: str, run_passes: RunPasses
) -> None:
    text = multi_head(MULTI_HEAD.replace(old, new))
    if "%sinks" in new:
        text = text.replace("xf16>, none, none, none,", "xf16>, tensor<4xf16>, none, none,")
    with pytest.raises(SpeqcError, match=message):
        run_passes(text, "raise-attention")


def test_sinks_of_heads_and_smooth_softmax(run_passes: RunPasses) -> None:
    op = attention_of(raise_attention(run_passes, *SINKS))
    assert str(op.sinks) == "array<f32: 5.000000e-01, 1.000000e+00, -1.000000e+00, 2.000000e+00>"
    smooth = GROUPED[0].replace("softcap", "smooth_softmax = 1 : i64, softcap")
    op = attention_of(raise_attention(run_passes, smooth, GROUPED[1]))
    assert op.sinks is not None and tuple(op.sinks.get_values()) == (0.0, 0.0, 0.0, 0.0)
    assert attention_of(raise_attention(run_passes, *GROUPED)).sinks is None


def test_a_mask_of_numbers_may_hold_a_position_bias(run_passes: RunPasses) -> None:
    bias = attention_of(raise_attention(run_passes, *BIASED)).position_bias
    assert bias is not None and bias.origin.data == "start"
    np.testing.assert_allclose(bias.values, (0.5, 0.25, 0.1, 0.7))
    assert (bias.position_type, bias.product_type, bias.sum_type) == (Float32Type(),) * 3


def test_packed_heads_are_cut_and_rotated(run_passes: RunPasses) -> None:
    module = raise_attention(run_passes, *PACKED)
    op = attention_of(module)
    rotaries = {op.result: op for op in module.walk() if isinstance(op, RotaryOp)}
    query, key = rotaries[op.query], rotaries[op.key]  # pyright: ignore[reportArgumentType]
    sample = np.arange(3 * 128).reshape(1, 3, 128).astype(np.float16)
    q, k, v = values(module, {"qkv": sample}, query.input, key.input, op.value)
    for value, first, heads in ((q, 0, 4), (k, 64, 2), (v, 96, 2)):
        part = sample[..., first : first + heads * 16].reshape(1, 3, heads, 16)
        np.testing.assert_array_equal(value, part.transpose(0, 2, 1, 3))


ERRORS = {
    "'attention': attention without a mask is not causal": (
        ONNX[0].replace("%mask", "%none").replace("is_causal = 1", "is_causal = 0"),
        ONNX[1].replace("tensor<1x1x1x?xi1>", "none"),
    ),
    "the mask is neither causal": (ONNX[0].replace("is_causal = 1", "is_causal = 0"), ONNX[1]),
    "past and present are not a cache": (
        ONNX[0].replace("%past_key, %past_value", "%past_value, %past_key"),
        ONNX[1],
    ),
    "local_window_size is not": (
        GROUPED[0].replace("softcap", "local_window_size = 4 : i64, softcap"),
        GROUPED[1],
    ),
    "head_sink is not a constant": (
        SINKS[0].replace("%sinks", "%cos"),
        SINKS[1].replace("tensor<4xf16>", "tensor<32x8xf16>"),
    ),
    "seqlens_k is not": (
        GROUPED[0].replace("%seqlens, %total", "%total, %seqlens"),
        GROUPED[1].replace(LENGTHS, "tensor<i32>, tensor<1xi32>"),
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_says_what_has_no_equal(message: str, run_passes: RunPasses) -> None:
    with pytest.raises(SpeqcError, match=message):
        raise_attention(run_passes, *ERRORS[message])
