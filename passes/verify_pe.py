"""Legality of a finished `pe` program: what the machine and the timing model rely on."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from xdsl.context import Context
from xdsl.dialects.builtin import DYNAMIC_INDEX, ModuleOp, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass

from speqc.dialects import pe, speq
from speqc.dialects.speq import View, ViewType
from speqc.passes.matching import ANY, shape
from speqc.passes.verify_activations import check_activations
from speqc.passes.verify_decode import check_programs
from speqc.runtime import costs
from speqc.runtime.activations import is_pairs
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import module_context, module_target, proved_positions
from speqc.runtime.routing import predicates, routers
from speqc.runtime.target import Target
from speqc.runtime.tensor_references import has_bytes
from speqc.runtime.vector_ops import VECTOR_OPS
from speqc.runtime.weight_traffic import weight_traffic

CAUSAL_KERNELS = ("causal_softmax", "causal_matmul")
"""Kernels over pairs of tokens, for programs that recompute their prefix."""

OWN_KERNELS = ("rms_norm", "rotary", *CAUSAL_KERNELS)
"""Kernels of the vector unit that are not ONNX operators."""


@dataclass(frozen=True)
class VerifyPePass(ModulePass):
    """Check a module before it is written, and after it is read.

    Every operation belongs to the machine; symbols resolve; shapes are those of the declarations;
    predicates are the same for a product and its load, and have a value for each row; each stream
    has one consumer and streams are consumed in the order of their loads; blocks fit
    the banks; the array is in the mode that its operand needs; each cache is appended to once,
    after it is read, or the module has a history and no cache; activations do not overwrite each
    other; the decode programs are those that form-draft-verify makes; all tensors that are referred
    to have bytes, or none has; caches hold no more positions than the program is proved for.
    """

    name = "verify-pe"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Raise SpeqcError, naming function and operation, where a rule is broken."""
        _check_context(op)
        target = module_target(op)
        weights = {w.sym_name.data: w for w in op.ops if isinstance(w, speq.WeightOp)}
        caches = {c.sym_name.data: c for c in op.ops if isinstance(c, speq.CacheOp)}
        histories = [h for h in op.ops if isinstance(h, speq.HistoryOp)]
        if histories and (caches or len(histories) > 1):
            raise SpeqcError("verify-pe: a speq.history must be the only state of a module")
        for function in (f for f in op.ops if isinstance(f, FuncOp)):
            _StepRules(function, weights, caches, target, bool(histories)).check()
            check_activations(function)
        check_programs(op)
        has_bytes(op)


def _check_context(module: ModuleOp) -> None:
    context, proved = module_context(module), proved_positions(module)
    if proved is not None and context > proved:
        raise SpeqcError(
            f"the caches hold {context:,} positions, the program is proved for {proved:,} only"
        )


