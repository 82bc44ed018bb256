"""Up to how many positions the tables of a graph reach: learned positions, angles, cut masks.

A graph picks rows of such a table by position, or takes its rows up to the number of positions.
Past its last row the graph has no meaning.
"""

from collections.abc import Iterator

from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import constant_integers, is_weight, shape
from speqc.passes.probe import Probe
from speqc.passes.step_samples import StepProbes

SHORT_STEPS = ((1, 0), (2, 3))
"""(rows, past) for which it is tried whether a place in a table depends on lengths alone."""


def table_positions(function: FuncOp, probes: StepProbes) -> int | None:
    """The fewest positions that a table of the function reaches; None if no position picks rows."""
    found = [_reach(places, rows, probes) for places, rows in set(_picks(function))]
    return min((reach for reach in found if reach is not None), default=None)


def _picks(function: FuncOp) -> Iterator[tuple[SSAValue, int]]:
    """Values that name places in tables of the file, and how large they may be."""
    for op in function.body.block.ops:
        if not isinstance(op, OnnxOp) or not op.operands or not is_weight(op.operands[0]):
            continue
        sizes = shape(op.operands[0])
        if op.name == "onnx.Gather" and op.integer("axis", 0) == 0 and sizes:
            yield op.operands[1], sizes[0] - 1
        elif op.name == "onnx.Slice" and len(op.operands) > 3:
            axes = constant_integers(op.operands[3])
            if axes is not None and len(axes) == 1 and constant_integers(op.operands[2]) is None:
                yield op.operands[2], sizes[axes[0]]


def _reach(places: SSAValue, largest: int, probes: StepProbes) -> int | None:
    """How many positions there may be before a place is too large; None if lengths do not tell."""

    def holds(probe: Probe, *_: int) -> bool:
        found = probe.value(places)
        return found is not None and found.size > 0 and int(found.max()) <= largest

    has_caches = probes.sampler.has_caches
    for rows, past in SHORT_STEPS:
        if not holds(probes.probe(rows, past if has_caches else 0)):
            return None
    return sum(probes.longest_step(holds))
