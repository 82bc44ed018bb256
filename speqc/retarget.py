"""A finished program on another target: weights in its tiles, all else as compiled."""

from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64

from speqc.dialects.pe import LoadWeightOp, StreamType, TilingAttr
from speqc.dialects.speq import ViewType, WeightOp
from speqc.passes.verify_pe import VerifyPePass
from speqc.runtime import costs
from speqc.runtime.module_attributes import TARGET_NAME, target_attribute
from speqc.runtime.target import Target
from speqc.runtime.weight_traffic import weight_traffic


def retarget(program: ModuleOp, target: Target) -> ModuleOp:
    """A copy of a `pe` program that names `target` and loads its weights in tiles of its array.

    The order of operations, and the units that attention runs on, stay as they were chosen for the
    program's own target. Raises SpeqcError where a tile does not fit a bank of the target, or
    the module is no legal program (see `verify-pe`).
    """
    module = program.clone()
    module.attributes[TARGET_NAME] = target_attribute(target)
    weights = {op.sym_name.data: op for op in module.ops if isinstance(op, WeightOp)}
    for op in module.walk():
        if isinstance(op, LoadWeightOp):
            retile(op, weights[op.weight.string_value()], target)
    VerifyPePass().apply(Context(), module)
    return module


def retile(op: LoadWeightOp, weight: WeightOp, target: Target) -> None:
    """Load the view of a weight that the stream carries in tiles of the target's array."""
    assert isinstance(op.stream.type, StreamType)
    view = op.stream.type.content
    assert isinstance(view, ViewType)
    k, n = view.shape
    facts = weight_traffic(weight, view.view)._asdict()
    tiles = costs.tile_weight(k, n, target, **facts)
    cost = costs.gemm(k, n, 1, target, **facts)
    op.tiling = TilingAttr((tiles.depth, tiles.columns), tiles.grid, tiles.per_block)
    op.block_bytes = IntegerAttr(cost.block_bytes, i64)
    op.last_block_bytes = IntegerAttr(cost.last_block_bytes, i64)