class _StepRules:
    """The rules for one step function."""

    def __init__(
        self,
        function: FuncOp,
        weights: dict[str, speq.WeightOp],
        caches: dict[str, speq.CacheOp],
        target: Target,
        recomputes: bool,
    ):
        self.function = function
        self.recomputes = recomputes
        self.weights = weights
        self.caches = caches
        self.target = target
        self.mode: View | None = None
        self.pending: list[Operation] = []
        self.appended: set[str] = set()

    def check(self) -> None:
        """Walk the function in program order."""
        for op in self.function.body.block.ops:
            self._check(op)
            self._consume(op)
        self._check_experts()
        missing = self.caches.keys() - self.appended
        if missing:
            raise self._error(None, f"cache @{min(missing)} is never appended to")

    def _error(self, op: Operation | None, message: str) -> SpeqcError:
        where = f"@{self.function.sym_name.data}"
        return SpeqcError(f"verify-pe: {where}{f', {op.name}' if op else ''}: {message}")

    def _check(self, op: Operation) -> None:
        if not self.recomputes and any(map(is_pairs, op.results)):
            raise self._error(op, "gives elements for pairs of tokens, but there is no history")
        match op:
            case pe.ModeOp():
                self.mode = op.mode.data
            case pe.LoadWeightOp():
                self._check_load(op)
            case pe.GatherOp():
                self._check_gather(op)
            case pe.GemmOp():
                self._check_gemm(op)
            case pe.VectorOp():
                self._check_kernel(op)
            case pe.LoadCacheOp():
                self._check_cache_load(op)
            case pe.AttentionOp():
                self._check_attention(op)
            case pe.AppendOp():
                self._check_append(op)
            case (
                pe.PositionsOp()
                | pe.ImmediateOp()
                | pe.LoadConstantOp()
                | pe.LookupOp()
                | ReturnOp()
            ):
                pass
            case _:
                raise self._error(op, "is no operation of the machine")

    def _weight(self, op: Operation, name: str) -> speq.WeightOp:
        if name not in self.weights:
            raise self._error(op, f"no weight @{name} is declared")
        return self.weights[name]

    def _cache(self, op: Operation, name: str) -> speq.CacheOp:
        if name not in self.caches:
            raise self._error(op, f"no cache @{name} is declared")
        return self.caches[name]

    def _check_gather(self, op: pe.GatherOp) -> None:
        weight = self._weight(op, op.weight.string_value())
        assert isinstance(op.result.type, TensorType)
        width = op.result.type.get_shape()[-1]
        if width != weight.shape[0]:
            raise self._error(
                op, f"gives {width} values a token, columns of the weight have {weight.shape[0]}"
            )

    def _check_load(self, op: pe.LoadWeightOp) -> None:
        weight = self._weight(op, op.weight.string_value())
        assert isinstance(op.stream.type, pe.StreamType)
        view = op.stream.type.content
        assert isinstance(view, ViewType)
        if view.shape != weight.shape:
            raise self._error(op, f"views a {view.shape} weight, declared as {weight.shape}")
        exists = weight.has_draft if view.view == View.DRAFT else weight.is_split
        if view.view != View.FULL and not exists:
            name = weight.sym_name.data
            raise self._error(op, f"weight @{name} is not split: it has no {view.view} view")
        facts = weight_traffic(weight, view.view)._asdict()
        cost = costs.gemm(*view.shape, 1, self.target, **facts)
        tiles = costs.tile_weight(*view.shape, self.target, **facts)
        expected = pe.TilingAttr((tiles.depth, tiles.columns), tiles.grid, tiles.per_block)
        if op.tiling != expected:
            raise self._error(op, f"tiling {op.tiling} does not fit the target, not {expected}")
        sizes = op.block_bytes.value.data, op.last_block_bytes.value.data
        if sizes != (cost.block_bytes, cost.last_block_bytes):
            raise self._error(
                op,
                f"blocks of {sizes[0]} and {sizes[1]} bytes, "
                f"the weight has {cost.block_bytes} and {cost.last_block_bytes}",
            )

    def _check_gemm(self, op: pe.GemmOp) -> None:
        assert isinstance(op.weight.type, pe.StreamType)
        view = op.weight.type.content
        assert isinstance(view, ViewType)
        if view.view != self.mode:
            raise self._error(op, f"reads a {view.view} view while the array's mode is {self.mode}")

        load = op.weight.owner
        if isinstance(load, pe.LoadWeightOp) and load.predicate is not op.predicate:
            raise self._error(op, "its weight is loaded with another predicate")
        if op.predicate is not None:
            self._check_predicate(op, op.predicate)

    def _check_predicate(self, op: Operation, predicate: SSAValue) -> None:
        """A value for each row of the results, [1, M, ..., 1], that an operation has made."""
        sizes = shape(predicate)
        if sizes[:2] != (1, ANY) or sizes[-1] != 1:
            raise self._error(op, f"its predicate is {predicate.type}, expected tensor<1x?x1xi1>")
        if not isinstance(predicate.owner, pe.VectorOp) or predicate.owner.predicate is not None:
            raise self._error(op, "its predicate is no result of an operation without one")
        for result in op.results:
            if prod(shape(result)[:-1]) != prod(sizes):
                raise self._error(
                    op, f"its predicate {predicate.type} has no value for each row of {result.type}"
                )

    def _check_experts(self) -> None:
        count = len(predicates(self.function))
        declared = sum(router.experts for router in routers(self.function))
        if count != declared:
            raise self._error(
                None, f"its products have {count} predicates, {speq.EXPERTS} tells of {declared}"
            )

    def _check_kernel(self, op: pe.VectorOp) -> None:
        if op.predicate is not None:
            self._check_predicate(op, op.predicate)
        kernel = op.kernel.data
        if kernel not in VECTOR_OPS and kernel not in OWN_KERNELS:
            raise self._error(op, f'the vector unit has no kernel "{kernel}"')
        if kernel in CAUSAL_KERNELS:
            self._check_causal(op, kernel)

    def _check_causal(self, op: pe.VectorOp, kernel: str) -> None:
        """Weights or scores [..., T, T], and rows [..., T, N] to multiply with."""
        sizes = [shape(value) for value in op.inputs]
        is_legal = bool(sizes) and sizes[0][-2:] == (ANY, ANY)
        if kernel == "causal_softmax":
            is_legal = is_legal and len(sizes) == 1 and sizes[0] == shape(op.results_[0])
        else:
            is_legal = is_legal and len(sizes) == 2 and sizes[1][-2:-1] == (ANY,)
        if not is_legal:
            raise self._error(op, f'"{kernel}" takes pairs of tokens [..., ?, ?], rows [..., ?, N]')

    def _check_cache_load(self, op: pe.LoadCacheOp) -> None:
        cache = self._cache(op, op.cache.string_value())
        keys = op.half.data == pe.CacheHalf.KEYS
        width = cache.key_dim if keys else cache.value_dim
        sizes = [cache.heads.value.data, DYNAMIC_INDEX, width.value.data]
        expected = pe.StreamType(TensorType(cache.element_type, sizes))
        if op.stream.type != expected:
            raise self._error(op, f"streams {op.stream.type}, the cache holds {expected}")

    def _check_rows(self, op: pe.AttentionOp | pe.AppendOp) -> None:
        cache = self._cache(op, op.cache.string_value())
        for value, width in ((op.key, cache.key_dim), (op.value, cache.value_dim)):
            sizes = [1, cache.heads.value.data, DYNAMIC_INDEX, width.value.data]
            expected = TensorType(cache.element_type, sizes)
            if value.type != expected:
                raise self._error(op, f"takes {value.type}, rows of the cache are {expected}")

    def _check_attention(self, op: pe.AttentionOp) -> None:
        name = op.cache.string_value()
        self._check_rows(op)
        if op.unit.data == pe.Unit.ARRAY and self.mode != View.FULL:
            raise self._error(op, f"runs on the array in mode {self.mode}, needs mode full")
        if name in self.appended:
            raise self._error(op, f"cache @{name} is already appended to")
        for stream, half in zip(
            (op.cached_keys, op.cached_values),
            (pe.CacheHalf.KEYS, pe.CacheHalf.VALUES),
            strict=True,
        ):
            load = stream.owner
            if (
                not isinstance(load, pe.LoadCacheOp)
                or load.half.data != half
                or load.cache != op.cache
            ):
                raise self._error(op, f"its cached {half} must be streamed from @{name}")

    def _check_append(self, op: pe.AppendOp) -> None:
        name = op.cache.string_value()
        self._check_rows(op)
        if name in self.appended:
            raise self._error(op, f"cache @{name} is appended to twice")
        self.appended.add(name)

    def _consume(self, op: Operation) -> None:
        """Keep the queue of loads: streams are consumed once, in the order of their loads."""
        for value in op.operands:
            if not isinstance(value.type, pe.StreamType):
                continue
            if not self.pending or value.owner is not self.pending[0]:
                raise self._error(op, "consumes a stream out of the order of the loads")
            self.pending.pop(0)
        self.pending.extend(_loads(op))
        if isinstance(op, ReturnOp) and self.pending:
            raise self._error(self.pending[0], "its stream is never consumed")


def _loads(op: Operation) -> Iterator[Operation]:
    if any(isinstance(result.type, pe.StreamType) for result in op.results):
        yield op
