"""`recompute-prefix`: a step without caches, for models whose attention is not recognised.

Runs in the place of `raise-attention` where that, or a pass behind it, can't continue. The step
keeps what the graph computes for a whole sequence; caches that the graph has stay empty, and go. A
history of tokens becomes the state of the module, and each call runs the step over all of it.

A row must depend on its own and earlier tokens alone. So each softmax over positions, and each
product of weights [..., T, T] with rows, that evaluation finds masked becomes one that reads no
later position. What else mixes tokens is evaluated as it stands (`prefix_check`).
"""

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import DenseIntOrFPElementsAttr, ModuleOp, TensorType, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import BlockArgument, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.onnx import ConstantOp, OnnxOp
from speqc.dialects.speq import CausalMatmulOp, CausalSoftmaxOp, HistoryOp
from speqc.passes.argument_roles import Argument, Role
from speqc.passes.building import Builder, replace_result
from speqc.passes.matching import ANY, element_type, fail, main_function, shape, tensor
from speqc.passes.prefix_check import rewrite_prefixes
from speqc.passes.prefix_probe import SCALED, WHOLE, PrefixProbe
from speqc.passes.raise_attention import drop_presents
from speqc.passes.row_rules import SOFTMAX_ALONG_ONE
from speqc.passes.step_samples import (
    erase_arguments,
    step_arguments,
    tokens_argument,
)
from speqc.runtime.module_attributes import limit_proved

HISTORY = "tokens"
"""The name of the history."""

CARRIERS = frozenset({"onnx.Cast", "onnx.Identity", "onnx.Transpose"})
"""Operations behind which an empty cache is one."""

PAIRS = (ANY, ANY)
"""The last two sizes of a tensor with an element for each pair of tokens."""


def _empty(past: SSAValue, name: str) -> None:
    """Let nothing use a cache, which has no positions.

    Raises SpeqcError where something does more than append to it, or measure it.
    """
    for use in list(past.uses):
        op = use.operation
        if op.name in CARRIERS:
            _empty(op.results[0], name)
        elif op.name == "onnx.Shape":
            assert isinstance(op, OnnxOp)
            sizes = [0 if size == ANY else size for size in shape(past)]
            measured = sizes[op.integer("start", 0) : op.integer("end", len(sizes))]
            replace_result(op, Builder(op).integers(measured))
        elif op.name == "onnx.Concat" and len(op.operands) == 2:
            replace_result(op, op.operands[1 - use.index])
        else:
            raise fail(op, f"it uses the cache '{name}' otherwise than by appending to it")
        if not any(result.uses for result in op.results):
            Rewriter.erase_op(op)


def _admit_all(mask: Argument, tokens: BlockArgument) -> None:
    """Let users of a mask of positions read one that admits every token."""
    if not mask.value.uses:
        return
    first = tokens.block.first_op
    assert first is not None
    builder = Builder(first)
    if shape(mask.value) != shape(tokens):
        user = next(iter(mask.value.uses)).operation
        raise fail(user, f"it uses the mask '{mask.name}', which is no row of positions")
    sizes = builder.onnx("Shape", [tokens], TensorType(i64, [2]))
    one = ConstantOp(DenseIntOrFPElementsAttr.from_list(TensorType(i64, [1, 1]), [1]))
    builder.add(one)
    ones = builder.onnx("Expand", [one.output, sizes], tensor(tokens))
    mask.value.replace_all_uses_with(builder.cast(ones, element_type(mask.value)))


def _read_earlier(op: Operation, probe: PrefixProbe) -> Operation:
    """Put an operation that reads no later position in the place of one that need not."""
    new = _causal_softmax(op, probe) or _causal_matmul(op, probe)
    if new is None:
        return op
    Builder(op).add(new)
    replace_result(op, new.results[0])
    Rewriter.erase_op(op)
    return new


def _causal_softmax(op: Operation, probe: PrefixProbe) -> Operation | None:
    if op.name != "onnx.Softmax" or shape(op.operands[0])[-2:] != PAIRS:
        return None
    assert isinstance(op, OnnxOp)
    rank = len(shape(op.operands[0]))
    axis = op.integer("axis", -1 if probe.opset >= SOFTMAX_ALONG_ONE else 1)
    if axis not in (-1, rank - 1) or not probe.is_masked(op.operands[0]):
        return None
    if probe.sees_later(op.results[0], (WHOLE, SCALED[0])):
        return None
    return CausalSoftmaxOp(op.operands[0])


def _causal_matmul(op: Operation, probe: PrefixProbe) -> Operation | None:
    if op.name != "onnx.MatMul":
        return None
    weights, rows = op.operands
    if shape(weights)[-2:] != PAIRS or shape(rows)[-2:-1] != (ANY,) or shape(rows)[-1] == ANY:
        return None
    if probe.sees_later(weights, (WHOLE, *SCALED)):
        return None
    return CausalMatmulOp(weights, rows, tensor(op.results[0]))


def _remove_caches(module: ModuleOp, function: FuncOp) -> None:
    """Leave the tokens as the only argument, and the logits as the only result."""
    drop_presents(module, function)
    arguments = step_arguments(module, function)
    tokens = tokens_argument(arguments)
    gone = [argument for argument in arguments if argument.role in (Role.CACHE, Role.MASK)]
    for argument in gone:
        if argument.role is Role.CACHE:
            _empty(argument.value, argument.name)
        else:
            _admit_all(argument, tokens)
    region_dce(module.body)
    erase_arguments(module, function, [argument.value for argument in gone])
    module.attributes.pop("onnx.kv_pairs", None)


@dataclass(frozen=True)
class RecomputePrefixPass(ModulePass):
    """Make `@main` a step over all tokens so far, and declare their history.

    `reason` says what could not be done with caches; it stands at the history.
    """

    name = "recompute-prefix"

    reason: str = "it was asked for"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite the module in place.

        Raises:
            SpeqcError: a cache can't stay empty, or a token's row may depend on later tokens.
        """
        function = main_function(op)
        if function is None:
            return
        _remove_caches(op, function)
        limit_proved(op, rewrite_prefixes(op, function, _read_earlier))
        region_dce(op.body)
        Rewriter.insert_op(HistoryOp(HISTORY, self.reason), InsertPoint.before(function))
