"""`quantize-weights`: a model as a machine with narrow weights would run it, to be timed.

It stands in the place of `split-weights` where a program is a baseline: nothing is drafted, and no
value is ever computed. Declarations say how many bits a weight takes in memory. What a scheme does
to the rows in front of a product, and behind it, stands in the program as operations of the vector
unit; the constants in them are placeholders.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xdsl.context import Context
from xdsl.dialects.builtin import (
    AnyFloat,
    DenseIntOrFPElementsAttr,
    IntegerAttr,
    ModuleOp,
    StringAttr,
    TensorType,
    i64,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.dialects.onnx import ConstantOp, OnnxOp
from speqc.dialects.speq import MatmulOp, ViewOp, WeightOp
from speqc.passes.building import Builder
from speqc.passes.matching import element_type, step_functions
from speqc.passes.split_weights import EMBEDDING_ONLY
from speqc.runtime.costs import FULL_BITS
from speqc.runtime.errors import SpeqcError

COLUMN = 0
"""The group size that stands for one scale a column."""

ROW_OPS = ("Abs", "Add", "Clip", "Max", "Mul", "Round", "Sub")
"""Operators that a scheme may apply to each element of rows."""

UNARY = ("Abs", "Round")
"""Those without a constant; `Clip` has two, the others one."""


@dataclass(frozen=True)
class QuantizeWeightsPass(ModulePass):
    """Store the weights that products read in fewer bits, and add a scheme's work around them.

    `weight-bits` and `head-bits`: of the weights in the layers, and of those that give the logits;
    16 leaves them plain. `group-size`: weights along K that share a 16-bit scale; 0: a whole
    column. `input-ops` and `output-ops`: operators on each element of the rows that go into a
    product with narrow weights, and that come out of it. `activation-bits`: what `Clip` clips to.
    """

    name = "quantize-weights"

    weight_bits: int = 4
    head_bits: int = FULL_BITS
    group_size: int = COLUMN
    activation_bits: int = FULL_BITS
    input_ops: tuple[str, ...] = ()
    output_ops: tuple[str, ...] = ()

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Decide for every weight; add operations around the products of those that are narrow.

        Raises:
            SpeqcError: a width that no weight has, a negative group size, an operator that is
                not one of `ROW_OPS`.
        """
        self._check()
        weights = {w.sym_name.data: w for w in op.ops if isinstance(w, WeightOp)}
        for weight in weights.values():
            weight.codebook = weight.levels = weight.group_size = weight.shift = None
            weight.stored_bits = weight.copy = None
            weight.kept = StringAttr(EMBEDDING_ONLY)
        for function in step_functions(op):
            heads = set(_heads(function))
            work = _Work(self, function)
            for product in [p for p in function.walk() if isinstance(p, MatmulOp)]:
                bits = self.head_bits if product in heads else self.weight_bits
                view = product.weight.owner
                assert isinstance(view, ViewOp)
                self._store(weights[view.weight.string_value()], bits)
                if bits < FULL_BITS:
                    work.surround(product)

    def _check(self) -> None:
        for name, bits in (
            ("weight-bits", self.weight_bits),
            ("head-bits", self.head_bits),
            ("activation-bits", self.activation_bits),
        ):
            if not 2 <= bits <= FULL_BITS:
                raise SpeqcError(f"{name} must be from 2 to {FULL_BITS}, got {bits}")
        if self.group_size < 0:
            raise SpeqcError(f"group-size must not be negative, got {self.group_size}")
        for name in (*self.input_ops, *self.output_ops):
            if name not in ROW_OPS:
                raise SpeqcError(f"unknown operator '{name}': choose from {', '.join(ROW_OPS)}")

    def _store(self, weight: WeightOp, bits: int) -> None:
        weight.kept = None
        if bits < FULL_BITS:
            weight.stored_bits = IntegerAttr(bits, i64)
            weight.group_size = IntegerAttr(self.group_size or weight.shape[0], i64)


def _heads(function: FuncOp) -> Iterator[MatmulOp]:
    """The products that give the step's results, but for what the vector unit does to them."""
    last = function.body.block.last_op
    assert isinstance(last, ReturnOp)
    pending, seen = list(last.operands), set[SSAValue]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if isinstance(value.owner, MatmulOp):
            yield value.owner
        elif isinstance(value.owner, OnnxOp):
            pending += value.owner.operands


@dataclass
class _Work:
    """Adds what a scheme does to rows; a value that several products read is quantised once."""

    scheme: QuantizeWeightsPass
    function: FuncOp
    quantized: dict[SSAValue, SSAValue] = field(default_factory=dict)
    constants: dict[tuple[Attribute, float], SSAValue] = field(default_factory=dict)

    def surround(self, product: MatmulOp) -> None:
        """Add the work in front of a product and behind it."""
        given = product.input
        if given not in self.quantized:
            names = self.scheme.input_ops
            self.quantized[given] = self._apply(names, given, Builder(product))
        product.operands[0] = self.quantized[given]
        uses = list(product.result.uses)
        behind = product.next_op
        assert behind is not None
        result = self._apply(self.scheme.output_ops, product.result, Builder(behind))
        for use in uses:
            use.operation.operands[use.index] = result

    def _apply(self, names: Sequence[str], value: SSAValue, builder: Builder) -> SSAValue:
        for name in names:
            value = builder.onnx(name, [value, *self._scalars(name, value)], value.type)
        return value

    def _scalars(self, name: str, value: SSAValue) -> list[SSAValue]:
        """The constants that an operator takes beside `value`."""
        if name in UNARY:
            return []
        type = element_type(value)
        if name != "Clip":
            return [self._constant(type, 1.0)]
        largest = 2 ** (self.scheme.activation_bits - 1)
        return [self._constant(type, -float(largest)), self._constant(type, largest - 1.0)]

    def _constant(self, type: Attribute, number: float) -> SSAValue:
        if (type, number) not in self.constants:
            assert isinstance(type, AnyFloat)
            op = ConstantOp(DenseIntOrFPElementsAttr.from_list(TensorType(type, []), [number]))
            Rewriter.insert_op(op, InsertPoint.at_start(self.function.body.block))
            self.constants[type, number] = op.results[0]
        return self.constants[type, number]
