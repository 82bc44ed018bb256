"""`verify-onnx`: what the raising passes take for granted of an imported module."""

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, NoneType, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation
from xdsl.passes import ModulePass

from speqc.dialects.onnx import ConstantOp, InitializerOp, NoValueOp, OnnxOp
from speqc.passes.matching import describe, fail, main_function
from speqc.passes.operator_parts import check_parts
from speqc.runtime.errors import SpeqcError

KNOWN = (OnnxOp, InitializerOp, ConstantOp, NoValueOp, ReturnOp)


def _check_op(op: Operation) -> None:
    if not isinstance(op, KNOWN):
        raise fail(op, "expected operations of the onnx dialect only")
    if isinstance(op, OnnxOp):
        check_parts(op)
    for index, result in enumerate(op.results):
        if not isinstance(result.type, TensorType | NoneType):
            raise fail(op, f"result {index} has type {result.type}, expected a tensor")


def _check_function(function: FuncOp) -> None:
    if len(function.body.blocks) != 1:
        raise SpeqcError(f"@{function.sym_name.data}: expected one block of operations")
    for argument in function.args:
        if not isinstance(argument.type, TensorType):
            raise SpeqcError(f"argument {argument.index} has type {argument.type}, not a tensor")
    for op in function.body.block.ops:
        _check_op(op)
    if function.get_return_op() is None:
        raise SpeqcError(f"@{function.sym_name.data} does not end with func.return")


@dataclass(frozen=True)
class VerifyOnnxPass(ModulePass):
    """Check that a module is what the importer makes."""

    name = "verify-onnx"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Check the function and its operations.

        Raises:
            SpeqcError: one line that names the operation and what was expected of it.
        """
        function = main_function(op)
        if function is None:
            raise SpeqcError("no function @main with a body: not a module that the importer made")
        for other in op.body.block.ops:
            if other is not function:
                raise SpeqcError(f"expected @main and nothing else, got {describe(other)}")
        _check_function(function)
