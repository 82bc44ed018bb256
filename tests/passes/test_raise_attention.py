# ruff: noqa: E501 (lines of IR)
"""`raise-attention` on attention as exporters spell it, and on what has no equal."""

import re

import numpy as np
import pytest
from attention_text import (
    ADDED,
    ADDED_TO_BIASED,
    ALIBI_FROM_LAST,
    ALIBI_IN_MASK,
    ALIBI_OF_DISTANCES,
    ALIBI_OF_KEYS,
    CAUSAL,
    DIVIDED,
    FULL,
    HALF_SOFTMAX,
    NAN_REPLACED,
    PLAIN_SCORES,
    REPEATED,
    REPLACED,
    SCALED_BEHIND,
    SCALED_KEYS,
    SCALED_SCORES,
    SHIFTED,
    SINKS,
    SOFTCAPPED,
    SOFTMAX,
    SQUARES,
    TILED,
    WIDE_SOFTMAX,
    WIDENED,
    WINDOW,
    AttentionText,
)
from conftest import RunPasses
from xdsl.dialects.builtin import Float16Type, Float32Type, ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation

from speqc.dialects.speq import AttentionOp, CacheAppendOp, CacheOp
from speqc.passes.attention_layout import SAMPLE_POSITIONS
from speqc.passes.attention_scores import read_scores
from speqc.passes.attention_sinks import read_sinks
from speqc.passes.matching import producer, shape
from speqc.passes.probe import Probe
from speqc.runtime.attention import KVCache, attention
from speqc.runtime.attention_attributes import attention_spec
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import numpy_dtype

FORMS = {
    "scaled scores": AttentionText(),
    "scaled keys": AttentionText(scores=SCALED_KEYS),
    "divided scores": AttentionText(scores=DIVIDED, factor="4.0"),
    "soft cap": AttentionText(scores=SOFTCAPPED),
    "replaced scores": AttentionText(masking=REPLACED),
    "NaN replaced": AttentionText(softmax=NAN_REPLACED),
    "softmax in f32": AttentionText(softmax=WIDE_SOFTMAX),
    "all in f32": AttentionText(type="f32", cache_type="f32"),
    "f16 cache read in f32": AttentionText(widen=WIDENED, type="f32"),
    "window": AttentionText(mask=WINDOW),
    "window of one": AttentionText(mask=WINDOW, window=1),
    "long window": AttentionText(mask=WINDOW, window=4096),
    "divided by no power of two": AttentionText(scores=DIVIDED, factor="3.0"),
    "scaled behind the mask": AttentionText(
        scores=PLAIN_SCORES, masking=ADDED.replace("%masked", "%m0") + SCALED_BEHIND
    ),
    "sinks": AttentionText(softmax=SINKS),
    "sinks in f32": AttentionText(type="f32", cache_type="f32", softmax=SINKS),
    "maximum subtracted": AttentionText(softmax=SHIFTED),
    "softmax in f16": AttentionText(type="f32", cache_type="f32", softmax=HALF_SOFTMAX),
    "bias of key positions": AttentionText(masking=ALIBI_OF_KEYS + ADDED_TO_BIASED),
    "bias in the mask": AttentionText(type="f32", cache_type="f32", masking=ALIBI_IN_MASK),
    "bias from the last key": AttentionText(type="f32", cache_type="f32", masking=ALIBI_FROM_LAST),
    "scaled behind a bias": AttentionText(
        scores=PLAIN_SCORES,
        masking=ALIBI_OF_KEYS + ADDED_TO_BIASED.replace("%masked", "%m0") + SCALED_BEHIND,
    ),
}


