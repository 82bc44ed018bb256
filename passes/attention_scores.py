"""Reading an exporter's attention: from its softmax up to q.k, and down to p.v.

Between the two products stand a scale, a soft cap, masks, position biases, casts, behind them the
scores of sinks and the subtraction of the maximum, and after the softmax a replacement of NaN in
rows without any admitted position (there are none: a token always sees itself). What of this
`speq.attention` can't say is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import frexp

from xdsl.dialects.builtin import AnyFloat, Float16Type, Float32Type
from xdsl.ir import Attribute, Block, Operation, SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import (
    constant_integers,
    constant_scalar,
    element_type,
    fail,
    is_weight,
    only_user,
    other_operand,
    producer,
    shape,
)

LOWEST: dict[Attribute, float] = {Float16Type(): -65504.0, Float32Type(): -3.4028234663852886e38}
"""The lowest finite number of the types that attention computes in."""

SCALING = ("onnx.Mul", "onnx.Div", "onnx.Tanh")

TAIL = ("onnx.Concat", "onnx.Sub")
"""What may come behind all arithmetic on scores."""

Step = tuple[Operation, SSAValue]
"""An operation on the way of scores, and the operand that holds them."""

Known = Callable[[SSAValue], bool]
"""Whether a value depends on nothing but lengths, mask and positions."""


@dataclass(frozen=True)
class Mask:
    """One mask on the scores, or a position bias, or both in one.

    Where `value` equals `admits` a score is kept, elsewhere it becomes `replacement`; without
    `admits`, `value` is added to the scores. Behind it, scores are scaled with `factor`.
    """

    op: Operation
    value: SSAValue
    admits: bool | None = None
    replacement: float | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Scaling:
    """Scores are multiplied with `number`, or divided by it, and rounded to `type`."""

    op: Operation
    number: float
    divides: bool
    type: AnyFloat

    @property
    def factor(self) -> float:
        """What a score is multiplied with, but for the rounding."""
        return 1 / self.number if self.divides else self.number


@dataclass(frozen=True)
class Scores:
    """The product of queries and keys, and what is done with it before the softmax.

    `scaling` comes before `softcap`. `rounding` is a cast to FP16 behind all arithmetic, None if
    there is none. `sinks` appends more scores to those of the positions. `shifted_type` is FP16 if
    scores less their maximum are rounded to it.
    """

    product: Operation
    type: AnyFloat
    scaling: Scaling | None
    softcap: Scaling | None
    masks: tuple[Mask, ...]
    rounding: Operation | None
    sinks: Operation | None = None
    shifted_type: AnyFloat | None = None

    def is_scaled_behind(self, bias: Operation) -> bool:
        """Whether scores are scaled behind the addition of a position bias.

        Raises:
            SpeqcError: the bias is added to scores that are rounded once more.
        """
        if self.rounding is not None and self.rounding.is_before_in_block(bias):
            raise fail(bias, "a position bias is added behind a rounding of the scores to f16")
        return self.scaling is not None and bias.is_before_in_block(self.scaling.op)


@dataclass(frozen=True)
class Output:
    """The product of probabilities and values, and what type a probability is rounded to.

    `slice` takes the probabilities of positions out of those that sinks have too.
    """

    product: Operation
    probability_type: AnyFloat
    slice: Operation | None = None


def is_softmax(op: Operation) -> bool:
    """Whether `op` is a softmax over the last dimension."""
    if not isinstance(op, OnnxOp) or op.name != "onnx.Softmax":
        return False
    return op.integer("axis", -1) in (-1, len(shape(op.results[0])) - 1)


def read_scores(softmax: Operation, known: Known) -> Scores | None:
    """What leads to a softmax; None if that is no product of two computed tensors.

    Raises:
        SpeqcError: it is, but `speq.attention` has no equal.
    """
    steps: list[Step] = []
    op = softmax.operands[0].owner
    while not isinstance(op, Block) and op.name != "onnx.MatMul":
        source = _source(op, known)
        if source is None:
            return None
        steps.insert(0, (op, source))
        op = source.owner
    if isinstance(op, Block) or any(is_weight(operand) for operand in op.operands):
        return None
    type = float_type(op, op.results[0])
    while steps and _is_cast(steps[0][0]):
        # The sum is FP32 whatever its type, so that a cast behind it rounds it once.
        rounds = isinstance(element_type(steps.pop(0)[0].results[0]), Float16Type)
        type = Float16Type() if rounds else type
    steps, tail = _split_tail(steps)
    sinks, rounded, shifted = _read_tail(tail)
    rounding = _check_order(steps) or rounded
    scaling, softcap = _scale_and_softcap([step for step in steps if step[0].name in SCALING])
    masks = tuple(_masks(steps, scaling))
    return Scores(op, type, scaling, softcap, masks, rounding, sinks, shifted)


def _split_tail(steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """Steps up to the last arithmetic on scores, and from sinks or the maximum on."""
    last = (place for place, (op, _) in enumerate(steps) if op.name in TAIL)
    cut = next(last, len(steps))
    return steps[:cut], steps[cut:]


def _read_tail(tail: list[Step]) -> tuple[Operation | None, Operation | None, AnyFloat | None]:
    """What appends sinks, what rounds to FP16 before the maximum is subtracted, and behind."""
    sinks = rounding = shift = shifted = None
    for op, source in tail:
        if op.name == "onnx.Sub" and shift is None:
            shift = op
        elif op.name == "onnx.Concat" and shift is None and sinks is None:
            sinks = op
        elif op.name not in ("onnx.Cast", "onnx.Identity"):
            raise fail(op, "scores are changed behind their sinks or the subtracted maximum")
        if not isinstance(float_type(op, op.results[0]), Float16Type):
            continue
        if shift is not None:
            shifted = Float16Type()
        elif _is_cast(op) and element_type(source) != element_type(op.results[0]):
            rounding = op
    return sinks, rounding, shifted


def read_output(softmax: Operation) -> Output | None:
    """What a softmax leads to; None if that is no product with it on the left."""
    value, slice = softmax.results[0], None
    type = float_type(softmax, value)
    while (op := _next(value)) is not None:
        if op.name == "onnx.MatMul":
            return Output(op, type, slice)
        if op.name == "onnx.Slice":
            if slice is not None:
                return None
            slice = op
        value = op.results[0]
        if isinstance(element_type(value), Float16Type):
            type = Float16Type()
    return None


def float_type(op: Operation, value: SSAValue) -> AnyFloat:
    """The element type of `value` if attention can compute in it; SpeqcError naming `op` if not."""
    type = element_type(value)
    if isinstance(type, Float16Type | Float32Type):
        return type
    raise fail(op, f"attention in {type} is not supported, only in f16 and f32")


def _source(op: Operation, known: Known) -> SSAValue | None:
    """The operand of `op` that holds the scores; None if `op` is nothing done to scores."""
    match op.name:
        case "onnx.Cast" | "onnx.Identity" | "onnx.Tanh":
            return op.operands[0]
        case "onnx.Reshape" | "onnx.Squeeze" | "onnx.Unsqueeze" if _keeps_heads(op):
            return op.operands[0]
        case "onnx.Add" | "onnx.Mul" | "onnx.Div" | "onnx.Max":
            candidates = op.operands
        case "onnx.Where" if known(op.operands[0]):
            candidates = op.operands[1:]
        case "onnx.Sub" if _is_maximum(op.operands[1], op.operands[0]):
            return op.operands[0]
        case "onnx.Concat" if _is_along_last(op) and all(map(known, op.operands[1:])):
            return op.operands[0]
        case _:
            return None
    unknown = [operand for operand in candidates if not known(operand)]
    if len(unknown) > 1:
        unknown = [operand for operand in unknown if not _is_of_table(operand, known)]
    return unknown[0] if len(unknown) == 1 else None


def _is_of_table(value: SSAValue, known: Known) -> bool:
    """Whether `value` depends on nothing but what is known and tensors of the file."""
    pending, visited = [value], {value}
    while pending:
        owner = pending.pop().owner
        if isinstance(owner, Block):
            return False
        new = [operand for operand in owner.operands if operand not in visited]
        visited.update(new)
        pending += [operand for operand in new if not known(operand)]
    return True


def _is_along_last(op: Operation) -> bool:
    """Whether an operator's attribute `axis` names the last dimension."""
    assert isinstance(op, OnnxOp)
    return op.integer("axis", 0) in (-1, len(shape(op.results[0])) - 1)


