"""What an attention in a model file comes to, whoever wrote it: all that `speq.attention` needs."""

from dataclasses import dataclass

from xdsl.dialects.builtin import AnyFloat
from xdsl.ir import Operation, SSAValue


@dataclass(frozen=True)
class AttentionForm:
    """An attention about to be raised; fields as of `speq.attention`.

    `query` is [1, H, M, D], `key` and `value` are the new rows [1, KV, M, ...] as the cache keeps
    them. `last` is the operation whose first result is the attention's: [1, H, M, E] (the
    batch may be missing), or with `joined` [1, M, H * E].
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
