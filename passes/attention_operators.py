"""Attention that the file has as one operator: ONNX's own, and ONNX Runtime's.

Neither says where scores and probabilities are rounded. Here scores stay in FP32, and probabilities
are rounded to the type of the queries.
"""

from collections.abc import Callable
from dataclasses import replace

from xdsl.dialects.builtin import IntegerType, f32
from xdsl.ir import SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.dialects.speq import PositionsOp, RotaryOp
from speqc.passes.attention_caches import Caches
from speqc.passes.attention_form import AttentionForm
from speqc.passes.attention_mask import MaskReader, Seen
from speqc.passes.attention_scores import Mask, float_type
from speqc.passes.building import Builder
from speqc.passes.heads import rotary_table, split_heads
from speqc.passes.matching import constant_array, element_type, fail, shape

MINUS_INFINITY = float("-inf")

NO_CACHE = "its past and present are not a cache among inputs and outputs"


def _read_attention(op: OnnxOp, masks: MaskReader, caches: Caches) -> AttentionForm | None:
    """`onnx.Attention`, with past and present or over a cache that was appended to before."""
    if op.input("nonpad_kv_seqlen") is not None:
        raise fail(op, "a cache of fixed length (nonpad_kv_seqlen) is not supported")
    past, causal = (op.input("past_key"), op.input("past_value")), op.integer("is_causal", 0) == 1
    if past[0] is not None:
        _check_caches(op, past, caches)
    elif causal and masks.sampler.has_caches:
        raise fail(op, "is_causal counts queries from the first of all positions")
    mask = op.input("attn_mask")
    found = () if mask is None else (_mask(op, mask),)
    seen = masks.read(op, found, causal=causal)
    builder = Builder(op)
    query, key, value = op.operands[:3]
    joined = len(shape(query)) == 3
    if joined:
        heads, kv_heads = op.integer("q_num_heads", 0), op.integer("kv_num_heads", 0)
        query = split_heads(builder, query, heads)
        key, value = (split_heads(builder, rows, kv_heads) for rows in (key, value))
    if past[0] is None:
        key, value = (_new_rows(op, rows, caches, builder) for rows in (key, value))
    return _biased(_form(op, query, key, value, seen.window, joined=joined), seen)


def _new_rows(op: OnnxOp, whole: SSAValue, caches: Caches, builder: Builder) -> SSAValue:
    """The new rows of a cache that an operator gets as a whole."""
    rows = caches.rows_read(op, whole, builder, transposed=False)
    if rows is None:
        raise fail(op, NO_CACHE)
    return rows


def _mask(op: OnnxOp, mask: SSAValue) -> Mask:
    if isinstance(element_type(mask), IntegerType):
        return Mask(op, mask, admits=True, replacement=MINUS_INFINITY)
    return Mask(op, mask)


def _read_group_query(op: OnnxOp, masks: MaskReader, caches: Caches) -> AttentionForm | None:
    """`onnx.microsoft.GroupQueryAttention`, with queries, keys and values packed or not."""
    past = op.input("past_key"), op.input("past_value")
    _check_caches(op, past, caches)
    for name in ("attention_bias", "k_scale", "v_scale"):
        if op.input(name) is not None:
            raise fail(op, f"the input {name} is not supported")
    if op.integer("local_window_size", -1) != -1:
        raise fail(op, "local_window_size is not supported")
    last, total = op.input("seqlens_k"), op.input("total_sequence_length")
    if last is None or not masks.is_length(last, fewer=1):
        raise fail(op, "seqlens_k is not the number of all positions less one")
    if total is None or not masks.is_length(total, fewer=0):
        raise fail(op, "total_sequence_length is not the number of all positions")
    builder = Builder(op)
    query, key, value = _heads(op, builder)
    if op.integer("do_rotary", 0) == 1:
        query, key = _rotated(op, builder, caches.tokens, query, key)
    form = _form(op, query, key, value, None, joined=True)
    return replace(form, sinks=_sinks(op))


def _sinks(op: OnnxOp) -> tuple[float, ...] | None:
    """For each head a score that joins its softmax, None if there is none."""
    sinks = op.input("head_sink")
    if sinks is None:
        smooth = op.integer("smooth_softmax", 0) == 1
        return (0.0,) * op.integer("num_heads", 0) if smooth else None
    numbers = constant_array(sinks)
    if numbers is None:
        raise fail(op, "head_sink is not a constant of at most 64 numbers")
    return tuple(float(number) for number in numbers.reshape(-1))


