"""The caches of an imported function, as its attention reads them."""

from collections.abc import Mapping
from functools import cached_property

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.attention_latents import rows_from_caches
from speqc.passes.attention_layout import (
    CacheRead,
    cache_reads,
    is_grouped_query,
    keeps_positions,
    on_new_rows,
)
from speqc.passes.building import Builder
from speqc.passes.matching import ANY, fail, producer, shape
from speqc.passes.probe import opset_of
from speqc.passes.step_samples import cache_pairs, step_arguments, tokens_argument


class Caches:
    """Which values are caches, and which are the new rows that a step appends to them."""

    def __init__(self, module: ModuleOp, function: FuncOp):
        self._module = module
        self._function = function
        self._opset = opset_of(module)

    @cached_property
    def tokens(self) -> SSAValue:
        """The tokens of a step; SpeqcError if there are none."""
        return tokens_argument(step_arguments(self._module, self._function))

    @cached_property
    def new_rows(self) -> Mapping[SSAValue, SSAValue]:
        """Each cache that grows by an `onnx.Concat`: the whole of it -> its new rows."""
        rows = {}
        for past, present in self._pairs:
            found = _appended_rows(present, past)
            if found is not None:
                whole, new = found
                rows[whole] = new
        return rows

    @cached_property
    def _pairs(self) -> list[tuple[SSAValue, SSAValue]]:
        """(past, present) of each cache."""
        returned = self._function.get_return_op()
        assert returned is not None
        pairs = cache_pairs(self._module)
        return [(self._function.args[past], returned.operands[present]) for past, present in pairs]

    def is_pair(self, past: SSAValue, present: SSAValue) -> bool:
        """Whether an operator from `past` to `present` keeps a cache of the function."""
        return (past, present) in self._pairs

    def rows_read(
        self, op: Operation, value: SSAValue, builder: Builder, *, transposed: bool
    ) -> SSAValue | None:
        """The new rows of the cache that `value` reads, as that cache keeps them.

        None if it reads none. Raises SpeqcError that names `op` if it is not as grouped-query
        attention reads a cache.
        """
        read = self._read(op, value, transposed)
        if read is None:
            return self._computed(value, builder, transposed=transposed)
        rows = self.new_rows[read.root] if self._pairs else read.root
        return on_new_rows(builder, rows, read.elementwise)

    def _computed(self, value: SSAValue, builder: Builder, *, transposed: bool) -> SSAValue | None:
        """The new rows of keys or values that no cache holds as they are."""
        if not self._pairs:
            return self._turned(value, builder) if transposed else None
        read = self._rows_without_cache(value, transposed)
        if read is None:
            return None
        rows = rows_from_caches(read.root, self.new_rows, builder, self._opset)
        return None if rows is None else on_new_rows(builder, rows, read.elementwise)

    def _turned(self, value: SSAValue, builder: Builder) -> SSAValue | None:
        """In a graph without caches: the rows of keys that were never rows, [1, H, D, M]."""
        if self._pairs or len(shape(value)) != 4 or shape(value)[-1] != ANY:
            return None
        return builder.transpose(value, (0, 1, 3, 2))

    def _read(self, op: Operation, value: SSAValue, transposed: bool) -> CacheRead | None:
        if not self._pairs:
            return self._rows_without_cache(value, transposed)
        for read in cache_reads(value):
            if read.root not in self.new_rows:
                continue
            if not is_grouped_query(value, read, transposed=transposed, opset=self._opset):
                raise fail(op, "heads of the cache are not laid out as grouped-query attention")
            if not keeps_positions(read, self._opset):
                raise fail(op, "it may not read all positions of its cache, each once, in order")
            return read
        return None

    def _rows_without_cache(self, value: SSAValue, transposed: bool) -> CacheRead | None:
        """The first tensor on the way to `value` that is laid out as a cache's rows."""
        first = None
        for read in cache_reads(value):
            is_read = is_grouped_query(value, read, transposed=transposed, opset=self._opset)
            if is_read and keeps_positions(read, self._opset):
                first = read
        return first


def _appended_rows(present: SSAValue, past: SSAValue) -> tuple[SSAValue, SSAValue] | None:
    """(the whole cache, its new rows) where `present` is `past` with rows appended."""
    whole = _without_casts(present)
    concat = producer(whole, "Concat")
    if not isinstance(concat, OnnxOp) or len(concat.operands) != 2 or len(shape(whole)) != 4:
        return None
    if concat.integer("axis", 0) not in (2, -2) or _without_casts(concat.operands[0]) is not past:
        return None
    return whole, concat.operands[1]


def _without_casts(value: SSAValue) -> SSAValue:
    """The value before any casts."""
    while (cast := producer(value, "Cast", "Identity")) is not None:
        value = cast.operands[0]
    return value
