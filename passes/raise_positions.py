"""`raise-positions`: the positions of the new tokens, given or computed, as `speq.positions`.

An argument `position_ids` is replaced. Positions that the graph computes itself (a running sum of
the mask, a range behind the length of a cache) are found by evaluating every integer row of the
graph for several lengths and comparing it with past, past + 1, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType, i32, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.onnx import operator_class
from speqc.dialects.speq import PositionsOp
from speqc.passes.matching import (
    element_type,
    insert_before,
    main_function,
    reshape,
    shape,
    tensor_type,
)
from speqc.passes.probe import Probe
from speqc.passes.step_samples import (
    Role,
    StepSampler,
    erase_arguments,
    step_arguments,
    tokens_argument,
)

STEPS = ((1, 0), (3, 0), (2, 5), (5, 3), (1, 33))
"""(rows, past) for which computed positions are checked."""

ROWS = ((1, -1), (-1,))
"""Shapes that positions are looked for in."""

MOVERS = frozenset({"onnx.Reshape", "onnx.Squeeze", "onnx.Unsqueeze", "onnx.Cast", "onnx.Identity"})
"""Operations whose result is no computation of positions but another form of them."""

ONNX_TYPES = {i32: 6, i64: 7}
"""ONNX's numbers of element types, as `onnx.Cast` takes them."""


def _raise_argument(function: FuncOp, argument: SSAValue, tokens: SSAValue) -> None:
    """Replace an argument of positions."""
    first = function.body.block.first_op
    assert first is not None
    positions = PositionsOp(tokens)
    insert_before(first, positions)
    _substitute(argument, positions, first)


def _substitute(value: SSAValue, positions: PositionsOp, before: Operation) -> None:
    """Let the users of `value` read `positions` in the shape and type that `value` has."""
    result = positions.result
    result.name_hint = result.name_hint or "positions"
    if shape(value) != shape(result):
        views = reshape(result, shape(value))
        insert_before(before, views)
        result = views[-1].results[0]
    if element_type(value) != element_type(result):
        to = IntegerAttr(ONNX_TYPES[element_type(value)], i64)
        target = tensor_type(element_type(value), shape(value))
        cast = operator_class("onnx.Cast")([result], [target], {"to": to})
        insert_before(before, cast)
        result = cast.results[0]
    value.replace_all_uses_with(result)


def _computed(function: FuncOp, probes: dict[tuple[int, int], Probe]) -> Iterator[Operation]:
    """Operations whose result is the positions of the new tokens."""
    for op in function.body.block.ops:
        if not op.name.startswith("onnx.") or op.name in MOVERS or len(op.results) != 1:
            continue
        value = op.results[0]
        if not isinstance(value.type, TensorType) or element_type(value) not in ONNX_TYPES:
            continue
        if shape(value) in ROWS and _counts_on(value, probes):
            yield op


def _counts_on(value: SSAValue, probes: dict[tuple[int, int], Probe]) -> bool:
    """Whether `value` is past, past + 1, ... in every step."""
    for (rows, past), probe in probes.items():
        found = probe.value(value)
        expected = np.arange(past, past + rows)
        if found is None or not np.array_equal(found.reshape(-1), expected):
            return False
    return True


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
        for argument in given:
            _raise_argument(function, argument, tokens)
        erase_arguments(op, function, given)
        sampler = StepSampler(op, function)
        probes = {step: sampler.probe(*step) for step in STEPS}
        for computed in list(_computed(function, probes)):
            positions = PositionsOp(tokens)
            insert_before(computed, positions)
            _substitute(computed.results[0], positions, computed)
        region_dce(op.body)