def _read_multi_head(op: OnnxOp, masks: MaskReader, caches: Caches) -> AttentionForm | None:
    """`onnx.microsoft.MultiHeadAttention`, its caches its own or appended to before."""
    for name in ("bias", "key_padding_mask", "past_sequence_length", "cache_indirection"):
        if op.input(name) is not None:
            raise fail(op, f"the input {name} is not supported")
    past, key, value = (
        (op.input("past_key"), op.input("past_value")),
        op.input("key"),
        op.input("value"),
    )
    if key is None or value is None or len(shape(key)) != 3:
        raise fail(op, "packed queries, keys and values are not supported")
    causal = op.integer("unidirectional", 0) == 1
    if past[0] is not None:
        _check_caches(op, past, caches)
    elif causal and masks.sampler.has_caches:
        raise fail(op, "unidirectional counts queries from the first of all positions")
    mask = op.input("attention_bias")
    seen = masks.read(op, () if mask is None else (Mask(op, mask),), causal=causal)
    builder, heads = Builder(op), op.integer("num_heads", 0)
    query, key, value = (split_heads(builder, rows, heads) for rows in (op.operands[0], key, value))
    if past[0] is None:
        key, value = (_new_rows(op, rows, caches, builder) for rows in (key, value))
    return _biased(_form(op, query, key, value, seen.window, joined=True), seen)


def _heads(op: OnnxOp, builder: Builder) -> tuple[SSAValue, SSAValue, SSAValue]:
    """Queries, keys and values by heads."""
    heads, kv_heads = op.integer("num_heads", 0), op.integer("kv_num_heads", 0)
    query, key, value = op.operands[0], op.input("key"), op.input("value")
    if key is None or value is None:
        width = shape(query)[-1] // (heads + 2 * kv_heads)
        sizes = (heads * width, kv_heads * width, kv_heads * width)
        query, key, value = builder.split(query, sizes)
    return (
        split_heads(builder, query, heads),
        split_heads(builder, key, kv_heads),
        split_heads(builder, value, kv_heads),
    )


def _rotated(
    op: OnnxOp, builder: Builder, tokens: SSAValue, query: SSAValue, key: SSAValue
) -> tuple[SSAValue, SSAValue]:
    """Queries and keys with rotary embedding from the operator's tables."""
    tables = [op.input("cos_cache"), op.input("sin_cache")]
    positions = PositionsOp(tokens)
    builder.add(positions)
    interleaved = op.integer("rotary_interleaved", 0) == 1
    cos, sin = (
        rotary_table(builder, builder.gather(table, positions.result), interleaved=interleaved)
        for table in tables
        if table is not None
    )
    rotaries = [RotaryOp(x, cos, sin, interleaved=interleaved) for x in (query, key)]
    for rotary in rotaries:
        builder.add(rotary)
    return rotaries[0].result, rotaries[1].result


def _check_caches(
    op: OnnxOp, past: tuple[SSAValue | None, SSAValue | None], caches: Caches
) -> None:
    """Raise SpeqcError unless the operator appends to caches of the function."""
    if len(op.results) < 3:
        raise fail(op, NO_CACHE)
    for source, present in zip(past, op.results[1:3], strict=True):
        if source is None or not caches.is_pair(source, present):
            raise fail(op, NO_CACHE)


def _form(
    op: OnnxOp, query: SSAValue, key: SSAValue, value: SSAValue, window: int | None, *, joined: bool
) -> AttentionForm:
    type = float_type(op, op.results[0])
    softcap = op.number("softcap", 0)
    return AttentionForm(
        last=op,
        query=query,
        key=key,
        value=value,
        result_type=type,
        score_type=f32,
        probability_type=type,
        scale=op.number("scale", 0) or shape(query)[-1] ** -0.5,
        softcap=softcap or None,
        window=window,
        joined=joined,
    )


def _biased(form: AttentionForm, seen: Seen) -> AttentionForm:
    """The same attention with the position bias that its mask holds."""
    if seen.bias is None:
        return form
    return replace(form, bias=seen.bias.attribute(f32, shape(form.query)[1]))


OPERATORS: dict[str, Callable[[OnnxOp, MaskReader, Caches], AttentionForm | None]] = {
    "onnx.Attention": _read_attention,
    "onnx.microsoft.GroupQueryAttention": _read_group_query,
    "onnx.microsoft.MultiHeadAttention": _read_multi_head,
}
"""Readers of attention operators by their names."""
