"""`verify-speq`: what the passes behind this level take for granted of step functions.

A step function maps M tokens to M rows of logits, and every dynamic size is M. A row may depend on
other rows through attention alone: then its bits do not depend on how many rows a step has. With a
history, a step runs over all tokens so far, and a row may depend on earlier ones through whatever
can be shown not to read later ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    Float16Type,
    Float32Type,
    ModuleOp,
    TensorType,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation
from xdsl.passes import ModulePass

from speqc.dialects.onnx import ConstantOp, InitializerOp, NoValueOp
from speqc.dialects.speq import (
    TOKENS,
    AttentionOp,
    CacheAppendOp,
    CacheOp,
    CausalMatmulOp,
    CausalSoftmaxOp,
    EmbeddingOp,
    HistoryOp,
    MatmulOp,
    PositionsOp,
    RMSNormOp,
    RotaryOp,
    ViewOp,
    ViewType,
    WeightOp,
)
from speqc.passes.matching import fail, shape, step_functions
from speqc.passes.prefix_check import check_prefixes
from speqc.passes.probe import operator
from speqc.passes.row_check import check_rows
from speqc.runtime.errors import SpeqcError
from speqc.runtime.vector_ops import VECTOR_OPS

STEP_OPS = (
    AttentionOp,
    CacheAppendOp,
    ConstantOp,
    EmbeddingOp,
    InitializerOp,
    MatmulOp,
    NoValueOp,
    PositionsOp,
    RMSNormOp,
    ReturnOp,
    RotaryOp,
    ViewOp,
)
"""What a step function may hold besides ONNX's operators that the vector unit has."""

PREFIX_OPS = (
    CausalMatmulOp,
    CausalSoftmaxOp,
    *(op for op in STEP_OPS if op not in (AttentionOp, CacheAppendOp)),
)
"""The same for a step that runs over a history of tokens."""


@dataclass(frozen=True)
class _Declared:
    """The declarations of a module by symbol."""

    weights: Mapping[str, WeightOp]
    caches: Mapping[str, CacheOp]

    def weight(self, op: ViewOp | EmbeddingOp) -> WeightOp:
        """The weight that `op` names."""
        name = op.weight.string_value()
        if name not in self.weights:
            raise fail(op, f"no speq.weight @{name} is declared")
        return self.weights[name]

    def cache(self, op: AttentionOp | CacheAppendOp) -> CacheOp:
        """The cache that `op` names."""
        name = op.cache.string_value()
        if name not in self.caches:
            raise fail(op, f"no speq.cache @{name} is declared")
        return self.caches[name]


def check_signature(function: FuncOp) -> None:
    """Raise SpeqcError unless a step function maps tokens to a row of logits for each."""
    name = f"@{function.sym_name.data}"
    type = function.function_type
    if list(type.inputs) != [TOKENS]:
        got = ", ".join(str(input) for input in type.inputs)
        raise SpeqcError(f"{name}: expected one argument {TOKENS} (tokens), got ({got})")
    results = list(type.outputs)
    if len(results) != 1 or not _is_logits(results[0]):
        got = ", ".join(str(result) for result in results)
        raise SpeqcError(
            f"{name}: expected one result tensor<1x?xNxf16 or f32> (logits), got ({got})"
        )


def _is_logits(type: object) -> bool:
    if not isinstance(type, TensorType) or len(type.get_shape()) != 3:
        return False
    batch, rows, vocabulary = type.get_shape()
    floats = isinstance(type.element_type, Float16Type | Float32Type)
    return floats and (batch, rows) == (1, DYNAMIC_INDEX) and vocabulary != DYNAMIC_INDEX


def _check_known(op: Operation) -> None:
    """Raise unless a step with caches may hold it, and its sizes are static but for M."""
    _check_kind(op, STEP_OPS)
    for index, result in enumerate(op.results):
        sizes = result.type.get_shape() if isinstance(result.type, TensorType) else ()
        if list(sizes).count(DYNAMIC_INDEX) > 1:
            raise fail(op, f"result {index} has more than one dynamic size: {result.type}")