def _is_maximum(value: SSAValue, scores: SSAValue) -> bool:
    """Whether `value` is the maximum of each row of scores."""
    op = producer(value, "ReduceMax")
    if not isinstance(op, OnnxOp) or op.operands[0] is not scores or shape(value)[-1] != 1:
        return False
    axes = constant_integers(op.input("axes")) or op.integers("axes")
    return axes in ((-1,), (len(shape(scores)) - 1,))


def _keeps_heads(op: Operation) -> bool:
    """Whether an operation only adds or removes the dimension of the batch, which is 1."""
    before, after = shape(op.operands[0]), shape(op.results[0])
    return before[-3:] == after[-3:] and {*before[:-3], *after[:-3]} <= {1}


def _is_cast(op: Operation) -> bool:
    """Whether `op` is a cast to a type that attention computes in."""
    return op.name == "onnx.Cast" and element_type(op.results[0]) in LOWEST


def _check_order(steps: list[Step]) -> Operation | None:
    """The cast that rounds scores behind all arithmetic on them, None if there is none.

    Raises:
        SpeqcError: scores are rounded otherwise than `speq.attention` rounds them.
    """
    masked, capped, rounding = False, False, None
    for op, source in steps:
        result = float_type(op, op.results[0])
        masked = masked or op.name in ("onnx.Add", "onnx.Where")
        if op.name == "onnx.Tanh" and masked:
            raise fail(op, "scores are soft-capped behind their mask")
        if capped and op.name in ("onnx.Add", "onnx.Where"):
            raise fail(op, "scores are masked or biased within their soft cap")
        capped = op.name == "onnx.Tanh" or (capped and op.name != "onnx.Mul")
        if op.name in SCALING and rounding is not None:
            raise fail(op, "scores are scaled behind a rounding to f16")
        if op.name == "onnx.Max":
            limit = constant_scalar(other_operand(op, source))
            if limit is None or limit > LOWEST.get(result, limit):
                raise fail(op, "scores are clipped from below")
        if _is_cast(op) and element_type(source) != result and isinstance(result, Float16Type):
            rounding = op
    return rounding


