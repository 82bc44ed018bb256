"""What each argument of an imported step is for, told by what the graph does with it.

Names decide between arguments that data flow leaves equal: an embedding of token types is looked up
as learned positions are, and a mask of as many entries as there are tokens may be anything.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import prod

from xdsl.dialects.func import ReturnOp
from xdsl.ir import BlockArgument, Operation, SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import element_type, is_float, is_weight, producer, shape

CARRIERS = frozenset({"onnx.Cast", "onnx.Identity", "onnx.Reshape", "onnx.Squeeze"})
"""Operations behind which token ids are still token ids."""

ANGLES = frozenset({"onnx.Cos", "onnx.Sin"})
"""Operations that rotary embedding takes positions to."""

LINEAR = CARRIERS | {
    "onnx.Add",
    "onnx.Concat",
    "onnx.Div",
    "onnx.Einsum",
    "onnx.Expand",
    "onnx.MatMul",
    "onnx.Mul",
    "onnx.Slice",
    "onnx.Sub",
    "onnx.Transpose",
    "onnx.Unsqueeze",
}
"""Operations between positions and their angles."""

SEQUENCE, PAST = "sequence", "past"
"""Symbols of sizes: new tokens, and positions in the caches."""


class Role(Enum):
    """What an argument is for."""

    TOKENS = auto()
    POSITIONS = auto()
    MASK = auto()
    CACHE = auto()
    OTHER = auto()


@dataclass(frozen=True)
class Argument:
    """An argument of the imported function: its name and sizes in the file, and its role."""

    value: BlockArgument
    name: str
    dims: tuple[str, ...]
    role: Role = Role.OTHER


def argument_roles(arguments: Sequence[Argument], caches: Container[int]) -> list[Role]:
    """The role of each argument, whatever role it has; `caches` are places of caches."""
    tokens = _tokens(arguments)
    return [
        Role.CACHE
        if argument.value.index in caches
        else Role.TOKENS
        if argument is tokens
        else _role(argument)
        for argument in arguments
    ]


def _tokens(arguments: Sequence[Argument]) -> Argument | None:
    """The argument whose table has a row for each logit, else the largest; None without one.

    A table of cosines for a long context may be larger than that of the embeddings.
    """
    widths = _logits_widths(arguments)
    best, most = None, (False, False, 0)
    for argument in arguments:
        tables = list(_tables(argument.value))
        if not tables:
            continue
        fits = any(table[0] in widths for table in tables)
        likeness = fits, "position" not in argument.name, max(map(prod, tables))
        if likeness > most:
            best, most = argument, likeness
    return best


def _logits_widths(arguments: Sequence[Argument]) -> set[int]:
    """Sizes of the last dimension of what the function returns for each token."""
    if not arguments:
        return set()
    returned = arguments[0].value.block.last_op
    if not isinstance(returned, ReturnOp):
        return set()
    return {shape(value)[-1] for value in returned.operands if len(shape(value)) == 3}


def _tables(value: SSAValue) -> Iterator[tuple[int, ...]]:
    """Shapes of the tables of floats of the model file that `value` picks rows of."""
    for use in value.uses:
        op = use.operation
        if op.name == "speq.embedding":
            yield (1,)
        elif op.name == "onnx.Gather" and use.index == 1:
            yield from _table(op.operands[0])
        elif op.name in CARRIERS and use.index == 0:
            yield from _tables(op.results[0])


def _table(table: SSAValue) -> Iterator[tuple[int, ...]]:
    turned = False
    while (op := producer(table, "Cast", "Transpose")) is not None:
        turned ^= op.name == "onnx.Transpose"
        table = op.operands[0]
    if is_weight(table) and is_float(element_type(table)) and prod(shape(table)):
        yield shape(table)[::-1] if turned else shape(table)


def _role(argument: Argument) -> Role:
    """The role of an argument that is neither tokens nor a cache.

    One that reaches angles is positions, one that has an entry for each position a mask. Between
    others, which pick rows of a table or are compared, names decide.
    """
    if is_float(element_type(argument.value)) and "mask" not in argument.name:
        return Role.OTHER
    last = {term.strip() for term in argument.dims[-1].split("+")} if argument.dims else set()
    picks = any(True for _ in _tables(argument.value))
    if last == {SEQUENCE} and _reaches_angles(argument.value):
        return Role.POSITIONS
    if last == {SEQUENCE, PAST}:
        return Role.OTHER if picks else Role.MASK
    if "position" in argument.name and last == {SEQUENCE}:
        return Role.POSITIONS
    return Role.MASK if "mask" in argument.name and not picks else Role.OTHER


def _reaches_angles(value: SSAValue) -> bool:
    """Whether a value becomes angles, or positions of an operator for rotary embedding."""
    pending, seen = [value], {value}
    while pending:
        for use in pending.pop().uses:
            op = use.operation
            if op.name in ANGLES or _takes_positions(op, use.index):
                return True
            if op.name in LINEAR and op.results[0] not in seen:
                seen.add(op.results[0])
                pending.append(op.results[0])
    return False


def _takes_positions(op: Operation, index: int) -> bool:
    if not isinstance(op, OnnxOp):
        return False
    names = op.schema().inputs
    return index < len(names) and names[index] == "position_ids"
