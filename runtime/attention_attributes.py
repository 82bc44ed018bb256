"""What an attention operation of the IR says, as the kernel takes it."""

import numpy as np
from numpy.typing import DTypeLike

from speqc.dialects.speq import AttentionBase, BiasOrigin, PositionBiasAttr, float_values
from speqc.runtime.attention import AttentionSpec, PositionBias
from speqc.runtime.ir_values import numpy_dtype


def attention_spec(op: AttentionBase, out_dtype: DTypeLike) -> AttentionSpec:
    """The kernel's description of `speq.attention` or `pe.attention` with a result of a dtype."""
    scaling = next((a for a in (op.score_scale, op.score_divisor, op.softcap) if a), None)
    return AttentionSpec(
        score_scale=None if op.score_scale is None else op.score_scale.value.data,
        score_dtype=numpy_dtype(op.score_type),
        softmax_dtype=np.float32 if op.softmax_type is None else numpy_dtype(op.softmax_type),
        prob_dtype=numpy_dtype(op.probability_type),
        out_dtype=out_dtype,
        window=None if op.window is None else op.window.value.data,
        softcap=None if op.softcap is None else op.softcap.value.data,
        score_divisor=None if op.score_divisor is None else op.score_divisor.value.data,
        scale_dtype=None if scaling is None else numpy_dtype(scaling.type),
        bias=None if op.position_bias is None else _position_bias(op.position_bias),
        scale_behind_bias=op.scale_behind_bias is not None,
        sinks=None if op.sinks is None else float_values(op.sinks),
        shifted_dtype=np.float32 if op.shifted_type is None else numpy_dtype(op.shifted_type),
    )


def _position_bias(attribute: PositionBiasAttr) -> PositionBias:
    return PositionBias(
        attribute.values,
        attribute.origin.data == BiasOrigin.ROW,
        numpy_dtype(attribute.position_type),
        numpy_dtype(attribute.product_type),
        numpy_dtype(attribute.sum_type),
    )
