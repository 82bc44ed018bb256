"""`Min` and `Max` of sizes that the model's own tables decide.

A model that looks up a learned vector for each position can take no more positions than the table
has rows. A minimum of a number of positions and of something as large is that number.
"""

from __future__ import annotations

import onnx_ir as ir

from speqc.onnx_state import FLOATS, INTEGERS, find_token_input
from speqc.onnx_symbols import Affine, affine, elements

ALL_POSITIONS = Affine(0, 1, 1)

COUNTERS = frozenset({"Range", "CumSum"})
"""Operators that positions come from where the graph counts them itself."""

STEPS = frozenset({"Cast", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Identity", "Add", "Sub"})
"""Operators between positions and a table that they index: one row for each position."""


def decided_operand(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """The operand that a `Min` or `Max` of two integers is in every step; None if that varies."""
    if len(node.inputs) != 2:
        return None
    forms = [_form(value) for value in node.inputs]
    first, second = forms
    if first is None or second is None:
        return None
    least, most = (0, 1) if node.op_type == "Min" else (1, 0)
    if _is_at_most(graph, first, second):
        return node.inputs[least]
    return node.inputs[most] if _is_at_most(graph, second, first) else None


def _form(value: ir.Value | None) -> Affine | None:
    if value is None or value.dtype not in INTEGERS:
        return None
    found = elements(value)
    return affine(found[0]) if found is not None and len(found) == 1 else None


def _is_at_most(graph: ir.Graph, small: Affine, large: Affine) -> bool:
    if (large - small).never_negative:
        return True
    if not large.is_fixed or not (ALL_POSITIONS - small).never_negative:
        return False
    rows = _positions(graph)
    return rows is not None and large.constant >= rows


def _positions(graph: ir.Graph) -> int | None:
    """The fewest rows of a table of floats that positions index."""
    tokens, sizes = find_token_input(graph), []
    for node in graph:
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        table, indices = node.inputs
        if table is None or table.const_value is None or indices is None:
            continue
        tensor = table.const_value
        is_table = tensor.dtype in FLOATS and len(tensor.shape) == 2
        if is_table and _is_counted(indices, tokens):
            sizes.append(tensor.shape.numpy()[0])
    return min(sizes, default=None)


def _is_counted(value: ir.Value, tokens: ir.Value | None) -> bool:
    """Whether a value is positions, given or counted, at most moved or shifted."""
    pending, seen = [value], {value}
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None:
            if value.const_value is None and value is not tokens and value.dtype in INTEGERS:
                return True
        elif node.op_type in COUNTERS:
            return True
        elif node.op_type in STEPS:
            new = {entry for entry in node.inputs if entry is not None} - seen
            pending += new
            seen |= new
    return False
