"""`raise-positions`: the positions of the new tokens, given or computed, as `speq.positions`.

An argument `position_ids` is replaced. Positions that the graph computes itself (a running sum of
the mask, a range behind the length of a cache) are found by evaluating every integer row of the
graph for several lengths and comparing it with past, past + 1, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType, i32, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.speq import PositionsOp
from speqc.passes.attention_mask import LONG_PASTS, LONG_ROWS
from speqc.passes.building import Builder
from speqc.passes.matching import element_type, main_function, shape
from speqc.passes.probe import Probe
from speqc.passes.step_samples import (
    Role,
    StepSampler,
    erase_arguments,
    step_arguments,
    tokens_argument,
)

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


def _computed(
    function: FuncOp, sampler: StepSampler, probes: dict[tuple[int, int], Probe]
) -> Iterator[Operation]:
    """Operations whose result is the positions of the new tokens."""
    for op in function.body.block.ops:
        if not op.name.startswith("onnx.") or op.name in MOVERS or len(op.results) != 1:
            continue
        value = op.results[0]
        if not isinstance(value.type, TensorType) or element_type(value) not in (i32, i64):
            continue
        if shape(value) in ROWS and _counts_on(value, probes) and _counts_on_far(value, sampler):
            yield op


def _counts_on(value: SSAValue, probes: dict[tuple[int, int], Probe]) -> bool:
    """Whether `value` is past, past + 1, ... in every step."""
    return all(_counts(value, probe, *step) for step, probe in probes.items())


def _counts_on_far(value: SSAValue, sampler: StepSampler) -> bool:
    """Whether it also is in the longest step that it has a value for: a bound may come late."""
    lengths = LONG_PASTS if sampler.has_caches else LONG_ROWS
    step = sampler.longest_step(lengths, lambda probe, *_: probe.value(value) is not None)
    return _counts(value, sampler.probe(*step), *step)


def _counts(value: SSAValue, probe: Probe, rows: int, past: int) -> bool:
    found = probe.value(value)
    return found is not None and np.array_equal(found.reshape(-1), np.arange(past, past + rows))


@dataclass(frozen=True)
class RaisePositionsPass(ModulePass):
    """Raise the positions of the new tokens to `speq.positions`."""

    name = "raise-positions"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Replace the argument of positions, and positions that the graph computes.

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
        sampler = StepSampler(op, function)
        # A graph without caches is one that has no past yet.
        steps = [step for step in STEPS if sampler.has_caches or step[1] == 0]
        probes = {step: sampler.probe(*step) for step in steps}
        for computed in list(_computed(function, sampler, probes)):
            _substitute(computed.results[0], tokens, computed)
        region_dce(op.body)
