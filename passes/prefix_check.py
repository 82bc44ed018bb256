"""Check that a step over a whole sequence gives rows that depend on no later token.

What keeps the rows of tokens apart is told by rules, as in steps with caches (`row_rules`). What
mixes them is evaluated on samples (`prefix_probe`): each element may depend on the tokens that it
belongs to, and on earlier ones. Then rows have the same bits however many tokens stand behind them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from xdsl.dialects.builtin import ModuleOp, TensorType, i32, i64
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.dialects.speq import PositionsOp
from speqc.passes.matching import ANY, constant_integers, element_type, fail, is_float, shape
from speqc.passes.prefix_probe import PrefixProbe
from speqc.passes.probe import operator, opset_of
from speqc.passes.row_check import COMPUTES, SIZED_BY, is_sized_by_values
from speqc.passes.row_rules import rows_of_result
from speqc.runtime.vector_elementwise import ELEMENTWISE
from speqc.runtime.vector_logic import LOGIC
from speqc.runtime.vector_reductions import REDUCTIONS

LATER = "a token's row may depend on later tokens, or on how many there are"
UNKNOWN = "it combines the rows of different tokens in a way that can't be evaluated"
"""Reasons for refusing an operation."""

PICKS = "it picks rows of tokens by index or by place"
TURNS = "it turns numbers for pairs of tokens round"
UNEVEN = "behind the diagonal it reads numbers that differ from pair to pair of tokens"

LENGTH_BLIND = frozenset(
    {
        *ELEMENTWISE,
        *LOGIC,
        *REDUCTIONS,
        "CumProd",
        "CumSum",
        "Dropout",
        "Einsum",
        "Expand",
        "Gemm",
        "Identity",
        "LogSoftmax",
        "MatMul",
        "Reshape",
        "Softmax",
        "Squeeze",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    }
)
"""Operators that may mix tokens: no number among their operands names a place in a sequence."""

CUTS = frozenset({"Concat", "Gather", "Slice", "Split"})
"""Operators that may work along other dimensions than the tokens'."""

LINEAR = frozenset(
    {
        "onnx.Add",
        "onnx.Cast",
        "onnx.Concat",
        "onnx.Gather",
        "onnx.Identity",
        "onnx.Mul",
        "onnx.Reshape",
        "onnx.Shape",
        "onnx.Slice",
        "onnx.Squeeze",
        "onnx.Sub",
        "onnx.Unsqueeze",
    }
)
"""Operations on sizes that decide nothing: what holds for the samples holds for longer ones."""

INTEGERS = (i32, i64)
"""Types of sizes."""

Rewrite = Callable[[Operation, PrefixProbe], Operation]
"""May put another operation in the place of one that mixes tokens; gives what stands there then."""


def check_prefixes(module: ModuleOp, function: FuncOp) -> None:
    """Check the operations of a step that runs over all tokens of a sequence.

    Raises:
        SpeqcError: a dynamic size is not the number of tokens, an operation computes with that
            number, or an element may depend on tokens behind those that it belongs to.
    """
    _walked(module, function, None)


def rewrite_prefixes(module: ModuleOp, function: FuncOp, rewrite: Rewrite) -> int:
    """Check a step as `check_prefixes` does, with `rewrite` at each operation that mixes tokens.

    Returns up to how many tokens masks and tables could be evaluated.
    """
    walk = _walked(module, function, rewrite)
    return walk.probe.longest(walk.given)


def _walked(module: ModuleOp, function: FuncOp, rewrite: Rewrite | None) -> "_Walk":
    walk = _Walk(function, opset_of(module), rewrite)
    for op in list(function.body.block.ops):
        walk.visit(op)
    return walk


def _dynamic(value: SSAValue) -> int:
    """How many dimensions of a value are the number of tokens."""
    return shape(value).count(ANY) if isinstance(value.type, TensorType) else 0


