"""Small questions about `onnx` operations that the raising passes ask."""

from collections.abc import Iterator, Sequence

from numpy.typing import NDArray
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    AnyFloat,
    ModuleOp,
    TensorType,
)
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, Block, Operation, SSAValue

from speqc.dialects.onnx import ConstantOp, InitializerOp, node_name
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import dense_array

ANY = -1
"""A dynamic size in shapes that passes handle."""

RENAMINGS = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that keep all elements in their order."""


def describe(op: Operation) -> str:
    """The operation in words for a user: its kind and the name of the ONNX node it came from."""
    name = node_name(op)
    return f"{op.name} '{name}'" if name else op.name


def fail(op: Operation, reason: str) -> SpeqcError:
    """The error that `op` can't be compiled for `reason`."""
    return SpeqcError(f"{describe(op)}: {reason}")


def tensor(value: SSAValue) -> TensorType:
    """The tensor type of a value that the dialect says is a tensor."""
    assert isinstance(value.type, TensorType)
    return value.type


def shape(value: SSAValue) -> tuple[int, ...]:
    """The shape of a tensor value, `ANY` for a dynamic dimension (as `onnx.Reshape` writes it)."""
    return tuple(ANY if size == DYNAMIC_INDEX else size for size in tensor(value).get_shape())


def tensor_type(type: Attribute, sizes: Sequence[int]) -> TensorType:
    """A tensor type from a shape as `shape` gives it."""
    return TensorType(type, [DYNAMIC_INDEX if size == ANY else size for size in sizes])


def element_type(value: SSAValue) -> Attribute:
    """The element type of a tensor value."""
    return tensor(value).element_type


def is_float(type: Attribute) -> bool:
    """Whether an element type is one of floating-point numbers."""
    return isinstance(type, AnyFloat)


def producer(value: SSAValue, *operators: str) -> Operation | None:
    """The operation that makes `value`, if it is one of the named ONNX operators."""
    owner = value.owner
    if isinstance(owner, Block) or not owner.name.startswith("onnx."):
        return None
    return owner if owner.name.removeprefix("onnx.") in operators else None


def only_user(value: SSAValue, *operators: str) -> Operation | None:
    """The one operation that uses `value`, if it is one of the named ONNX operators."""
    users = {use.operation for use in value.uses}
    if len(users) != 1:
        return None
    (user,) = users
    return user if user.name.removeprefix("onnx.") in operators else None


def other_operand(op: Operation, operand: SSAValue) -> SSAValue:
    """The other operand of a binary operation (the same one, if both are `operand`)."""
    first, second = op.operands
    return second if first is operand else first


def constant_array(value: SSAValue) -> NDArray | None:
    """The values of an `onnx.Constant`, or None if `value` is something else."""
    return dense_array(value.owner.value) if isinstance(value.owner, ConstantOp) else None


def constant_scalar(value: SSAValue) -> float | None:
    """The value of an `onnx.Constant` of one element, or None if `value` is something else."""
    if not isinstance(value.owner, ConstantOp) or value.owner.output.type.element_count() != 1:
        return None
    return float(dense_array(value.owner.value).reshape(-1)[0])


def constant_integers(value: SSAValue | None) -> tuple[int, ...] | None:
    """The values of an integer `onnx.Constant`, or None if `value` is something else."""
    array = None if value is None else constant_array(value)
    if array is None or array.dtype.kind != "i":
        return None
    return tuple(int(item) for item in array.reshape(-1))


def is_weight(value: SSAValue) -> bool:
    """Whether `value` is a tensor of the model file."""
    return isinstance(value.owner, InitializerOp | ConstantOp)


def step_functions(module: ModuleOp) -> Iterator[FuncOp]:
    """The functions of a module that have a body."""
    for op in module.body.block.ops:
        if isinstance(op, FuncOp) and not op.is_declaration:
            yield op


def main_function(module: ModuleOp) -> FuncOp | None:
    """The function that the importer made of the ONNX graph, or None."""
    found = (function for function in step_functions(module) if function.sym_name.data == "main")
    return next(found, None)
