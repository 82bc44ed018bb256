"""`raise-rms-norm`: root-mean-square normalisation, spelt out by the exporter, as one operation.

Raised are forms whose rounding points are those of `speq.rms_norm`: mean and root in FP32, the
product with 1/root in FP32. A graph that computes them in FP16, or divides by the root, rounds
otherwise: it stays a chain of vector operations, as does one that narrows its input's type.
"""

from dataclasses import dataclass
from typing import NamedTuple

from xdsl.context import Context
from xdsl.dialects.builtin import Float32Type, ModuleOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    GreedyRewritePatternApplier,
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
)
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.onnx import OnnxOp
from speqc.dialects.speq import RMSNormOp
from speqc.passes.building import Builder, replace_result
from speqc.passes.matching import (
    constant_integers,
    constant_scalar,
    element_type,
    only_user,
    other_operand,
    producer,
    shape,
    tensor,
)

NORM_OPERATORS = ("onnx.RMSNormalization", "onnx.SimplifiedLayerNormalization")


class _Scaled(NamedTuple):
    """The last operation of a normalisation, and what it needs besides input and epsilon."""

    last: Operation
    scale: SSAValue
    scale_in_f32: bool


class _RaiseMean(RewritePattern):
    """Raise the normalisation around an `onnx.ReduceMean` of squares."""

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
        if op.name != "onnx.ReduceMean" or not _is_over_last_axis(op):
            return
        wide = _squared(op.operands[0])
        if wide is None or not isinstance(element_type(wide), Float32Type):
            return
        found = _inverse_root(op.results[0])
        if found is None:
            return
        inverse, epsilon = found
        scaled = _scaled(inverse, wide)
        if scaled is None:
            return
        widened = producer(wide, "Cast")
        input = widened.operands[0] if widened is not None else wide
        _raise(scaled, input, epsilon)


class _RaiseOperator(RewritePattern):
    """Raise ONNX's and ONNX Runtime's own normalisation operators."""

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
        if not isinstance(op, OnnxOp) or op.name not in NORM_OPERATORS:
            return
        input, scale = op.operands[:2]
        axis = op.integer("axis", -1)
        if axis not in (-1, len(shape(input)) - 1) or any(result.uses for result in op.results[1:]):
            return
        # ONNX's operator rounds before it multiplies with the scale, ONNX Runtime's after.
        after = op.name == "onnx.SimplifiedLayerNormalization"
        _raise(_Scaled(op, scale, after), input, op.number("epsilon", 1e-5))


def _raise(scaled: _Scaled, input: SSAValue, epsilon: float) -> None:
    """Put `speq.rms_norm` in the place of the last operation, if the scale is one per channel."""
    last, scale, scale_in_f32 = scaled
    if shape(scale) == shape(input)[-1:] and input.type == last.results[0].type:
        result_type = tensor(last.results[0])
        norm = RMSNormOp(input, scale, epsilon, result_type, scale_in_f32=scale_in_f32)
        Builder(last).add(norm)
        replace_result(last, norm.result)


def _is_over_last_axis(op: Operation) -> bool:
    assert isinstance(op, OnnxOp)
    axes = op.integers("axes") or constant_integers(op.input("axes"))
    rank = len(shape(op.operands[0]))
    return op.integer("keepdims", 1) == 1 and axes is not None and axes in ((-1,), (rank - 1,))


def _squared(value: SSAValue) -> SSAValue | None:
    """The tensor whose square `value` is."""
    if (power := producer(value, "Pow")) is not None:
        return power.operands[0] if constant_scalar(power.operands[1]) == 2 else None
    product = producer(value, "Mul")
    if product is None or product.operands[0] is not product.operands[1]:
        return None
    return product.operands[0]


def _inverse_root(mean: SSAValue) -> tuple[SSAValue, float] | None:
    """1 / sqrt(mean + epsilon), and epsilon."""
    add = only_user(mean, "Add")
    if add is None:
        return None
    epsilon = constant_scalar(other_operand(add, mean))
    root = only_user(add.results[0], "Sqrt")
    if epsilon is None or root is None:
        return None
    inverse = only_user(root.results[0], "Reciprocal", "Div")
    if inverse is None:
        return None
    if inverse.name == "onnx.Div" and constant_scalar(inverse.operands[0]) != 1:
        return None
    return inverse.results[0], epsilon


def _scaled(inverse: SSAValue, wide: SSAValue) -> _Scaled | None:
    """The product with the scale, before or after the result is rounded."""
    product = only_user(inverse, "Mul")
    if product is None or other_operand(product, inverse) is not wide:
        return None
    normal = product.results[0]
    if (cast := only_user(normal, "Cast")) is not None:
        rounded = cast.results[0]
        last = only_user(rounded, "Mul")
        return None if last is None else _Scaled(last, other_operand(last, rounded), False)
    last = only_user(normal, "Mul")
    if last is None:
        return None
    scale = other_operand(last, normal)
    cast = only_user(last.results[0], "Cast")
    return _Scaled(last, scale, False) if cast is None else _Scaled(cast, scale, True)


@dataclass(frozen=True)
class RaiseRmsNormPass(ModulePass):
    """Raise spelt-out RMS normalisation to `speq.rms_norm`."""

    name = "raise-rms-norm"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Raise every normalisation whose rounding points are the operation's."""
        patterns = GreedyRewritePatternApplier([_RaiseMean(), _RaiseOperator()], dce_enabled=False)
        PatternRewriteWalker(patterns, apply_recursively=False).rewrite_module(op)
        region_dce(op.body)