@dataclass
class _Walk:
    """What is known of the values of a step so far.

    `places` has each value with one dynamic dimension, and how many places of it belong to each
    token; `drawn` numbers those that depend on the tokens; `pairs` are values with two such
    dimensions, `pairs_of_tokens` those that depend on the tokens; `sizes` are computed from sizes;
    `given` is what no token decides, such as masks, where it meets what tokens do, and whether it
    meets pairs there.
    """

    function: FuncOp
    opset: int
    rewrite: Rewrite | None
    places: dict[SSAValue, int] = field(init=False)
    drawn: dict[SSAValue, int] = field(default_factory=dict)
    pairs: set[SSAValue] = field(default_factory=set)
    pairs_of_tokens: set[SSAValue] = field(default_factory=set)
    sizes: set[SSAValue] = field(default_factory=set)
    given: dict[SSAValue, bool] = field(default_factory=dict)

    def __post_init__(self):
        self.places = dict.fromkeys(self.function.args, 1)
        self.drawn.update((value, index) for index, value in enumerate(self.function.args))
        self.probe = PrefixProbe(self.function, self.opset, self.places, self.drawn)

    def visit(self, op: Operation) -> None:
        """Check an operation, and add its results."""
        reads = [value for value in op.operands if value in self.places or value in self.pairs]
        dynamic = [value for value in op.results if _dynamic(value)]
        if any(self._is_of_tokens(value) for value in reads):
            self._meet(op, [value for value in reads if not self._is_of_tokens(value)])
        if isinstance(op, ReturnOp):
            if any(self.places.get(value) != 1 for value in op.operands):
                raise fail(op, LATER)
        elif not dynamic and op.results:
            self._visit_sizes(op, bool(reads))
        elif not self._keeps_apart(op):
            self._check_sized(op)
            self._evaluate(op if self.rewrite is None else self.rewrite(op, self.probe))

    def _meet(self, op: Operation, given: list[SSAValue]) -> None:
        """Note what no token decides, where it meets what tokens do."""
        pairs = any(_dynamic(value) > 1 for value in op.results)
        for value in given:
            if value in self.pairs and not self.probe.hides_later(value):
                raise fail(op, UNEVEN)
            self.given[value] = self.given.get(value, False) or pairs

    def _visit_sizes(self, op: Operation, reads: bool) -> None:
        """An operation whose results are as large for any number of tokens."""
        sized = reads or any(value in self.sizes for value in op.operands)
        if not sized:
            return
        if reads and op.name != "onnx.Shape":
            raise fail(op, LATER)
        if op.name not in LINEAR or any(
            not isinstance(value.type, TensorType) or element_type(value) not in INTEGERS
            for value in op.results
        ):
            raise fail(op, COMPUTES)
        self.sizes.update(op.results)

    def _check_sized(self, op: Operation) -> None:
        """Sizes may tell how large a result is, and nothing else."""
        first = SIZED_BY.get(op.name, len(op.operands))
        if any(value in self.sizes for value in op.operands[:first]):
            raise fail(op, COMPUTES)

    def _keeps_apart(self, op: Operation) -> bool:
        """Whether a rule says that rows of different tokens stay apart; then adds the results."""
        rows = {value: self.places[value] for value in op.operands if value in self.places}
        tensors = [value for value in op.results if isinstance(value.type, TensorType)]
        if (
            not rows
            or any(value in self.pairs or value in self.sizes for value in op.operands)
            or any(_dynamic(value) != 1 for value in tensors)
            or (isinstance(op, OnnxOp) and is_sized_by_values(op))
        ):
            return False
        each = rows_of_result(op, rows, self.opset)
        if each is None:
            return False
        for value in tensors:
            self.places[value] = each
            if not isinstance(op, PositionsOp):
                self._draw(op, value)
        return True

    def _is_of_tokens(self, value: SSAValue) -> bool:
        return value in self.drawn or value in self.pairs_of_tokens

    def _draw(self, op: Operation, value: SSAValue) -> None:
        if any(map(self._is_of_tokens, op.operands)):
            self.drawn[value] = len(self.drawn)

    def _check_place(self, op: OnnxOp) -> None:
        """Nothing may depend on places in the sequence, which a sample may be too short to show."""
        name, first = operator(op), op.operands[0]
        if name in CUTS:
            if not self._cuts_none(op):
                raise fail(op, PICKS)
        elif name.startswith(("Gather", "Scatter")):
            raise fail(op, PICKS)
        elif name not in LENGTH_BLIND:
            raise fail(op, UNKNOWN)
        elif name == "Trilu" and len(op.operands) > 1 and constant_integers(op.operands[1]) != (0,):
            raise fail(op, PICKS)
        elif name == "Transpose" and first in self.pairs:
            order = op.integers("perm") or tuple(reversed(range(len(shape(first)))))
            moved = [axis for axis in order if shape(first)[axis] == ANY]
            if moved != sorted(moved):
                raise fail(op, TURNS)

    def _cuts_none(self, op: OnnxOp) -> bool:
        """Whether an operator of `CUTS` leaves the dimensions of the tokens whole."""
        axes: tuple[int, ...] | None = (op.integer("axis", 0),)
        if op.name == "onnx.Slice":
            axes = constant_integers(op.operands[3]) if len(op.operands) > 3 else None
        if op.name == "onnx.Gather" and any(map(_dynamic, op.operands[1:])):
            return False
        return axes is not None and all(shape(op.operands[0])[axis] != ANY for axis in axes)

    def _evaluate(self, op: Operation) -> None:
        """Check the results of an operation that mixes tokens, on samples; then add them."""
        of_tokens = any(map(self._is_of_tokens, op.operands))
        if of_tokens and isinstance(op, OnnxOp):
            self._check_place(op)
        for value in op.results:
            if _dynamic(value) > 2 or not self.probe.is_known(value):
                raise fail(op, UNKNOWN)
            if not self.probe.knows_no_later(value):
                raise fail(op, LATER)
        scores = of_tokens and not any(value in self.pairs for value in op.operands)
        for value in op.results:
            if _dynamic(value) == 2:
                self.pairs.add(value)
                if of_tokens:
                    self.pairs_of_tokens.add(value)
                if scores and is_float(element_type(value)):
                    self._draw(op, value)
            else:
                self.places[value] = 1
                self._draw(op, value)
        if of_tokens and all(value in self.drawn for value in op.results):
            self.probe.forget()
