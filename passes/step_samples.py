"""Samples of the arguments of an imported step: tokens, caches, mask, positions.

What an argument is for is told by what it is used for (tokens), by the module's list of caches,
and, where nothing else can tell (positions index tables too), by the name it has in the file.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import prod

import numpy as np
from xdsl.dialects.builtin import (
    ArrayAttr,
    DenseArrayBase,
    DictionaryAttr,
    ModuleOp,
    StringAttr,
    i64,
)
from xdsl.dialects.func import FuncOp
from xdsl.ir import BlockArgument, SSAValue

from speqc.dialects.speq import PositionsOp
from speqc.passes.matching import ANY, element_type, is_float, is_weight, producer, shape
from speqc.passes.probe import Probe, Sample, Shaped, opset_of
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import numpy_dtype

CARRIERS = frozenset({"onnx.Cast", "onnx.Identity", "onnx.Reshape", "onnx.Squeeze"})
"""Operations behind which token ids are still token ids."""


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
    role: Role


def cache_pairs(module: ModuleOp) -> list[tuple[int, int]]:
    """(past argument, present result) for each cache, by layer, the key before the value."""
    pairs = module.attributes.get("onnx.kv_pairs")
    if not isinstance(pairs, ArrayAttr):
        return []
    return [_pair(pair) for pair in pairs]


def _pair(pair: object) -> tuple[int, int]:
    assert isinstance(pair, DenseArrayBase)
    past, present = pair.get_values()
    return int(past), int(present)


def step_arguments(module: ModuleOp, function: FuncOp) -> list[Argument]:
    """The arguments of the imported function with their roles."""
    caches = {past for past, _ in cache_pairs(module)}
    attributes = function.arg_attrs.data if function.arg_attrs is not None else ()
    entries = [
        _entries(attributes[index] if index < len(attributes) else DictionaryAttr({}), value)
        for index, value in enumerate(function.args)
    ]
    roles = _roles(function.args, [name for name, _ in entries], caches)
    return [
        Argument(value, name, dims, role)
        for value, (name, dims), role in zip(function.args, entries, roles, strict=True)
    ]


def _entries(entries: DictionaryAttr, value: BlockArgument) -> tuple[str, tuple[str, ...]]:
    name, dims = entries.data.get("onnx.name"), entries.data.get("onnx.dims")
    text = name.data if isinstance(name, StringAttr) else value.name_hint or f"#{value.index}"
    if not isinstance(dims, ArrayAttr):
        return text, tuple("sequence" if size == ANY else str(size) for size in shape(value))
    return text, tuple(dim.data for dim in dims if isinstance(dim, StringAttr))


def _roles(
    values: Sequence[BlockArgument], names: Sequence[str], caches: Container[int]
) -> list[Role]:
    sizes = [_table_size(value) for value in values]
    # A table of cosines for a long context may be larger than that of the embeddings.
    positions = ["position" in name for name in names]
    named = zip(sizes, positions, strict=True)
    likeness = [(size > 0 and not position, size) for size, position in named]
    tokens = max(range(len(values)), key=likeness.__getitem__, default=0)
    roles = []
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        if index in caches:
            roles.append(Role.CACHE)
        elif index == tokens and sizes[index]:
            roles.append(Role.TOKENS)
        elif positions[index] and not is_float(element_type(value)):
            roles.append(Role.POSITIONS)
        else:
            roles.append(Role.MASK if "mask" in name else Role.OTHER)
    return roles


def _table_size(value: SSAValue) -> int:
    """The size of the largest table of the model file that `value` picks rows of, 0 without one."""
    size = 0
    for use in value.uses:
        op = use.operation
        if op.name == "speq.embedding":
            size = max(size, 1)
        elif op.name == "onnx.Gather" and use.index == 1:
            size = max(size, _size(op.operands[0]))
        elif op.name in CARRIERS and use.index == 0:
            size = max(size, _table_size(op.results[0]))
    return size


def _size(table: SSAValue) -> int:
    while (op := producer(table, "Cast", "Transpose")) is not None:
        table = op.operands[0]
    if not is_weight(table) or not is_float(element_type(table)):
        return 0
    return prod(shape(table))


def erase_arguments(module: ModuleOp, function: FuncOp, arguments: Sequence[BlockArgument]) -> None:
    """Take unused arguments out of a function, its type, and the module's list of caches."""
    gone = {argument.index for argument in arguments}
    kept = [index for index in range(len(function.args)) if index not in gone]
    if function.arg_attrs is not None:
        function.arg_attrs = ArrayAttr([function.arg_attrs.data[index] for index in kept])
    pairs = [
        DenseArrayBase.from_list(i64, [kept.index(past), present])
        for past, present in cache_pairs(module)
        if past in kept
    ]
    if "onnx.kv_pairs" in module.attributes:
        module.attributes["onnx.kv_pairs"] = ArrayAttr(pairs)
    for argument in arguments:
        function.body.block.erase_arg(argument)
    function.update_function_type()


