"""`raise-attention`: attention over a growing cache, spelt out by the exporter, as one operation.

Anchored at each softmax, and at operators that are an attention. Caches, which are arguments and
results in the file, become declarations, and masks vanish: what they admit is evaluated
(`attention_mask`), how heads are repeated and keys transposed is proved on a tensor of indices
(`attention_layout`), where scores are scaled and rounded is read off the operations between the
products (`attention_scores`). A graph without caches, which computes all positions anew at each
step, gets caches: the rows of keys and values that it makes are those that a cache would hold.
"""

from dataclasses import dataclass, field

from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, FloatAttr, ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.onnx import OnnxOp
from speqc.dialects.speq import AttentionOp, CacheAppendOp, CacheOp
from speqc.passes.argument_roles import Argument, Role
from speqc.passes.attention_caches import Caches
from speqc.passes.attention_form import AttentionForm
from speqc.passes.attention_mask import MaskReader
from speqc.passes.attention_operators import OPERATORS
from speqc.passes.attention_scores import float_type, is_softmax
from speqc.passes.attention_softmax import read_softmax
from speqc.passes.building import Builder, replace_result
from speqc.passes.heads import join_heads
from speqc.passes.matching import ANY, element_type, fail, main_function, shape, tensor_type
from speqc.passes.operator_parts import check_parts
from speqc.passes.step_samples import (
    StepSampler,
    cache_pairs,
    erase_arguments,
    step_arguments,
)
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import limit_proved

GUARDED = frozenset(
    {
        "onnx.Cast",
        "onnx.Identity",
        "onnx.MatMul",
        "onnx.Reshape",
        "onnx.Slice",
        "onnx.Squeeze",
        "onnx.Transpose",
        "onnx.Unsqueeze",
    }
)
"""Operations between a softmax and a replacement in rows that see nothing."""


@dataclass
class _Raiser:
    """Raises the attention of one function."""

    module: ModuleOp
    function: FuncOp
    masks: MaskReader
    caches: Caches
    layers: int = field(default=0)

    def raise_all(self) -> None:
        """Raise every attention.

        Raises:
            SpeqcError: `speq.attention` has no equal for one.
        """
        for op in list(self.function.body.block.ops):
            form = None
            if is_softmax(op):
                form = read_softmax(op, self.masks, self.caches)
            elif isinstance(op, OnnxOp) and op.name in OPERATORS:
                check_parts(op)
                form = OPERATORS[op.name](op, self.masks, self.caches)
            if form is not None:
                self._raise(form)

    def _raise(self, form: AttentionForm) -> None:
        builder = Builder(form.last)
        heads, width = shape(form.query)[1], shape(form.value)[3]
        cache = self._declare(form)
        attention = AttentionOp(
            cache,
            form.query,
            form.key,
            form.value,
            tensor_type(form.result_type, (1, heads, ANY, width)),
            score_type=form.score_type,
            probability_type=form.probability_type,
            score_scale=None if form.divides else _number(form.scale, form),
            score_divisor=_number(form.scale, form) if form.divides else None,
            softcap=_number(form.softcap, form),
            position_bias=form.bias,
            scale_behind_bias=form.scale_behind_bias,
            softmax_type=form.softmax_type,
            sinks=form.sinks,
            shifted_type=form.shifted_type,
            window=form.window,
        )
        builder.add(attention)
        builder.add(CacheAppendOp(cache, form.key, form.value))
        attention.result.name_hint = form.last.results[0].name_hint
        result = join_heads(builder, attention.result) if form.joined else attention.result
        replace_result(form.last, builder.reshape(result, shape(form.last.results[0])))

    def _declare(self, form: AttentionForm) -> str:
        if element_type(form.key) != element_type(form.value):
            types = f"keys are {element_type(form.key)}, values {element_type(form.value)}"
            raise fail(form.last, f"{types}; a cache holds one type")
        if shape(form.key)[1] != shape(form.value)[1]:
            ours, theirs = (shape(side)[1] for side in (form.key, form.value))
            heads = f"keys have {counted(ours, 'head')}, values {theirs}"
            raise fail(form.last, f"{heads}; a cache has as many of both")
        name = f"kv{self.layers}"
        self.layers += 1
        (_, heads, _, key_dim), (_, _, _, value_dim) = shape(form.key), shape(form.value)
        cache = CacheOp(name, heads, key_dim, value_dim, float_type(form.last, form.key))
        Rewriter.insert_op(cache, InsertPoint.before(self.function))
        return name


