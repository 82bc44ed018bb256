"""Puts the bodies of a model's own functions in the place of their calls."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common

from speqc.onnx_quiet import first_cause, quiet
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError

LARGEST_EXPANSION = 1_000_000
"""Nodes to which calls may expand: functions that call each other twice grow without bound."""


def inline_functions(model: ir.Model) -> None:
    """Replace every call of a function of the model by the function's nodes, in place.

    Raises SpeqcError, naming the function, if one calls itself, calls expand beyond
    `LARGEST_EXPANSION` nodes, or a call does not fit its function.
    """
    if not model.functions:
        return
    sizes: dict[ir.OperatorIdentifier, int] = {}
    total = sum(_expanded(node, model.functions, sizes, ()) for node in model.graph)
    if total > LARGEST_EXPANSION:
        raise SpeqcError(f"its functions expand to {total:,} nodes; export it without functions")
    try:
        with quiet():
            common.InlinePass()(model)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise SpeqcError(f"a call does not fit its function: {first_cause(e)}") from e


def _expanded(
    node: ir.Node,
    functions: Mapping[ir.OperatorIdentifier, ir.Function],
    sizes: dict[ir.OperatorIdentifier, int],
    callers: tuple[ir.OperatorIdentifier, ...],
) -> int:
    """The number of nodes that a node becomes."""
    called = node.op_identifier()
    if called not in functions:
        return 1
    name = f"function '{called[0]}.{called[1]}'"
    if called in callers:
        raise SpeqcError(f"{name} calls itself")
    function = functions[called]
    if len(node.inputs) > len(function.inputs) or len(node.outputs) != len(function.outputs):
        raise SpeqcError(
            f"node '{node.name}' calls {name} with {counted(len(node.inputs), 'input')} and "
            f"{counted(len(node.outputs), 'output')}; it takes {len(function.inputs)} and gives "
            f"{len(function.outputs)}"
        )
    if called not in sizes:
        path = (*callers, called)
        sizes[called] = sum(_expanded(inner, functions, sizes, path) for inner in function)
    return sizes[called]
