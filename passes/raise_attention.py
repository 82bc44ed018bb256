"""`raise-attention`: attention over a growing cache, spelt out by the exporter, as one operation.

Anchored at each softmax. Caches, which are arguments and results in the file, become declarations,
and the masks vanish: what they admit is evaluated (`attention_mask`), how heads are repeated and
keys transposed is proved on a tensor of indices (`attention_layout`), and where scores are scaled
and rounded is read off the operations between the products (`attention_scores`).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, FloatAttr, ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.speq import AttentionOp, CacheAppendOp, CacheOp
from speqc.passes.attention_layout import (
    CacheRead,
    appended_rows,
    is_grouped_query,
    on_new_rows,
    trace,
)
from speqc.passes.attention_mask import MaskReader
from speqc.passes.attention_scores import Output, Scores, is_softmax, read_output, read_scores
from speqc.passes.matching import element_type, fail, insert_before, main_function, shape, tensor
from speqc.passes.probe import opset_of
from speqc.passes.step_samples import (
    Argument,
    Role,
    StepSampler,
    cache_pairs,
    erase_arguments,
    step_arguments,
)
from speqc.runtime.errors import SpeqcError


class _Reads(NamedTuple):
    """How the two products of an attention read their caches."""

    key: CacheRead
    value: CacheRead


@dataclass
class _Raiser:
    """Raises the attention of one function."""

    module: ModuleOp
    function: FuncOp
    masks: MaskReader
    new_rows: dict[SSAValue, SSAValue]
    layers: int = field(default=0)

    def raise_at(self, softmax: Operation) -> bool:
        """Raise the attention around a softmax; False if there is none that reads a cache.

        Raises:
            SpeqcError: `speq.attention` has no equal for it.
        """
        scores = read_scores(softmax, self.masks.known)
        output = read_output(softmax)
        if scores is None or output is None:
            return False
        reads = self._reads(scores, output)
        if reads is None:
            return False
        window = self.masks.window(softmax, scores.masks)
        self._replace(scores, output, reads, window)
        return True

    def _reads(self, scores: Scores, output: Output) -> _Reads | None:
        roots = list(self.new_rows)
        key, value = scores.product.operands[1], output.product.operands[1]
        key_read, value_read = trace(key, roots), trace(value, roots)
        if key_read is None or value_read is None:
            return None
        opset = opset_of(self.module)
        for product, operand, read in (
            (scores.product, key, key_read),
            (output.product, value, value_read),
        ):
            if len(shape(operand)) != 4 or not is_grouped_query(
                operand, read, transposed=operand is key, opset=opset
            ):
                raise fail(
                    product, "heads of the cache are not laid out as grouped-query attention"
                )
        return _Reads(key_read, value_read)

    def _replace(self, scores: Scores, output: Output, reads: _Reads, window: int | None) -> None:
        last = output.product
        key = self._insert_rows(last, reads.key)
        value = self._insert_rows(last, reads.value)
        if element_type(key) != element_type(value):
            raise fail(last, f"keys are {element_type(key)}, values {element_type(value)}")
        cache = self._declare(key, value)
        attention = AttentionOp(
            cache,
            scores.product.operands[0],
            key,
            value,
            tensor(last.results[0]),
            score_type=scores.type,
            probability_type=output.probability_type,
            score_scale=None if scores.scale is None else FloatAttr(scores.scale, scores.type),
            softcap=None if scores.softcap is None else FloatAttr(scores.softcap, scores.type),
            window=window,
        )
        insert_before(last, [attention, CacheAppendOp(cache, key, value)])
        attention.result.name_hint = last.results[0].name_hint
        last.results[0].replace_all_uses_with(attention.result)

    def _insert_rows(self, last: Operation, read: CacheRead) -> SSAValue:
        """The new rows as the cache keeps them."""
        rows = self.new_rows[read.root]
        made = on_new_rows(rows, read.elementwise)
        insert_before(last, made)
        return made[-1].results[0] if made else rows

    def _declare(self, key: SSAValue, value: SSAValue) -> str:
        name = f"kv{self.layers}"
        self.layers += 1
        (_, heads, _, key_dim), (_, _, _, value_dim) = shape(key), shape(value)
        type = tensor(key).element_type
        cache = CacheOp(name, heads, key_dim, value_dim, type)
        Rewriter.insert_op(cache, InsertPoint.before(self.function))
        return name


def _caches(module: ModuleOp, function: FuncOp) -> dict[SSAValue, SSAValue]:
    """For each cache that grows by rows: its whole value -> its new rows."""
    returned = function.get_return_op()
    assert returned is not None
    rows = {}
    for past, present in cache_pairs(module):
        found = appended_rows(returned.operands[present], function.args[past])
        if found is not None:
            whole, new = found
            rows[whole] = new
    return rows


def _drop_idle_replacements(function: FuncOp, masks: MaskReader) -> None:
    """Bypass each `onnx.Where` that never replaces anything, such as rows that see no position."""
    for op in function.body.block.ops:
        if op.name != "onnx.Where" or not masks.known(op.operands[0]):
            continue
        kept = op.operands[2]
        if kept.type == op.results[0].type and masks.is_never(op.operands[0]):
            op.results[0].replace_all_uses_with(kept)


def _drop_presents(module: ModuleOp, function: FuncOp) -> None:
    """Take the caches out of the function's results."""
    returned = function.get_return_op()
    assert returned is not None
    presents = {present for _, present in cache_pairs(module)}
    kept = [index for index in range(len(returned.operands)) if index not in presents]
    returned.operands = [returned.operands[index] for index in kept]
    if function.res_attrs is not None:
        function.res_attrs = ArrayAttr([function.res_attrs.data[index] for index in kept])
    function.update_function_type()


def _check_unused(argument: Argument) -> None:
    """Raise SpeqcError if something still uses a cache or the mask."""
    for use in argument.value.uses:
        what = "cache" if argument.role is Role.CACHE else "mask"
        raise fail(
            use.operation,
            f"it uses the {what} '{argument.name}' outside any attention that speqc knows",
        )


@dataclass(frozen=True)
class RaiseAttentionPass(ModulePass):
    """Raise spelt-out attention and its cache to `speq.attention`."""

    name = "raise-attention"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Raise every attention that reads a cache; remove caches and mask from the signature.

        Raises:
            SpeqcError: an attention, a mask or the use of a cache has no equal at this level.
        """
        function = main_function(op)
        if function is None:
            return
        masks = MaskReader(StepSampler(op, function))
        _drop_idle_replacements(function, masks)
        raiser = _Raiser(op, function, masks, _caches(op, function))
        for candidate in list(function.body.block.ops):
            if is_softmax(candidate):
                raiser.raise_at(candidate)
        if not raiser.layers:
            raise SpeqcError(
                "no attention over a cache found; export the model with its key and value cache "
                "as inputs and outputs"
            )
        _drop_presents(op, function)
        region_dce(op.body)
        gone = [
            argument
            for argument in step_arguments(op, function)
            if argument.role in (Role.CACHE, Role.MASK)
        ]
        for argument in gone:
            _check_unused(argument)
        erase_arguments(op, function, [argument.value for argument in gone])
        op.attributes.pop("onnx.kv_pairs", None)