def _scale_and_softcap(
    steps: list[Step],
) -> tuple[Scaling | None, Scaling | None]:
    """Factor or divisor, and soft cap of scores, from multiplications, divisions and the tanh."""
    names = [op.name.removeprefix("onnx.") for op, _ in steps]
    softcap = None
    if names[-3:] == ["Div", "Tanh", "Mul"]:
        first, last = (_constant(*steps[index]) for index in (-3, -1))
        if first != last:
            raise fail(steps[-1][0], f"a soft cap divides by {first} but multiplies with {last}")
        op = steps[-3][0]
        softcap = Scaling(op, first, False, float_type(op, op.results[0]))
        del steps[-3:]
    if not steps:
        return None, softcap
    op, source = steps[-1]
    if len(steps) > 1 or op.name == "onnx.Tanh":
        raise fail(op, f"scores go through {', '.join(names)}, which is no scale and soft cap")
    type = float_type(op, op.results[0])
    if softcap is not None and softcap.type != type:
        raise fail(softcap.op, f"scores are scaled in {type} but soft-capped in {softcap.type}")
    number, divides = _constant(op, source), op.name == "onnx.Div"
    if number <= 0:
        raise fail(op, f"scores are scaled by {number}, which is not above 0")
    if divides and frexp(number)[0] == 0.5:
        # A power of two: its reciprocal is exact, and so is the product.
        number, divides = 1 / number, False
    return Scaling(op, number, divides, type), softcap


def _constant(op: Operation, source: SSAValue) -> float:
    """The constant that scores are multiplied with or divided by."""
    factor = constant_scalar(other_operand(op, source))
    if factor is None or (op.name == "onnx.Div" and source is not op.operands[0]):
        raise fail(op, "scores are scaled by something other than one constant")
    return factor


def _masks(steps: list[Step], scaling: Scaling | None) -> list[Mask]:
    masks = []
    factor = 1.0 if scaling is None else scaling.factor
    for op, source in steps:
        if scaling is not None and op is scaling.op:
            factor = 1.0
        elif op.name == "onnx.Add":
            masks.append(Mask(op, other_operand(op, source), factor=factor))
        elif op.name == "onnx.Where":
            admits = source is op.operands[1]
            replacement = constant_scalar(op.operands[2 if admits else 1])
            masks.append(Mask(op, op.operands[0], admits, replacement, factor))
    return masks


def _next(value: SSAValue) -> Operation | None:
    """The one operation that takes probabilities further."""
    if (op := only_user(value, "Cast", "Identity", "Slice")) is not None:
        return op
    if (op := only_user(value, "Reshape", "Squeeze", "Unsqueeze")) is not None:
        return op if _keeps_heads(op) else None
    if (op := only_user(value, "MatMul")) is not None:
        return op if op.operands[0] is value else None
    users = {use.operation for use in value.uses}
    where = next((op for op in users if op.name == "onnx.Where" and op.operands[2] is value), None)
    if where is None or len(users) != 2:
        return None
    test = producer(where.operands[0], "IsNaN")
    return where if test in users else None
