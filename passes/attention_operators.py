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
from speqc.passes.attention_mask import CEILING, MaskReader, Seen
from speqc.passes.attention_scores import Mask, float_type
from speqc.passes.building import Builder
from speqc.passes.heads import rotary_table, split_heads
from speqc.passes.matching import ANY, constant_array, element_type, fail, shape

MINUS_INFINITY = float("-inf")

MASK_FILTER = -10_000.0
"""What ONNX Runtime adds to hidden scores where the node says nothing."""

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
        query = _split(op, builder, query, heads)
        key, value = (_split(op, builder, rows, kv_heads) for rows in (key, value))
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
        positions = op.input("position_ids")
        if positions is not None and not masks.is_positions(positions):
            raise fail(op, "position_ids are not the positions of the new tokens")
        tables = _tables(op)
        for rows in (shape(table)[0] for table in tables):
            if rows != ANY:
                masks.limit(rows)
        query, key = _rotated(op, builder, caches.tokens, tables, (query, key))
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
    if causal and op.number("mask_filter_value", MASK_FILTER) > CEILING:
        raise fail(op, "mask_filter_value is no large negative number")
    mask = op.input("attention_bias")
    seen = masks.read(op, () if mask is None else (Mask(op, mask),), causal=causal)
    builder, heads = Builder(op), op.integer("num_heads", 0)
    query, key, value = (_split(op, builder, rows, heads) for rows in (op.operands[0], key, value))
    if past[0] is None:
        key, value = (_new_rows(op, rows, caches, builder) for rows in (key, value))
    return _biased(_form(op, query, key, value, seen.window, joined=True), seen)


def _heads(op: OnnxOp, builder: Builder) -> tuple[SSAValue, SSAValue, SSAValue]:
    """Queries, keys and values by heads."""
    heads, kv_heads = op.integer("num_heads", 0), op.integer("kv_num_heads", 0)
    query, key, value = op.operands[0], op.input("key"), op.input("value")
    if key is None or value is None:
        width = _width(op, query, heads + 2 * kv_heads)
        sizes = (heads * width, kv_heads * width, kv_heads * width)
        query, key, value = builder.split(query, sizes)
    return (
        _split(op, builder, query, heads),
        _split(op, builder, key, kv_heads),
        _split(op, builder, value, kv_heads),
    )


def _split(op: OnnxOp, builder: Builder, rows: SSAValue, heads: int) -> SSAValue:
    """[1, M, H * D] -> [1, H, M, D]; SpeqcError where the channels are not so many heads'."""
    _width(op, rows, heads)
    return split_heads(builder, rows, heads)


def _width(op: OnnxOp, rows: SSAValue, heads: int) -> int:
    """Channels of each head."""
    channels = shape(rows)[-1]
    if heads < 1 or channels < 1 or channels % heads:
        raise fail(op, f"{channels} channels can't be cut into {heads} heads")
    return channels // heads


def _tables(op: OnnxOp) -> tuple[SSAValue, SSAValue]:
    """The operator's tables of cosines and sines, a row for each position."""
    cos, sin = op.input("cos_cache"), op.input("sin_cache")
    if cos is None or sin is None:
        raise fail(op, "do_rotary without cos_cache and sin_cache")
    return cos, sin


def _rotated(
    op: OnnxOp,
    builder: Builder,
    tokens: SSAValue,
    tables: tuple[SSAValue, SSAValue],
    heads: tuple[SSAValue, SSAValue],
) -> tuple[SSAValue, SSAValue]:
    """Queries and keys with rotary embedding from tables."""
    positions = PositionsOp(tokens)
    builder.add(positions)
    interleaved = op.integer("rotary_interleaved", 0) == 1
    cos, sin = (
        rotary_table(builder, builder.gather(table, positions.result), interleaved=interleaved)
        for table in tables
    )
    rotaries = [RotaryOp(x, cos, sin, interleaved=interleaved) for x in heads]
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
    if shape(query)[-1] < 1:
        raise fail(op, "its heads have no channels")
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
