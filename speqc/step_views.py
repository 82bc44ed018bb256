"""Step functions of a finished program that read other views of its weights."""

from collections.abc import Mapping

from xdsl.dialects.builtin import StringAttr
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.dialects.pe import AttentionOp, GemmOp, LoadWeightOp, ModeOp, StreamType, Unit
from speqc.dialects.speq import View, ViewType, WeightOp
from speqc.retarget import retile
from speqc.runtime.target import Target


def with_views(
    step: FuncOp,
    name: str,
    views: Mapping[str, View],
    weights: Mapping[str, WeightOp],
    target: Target,
) -> FuncOp:
    """A copy of a step, called `name`, that reads these views; other weights as the step does.

    The array changes its mode wherever it has to. The order of operations, loads included, stays
    that of the step, where `choose-views` and the passes behind it may find another.
    """
    copy = step.clone()
    copy.sym_name = StringAttr(name)
    loads = [op for op in copy.walk() if isinstance(op, LoadWeightOp)]
    for op in loads:
        weight = op.weight.string_value()
        if weight in views:
            _read(op, views[weight], weights[weight], target)
    _set_modes(copy.body.block)
    return copy


def _read(op: LoadWeightOp, view: View, weight: WeightOp, target: Target) -> None:
    stream = StreamType(ViewType(*weight.shape, view))
    if op.stream.type != stream:
        Rewriter.replace_value_with_new_type(op.stream, stream)
        retile(op, weight, target)


def _set_modes(block: Block) -> None:
    """Put each change of mode right before the operation that needs it."""
    mode: View | None = None
    for op in list(block.ops):
        needed = _mode(op)
        if isinstance(op, ModeOp):
            Rewriter.erase_op(op)
        elif needed is not None and needed != mode:
            Rewriter.insert_op(ModeOp(needed), InsertPoint.before(op))
            mode = needed


def _mode(op: Operation) -> View | None:
    """The mode in which the array computes an operation; None for what runs elsewhere."""
    if isinstance(op, AttentionOp) and op.unit.data == Unit.ARRAY:
        return View.FULL
    if not isinstance(op, GemmOp):
        return None
    assert isinstance(op.weight.type, StreamType)
    assert isinstance(op.weight.type.content, ViewType)
    return op.weight.type.content.view
