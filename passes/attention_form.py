"""What an attention in a model file comes to, whoever wrote it: all that `speq.attention` needs."""

from dataclasses import dataclass

from xdsl.dialects.builtin import AnyFloat
from xdsl.ir import Operation, SSAValue

from speqc.dialects.speq import PositionBiasAttr


@dataclass(frozen=True)
class AttentionForm:
    """An attention about to be raised; fields as of `speq.attention`.

    `query` is [1, H, M, D], `key` and `value` are the new rows [1, KV, M, ...] as the cache keeps
    them. `last` is the operation whose first result is the attention's: [1, H, M, E] (the
    batch may be missing), or with `joined` [1, M, H * E]. `scale` multiplies the scores, or with
    `divides` divides them, and is rounded to `scale_type`, as the soft cap is.
    """

    last: Operation
    query: SSAValue
    key: SSAValue
    value: SSAValue
    result_type: AnyFloat
    score_type: AnyFloat
    probability_type: AnyFloat
    scale: float | None
    softcap: float | None
    window: int | None
    joined: bool = False
    divides: bool = False
    scale_type: AnyFloat | None = None
    bias: PositionBiasAttr | None = None
    scale_behind_bias: bool = False
    softmax_type: AnyFloat | None = None
    sinks: tuple[float, ...] | None = None
    shifted_type: AnyFloat | None = None
