"""Sizes as expressions in `sequence` and `past`, and integers computed from them.

`sequence` is the number of tokens fed (at least 1), `past` the number of positions that the caches
hold (at least 0).
"""

from __future__ import annotations

import json
from typing import NamedTuple

import onnx_ir as ir
from onnx_shape_inference import SYM_DATA_KEY

SEQUENCE, PAST = "sequence", "past"
TOTAL = f"{PAST} + {SEQUENCE}"

Dim = int | ir.SymbolicDim
"""A size: a number, or an expression."""


class Affine(NamedTuple):
    """The integer `constant + past * P + sequence * S`."""

    constant: int
    past: int = 0
    sequence: int = 0

    def __sub__(self, other: Affine) -> Affine:
        return Affine(*(a - b for a, b in zip(self, other, strict=True)))

    def plus(self, other: Affine) -> Affine:
        """The sum (`+` joins tuples)."""
        return Affine(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same in every step."""
        return not self.past and not self.sequence

    @property
    def never_negative(self) -> bool:
        """Whether it is at least 0 for every past >= 0 and sequence >= 1."""
        return self.past >= 0 and self.sequence >= 0 and self.constant + self.sequence >= 0

    @property
    def always_negative(self) -> bool:
        """Whether it is below 0 for every past >= 0 and sequence >= 1."""
        return self.past <= 0 and self.sequence <= 0 and self.constant + self.sequence < 0

    def dim(self) -> Dim:
        """The size, written as inference writes it."""
        if self.is_fixed:
            return self.constant
        total: Dim = self.constant
        for name, factor in ((PAST, self.past), (SEQUENCE, self.sequence)):
            if factor:
                total = ir.SymbolicDim(name) * factor + total
        return total.simplify() if isinstance(total, ir.SymbolicDim) else total


def affine(dim: Dim) -> Affine | None:
    """A size as an affine form, or None if it is none or has other symbols."""
    if isinstance(dim, int):
        return Affine(dim)
    if dim.value in (SEQUENCE, PAST, TOTAL):
        return Affine(0, int(dim.value != SEQUENCE), int(dim.value != PAST))
    if not is_ours(dim):
        return None
    points = [dim.evaluate({PAST: p, SEQUENCE: s}) for p, s in ((0, 0), (1, 0), (0, 1))]
    if not all(isinstance(point, int) for point in points):
        return None
    origin, past, sequence = (int(str(point)) for point in points)
    form = Affine(origin, past - origin, sequence - origin)
    return form if (dim - form.dim()).simplify().value == "0" else None


def is_ours(dim: Dim) -> bool:
    """Whether a size is a number or has no symbols but `sequence` and `past`."""
    if isinstance(dim, int):
        return True
    return dim.value is not None and dim.free_symbols() <= {SEQUENCE, PAST}


def same(a: Dim, b: Dim) -> bool:
    """Whether two sizes are certainly equal."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and a == b
    return a.value is not None and a.value == b.value


def elements(value: ir.Value | None) -> list[Dim] | None:
    """The elements of a tensor of integers in row-major order, or None if they aren't all known."""
    if value is None:
        return None
    if value.const_value is not None:
        is_integer = value.const_value.dtype.is_integer()
        return value.const_value.numpy().ravel().tolist() if is_integer else None
    if (data := value.metadata_props.get(SYM_DATA_KEY)) is not None:
        dims = [e if isinstance(e, int) else ir.SymbolicDim(e) for e in json.loads(data)]
        if all(is_ours(dim) for dim in dims):
            return dims
    node = value.producer()
    return _chosen(node) if node is not None and node.op_type == "Where" else None


def _chosen(where: ir.Node) -> list[Dim] | None:
    """`Where(a == b, x, y)` on known integers, as TorchScript writes "-1 keeps the size"."""
    decisions = _decisions(where.inputs[0])
    options = [elements(value) for value in where.inputs[1:]]
    if decisions is None or options[0] is None or options[1] is None:
        return None
    size = max(len(decisions), len(options[0]), len(options[1]))
    rows = zip(_spread(decisions, size), *(_spread(o, size) for o in options if o), strict=True)
    return [if_true if decision else if_false for decision, if_true, if_false in rows]


def _spread(items: list, size: int) -> list:
    return items * size if len(items) == 1 else items


def _decisions(condition: ir.Value | None) -> list[bool] | None:
    """A vector of truth values: a constant, or an `Equal` that is decided."""
    if condition is None:
        return None
    if condition.const_value is not None:
        return condition.const_value.numpy().ravel().tolist()
    node = condition.producer()
    if node is None or node.op_type != "Equal":
        return None
    a, b = elements(node.inputs[0]), elements(node.inputs[1])
    if a is None or b is None:
        return None
    size = max(len(a), len(b))
    verdicts = [_equal(x, y) for x, y in zip(_spread(a, size), _spread(b, size), strict=True)]
    return [v for v in verdicts if v is not None] if None not in verdicts else None


def _equal(a: Dim, b: Dim) -> bool | None:
    """Whether two sizes are equal, None if that depends on the symbols."""
    if same(a, b):
        return True
    x, y = affine(a), affine(b)
    if x is None or y is None:
        return None
    difference = x - y
    if difference.always_negative or (y - x).always_negative:
        return False
    return True if difference == Affine(0) else None
