"""Which operations of a step cost the same, whatever M and the length of the caches.

A model's layers repeat: of hundreds of operations only a few dozen differ in what the resource
model sees of them. That is everything stated of an operation but names and digests, and of each
operand and result the type and the end of its place in the activation SRAM.
"""

from collections.abc import Callable, Mapping

from xdsl.ir import Attribute, Operation, SSAValue

from speqc.dialects import pe
from speqc.dialects.speq import CacheOp, WeightOp
from speqc.runtime.activations import OFFSET, has_place, sram_place

NAMES: Mapping[type[Operation], frozenset[str]] = {
    pe.LoadWeightOp: frozenset({"weight"}),
    pe.LoadConstantOp: frozenset({"source", "digest"}),
    pe.LoadCacheOp: frozenset({"cache"}),
    pe.AttentionOp: frozenset({"cache"}),
    pe.AppendOp: frozenset({"cache"}),
}
"""Properties that say which weight, constant or cache is meant, and nothing of what it costs."""

UNNAMED = frozenset({OFFSET})

Form = tuple[object, ...]


class Forms:
    """Tells what a resource model sees of operations, as values to compare.

    Attributes are told apart by where they lie in memory first, so it keeps all that it saw.
    """

    def __init__(self, caches: Mapping[str, CacheOp], weights: Mapping[str, WeightOp]):
        self._caches, self._weights = caches, weights
        self._numbers: dict[Attribute, int] = {}
        self._known: dict[int, tuple[int, Attribute]] = {}
        self._values: dict[SSAValue, tuple[int, int | None]] = {}

    def of(self, op: Operation, waits: Callable[[SSAValue], bool]) -> Form:
        """The form of an operation; `waits` says whether an operand is one that it waits for."""
        hidden = NAMES.get(type(op), frozenset()) | UNNAMED
        stated = tuple(
            (name, self._number(value))
            for name, value in sorted(op.properties.items())
            if name not in hidden
        )
        operands = tuple((self._value(value), waits(value)) for value in op.operands)
        results = tuple(self._value(value) for value in op.results)
        return type(op), stated, self._meant(op), operands, results

    def _meant(self, op: Operation) -> Form:
        """What an operation's cost depends on that stands elsewhere."""
        if isinstance(op, pe.LoadCacheOp | pe.AttentionOp | pe.AppendOp):
            cache = self._caches[op.cache.string_value()]
            sizes = cache.heads, cache.key_dim, cache.value_dim, cache.element_type
            return tuple(self._number(size) for size in sizes)
        if isinstance(op, pe.GemmOp) and isinstance(op.weight.owner, pe.LoadWeightOp):
            load = op.weight.owner
            weight = self._weights[load.weight.string_value()]
            stored = (
                load.tiling,
                weight.codebook,
                weight.levels,
                weight.copy,
                weight.stored_bits,
            )
            return tuple(None if own is None else self._number(own) for own in stored)
        return ()

    def _value(self, value: SSAValue) -> tuple[int, int | None]:
        """A value's type, and where its place ends; -1: in DRAM whatever M is, None: nowhere."""
        if value not in self._values:
            place = sram_place(value)
            end = -1 if place is None else place[1]
            self._values[value] = self._number(value.type), end if has_place(value) else None
        return self._values[value]

    def _number(self, attribute: Attribute) -> int:
        """Equal attributes have one number."""
        known = self._known.get(id(attribute))
        if known is None:
            number = self._numbers.setdefault(attribute, len(self._numbers))
            known = self._known[id(attribute)] = number, attribute
        return known[0]
