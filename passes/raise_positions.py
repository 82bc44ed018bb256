"""`raise-positions`: the positions of the new tokens, given or computed, as `speq.positions`.

An argument `position_ids` is replaced. Positions that the graph computes itself (a running sum of
the mask, a range behind the length of a cache) are found by evaluating every integer row of the
graph for several lengths and comparing it with past, past + 1, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType, i32, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.speq import PositionsOp
from speqc.passes.argument_roles import Role
from speqc.passes.building import Builder
from speqc.passes.matching import element_type, main_function, shape
from speqc.passes.probe import Probe
from speqc.passes.step_samples import (
    Step,
    StepProbes,
    StepSampler,
    erase_arguments,
    step_arguments,
    tokens_argument,
)
from speqc.passes.table_bounds import table_positions
from speqc.runtime.module_attributes import limit_proved

STEPS = ((1, 0), (3, 0), (16, 0), (2, 5), (5, 3), (1, 33), (16, 33))
"""(rows, past) for which computed positions are checked; and for the longest step there is."""

ROWS = ((1, -1), (-1,))
"""Shapes that positions are looked for in."""

MOVERS = frozenset({"onnx.Reshape", "onnx.Squeeze", "onnx.Unsqueeze", "onnx.Cast", "onnx.Identity"})
"""Operations whose result is no computation of positions but another form of them."""


def _substitute(value: SSAValue, tokens: SSAValue, before: Operation) -> None:
    """Let the users of `value` read `speq.positions`, in the shape and type that `value` has."""
    builder = Builder(before)
    positions = PositionsOp(tokens)
    positions.result.name_hint = "positions"
    builder.add(positions)
    shaped = builder.reshape(positions.result, shape(value))
    value.replace_all_uses_with(builder.cast(shaped, element_type(value)))


def _computed(function: FuncOp, probes: StepProbes) -> Iterator[tuple[Operation, Step]]:
    """Operations whose result is the positions of the new tokens, and up to which step it is."""
    for op in function.body.block.ops:
        if not op.name.startswith("onnx.") or op.name in MOVERS or len(op.results) != 1:
            continue
        value = op.results[0]
        if not isinstance(value.type, TensorType) or element_type(value) not in (i32, i64):
            continue
        if shape(value) in ROWS and _counts_on(value, probes):
            # A bound may come late: the longest step that it has a value for decides, too.
            longest = probes.longest_step(partial(_has_value, value))
            if _counts(value, probes.probe(*longest), *longest):
                yield op, longest


def _counts_on(value: SSAValue, probes: StepProbes) -> bool:
    """Whether `value` is past, past + 1, ... in every short step."""
    # A graph without caches is one that has no past yet.
    steps = (step for step in STEPS if probes.sampler.has_caches or step[1] == 0)
    return all(_counts(value, probes.probe(*step), *step) for step in steps)


def _has_value(value: SSAValue, probe: Probe, *_: int) -> bool:
    return probe.value(value) is not None


def _counts(value: SSAValue, probe: Probe, rows: int, past: int) -> bool:
    found = probe.value(value)
    return found is not None and np.array_equal(found.reshape(-1), np.arange(past, past + rows))


@dataclass(frozen=True)
class RaisePositionsPass(ModulePass):
    """Raise the positions of the new tokens to `speq.positions`."""

    name = "raise-positions"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Replace the argument of positions, and positions that the graph computes.

        Notes up to how many positions what it found holds, and the graph's tables reach.

        Raises:
            SpeqcError: no argument holds the tokens.
        """
        function = main_function(op)
        if function is None:
            return
        arguments = step_arguments(op, function)
        tokens = tokens_argument(arguments)
        given = [argument.value for argument in arguments if argument.role is Role.POSITIONS]
        first = function.body.block.first_op
        assert first is not None
        for argument in given:
            _substitute(argument, tokens, first)
        erase_arguments(op, function, given)
        probes = StepProbes(StepSampler(op, function))
        for computed, longest in list(_computed(function, probes)):
            _substitute(computed.results[0], tokens, computed)
            limit_proved(op, sum(longest))
        region_dce(op.body)
        reach = table_positions(function, StepProbes(StepSampler(op, function)))
        if reach is not None:
            limit_proved(op, reach)
