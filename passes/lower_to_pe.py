"""Lower step functions from `speq` and `onnx` operations to the array program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    DictionaryAttr,
    ModuleOp,
    TensorType,
    i64,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.dialects import onnx, pe, speq
from speqc.dialects.speq import View, ViewType
from speqc.runtime import costs
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import dense_array
from speqc.runtime.module_attributes import module_context, module_target
from speqc.runtime.target import Target
from speqc.runtime.weight_traffic import weight_traffic

ATTENTION_PROPERTIES = (
    "cache",
    "score_type",
    "probability_type",
    "score_scale",
    "score_divisor",
    "softcap",
    "position_bias",
    "scale_behind_bias",
    "softmax_type",
    "sinks",
    "shifted_type",
    "window",
)


@dataclass(frozen=True)
class LowerToPePass(ModulePass):
    """Map every operation of the step functions onto the target that the module names.

    Matrix products go to the array, tiled so that a block of tiles fills one bank; attention goes
    to the unit that computes it in fewer cycles, or to the one that `attention_unit` names. For
    that choice half of the context is in the cache, the full step verifies as many drafted tokens
    as a round may have (one row where nothing is drafted, as in a baseline), the draft step has
    one token, and mode switches count. The rest goes to the vector unit.
    Each operation on the array is preceded by the mode it needs (`elide-mode-switches` drops the
    idle ones), and each load stands just before its consumer (`schedule-loads` moves it ahead).
    """

    name = "lower-to-pe"

    attention_unit: Literal["auto", "array", "vector"] = "auto"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite the module in place; raises SpeqcError where an operation has no lowering."""
        weights = {w.sym_name.data: w for w in op.ops if isinstance(w, speq.WeightOp)}
        caches = {c.sym_name.data: c for c in op.ops if isinstance(c, speq.CacheOp)}
        lowering = _Lowering(
            module_target(op), module_context(op), weights, caches, self.attention_unit
        )
        lowering.verified = _longest_round(op)
        for function in op.ops:
            if isinstance(function, FuncOp):
                lowering.function(function)


class _Lowering:
    """Rewrites step functions for one target."""

    def __init__(
        self,
        target: Target,
        context: int,
        weights: dict[str, speq.WeightOp],
        caches: dict[str, speq.CacheOp],
        attention_unit: str,
    ):
        self.target = target
        self.context = context
        self.weights = weights
        self.caches = caches
        self.attention_unit = attention_unit
        self.mode = View.FULL
        self.verified = 1

    def function(self, function: FuncOp) -> None:
        """Lower one step function."""
        views = [op for op in function.walk() if isinstance(op, speq.ViewOp)]
        kinds = {op.result.type.view for op in views if isinstance(op.result.type, ViewType)}
        self.mode = View.FULL if kinds <= {View.FULL} else View.DRAFT
        for op in list(function.body.block.ops):
            self._lower(op)
        for op in reversed(list(function.body.block.ops)):
            if isinstance(op, speq.ViewOp | onnx.InitializerOp | onnx.NoValueOp):
                Rewriter.erase_op(op)

    def _lower(self, op: Operation) -> None:
        match op:
            case speq.ViewOp() | onnx.InitializerOp() | onnx.NoValueOp() | ReturnOp():
                return
            case speq.MatmulOp():
                new = self._matmul(op)
            case speq.EmbeddingOp():
                new = [pe.GatherOp(op.weight.string_value(), op.tokens, op.result.type)]
            case speq.PositionsOp():
                new = [pe.PositionsOp(op.tokens)]
            case onnx.ConstantOp():
                new = [pe.ImmediateOp(op.value)]
            case speq.AttentionOp():
                new = self._attention(op)
            case speq.CacheAppendOp():
                new = [pe.AppendOp(op.cache.string_value(), op.key, op.value)]
            case speq.RMSNormOp():
                new = self._vector(op, "rms_norm")
            case speq.RotaryOp():
                new = self._vector(op, "rotary")
            case speq.CausalSoftmaxOp():
                new = self._vector(op, "causal_softmax")
            case speq.CausalMatmulOp():
                new = self._vector(op, "causal_matmul")
            case onnx.OnnxOp():
                new = _lookup(op) or self._vector(op, op.name.removeprefix("onnx."))
            case _:
                raise SpeqcError(f"lower-to-pe: {op.name} has no lowering")
        for part in new:
            part.location = op.location
        _replace(op, new)

    def _matmul(self, op: speq.MatmulOp) -> list[Operation]:
        view = op.weight.owner
        assert isinstance(view, speq.ViewOp) and isinstance(view.result.type, ViewType)
        name = view.weight.string_value()
        load = self._load(name, view.result.type, op.predicate)
        gemm = pe.GemmOp(op.input, load.stream, op.result.type, op.predicate)
        return [load, pe.ModeOp(view.result.type.view), gemm]

    def _load(self, name: str, view: ViewType, predicate: SSAValue | None) -> pe.LoadWeightOp:
        k, n = view.shape
        facts = weight_traffic(self.weights[name], view.view)._asdict()
        cost = costs.gemm(k, n, 1, self.target, **facts)
        tiles = costs.tile_weight(k, n, self.target, **facts)
        tiling = pe.TilingAttr((tiles.depth, tiles.columns), tiles.grid, tiles.per_block)
        load = pe.LoadWeightOp(
            name, view, tiling, cost.block_bytes, cost.last_block_bytes, predicate
        )
        _name(load.stream, name)
        return load

    def _attention(self, op: speq.AttentionOp) -> list[Operation]:
        name = op.cache.string_value()
        cache = self.caches[name]
        heads = cache.heads.value.data
        halves = [
            pe.LoadCacheOp(
                name, half, TensorType(cache.element_type, [heads, DYNAMIC_INDEX, width.value.data])
            )
            for half, width in (
                (pe.CacheHalf.KEYS, cache.key_dim),
                (pe.CacheHalf.VALUES, cache.value_dim),
            )
        ]
        for load in halves:
            _name(load.stream, load.half.data.value)
        unit = self._unit(op, cache)
        attention = pe.AttentionOp(
            (op.query, op.key, op.value, halves[0].stream, halves[1].stream),
            unit,
            {key: op.properties[key] for key in ATTENTION_PROPERTIES if key in op.properties},
            op.result.type,
        )
        mode: list[Operation] = [pe.ModeOp(View.FULL)] if unit == pe.Unit.ARRAY else []
        return [*halves, *mode, attention]

    def _unit(self, op: speq.AttentionOp, cache: speq.CacheOp) -> pe.Unit:
        if self.attention_unit != "auto":
            return pe.Unit(self.attention_unit)
        assert isinstance(op.query.type, TensorType)
        heads = op.query.type.get_shape()[1]
        kv_heads, past = cache.heads.value.data, self.context // 2
        rows = 1 if self.mode == View.DRAFT else self.verified
        keys = heads, kv_heads, cache.key_dim.value.data, past, rows, self.target
        values = heads, kv_heads, cache.value_dim.value.data, past, rows, self.target
        array = (
            costs.attention_scores_on_array(*keys).unit_cycles
            + costs.attention_values_on_array(*values).unit_cycles
        )
        vector = (
            costs.attention_scores_on_vector(*keys).unit_cycles
            + costs.attention_values_on_vector(*values).unit_cycles
        )
        if self.mode == View.DRAFT:
            array += 2 * self.target.mode_switch_cycles
        return pe.Unit.ARRAY if array <= vector else pe.Unit.VECTOR

    def _vector(self, op: Operation, kernel: str) -> list[Operation]:
        inputs: list[SSAValue] = []
        loads: list[Operation] = []
        absent: list[int] = []
        for place, value in enumerate(op.operands):
            if isinstance(value.owner, onnx.NoValueOp):
                absent.append(place)
            elif isinstance(value.owner, onnx.InitializerOp):
                load = _load_constant(value.owner)
                loads.append(load)
                inputs.append(load.results[0])
            else:
                inputs.append(value)
        arguments = dict(op.properties)
        _check_arguments(op, arguments)
        if absent:
            arguments["absent"] = DenseArrayBase.from_list(i64, absent)
        vector = pe.VectorOp(
            kernel,
            inputs,
            op.result_types,
            DictionaryAttr(arguments) if arguments else None,
        )
        return [*loads, vector]


