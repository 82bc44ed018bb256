"""What a step reads of a weight."""

from speqc.dialects.speq import View, WeightOp
from speqc.runtime.costs import DRAFT_BITS, FULL_BITS


def weight_traffic(weight: WeightOp, view: View) -> tuple[int, int | None]:
    """Bits a weight that a view reads, and the group size if it reads the group scales too.

    The draft always needs its scales; the full view needs them where the scale picks the table
    that the exponent is looked up in (code book `sets`).
    """
    if weight.codebook is None:
        return FULL_BITS, None
    assert weight.group_size is not None
    group_size = weight.group_size.value.data
    if view == View.DRAFT:
        return DRAFT_BITS, group_size
    return FULL_BITS, group_size if weight.codebook.data == "sets" else None
