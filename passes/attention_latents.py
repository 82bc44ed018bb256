"""Keys and values that a step computes from caches of something else, such as latents (MLA).

What is cached may be narrower than keys and values: each step then makes these of all positions
anew. Where each position's row depends on that position alone, the new rows can be made of what
the step appends, and cached in place of it: a row has the same bits whenever it is computed.
"""

from collections.abc import Mapping, Sequence

from xdsl.ir import Block, Operation, SSAValue

from speqc.passes.building import Builder
from speqc.passes.matching import is_weight, shape
from speqc.passes.row_rules import dynamic_axis, rows_of_result

POSITIONS = 2
"""The dimension of positions in a cache [1, KV, T, D]."""


def rows_from_caches(
    root: SSAValue, appended: Mapping[SSAValue, SSAValue], builder: Builder, opset: int
) -> SSAValue | None:
    """The new rows of `root` [1, KV, T, D], computed from the new rows of the caches it comes from.

    `appended` maps each whole cache to its new rows. None if `root` comes from anything but caches
    and tensors of the file, or may mix rows of different positions.
    """
    order = _operations(root, appended)
    if order is None or len(shape(root)) != 4 or dynamic_axis(root) != POSITIONS:
        return None
    rows = dict.fromkeys(appended, 1)
    for op in order:
        if not any(dynamic_axis(value) is not None for value in op.operands):
            continue
        each = rows_of_result(op, rows, opset)
        if each is None:
            return None
        rows.update((result, each) for result in op.results if dynamic_axis(result) is not None)
    if rows.get(root) != 1:
        return None
    made = dict(appended)
    for op in order:
        copy = op.clone(made)
        builder.add(copy)
        made.update(zip(op.results, copy.results, strict=True))
    return made[root]


def _operations(root: SSAValue, caches: Mapping[SSAValue, SSAValue]) -> Sequence[Operation] | None:
    """What computes `root` from caches and tensors of the file, in order; None if something else.

    Tensors of the file and what is computed from them alone are not among it.
    """
    found: dict[Operation, None] = {}

    def visit(value: SSAValue) -> bool:
        """Whether `value` is made of caches and tensors of the file."""
        if value in caches or is_weight(value):
            return True
        op = value.owner
        if isinstance(op, Block) or not op.operands:
            return False
        if op not in found:
            if not all(visit(operand) for operand in op.operands):
                return False
            found[op] = None
        return True

    return list(found) if visit(root) and root not in caches else None
