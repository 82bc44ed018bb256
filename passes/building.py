"""Making operations in front of another one, as rewrites need them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import (
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    Float16Type,
    Float32Type,
    IntegerAttr,
    TensorType,
    i1,
    i32,
    i64,
)
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.dialects.onnx import ConstantOp, operator_class
from speqc.passes.matching import element_type, shape, tensor_type

ONNX_TYPES: Mapping[Attribute, int] = {
    Float32Type(): 1,
    i32: 6,
    i64: 7,
    i1: 9,
    Float16Type(): 10,
}
"""ONNX's numbers of element types, as `onnx.Cast` takes them."""


@dataclass(frozen=True)
class Builder:
    """Inserts operations before `anchor`; they get its location, so that messages name its node."""

    anchor: Operation

    def add(self, op: Operation) -> SSAValue | None:
        """Insert an operation and give its first result, None if it has none."""
        op.location = self.anchor.location
        Rewriter.insert_op(op, InsertPoint.before(self.anchor))
        return op.results[0] if op.results else None

    def onnx(
        self,
        name: str,
        operands: Sequence[SSAValue],
        result_type: Attribute,
        properties: Mapping[str, Attribute] | None = None,
    ) -> SSAValue:
        """The result of the ONNX operator `name`."""
        op = operator_class(f"onnx.{name}")(operands, [result_type], dict(properties or {}))
        self.add(op)
        return op.results[0]

    def integers(self, values: Sequence[int]) -> SSAValue:
        """A vector of int64."""
        type = TensorType(i64, [len(values)])
        op = ConstantOp(DenseIntOrFPElementsAttr.from_list(type, list(values)))
        self.add(op)
        return op.output

    def reshape(self, value: SSAValue, sizes: Sequence[int]) -> SSAValue:
        """`value` in another shape, with `ANY` for at most one dynamic size."""
        if shape(value) == tuple(sizes):
            return value
        result_type = tensor_type(element_type(value), sizes)
        return self.onnx("Reshape", [value, self.integers(sizes)], result_type)

    def transpose(self, value: SSAValue, permutation: Sequence[int]) -> SSAValue:
        """`value` with its dimensions in another order."""
        sizes = [shape(value)[axis] for axis in permutation]
        order = DenseArrayBase.from_list(i64, list(permutation))
        result_type = tensor_type(element_type(value), sizes)
        return self.onnx("Transpose", [value], result_type, {"perm": order})

    def cast(self, value: SSAValue, type: Attribute) -> SSAValue:
        """`value` with elements of another type."""
        if element_type(value) == type:
            return value
        to = IntegerAttr(ONNX_TYPES[type], i64)
        return self.onnx("Cast", [value], tensor_type(type, shape(value)), {"to": to})

    def concat(self, values: Sequence[SSAValue], axis: int) -> SSAValue:
        """Values of one shape, joined along `axis`, whose size is static."""
        sizes = list(shape(values[0]))
        sizes[axis] *= len(values)
        result_type = tensor_type(element_type(values[0]), sizes)
        return self.onnx("Concat", values, result_type, {"axis": IntegerAttr(axis, i64)})

    def gather(self, table: SSAValue, indices: SSAValue) -> SSAValue:
        """Rows of a table."""
        sizes = (*shape(indices), *shape(table)[1:])
        return self.onnx("Gather", [table, indices], tensor_type(element_type(table), sizes))

    def split(self, value: SSAValue, sizes: Sequence[int]) -> list[SSAValue]:
        """`value` cut along its last dimension."""
        types = [tensor_type(element_type(value), (*shape(value)[:-1], size)) for size in sizes]
        operands = [value, self.integers(sizes)]
        op = operator_class("onnx.Split")(operands, types, {"axis": IntegerAttr(-1, i64)})
        self.add(op)
        return list(op.results)


def replace_result(op: Operation, value: SSAValue) -> None:
    """Let the users of op's first result read `value`, under the name the result has."""
    if value.name_hint is None:
        value.name_hint = op.results[0].name_hint
    op.results[0].replace_all_uses_with(value)