def _check_kind(op: Operation, kinds: tuple[type[Operation], ...]) -> None:
    is_vector = op.name.startswith("onnx.") and operator(op) in VECTOR_OPS
    if not isinstance(op, kinds) and not is_vector:
        raise fail(op, "the machine has no such operation")


def _check_history(module: ModuleOp, caches: Mapping[str, CacheOp]) -> bool:
    """Whether the module has a history, which then is its only state."""
    histories = [op for op in module.ops if isinstance(op, HistoryOp)]
    if histories and (caches or len(histories) > 1):
        raise fail(histories[-1], "it must be the only state of a module, beside no cache")
    return bool(histories)


def _check_weights(op: Operation, declared: _Declared) -> None:
    if isinstance(op, ViewOp):
        assert isinstance(op.result.type, ViewType)
        weight, sizes = declared.weight(op), op.result.type.shape
        if weight.shape != sizes:
            raise fail(op, f"a view of {list(sizes)}, but the weight is {list(weight.shape)}")
    elif isinstance(op, EmbeddingOp):
        weight = declared.weight(op)
        if (channels := shape(op.result)[-1]) != weight.shape[0]:
            raise fail(
                op, f"result has {channels} channels, but the weight is {list(weight.shape)}"
            )


def _check_caches(function: FuncOp, declared: _Declared) -> None:
    """Each cache is read by attention, then appended, once in a step."""
    attention: dict[str, AttentionOp] = {}
    appended: set[str] = set()
    for op in function.body.block.ops:
        if isinstance(op, AttentionOp):
            _check_sizes(op, declared.cache(op))
            if op.cache.string_value() in appended:
                raise fail(op, f"@{op.cache.string_value()} is read after it was appended to")
            attention[op.cache.string_value()] = op
        elif isinstance(op, CacheAppendOp):
            name = op.cache.string_value()
            _check_sizes(op, declared.cache(op))
            if name in appended:
                raise fail(op, f"@{name} is appended to twice in a step")
            if name not in attention:
                raise fail(op, f"@{name} is appended to before any attention reads it")
            if (attention[name].key, attention[name].value) != (op.key, op.value):
                raise fail(op, f"the rows appended to @{name} are not those its attention reads")
            appended.add(name)
    for name in declared.caches:
        if name not in appended:
            raise SpeqcError(f"@{function.sym_name.data}: speq.cache @{name} is never appended to")


def _check_sizes(op: AttentionOp | CacheAppendOp, cache: CacheOp) -> None:
    for field, value, width in (
        ("key", op.key, cache.key_dim),
        ("value", op.value, cache.value_dim),
    ):
        expected = TensorType(
            cache.element_type, [1, cache.heads.value.data, DYNAMIC_INDEX, width.value.data]
        )
        if value.type != expected:
            raise fail(op, f"{field} has type {value.type}, the cache's rows {expected}")


@dataclass(frozen=True)
class VerifySpeqPass(ModulePass):
    """Check that step functions are what form-draft-verify and the lowering expect."""

    name = "verify-speq"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Check declarations, signature and body of every step function.

        Raises:
            SpeqcError: one line that names the operation, and what was expected of it.
        """
        ops = list(op.body.block.ops)
        declared = _Declared(
            {weight.sym_name.data: weight for weight in ops if isinstance(weight, WeightOp)},
            {cache.sym_name.data: cache for cache in ops if isinstance(cache, CacheOp)},
        )
        functions = {function.sym_name.data: function for function in step_functions(op)}
        if "full" not in functions:
            raise SpeqcError("the module has no step function @full")
        recomputes = _check_history(op, declared.caches)
        for function in functions.values():
            check_signature(function)
            for inner in function.body.block.ops:
                if recomputes:
                    _check_kind(inner, PREFIX_OPS)
                else:
                    _check_known(inner)
                _check_weights(inner, declared)
            if recomputes:
                check_prefixes(op, function)
            else:
                _check_caches(function, declared)
                check_rows(op, function)
