"""Operations that cut channels into heads, join them, and make tables for rotary embedding."""

from xdsl.ir import SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.building import Builder
from speqc.passes.matching import ANY, producer, shape

HEADS_FIRST = (0, 2, 1, 3)
"""The permutation between [1, M, H, D] and [1, H, M, D]."""


def split_heads(builder: Builder, value: SSAValue, heads: int) -> SSAValue:
    """[1, M, H * D] -> [1, H, M, D]; what `join_heads` joined is taken as it was."""
    joined = _before_join(value, heads)
    if joined is not None:
        return joined
    width = shape(value)[-1] // heads
    return builder.transpose(builder.reshape(value, (1, ANY, heads, width)), HEADS_FIRST)


def join_heads(builder: Builder, value: SSAValue) -> SSAValue:
    """[1, H, M, D] -> [1, M, H * D]."""
    _, heads, _, width = shape(value)
    return builder.reshape(builder.transpose(value, HEADS_FIRST), (1, ANY, heads * width))


def _before_join(value: SSAValue, heads: int) -> SSAValue | None:
    reshaped = producer(value, "Reshape")
    if reshaped is None:
        return None
    transposed = producer(reshaped.operands[0], "Transpose")
    if not isinstance(transposed, OnnxOp) or transposed.integers("perm") != HEADS_FIRST:
        return None
    source = transposed.operands[0]
    same = len(shape(source)) == 4 and shape(source)[1] == heads
    return source if same and shape(source)[3] * heads == shape(value)[-1] else None


def rotary_table(builder: Builder, half: SSAValue, *, interleaved: bool) -> SSAValue:
    """[1, M, R / 2], a number for each pair of channels -> [1, 1, M, R], one for each channel."""
    width = shape(half)[-1]
    if interleaved:
        column = builder.reshape(half, (1, ANY, width, 1))
        pairs = builder.concat([column, column], axis=-1)
        return builder.reshape(pairs, (1, 1, ANY, 2 * width))
    return builder.reshape(builder.concat([half, half], axis=-1), (1, 1, ANY, 2 * width))
