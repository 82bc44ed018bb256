"""With how much bandwidth a baseline is as much faster than FP16 as somebody says, found by timing.

On an array that takes one weight per PE and cycle, whatever its width, a narrow step is bound by
the array and an FP16 step by DRAM, so that the ratio falls as the bandwidth grows.
"""

from collections.abc import Mapping
from dataclasses import replace

from xdsl.dialects.builtin import ModuleOp

from speqc.dialects.speq import FULL
from speqc.paper_grid import FP16, step_bound
from speqc.retarget import retarget
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import TARGET_NAME, target_attribute
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import LIMITS, Target

TRIES = 16
"""How often another bandwidth is tried. Where there is an answer, some four are enough."""

NEAR_ENOUGH = 2e-3
"""How far the ratio may be from the wanted one, relative to it.

A block holds the channel for whole cycles, some hundreds, so that the ratio changes in steps.
"""


def one_lane_bandwidth(
    programs: Mapping[str, ModuleOp], name: str, context: int, wanted: float, target: Target
) -> float | None:
    """Bytes per second with which baseline `name` is `wanted` times as fast as FP16.

    Timed with one lane, all else as on `target`. `programs` has those of `name` and of FP16.
    None where no bandwidth does, or where its narrow step is not bound by the array, or its FP16
    step not by DRAM.
    """
    one_lane = replace(target, draft_lanes=1)
    try:
        pair = [retarget(programs[key], one_lane) for key in (FP16, name)]
    except SpeqcError:
        return None
    bandwidth = one_lane.dram_bytes_per_second
    for _ in range(TRIES):
        full, narrow = (_timer(program, one_lane, bandwidth) for program in pair)
        ratio = full.cost(FULL, 1, context).cycles / narrow.cost(FULL, 1, context).cycles
        if abs(ratio / wanted - 1) < NEAR_ENOUGH:
            bounds = step_bound(full, context), step_bound(narrow, context)
            return bandwidth if bounds == ("dram", "array") else None
        bandwidth = _next(bandwidth * ratio / wanted)
    return None


def _next(bandwidth: float) -> int:
    """A bandwidth that a target may have.

    The time of the FP16 step is inverse to it and the narrow step's nearly constant, so that the
    ratio of what there is and what is wanted is nearly what the bandwidth is off by.
    """
    least, most = LIMITS["dram_bytes_per_second"]
    return min(max(round(bandwidth), least), most)


def _timer(program: ModuleOp, target: Target, bandwidth: int) -> ProgramTimer:
    """Times a program with another bandwidth, which its tiles do not depend on."""
    machine = replace(target, dram_bytes_per_second=bandwidth)
    program.attributes[TARGET_NAME] = target_attribute(machine)
    return ProgramTimer(program)
