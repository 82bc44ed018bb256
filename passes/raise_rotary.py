"""`raise-rotary`: rotary position embedding, spelt out by the exporter, as one operation.

The embedding is x * cos + rotate(x) * sin. What rotate does is not matched by shape: the layout
operations between x and the factor of sin are evaluated on a tensor of signed indices, which shows
where each channel comes from and with which sign.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
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
from speqc.dialects.speq import RotaryOp
from speqc.passes.building import Builder, replace_result
from speqc.passes.heads import join_heads, rotary_table, split_heads
from speqc.passes.matching import ANY, fail, main_function, producer, shape
from speqc.passes.probe import Probe, opset_of
from speqc.passes.step_samples import StepSampler

OPERATORS = ("onnx.RotaryEmbedding", "onnx.microsoft.RotaryEmbedding")

SAMPLE_ROWS = 3
"""Number of tokens in the sample; anything but 1 tells rows from broadcast dimensions."""

SAMPLE_STEPS = ((1, 0), (3, 0), (2, 5), (1, 33))
"""(rows, past) for which it is tried whether an operator takes all rows of its tables."""


class _Terms(NamedTuple):
    """x * cos + turned * sin."""

    x: SSAValue
    cos: SSAValue
    turned: SSAValue
    sin: SSAValue


@dataclass(frozen=True)
class _RaiseSum(RewritePattern):
    """Raise an `onnx.Add` of two products that rotates pairs of channels."""

    opset: int

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
        if op.name != "onnx.Add" or len(shape(op.results[0])) != 4:
            return
        for terms in _readings(op):
            interleaved = _rotation(terms, self.opset)
            if interleaved is not None and terms.x.type == op.results[0].type:
                _raise(op, terms, interleaved=interleaved)
                return


def _readings(add: Operation) -> Iterator[_Terms]:
    """Every way to read a sum of products as x * cos + turned * sin."""
    first, second = (producer(operand, "Mul") for operand in add.operands)
    if first is None or second is None:
        return
    for plain, rotated in ((first, second), (second, first)):
        for x, cos in (plain.operands, reversed(plain.operands)):
            for turned, sin in (rotated.operands, reversed(rotated.operands)):
                if producer(turned, "Concat", "Reshape") and _fits(x, cos) and _fits(x, sin):
                    yield _Terms(x, cos, turned, sin)


def _fits(x: SSAValue, table: SSAValue) -> bool:
    """Whether `table` has a row for each of x's rows, the same for all heads."""
    sizes = shape(x)
    padded = (1,) * (4 - len(shape(table))) + shape(table)
    return len(sizes) == 4 and padded == (1, 1, *sizes[2:])


def _rotation(terms: _Terms, opset: int) -> bool | None:
    """Whether `turned` is x with interleaved pairs rotated; None if it is neither kind."""
    sizes = [SAMPLE_ROWS if size == ANY else size for size in shape(terms.x)]
    sample = np.arange(1, 1 + np.prod(sizes)).reshape(sizes)
    turned = Probe({terms.x: sample}, opset).value(terms.turned)
    if turned is None or turned.shape != sample.shape or sizes[-1] % 2:
        return None
    for interleaved in (False, True):
        if np.array_equal(turned, rotate(sample, interleaved=interleaved)):
            return interleaved
    return None


def rotate(x: NDArray, *, interleaved: bool) -> NDArray:
    """(-x2, x1) for the halves x1, x2 of the last dimension, or (-x1, x0, -x3, x2, ...)."""
    if not interleaved:
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([-second, first], axis=-1)
    pairs = np.stack([-x[..., 1::2], x[..., ::2]], axis=-1)
    return pairs.reshape(x.shape)


def _raise(add: Operation, terms: _Terms, *, interleaved: bool) -> None:
    builder = Builder(add)
    tables = [_as_rows(builder, table) for table in (terms.cos, terms.sin)]
    rotary = RotaryOp(terms.x, *tables, interleaved=interleaved)
    builder.add(rotary)
    replace_result(add, rotary.result)


def _as_rows(builder: Builder, table: SSAValue) -> SSAValue:
    """A table as [1, 1, M, R]."""
    return builder.reshape(table, (1, 1, *shape(table)[-2:]))


@dataclass(frozen=True)
class _RaiseOperator(RewritePattern):
    """Raise the operator that ONNX and ONNX Runtime have for it."""

    sampler: StepSampler | None

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
        if not isinstance(op, OnnxOp) or op.name not in OPERATORS:
            return
        builder, x = Builder(op), op.operands[0]
        tables = _operator_tables(op, builder, self.sampler)
        if tables is None:
            return
        joined, width = len(shape(x)) == 3, shape(tables[0])[-1]
        if op.integer("rotary_embedding_dim", 0) not in (0, width):
            raise fail(op, f"rotary_embedding_dim is not the {width} channels that its tables turn")
        if joined:
            heads = op.integer("num_heads", 0) or shape(x)[-1] // width
            x = split_heads(builder, x, heads)
        rotary = RotaryOp(x, *tables, interleaved=op.integer("interleaved", 0) == 1)
        builder.add(rotary)
        result = rotary.result
        replace_result(op, join_heads(builder, result) if joined else result)


def _operator_tables(
    op: OnnxOp, builder: Builder, sampler: StepSampler | None
) -> tuple[SSAValue, SSAValue] | None:
    """The operator's cosines and sines for each row and channel."""
    cos, sin, positions = (op.input(name) for name in ("cos_cache", "sin_cache", "position_ids"))
    if cos is None or sin is None:
        return None
    if positions is not None:
        if shape(positions) != (1, ANY):
            return None
        rows = [
            builder.reshape(table, (1, ANY, shape(table)[-1]))
            if sampler is not None and _picks_all(positions, table, sampler)
            else builder.gather(table, positions)
            for table in (cos, sin)
        ]
        cos, sin = rows
    interleaved = op.integer("interleaved", 0) == 1
    return (
        rotary_table(builder, cos, interleaved=interleaved),
        rotary_table(builder, sin, interleaved=interleaved),
    )


def _picks_all(index: SSAValue, table: SSAValue, sampler: StepSampler) -> bool:
    """Whether a table has a row for each token of a step, and `index` names these in order."""
    for rows, past in SAMPLE_STEPS if shape(table)[0] == ANY else ():
        probe = sampler.probe(rows, past if sampler.has_caches else 0)
        values, found = probe.value(table), probe.value(index)
        if values is None or found is None or len(values) != rows:
            return False
        if not np.array_equal(found, [np.arange(rows)]):
            return False
    return shape(table)[0] == ANY


@dataclass(frozen=True)
class RaiseRotaryPass(ModulePass):
    """Raise spelt-out rotary position embedding to `speq.rotary`."""

    name = "raise-rotary"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Raise every sum that rotates pairs of channels by a table of cosines and sines."""
        function = main_function(op)
        sampler = None if function is None else StepSampler(op, function)
        patterns: list[RewritePattern] = [_RaiseSum(opset_of(op)), _RaiseOperator(sampler)]
        applier = GreedyRewritePatternApplier(patterns, dce_enabled=False)
        PatternRewriteWalker(applier, apply_recursively=False).rewrite_module(op)
        region_dce(op.body)
