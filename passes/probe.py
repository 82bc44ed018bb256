"""Evaluate a part of an `onnx` graph on sample values, to learn what it does.

Exporters write one thing (a causal mask, the layout of grouped-query attention, the positions of
the new tokens) in many ways. Instead of knowing the ways, a pass evaluates the operations between
the values that it knows and the value that it asks about, and looks at the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType
from xdsl.ir import Block, Operation, SSAValue

from speqc.dialects.onnx import ConstantOp, InitializerOp, NoValueOp
from speqc.runtime.ir_values import dense_array, python_value
from speqc.runtime.vector_elementwise import ELEMENTWISE
from speqc.runtime.vector_ops import VECTOR_OPS, evaluate

NEWEST_OPSET = 24
"""What a module without the attribute `onnx.opset` is taken to follow."""


@dataclass(frozen=True)
class Shaped:
    """A sample of which only the shape is known."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Absent:
    """The sample of an optional operand that the node leaves empty."""


Sample = NDArray | Shaped | Absent


class Probe:
    """Evaluates values of a function, given samples for some of them; remembers what it computed.

    `opset` is the version of ONNX's operators in the module, as `opset_of` reads it.
    `aliases` maps values to those that they are taken to equal: a `Cast` or a product with a
    constant does not move elements, so a proof about layout looks through it.
    """

    def __init__(
        self,
        samples: Mapping[SSAValue, Sample],
        opset: int,
        aliases: Mapping[SSAValue, SSAValue] | None = None,
    ):
        self._opset = opset
        self._known: dict[SSAValue, Sample | None] = dict(samples)
        self._aliases = aliases or {}

    def value(self, wanted: SSAValue) -> NDArray | None:
        """The array that `wanted` is, or None if it depends on something without a sample."""
        stack = [wanted]
        while stack:
            value = stack[-1]
            if value in self._known:
                stack.pop()
                continue
            pending = self._pending(value)
            if pending is None:
                self._compute(value)
            else:
                stack.append(pending)
        found = self._known[wanted]
        return found if isinstance(found, np.ndarray) else None

    def _pending(self, value: SSAValue) -> SSAValue | None:
        """An operand to compute before `value`; None if there is none, or `value` is unknowable."""
        pending = None
        for operand in self._operands(value):
            if operand not in self._known:
                pending = pending or operand
            elif self._known[operand] is None:
                return None
        return pending

    def _operands(self, value: SSAValue) -> Sequence[SSAValue]:
        if value in self._aliases:
            return [self._aliases[value]]
        op = value.owner
        if isinstance(op, Block) or operator(op) not in VECTOR_OPS:
            return ()
        return op.operands

    def _compute(self, value: SSAValue) -> None:
        """Find `value`, whose operands are known or one of them unknowable."""
        op = value.owner
        if value in self._aliases:
            self._known[value] = self._known[self._aliases[value]]
        elif isinstance(op, ConstantOp):
            self._known[value] = dense_array(op.value)
        elif isinstance(op, InitializerOp):
            self._known[value] = Shaped(op.result.type.get_shape())
        elif isinstance(op, NoValueOp):
            self._known[value] = Absent()
        elif isinstance(op, Block):
            self._known[value] = None
        else:
            results = self._run(op) or [None] * len(op.results)
            self._known.update(zip(op.results, results, strict=True))

    def _run(self, op: Operation) -> Sequence[Sample] | None:
        samples = [self._known.get(operand) for operand in op.operands]
        if operator(op) == "Shape":
            return _shape(op, samples[0])
        if operator(op) not in VECTOR_OPS or any(sample is None for sample in samples):
            return None
        if any(isinstance(sample, Shaped) for sample in samples):
            return _shaped(op, samples)
        arrays = [sample if isinstance(sample, np.ndarray) else None for sample in samples]
        count = len(op.results)
        try:
            return evaluate(operator(op), arrays, attributes(op), self._opset, count)[:count]
        except (IndexError, ValueError):
            # The graph does not run at the sample's sizes: it has a table of fixed length.
            return None


def _shaped(op: Operation, samples: Sequence[Sample | None]) -> Sequence[Sample] | None:
    """The result's shape, for the operations between a graph's inputs and `onnx.Shape`."""
    first = samples[0]
    if operator(op) in ELEMENTWISE:
        shapes = [sample.shape for sample in samples if isinstance(sample, Shaped | np.ndarray)]
        try:
            return [Shaped(np.broadcast_shapes(*shapes))]
        except ValueError:
            return None
    if operator(op) in ("Cast", "CastLike", "Identity"):
        return None if first is None else [first]
    indices = samples[-1]
    if operator(op) != "Gather" or not isinstance(first, Shaped) or attributes(op).get("axis", 0):
        return None
    if not isinstance(indices, Shaped | np.ndarray):
        return None
    return [Shaped((*indices.shape, *first.shape[1:]))]


def opset_of(module: ModuleOp) -> int:
    """The version of ONNX's operators that the operations of a module follow."""
    attribute = module.attributes.get("onnx.opset")
    return attribute.value.data if isinstance(attribute, IntegerAttr) else NEWEST_OPSET


def operator(op: Operation) -> str:
    """The ONNX operator of an operation, without the dialect's name."""
    return op.name.removeprefix("onnx.")


def attributes(op: Operation) -> dict[str, object]:
    """The ONNX attributes of an operation as plain values."""
    return {name: python_value(attribute) for name, attribute in op.properties.items()}


def _shape(op: Operation, sample: Sample | None) -> Sequence[NDArray] | None:
    """The result of `onnx.Shape`; the operand's type may tell it where no sample does."""
    if isinstance(sample, Shaped | np.ndarray):
        sizes = sample.shape
    elif isinstance(type := op.operands[0].type, TensorType) and type.has_static_shape():
        sizes = type.get_shape()
    else:
        return None
    bounds = attributes(op)
    start, end = bounds.get("start", 0), bounds.get("end", len(sizes))
    assert isinstance(start, int) and isinstance(end, int)
    return [np.array(sizes[start:end], np.int64)]