def only(module: ModuleOp, kind: type[Operation]) -> Operation:
    (found,) = (op for op in module.walk() if isinstance(op, kind))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_becomes_one_operation(form: str, run_passes: RunPasses) -> None:
    module = run_passes(str(FORMS[form]), "raise-attention")
    attention_op, append = only(module, AttentionOp), only(module, CacheAppendOp)
    cache, function = only(module, CacheOp), only(module, FuncOp)
    assert isinstance(attention_op, AttentionOp) and isinstance(append, CacheAppendOp)
    assert isinstance(cache, CacheOp) and isinstance(function, FuncOp)
    assert attention_op.next_op is append
    assert (append.key, append.value) == (attention_op.key, attention_op.value)
    sizes = (cache.heads, cache.key_dim, cache.value_dim)
    assert tuple(size.value.data for size in sizes) == (2, 8, 8)
    assert not any(op.name in ("onnx.Softmax", "onnx.MatMul") for op in module.walk())
    assert [arg.name_hint for arg in function.args] == ["input_ids", "q", "new_key", "new_value"]
    assert len(function.function_type.outputs) == 1
    assert "onnx.kv_pairs" not in module.attributes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "past"), [(5, 0), (4, 9)])
def test_means_the_same(form: str, rows: int, past: int, run_passes: RunPasses) -> None:
    """The graph on random tensors, and the raised operation's kernel on the same ones."""
    text = FORMS[form]
    expected, samples = evaluate_graph(run_passes(str(text)), text, rows, past)
    raised = run_passes(str(text), "raise-attention")
    found = evaluate_raised(raised, samples, past)
    # Kernels differ in the order of sums; nothing else may differ.
    tolerance = 4e-3 if text.type == "f16" else 1e-5
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=tolerance, atol=tolerance)