def _number(number: float | None, form: AttentionForm) -> FloatAttr | None:
    """A number that scores are scaled or capped with, in the type that the result is rounded to."""
    return None if number is None else FloatAttr(number, form.scale_type or form.score_type)


def _drop_idle_guards(function: FuncOp, masks: MaskReader) -> None:
    """Bypass each `onnx.Where` that never replaces what attention gives for a row.

    Exporters write such a one for rows that see no position. Any other replacement stays, idle or
    not: what a condition on lengths is beyond the longest sample nobody knows.
    """
    for op in list(function.body.block.ops):
        if op.name != "onnx.Where" or not masks.known(op.operands[0]):
            continue
        kept = op.operands[2]
        if kept.type != op.results[0].type or not _is_of_attention(kept):
            continue
        if masks.is_never(op.operands[0]):
            op.results[0].replace_all_uses_with(kept)
            Rewriter.erase_op(op)


def _is_of_attention(value: SSAValue) -> bool:
    """Whether a value is probabilities over positions, their sums of values, or both moved."""
    while not isinstance(op := value.owner, Block):
        if is_softmax(op):
            return shape(op.results[0])[-1] == ANY
        if op.name in OPERATORS:
            return True
        if op.name not in GUARDED:
            return False
        value = op.operands[0]
    return False


def drop_presents(module: ModuleOp, function: FuncOp) -> None:
    """Take the caches out of the function's results."""
    returned = function.get_return_op()
    assert returned is not None
    presents = {present for _, present in cache_pairs(module)}
    kept = [index for index in range(len(returned.operands)) if index not in presents]
    returned.operands = [returned.operands[index] for index in kept]
    if function.res_attrs is not None:
        function.res_attrs = ArrayAttr([function.res_attrs.data[index] for index in kept])
    function.update_function_type()


def _measure_instead(argument: Argument, other: Argument) -> None:
    """Let sizes that are read off an argument be read off another one of the same shape."""
    for use in list(argument.value.uses):
        if use.operation.name == "onnx.Shape":
            use.operation.operands[use.index] = other.value


def _check_unused(argument: Argument) -> None:
    """Raise SpeqcError if something still uses a cache or the mask."""
    for use in argument.value.uses:
        what = "cache" if argument.role is Role.CACHE else "mask"
        raise fail(
            use.operation,
            f"it uses the {what} '{argument.name}' outside any attention that speqc knows",
        )


def _check_raised(function: FuncOp, layers: int) -> None:
    """Raise SpeqcError where attention is left, or where there was none."""
    for op in function.body.block.ops:
        if is_softmax(op) and shape(op.results[0])[-1] == ANY:
            raise fail(op, "no attention over a cache found around it")
    if not layers:
        raise SpeqcError("no attention over a cache found")


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
        raised = any(isinstance(inner, AttentionOp) for inner in op.walk())
        if function is None or (raised and not cache_pairs(op)):
            return
        masks = MaskReader(StepSampler(op, function))
        _drop_idle_guards(function, masks)
        raiser = _Raiser(op, function, masks, Caches(op, function))
        raiser.raise_all()
        drop_presents(op, function)
        region_dce(op.body)
        _check_raised(function, raiser.layers)
        arguments = step_arguments(op, function)
        gone = [argument for argument in arguments if argument.role in (Role.CACHE, Role.MASK)]
        tokens = next((argument for argument in arguments if argument.role is Role.TOKENS), None)
        for argument in gone:
            if tokens is not None and argument.dims == tokens.dims:
                _measure_instead(argument, tokens)
            _check_unused(argument)
        erase_arguments(op, function, [argument.value for argument in gone])
        op.attributes.pop("onnx.kv_pairs", None)
        if masks.proved is not None:
            limit_proved(op, masks.proved)
