"""Samples of the arguments of an imported step: tokens, caches, mask, positions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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
from speqc.passes.argument_roles import PAST, SEQUENCE, Argument, Role, argument_roles
from speqc.passes.matching import ANY, element_type, shape
from speqc.passes.probe import Probe, Sample, Shaped, opset_of
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import numpy_dtype

LONG_PASTS = (262_143, 65_535, 1_023, 255, 63)
"""Pasts that no sliding window reaches over; from the shorter ones the longest is sought that a
graph with a fixed context can be evaluated for."""

LONG_ROWS = (4_200, 1_023, 255, 64)
"""As many new tokens, for graphs without caches, where a mask is a square."""

Step = tuple[int, int]
"""New tokens of a step, and past positions."""


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
    found = [
        _argument(attributes[index] if index < len(attributes) else DictionaryAttr({}), value)
        for index, value in enumerate(function.args)
    ]
    roles = argument_roles(found, caches)
    return [replace(argument, role=role) for argument, role in zip(found, roles, strict=True)]


def _argument(entries: DictionaryAttr, value: BlockArgument) -> Argument:
    name, dims = entries.data.get("onnx.name"), entries.data.get("onnx.dims")
    text = name.data if isinstance(name, StringAttr) else value.name_hint or f"#{value.index}"
    if isinstance(dims, ArrayAttr):
        sizes = [dim.data for dim in dims if isinstance(dim, StringAttr)]
    else:
        sizes = [SEQUENCE if size == ANY else str(size) for size in shape(value)]
    return Argument(value, text, tuple(sizes))


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

    def probe(self, rows: int, past: int) -> Probe:
        """A probe of the function on `rows` tokens behind `past` positions.

        The mask admits every position (a batch of one has no padding), positions count on from the
        past, of everything else the shape is known.
        """
        samples: dict[SSAValue, Sample] = {}
        positions = np.arange(past, past + rows, dtype=np.int64)[None]
        for argument in step_arguments(self.module, self.function):
            sizes = _sizes(argument, {SEQUENCE: rows, PAST: past})
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


@dataclass
class StepProbes:
    """Probes of a function's steps, each made once: what one question computed serves the next.

    They hold for the function as it is while they are made and asked.
    """

    sampler: StepSampler
    _made: dict[tuple[int, int], Probe] = field(default_factory=dict)

    def probe(self, rows: int, past: int) -> Probe:
        """The probe of a step."""
        if (rows, past) not in self._made:
            self._made[rows, past] = self.sampler.probe(rows, past)
        return self._made[rows, past]

    def longest_step(
        self, reaches: Callable[[Probe, int, int], bool], longest: int = LONG_PASTS[0]
    ) -> Step:
        """(rows, past) of the longest step that `reaches` holds for, given its probe.

        Tries descending lengths, of the past or without caches of the new rows, from `longest` on,
        then looks between the first that will do and the one before it: a graph may have a fixed
        context. The shortest length if none will do.
        """
        known = LONG_PASTS if self.sampler.has_caches else LONG_ROWS
        lengths = [length for length in known if length <= longest]

        def step(length: int) -> Step:
            return (1, length) if self.sampler.has_caches else (length, 0)

        found = next((n for n in lengths if reaches(self.probe(*step(n)), *step(n))), None)
        if found is None:
            return step(lengths[-1])
        low, high = found, lengths[lengths.index(found) - 1] if found != lengths[0] else found + 1
        while high - low > 1:
            middle = (low + high) // 2
            # Made for one question: a graph's rows of many lengths would fill the memory.
            holds = reaches(self.sampler.probe(*step(middle)), *step(middle))
            low, high = (middle, high) if holds else (low, middle)
        return step(low)


def _sizes(argument: Argument, symbols: dict[str, int]) -> tuple[int, ...] | None:
    """The shape of an argument in a step; None if it has sizes that nothing is known of."""
    sizes = []
    for dim in argument.dims:
        terms = [term.strip() for term in dim.split("+")]
        if not all(term in symbols or term.isdecimal() for term in terms):
            return None
        sizes.append(sum(symbols[term] if term in symbols else int(term) for term in terms))
    return tuple(sizes)
