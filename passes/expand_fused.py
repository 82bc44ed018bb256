"""`expand-fused`: operators in which ONNX Runtime fuses several of ONNX's become those.

Sums before a normalisation or an activation are operations of their own then, rounded to the type
of their operands.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import FloatAttr, IntegerAttr, ModuleOp, StringAttr, f32, i64
from xdsl.ir import SSAValue
from xdsl.passes import ModulePass
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.onnx import OnnxOp, output_location
from speqc.passes.building import Builder, replace_result
from speqc.passes.matching import main_function

TOTAL, DEFAULT_EPSILON = 3, 1e-12
"""The output of ONNX Runtime's normalisations that is their input, and their default epsilon."""


def _expand_norm(op: OnnxOp) -> None:
    """The normalisation of input + skip + bias; output 3 is that sum."""
    if any(result.uses for result in op.results[1:TOTAL]):
        return
    total = _sum(op, "input", "skip", "bias")
    if len(op.results) > TOTAL:
        op.results[TOTAL].replace_all_uses_with(total)
        if isinstance(total.owner, OnnxOp):
            total.owner.location = output_location(op.location, TOTAL)
    properties = {
        "axis": IntegerAttr(-1, i64),
        "epsilon": FloatAttr(op.number("epsilon", DEFAULT_EPSILON), f32),
    }
    name = op.name.removeprefix("onnx.microsoft.Skip")
    factors = [op.input(field) for field in op.schema().inputs if field in ("gamma", "beta")]
    operands = [total, *(value for value in factors if value is not None)]
    normal = Builder(op).onnx(name, operands, op.results[0].type, properties)
    replace_result(op, normal)


def _expand_gelu(approximate: str) -> Callable[[OnnxOp], None]:
    def expand(op: OnnxOp) -> None:
        total = _sum(op, *(("X", "bias") if op.name.endswith("FastGelu") else ("A", "B")))
        properties = {"approximate": StringAttr(approximate)}
        replace_result(op, Builder(op).onnx("Gelu", [total], op.results[0].type, properties))

    return expand


def _sum(op: OnnxOp, *names: str) -> SSAValue:
    """The sum of the named inputs that are there, in their order, in the type of the result."""
    first, *others = (value for name in names if (value := op.input(name)) is not None)
    total = first
    for value in others:
        total = Builder(op).onnx("Add", [total, value], op.results[0].type)
    return total


RULES: Mapping[str, Callable[[OnnxOp], None]] = {
    "onnx.microsoft.SkipLayerNormalization": _expand_norm,
    "onnx.microsoft.SkipSimplifiedLayerNormalization": _expand_norm,
    "onnx.microsoft.FastGelu": _expand_gelu("tanh"),
    "onnx.microsoft.BiasGelu": _expand_gelu("none"),
}


@dataclass(frozen=True)
class ExpandFusedPass(ModulePass):
    """Take fused operators apart."""

    name = "expand-fused"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Expand every fused operator of the imported function."""
        function = main_function(op)
        if function is None:
            return
        for candidate in list(function.body.block.ops):
            if isinstance(candidate, OnnxOp) and candidate.name in RULES:
                RULES[candidate.name](candidate)
        region_dce(op.body)