def _longest_round(module: ModuleOp) -> int:
    """Rows of the largest pass that verifies: drafted tokens and the one before.

    1 where no step reads a draft's view, as in a baseline, which is timed token by token.
    """
    views = (op.result.type for op in module.walk() if isinstance(op, speq.ViewOp))
    if all(isinstance(view, ViewType) and view.view == View.FULL for view in views):
        return 1
    lengths = (op.draft_length for op in module.ops if isinstance(op, speq.DecodeOp))
    return 1 + max((length.value.data for length in lengths if length is not None), default=0)


def _check_arguments(op: Operation, arguments: Mapping[str, Attribute]) -> None:
    for name, value in arguments.items():
        if not isinstance(value, DenseIntOrFPElementsAttr):
            continue
        if not np.isfinite(dense_array(value)).all():
            raise SpeqcError(
                f"lower-to-pe: {op.name}: attribute {name} holds an infinity or NaN, which xDSL "
                "would not read back from a program's text"
            )


def _lookup(op: onnx.OnnxOp) -> list[Operation]:
    """`onnx.Gather` of rows of a constant table by computed indices; of anything else nothing."""
    if op.name != "onnx.Gather" or op.integer("axis", 0) != 0:
        return []
    table, indices = op.operands
    if not isinstance(table.owner, onnx.InitializerOp):
        return []
    if isinstance(indices.owner, onnx.InitializerOp):
        return []
    source, result = table.owner, op.results[0].type
    return [pe.LookupOp(source.ref.data, source.digest.data, source.result.type, indices, result)]


def _load_constant(op: onnx.InitializerOp) -> pe.LoadConstantOp:
    assert isinstance(op.result.type, TensorType)
    load = pe.LoadConstantOp(op.ref.data, op.digest.data, op.result.type)
    _name(load.stream, op.ref.data)
    return load


def _name(value: SSAValue, name: str) -> None:
    if SSAValue.is_valid_name(name):
        value.name_hint = name


def _replace(op: Operation, new: Sequence[Operation]) -> None:
    """Put `new` in the place of `op`, its last operation's results in the place of `op`'s."""
    Rewriter.insert_op(new, InsertPoint.before(op))
    for old, result in zip(op.results, new[-1].results, strict=True):
        result.name_hint = old.name_hint
        old.replace_all_uses_with(result)
    Rewriter.erase_op(op)