def evaluate_graph(
    module: ModuleOp, text: AttentionText, rows: int, past: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The attention's result as the ONNX operations compute it, and the arguments it had."""
    generator = np.random.default_rng(rows * 100 + past)
    types = {"f16": np.float16, "f32": np.float32}
    kv = types[text.cache_type]

    def normal(heads: int, count: int, dtype: type) -> np.ndarray:
        return generator.standard_normal((1, heads, count, 8)).astype(dtype)

    samples = {
        "input_ids": np.zeros((1, rows), np.int64),
        "attention_mask": np.ones((1, past + rows), np.int64),
        "past_key": normal(2, past, kv),
        "past_value": normal(2, past, kv),
        "q": normal(4, rows, types[text.type]),
        "new_key": normal(2, rows, kv),
        "new_value": normal(2, rows, kv),
    }
    function = only(module, FuncOp)
    assert isinstance(function, FuncOp)
    bound = {arg: samples[arg.name_hint or ""] for arg in function.args}
    returned = function.get_return_op()
    assert returned is not None
    value = Probe(bound, 20).value(returned.operands[0])
    assert value is not None
    return value.astype(np.float32), samples


def evaluate_raised(module: ModuleOp, samples: dict[str, np.ndarray], past: int) -> np.ndarray:
    """The result of the raised operation, with a cache that holds what it was given to append."""
    op, function = only(module, AttentionOp), only(module, FuncOp)
    assert isinstance(op, AttentionOp) and isinstance(function, FuncOp)
    new = {arg: samples[arg.name_hint or ""] for arg in function.args}
    old = new | {
        arg: samples[f"past_{arg.name_hint[4:]}"]
        for arg in function.args
        if arg.name_hint in ("new_key", "new_value")
    }
    cache_op = only(module, CacheOp)
    assert isinstance(cache_op, CacheOp)
    cache = KVCache(2, 8, 64, numpy_dtype(cache_op.element_type))
    for samples_of in (old, new):
        probe = Probe(samples_of, 20)
        key, value = probe.value(op.key), probe.value(op.value)
        assert key is not None and value is not None
        cache.append(key[0], value[0])
    query = Probe(new, 20).value(op.query)
    assert query is not None
    spec = attention_spec(op, query.dtype)
    return attention(query[0], cache, past, spec)[None]


def test_reads_types_scale_cap_and_window(run_passes: RunPasses) -> None:
    def raised(**parts: str | int) -> AttentionOp:
        module = run_passes(str(AttentionText(**parts)), "raise-attention")  # pyright: ignore[reportArgumentType]
        found = only(module, AttentionOp)
        assert isinstance(found, AttentionOp)
        return found

    plain = raised()
    assert (plain.score_type, plain.probability_type) == (Float16Type(), Float16Type())
    assert plain.score_scale is not None and plain.score_scale.value.data == 0.25
    assert plain.window is None and plain.softcap is None
    assert raised(scores=SCALED_KEYS).score_scale is None
    capped = raised(scores=SOFTCAPPED)
    assert capped.softcap is not None and capped.softcap.value.data == 3
    assert capped.score_scale is not None and capped.score_scale.value.data == 0.25
    divided = raised(scores=DIVIDED, factor="8.0")
    assert divided.score_scale is not None and divided.score_scale.value.data == 0.125
    wide = raised(widen=WIDENED, type="f32")
    assert (wide.score_type, wide.probability_type) == (Float32Type(), Float32Type())
    window = raised(mask=WINDOW, window=4096).window
    assert window is not None and window.value.data == 4096


def test_sinks_and_the_type_of_differences_from_the_maximum(run_passes: RunPasses) -> None:
    def raised(softmax: str, type: str) -> AttentionOp:
        text = AttentionText(softmax=softmax, type=type, cache_type=type)
        found = only(run_passes(str(text), "raise-attention"), AttentionOp)
        assert isinstance(found, AttentionOp)
        return found

    half, single = raised(SINKS, "f16"), raised(SINKS, "f32")
    for op in (half, single):
        assert op.sinks is not None and tuple(op.sinks.get_values()) == (0.5, -1.0, 0.25, 2.0)
    assert half.shifted_type == Float16Type()
    # In FP32 the softmax itself subtracts the maximum, which is zero the second time.
    assert single.shifted_type is None
    assert (raised(SHIFTED, "f16").sinks, raised(SOFTMAX, "f16").shifted_type) == (None, None)


def test_key_scale_goes_to_the_new_rows(run_passes: RunPasses) -> None:
    module = run_passes(str(AttentionText(scores=SCALED_KEYS)), "raise-attention")
    op = only(module, AttentionOp)
    assert isinstance(op, AttentionOp) and isinstance(op.key.owner, Operation)
    assert op.key.owner.name == "onnx.Mul"
    assert op.key.type == op.value.type


CAPPED_BEHIND = "\n".join(SOFTCAPPED.splitlines()[:2] + SOFTCAPPED.splitlines()[3:]).replace(
    "%scaled", "%masked"
)

ERRORS = {
    "attention/scores.*not laid out as grouped-query": AttentionText(repeat=TILED),
    "neither causal nor": AttentionText(
        mask=CAUSAL.replace("onnx.LessOrEqual %keys, %queries", "onnx.Less %keys, %queries")
    ),
    "something other than a large negative number": AttentionText(
        masking=REPLACED.replace("%lowest :", "%nothing :")
    ),
    "a slope for each head times the position": AttentionText(
        masking=ADDED.replace("%nothing, %lowest", "%factor, %lowest")
    ),
    "'square': numbers other than 0": AttentionText(
        type="f32",
        cache_type="f32",
        masking=ALIBI_OF_DISTANCES + SQUARES + ADDED_TO_BIASED,
    ),
    "'cut': it does not take the probabilities of the positions": AttentionText(
        softmax=SINKS.replace("%p_all, %first_column", "%p_all, %axis1")
    ),
    "behind their sinks": AttentionText(
        softmax=SINKS.replace("Softmax %shifted", "Softmax %small").replace(
            "  %p_all",
            "  %small = onnx.Mul %shifted, %factor : (tensor<1x4x?x?xF>, tensor<F>) -> tensor<1x4x?x?xF>\n  %p_all",
        )
    ),
    "'sinks': the score that is appended .* is no constant": AttentionText(
        softmax=SINKS.replace("%sinks = onnx.Expand", "%even = onnx.Expand").replace(
            "  %with_sinks",
            """  %rows16 = onnx.Cast %queries {to = 10 : i64} : (tensor<?x1xi64>) -> tensor<?x1xF>
  %sinks = onnx.Add %even, %rows16 : (tensor<1x4x?x1xF>, tensor<?x1xF>) -> tensor<1x4x?x1xF>
  %with_sinks""",
        )
    ),
    "stands in a table of the file": AttentionText(
        masking="""
  %table = onnx.initializer "table", "sha256:00" : tensor<4x1x2048xf16>
  %first = onnx.Unsqueeze %past, %zero1 : (tensor<i64>, tensor<1xi64>) -> tensor<1xi64>
  %part = onnx.Slice %table, %first, %axis2, %axis2 : SLICE
  %biased = onnx.Add %scaled, %part : (tensor<1x4x?x?xF>, tensor<4x1x?xF>) -> tensor<1x4x?x?xF>
""".replace(
            "SLICE",
            "(tensor<4x1x2048xF>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<4x1x?xF>",
        ).replace("%zero1", "%axis1")
        + ADDED_TO_BIASED
    ),
    "two position biases": AttentionText(
        masking=ALIBI_OF_KEYS
        + "  %twice = onnx.Add %biased, %alibi : "
        + "(tensor<1x4x?x?xF>, tensor<4x1x?xf16>) -> tensor<1x4x?x?xF>\n"
        + ADDED_TO_BIASED.replace("%biased", "%twice")
    ),
    "soft-capped behind their mask": AttentionText(
        scores=PLAIN_SCORES,
        masking=ADDED.replace("%masked", "%scores") + CAPPED_BEHIND,
    ),
    "neither causal nor causal with a sliding window": AttentionText(
        type="f32",
        cache_type="f32",
        masking=ALIBI_OF_DISTANCES
        + "  %masked = onnx.Add %scaled, %alibi : "
        + "(tensor<1x4x?x?xF>, tensor<4x?x?xf32>) -> tensor<1x4x?x?xF>\n",
    ),
    "cap divides by 3.0 but multiplies with 0.25": AttentionText(
        scores=SOFTCAPPED.replace("onnx.Mul %cap2, %cap", "onnx.Mul %cap2, %factor")
    ),
    "no attention over a cache found": AttentionText(
        softmax=SOFTMAX.replace("axis = -1", "axis = 1")
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_says_what_has_no_equal(message: str, run_passes: RunPasses) -> None:
    with pytest.raises(SpeqcError, match=message) as error:
        run_passes(str(ERRORS[message]), "raise-attention")
    assert "\n" not in str(error.value)


def test_reads_position_biases(run_passes: RunPasses) -> None:
    def bias(form: str) -> str:
        op = only(run_passes(str(FORMS[form]), "raise-attention"), AttentionOp)
        assert isinstance(op, AttentionOp)
        return str(op.position_bias)

    slopes = "array<f32: 5.000000e-01, 2.500000e-01, 1.000000e-01, 0.707106769>"
    of_keys = f"#speq.position_bias<start, {slopes}, f32, f16, f16>"
    of_distances = f"#speq.position_bias<row, {slopes}, f32, f32, f32>"
    assert bias("bias of key positions") == bias("scaled behind a bias") == of_keys
    assert bias("bias in the mask") == bias("bias from the last key") == of_distances


def test_a_cache_used_elsewhere_is_an_error(run_passes: RunPasses) -> None:
    text = str(AttentionText())
    other = '  %n = onnx.ReduceSum %past_key : (tensor<1x2x?x8xf16>) -> tensor<f16> loc("sum")\n'
    text = text.replace(
        "  func.return %y",
        other + "  %z = onnx.Add %y, %n : (tensor<1x4x?x8xf16>, "
        "tensor<f16>) -> tensor<1x4x?x8xf16>\n  func.return %z",
    )
    with pytest.raises(SpeqcError, match=r"ReduceSum 'sum': it uses the cache 'past.key' outside"):
        run_passes(text, "raise-attention")


def test_a_second_run_changes_nothing(run_passes: RunPasses) -> None:
    once = run_passes(str(AttentionText()), "raise-attention")
    twice = run_passes(str(AttentionText()), "raise-attention", "raise-attention")
    assert str(once) == str(twice)


def test_dynamic_mask_of_ones_is_not_causal(run_passes: RunPasses) -> None:
    mask = re.sub(r"  %shape.*\n", "", FULL)
    masking = ADDED.replace("tensor<?x?x", "tensor<1x?x")
    with pytest.raises(SpeqcError, match="neither causal"):
        run_passes(str(AttentionText(mask=mask, masking=masking)), "raise-attention")


def test_repeats_by_expansion_only(run_passes: RunPasses) -> None:
    """`REPEATED` is grouped-query layout; `TILED` has the same shapes and is not."""
    assert REPEATED != TILED and SCALED_SCORES
    run_passes(str(AttentionText(repeat=REPEATED)), "raise-attention")
    with pytest.raises(SpeqcError):
        run_passes(str(AttentionText(repeat=TILED)), "raise-attention")


def without_caches(text: str) -> str:
    """The same attention over the new rows alone."""
    text = text.replace(", onnx.kv_pairs = [array<i64: 2, 1>, array<i64: 3, 2>]", "")
    text = re.sub(r"  %past_(key|value): .*\n", "", text)
    text = re.sub(r"  %k = onnx.Concat.*\n  %v = onnx.Concat.*\n", "", text)
    text = re.sub(
        r"%past1 = onnx.Shape.*\n", "%past1 = onnx.Constant dense<0> : tensor<1xi64>\n", text
    )
    text = (
        text.replace("%new_key", "%k")
        .replace("%new_value", "%v")
        .replace("past + sequence", "sequence")
    )
    text = re.sub(r"-> \(tensor<1x4x\?x8xf16>, .*\) \{", "-> tensor<1x4x?x8xf16> {", text)
    return re.sub(r"func.return .*", "func.return %y : tensor<1x4x?x8xf16>", text)


def test_graph_without_a_cache_gets_one(run_passes: RunPasses) -> None:
    """Its keys and values are what a cache holds."""
    module = run_passes(without_caches(str(AttentionText())), "raise-attention")
    op = only(module, AttentionOp)
    assert isinstance(op, AttentionOp)
    assert (op.key.name_hint, op.value.name_hint) == ("k", "v")
    assert op.window is None


TURNED = """
  %by_row = onnx.Transpose %q {perm = array<i64: 0, 2, 1, 3>} : (tensor<1x4x?x8xf16>) -> tensor<1x?x4x8xf16>
  %positive = onnx.Exp %by_row : (tensor<1x?x4x8xf16>) -> tensor<1x?x4x8xf16>
  %kt = onnx.Transpose %positive {perm = array<i64: 0, 2, 3, 1>} : (tensor<1x?x4x8xf16>) -> tensor<1x4x8x?xf16>
"""
"""Keys that are turned without having been rows by heads."""


def turned_keys(text: str) -> str:
    first = text.index("  %kt = ")
    return without_caches(text[:first] + TURNED + text[text.index("\n", first) :])


def test_keys_that_were_never_rows(run_passes: RunPasses) -> None:
    text = turned_keys(str(AttentionText(repeat="", widen=""))).replace("1x2x?x8", "1x4x?x8")
    module = run_passes(text.replace("%vw", "%v"), "raise-attention")
    op = only(module, AttentionOp)
    assert isinstance(op, AttentionOp)
    turned = producer(op.key, "Transpose")
    assert turned is not None and turned.operands[0].name_hint == "kt"
    assert shape(op.key) == (1, 4, -1, 8)


def test_keys_and_values_of_other_heads_share_no_cache(run_passes: RunPasses) -> None:
    with pytest.raises(SpeqcError, match="keys have 4 heads, values 2"):
        run_passes(turned_keys(str(AttentionText())), "raise-attention")


def test_batch_may_be_missing(run_passes: RunPasses) -> None:
    """Products over [heads, rows, channels], as `torch.baddbmm` makes them."""
    text = str(AttentionText(scores=FLAT_SCORES, softmax=FLAT_SOFTMAX))
    text = text.replace(
        "%y = onnx.MatMul %p, %vw : (tensor<1x4x?x?xf16>, tensor<1x4x?x8xf16>)", FLAT_OUTPUT
    )
    module = run_passes(text, "raise-attention")
    op = only(module, AttentionOp)
    assert isinstance(op, AttentionOp)
    assert op.score_scale is not None and op.score_scale.value.data == 0.25


FLAT_SCORES = """
  %batch = onnx.Constant dense<0> : tensor<1xi64>
  %q3 = onnx.Squeeze %q, %batch : (tensor<1x4x?x8xF>, tensor<1xi64>) -> tensor<4x?x8xF>
  %k3 = onnx.Squeeze %kt, %batch : (tensor<1x4x8x?xF>, tensor<1xi64>) -> tensor<4x8x?xF>
  %v3 = onnx.Squeeze %vw, %batch : (tensor<1x4x?x8xF>, tensor<1xi64>) -> tensor<4x?x8xF>
  %s3 = onnx.MatMul %q3, %k3 : (tensor<4x?x8xF>, tensor<4x8x?xF>) -> tensor<4x?x?xF>
  %m3 = onnx.Mul %s3, %factor : (tensor<4x?x?xF>, tensor<F>) -> tensor<4x?x?xF>
  %scaled = onnx.Unsqueeze %m3, %batch : (tensor<4x?x?xF>, tensor<1xi64>) -> tensor<1x4x?x?xF>
"""

FLAT_SOFTMAX = """
  %p4 = onnx.Softmax %masked {axis = -1 : i64} : (tensor<1x4x?x?xF>) -> tensor<1x4x?x?xF>
  %p3 = onnx.Squeeze %p4, %batch : (tensor<1x4x?x?xF>, tensor<1xi64>) -> tensor<4x?x?xF>
"""

FLAT_OUTPUT = """\
%y3 = onnx.MatMul %p3, %v3 : (tensor<4x?x?xf16>, tensor<4x?x8xf16>) -> tensor<4x?x8xf16>
  %y = onnx.Unsqueeze %y3, %batch : (tensor<4x?x8xf16>, tensor<1xi64>)"""


PARTS_OF_A_CACHE = {
    "a slice": (
        "%cut = onnx.Slice %k, %from, %to, %axis2 : "
        "(tensor<1x2x?x8xF>, tensor<1xi64>, tensor<1xi64>, tensor<1xi64>) -> tensor<1x2x?x8xF>"
    ),
    "the first positions": (
        "%cut = onnx.Gather %k, %five {axis = 2 : i64} : "
        "(tensor<1x2x?x8xF>, tensor<5xi64>) -> tensor<1x2x?x8xF>"
    ),
}


@pytest.mark.parametrize("how", PARTS_OF_A_CACHE)
def test_a_part_of_a_cache_is_not_all_of_it(how: str, run_passes: RunPasses) -> None:
    """As many positions are taken as the sample of a cache has: only the operator tells."""
    text = str(AttentionText()).replace("onnx.Unsqueeze %k,", "onnx.Unsqueeze %cut,")
    bounds = f"""  %from = onnx.Constant dense<0> : tensor<1xi64>
  %to = onnx.Constant dense<{SAMPLE_POSITIONS}> : tensor<1xi64>
  %five = onnx.Constant dense<[{", ".join(map(str, range(SAMPLE_POSITIONS)))}]> : tensor<5xi64>
  {PARTS_OF_A_CACHE[how].replace("xF>", "xf16>")}
"""
    text = text.replace("  %k5 =", f"{bounds}  %k5 =")
    message = "attention/scores.*may not read all positions of its cache, each once, in order"
    with pytest.raises(SpeqcError, match=message):
        run_passes(text, "raise-attention")


class _Unevaluated:
    """A reader of masks that no value is known to."""

    def samples(self, value: object) -> tuple:
        return ()


def test_a_sink_that_nothing_is_known_of(run_passes: RunPasses) -> None:
    module = run_passes(str(AttentionText(softmax=SINKS)))
    softmax = next(op for op in module.walk() if op.name == "onnx.Softmax")
    scores = read_scores(softmax, lambda value: value.name_hint in ("bias", "sinks"))
    assert scores is not None and scores.sinks is not None
    with pytest.raises(SpeqcError, match=r"'sinks': the score that .* can't be evaluated"):
        read_sinks(scores, _Unevaluated(), 4)  # pyright: ignore[reportArgumentType]
