"""Drop reconfigurations of the array to the mode that it is already in."""

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

from speqc.dialects.pe import ModeOp
from speqc.dialects.speq import View


@dataclass(frozen=True)
class ElideModeSwitchesPass(ModulePass):
    """Keep a `pe.mode` only where it changes the mode; the mode at a step's start is unknown."""

    name = "elide-mode-switches"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite the module in place."""
        for function in op.ops:
            if isinstance(function, FuncOp):
                _elide(function.body.block)


def _elide(block: Block) -> None:
    mode: View | None = None
    for op in list(block.ops):
        if not isinstance(op, ModeOp):
            continue
        if op.mode.data == mode:
            Rewriter.erase_op(op)
        mode = op.mode.data