def tokens_argument(arguments: list[Argument]) -> BlockArgument:
    """The argument that holds the tokens; SpeqcError if there is not exactly one."""
    found = [argument.value for argument in arguments if argument.role is Role.TOKENS]
    if len(found) != 1:
        names = ", ".join(argument.name for argument in arguments)
        raise SpeqcError(
            f"expected one argument of token ids that picks rows of an embedding table, "
            f"found {len(found)} among: {names}"
        )
    return found[0]


@dataclass(frozen=True)
class StepSampler:
    """Makes probes of a function as it runs on M tokens behind a number of past positions."""

    module: ModuleOp
    function: FuncOp

    @property
    def has_caches(self) -> bool:
        """Whether a step may stand behind past positions."""
        return bool(cache_pairs(self.module))

    def longest_step(
        self, lengths: Sequence[int], reaches: Callable[[Probe, int, int], bool]
    ) -> tuple[int, int]:
        """(rows, past) of the longest step that `reaches` holds for, given its probe.

        Tries descending `lengths`, of the past or without caches of the new rows, then looks
        between the first that will do and the one before it: a graph may have a fixed context.
        """

        def step(length: int) -> tuple[int, int]:
            return (1, length) if self.has_caches else (length, 0)

        def holds(length: int) -> bool:
            return reaches(self.probe(*step(length)), *step(length))

        found = next((place for place, length in enumerate(lengths) if holds(length)), None)
        if found is None:
            return step(lengths[-1])
        low, high = lengths[found], lengths[found - 1] if found else lengths[found] + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return step(low)

    def probe(self, rows: int, past: int) -> Probe:
        """A probe of the function on `rows` tokens behind `past` positions.

        The mask admits every position (a batch of one has no padding), positions count on from the
        past, of everything else the shape is known.
        """
        samples: dict[SSAValue, Sample] = {}
        positions = np.arange(past, past + rows, dtype=np.int64)[None]
        for argument in step_arguments(self.module, self.function):
            sizes = _sizes(argument, {"sequence": rows, "past": past})
            if sizes is None:
                continue
            dtype = numpy_dtype(element_type(argument.value))
            if argument.role is Role.MASK:
                samples[argument.value] = np.ones(sizes, dtype)
            elif argument.role is Role.POSITIONS:
                samples[argument.value] = np.broadcast_to(positions, sizes).astype(dtype)
            else:
                samples[argument.value] = Shaped(sizes)
        for op in self.function.body.block.ops:
            if isinstance(op, PositionsOp):
                samples[op.result] = positions
        return Probe(samples, opset_of(self.module))


def _sizes(argument: Argument, symbols: dict[str, int]) -> tuple[int, ...] | None:
    """The shape of an argument in a step; None if it has sizes that nothing is known of."""
    sizes = []
    for dim in argument.dims:
        terms = [term.strip() for term in dim.split("+")]
        if not all(term in symbols or term.isdecimal() for term in terms):
            return None
        sizes.append(sum(symbols[term] if term in symbols else int(term) for term in terms))
    return tuple(sizes)
