"""Step functions as lists of kernel calls: what each `pe` op does to values."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import DYNAMIC_INDEX, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects import pe
from speqc.dialects.speq import View, ViewType
from speqc.runtime.attention import KVCache, attention
from speqc.runtime.attention_attributes import attention_spec
from speqc.runtime.causal import causal_matmul, causal_softmax
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import dense_array, numpy_dtype, python_values
from speqc.runtime.matmul import matmul_draft, matmul_full
from speqc.runtime.norms import rms_norm
from speqc.runtime.rotary import rotary
from speqc.runtime.routing import predicates
from speqc.runtime.vector_ops import COUNTS_OUTPUTS, VECTOR_OPS, VectorOp, evaluate
from speqc.runtime.vector_upgrade import UPGRADES
from speqc.runtime.weight_traffic import WIDE_BITS
from speqc.runtime.weights import Weight

Kernel = Callable[..., Sequence[Any]]

Observer = Callable[[Operation, Sequence[Any], Sequence[Any]], Sequence[Any]]
"""Sees an operation, its operands and its results; what it returns takes the results' place."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one sequence in a pass: how many, behind `past` positions in its caches."""

    rows: int
    past: int
    caches: Mapping[str, KVCache]


class _Frame:
    """What a pass knows beside its values: whose rows they are.

    Attributes:
        parts: the sequences, in the order of their rows.
        spans: the rows of each part.
    """

    def __init__(self) -> None:
        self.parts: Sequence[Part] = ()
        self.spans: list[slice] = []

    def begin(self, parts: Sequence[Part]) -> None:
        """Begin a pass over the rows of these parts."""
        self.parts = parts
        ends = accumulate(part.rows for part in parts)
        self.spans = [slice(end - part.rows, end) for part, end in zip(parts, ends, strict=True)]

    def caches(self, name: str) -> list[KVCache]:
        """Each part's cache of that name."""
        return [part.caches[name] for part in self.parts]


@dataclass(frozen=True, slots=True)
class _Instruction:
    """A kernel with the places of its operands, of its results, and of values that end with it."""

    op: Operation
    kernel: Kernel
    operands: tuple[int, ...]
    results: tuple[int, ...]
    dead: tuple[int, ...]


class Step:
    """One step function, ready to run.

    Attributes:
        columns: the width of its result (the vocabulary).
    """

    def __init__(
        self,
        function: FuncOp,
        weights: Mapping[str, Weight],
        caches: Collection[str],
        constant: Callable[[str], NDArray],
        opset: int,
    ):
        """Bind the function's ops to kernels; raises SpeqcError where an op has none.

        `caches` are the names that each part of a pass has; `constant` reads a constant of the
        artifact; `opset` is the ONNX version of the kernels that are ONNX operators.
        """
        self._frame = _Frame()
        self._binder = _Binder(self._frame, weights, caches, constant, opset)
        block = function.body.block
        places: dict[SSAValue, int] = {arg: place for place, arg in enumerate(block.args)}
        self._code: list[_Instruction] = []
        numbers = {value: number for number, value in enumerate(predicates(function))}
        self._rows = [np.zeros(0, np.int64)] * len(numbers)
        last_use = _last_uses(block.ops)
        for op in block.ops:
            if isinstance(op, ReturnOp):
                self._result = places[op.operands[0]]
                self.columns = _columns(op.operands[0])
                break
            for result in op.results:
                places[result] = len(places)
            self._code.append(
                _Instruction(
                    op,
                    self._counting(op, self._binder.bind(op), numbers),
                    tuple(places[value] for value in op.operands),
                    tuple(places[value] for value in op.results),
                    tuple(places[value] for value in last_use.get(op, ())),
                )
            )
        self._values: list[Any] = [None] * len(places)

    @property
    def chosen(self) -> NDArray[np.int64]:
        """Of the last run: for each predicate, for how many rows of each token it held."""
        return np.stack(self._rows) if self._rows else np.zeros((0, 0), np.int64)

    def _counting(self, op: Operation, kernel: Kernel, numbers: Mapping[SSAValue, int]) -> Kernel:
        """The kernel, which also counts the rows that its results hold for as predicates."""
        found = [(i, numbers[value]) for i, value in enumerate(op.results) if value in numbers]
        if not found:
            return kernel

        def count(*operands: Any) -> Sequence[Any]:
            results = kernel(*operands)
            for place, number in found:
                # The first dimension is the batch, the second the tokens.
                self._rows[number] = results[place].reshape(results[place].shape[1], -1).sum(1)
            return results

        return count

    def run_behind(
        self, history: NDArray[np.int64], tokens: NDArray[np.int64], observe: Observer | None
    ) -> NDArray:
        """Logits [M, vocabulary] of `tokens` [M] behind a `history`, both run through anew.

        For a program without caches.
        """
        whole = np.concatenate([history, tokens])
        return self.run(whole, [Part(len(whole), 0, {})], observe)[len(history) :]

    def run(
        self, tokens: NDArray[np.int64], parts: Sequence[Part], observe: Observer | None = None
    ) -> NDArray:
        """Logits [M, vocabulary] of `tokens` [M], which are those of the `parts` in their order.

        `observe` sees each operation behind its execution.
        """
        values = self._values
        values[0] = tokens[None]
        self._frame.begin(parts)
        for instruction in self._code:
            operands = [values[place] for place in instruction.operands]
            results = instruction.kernel(*operands)
            if observe is not None:
                results = observe(instruction.op, operands, results)
            for place, result in zip(instruction.results, results, strict=True):
                values[place] = result
            for place in instruction.dead:
                values[place] = None
        return values[self._result][0]


def _last_uses(ops: Sequence[Operation] | Any) -> dict[Operation, list[SSAValue]]:
    """For each op the results of earlier ops that no later op reads."""
    last: dict[SSAValue, Operation] = {}
    for op in ops:
        for value in op.operands:
            if isinstance(value.owner, Operation):
                last[value] = op
    by_op: dict[Operation, list[SSAValue]] = {}
    for value, op in last.items():
        by_op.setdefault(op, []).append(value)
    return by_op


def _columns(logits: SSAValue) -> int:
    assert isinstance(logits.type, TensorType)
    return logits.type.get_shape()[-1]


class _Binder:
    """Finds the kernel of each op."""

    def __init__(
        self,
        frame: _Frame,
        weights: Mapping[str, Weight],
        caches: Collection[str],
        constant: Callable[[str], NDArray],
        opset: int,
    ):
        self.frame = frame
        self.weights = weights
        self.caches = caches
        self.constant = constant
        self.opset = opset
        self.mode: View | None = None

    def bind(self, op: Operation) -> Kernel:
        """The kernel that does what `op` says."""
        match op:
            case pe.ModeOp():
                self.mode = op.mode.data
                return _nothing
            case pe.PositionsOp():
                return partial(self._positions, _result_dtype(op.result))
            case pe.ImmediateOp():
                return partial(_known, (dense_array(op.value),))
            case pe.LoadConstantOp():
                return partial(_known, (self.constant(op.source.data),))
            case pe.LoadWeightOp():
                return partial(_known, (self._weight(op.weight.string_value()),))
            case pe.LoadCacheOp():
                return partial(self._load_caches, self._cache(op.cache.string_value()))
            case pe.LookupOp():
                return partial(_look_up, self.constant(op.source.data))
            case pe.GatherOp():
                return partial(_gather, self._weight(op.weight.string_value()))
            case pe.GemmOp():
                return self._gemm(op)
            case pe.VectorOp():
                return _vector(op, self.opset)
            case pe.AttentionOp():
                return self._attention(op)
            case pe.AppendOp():
                return partial(self._append, self._cache(op.cache.string_value()))
            case _:
                raise SpeqcError(f"{op.name} is no operation of the machine")

    def _weight(self, name: str) -> Weight:
        if name not in self.weights:
            raise SpeqcError(f"the program declares no weight @{name}")
        return self.weights[name]

    def _cache(self, name: str) -> str:
        if name not in self.caches:
            raise SpeqcError(f"the program declares no cache @{name}")
        return name

    def _load_caches(self, name: str) -> Sequence[Sequence[KVCache]]:
        return (self.frame.caches(name),)

    def _positions(self, dtype: np.dtype, _tokens: NDArray) -> Sequence[NDArray]:
        parts = [(part.past, part.past + part.rows) for part in self.frame.parts]
        return (np.concatenate([np.arange(*part, dtype=dtype) for part in parts])[None],)

    def _append(self, name: str, key: NDArray, value: NDArray) -> Sequence[Any]:
        for cache, rows in zip(self.frame.caches(name), self.frame.spans, strict=True):
            cache.append(key[0, :, rows], value[0, :, rows])
        return ()

    def _gemm(self, op: pe.GemmOp) -> Kernel:
        assert isinstance(op.weight.type, pe.StreamType)
        view = op.weight.type.content
        assert isinstance(view, ViewType)
        if view.view != self.mode:
            raise SpeqcError(
                f"pe.gemm of a {view.view} view while the array is in {self.mode} mode"
            )
        dtype = _result_dtype(op.result)
        gemm = partial(_gemm_kernel(view.view), dtype)
        return gemm if op.predicate is None else partial(_chosen_rows, gemm, dtype)

    def _attention(self, op: pe.AttentionOp) -> Kernel:
        spec = attention_spec(op, _result_dtype(op.result))

        def kernel(
            query: NDArray,
            key: NDArray,
            value: NDArray,
            caches: Sequence[KVCache],
            _values: Sequence[KVCache],
        ) -> Sequence[NDArray]:
            results = []
            for cache, rows in zip(caches, self.frame.spans, strict=True):
                past = cache.length
                cache.append(key[0, :, rows], value[0, :, rows])
                results.append(attention(query[0, :, rows], cache, past, spec))
                # The rows stay on chip here: storing them is the task of pe.append.
                cache.truncate(past)
            return (_joined(results)[None],)

        return kernel


def _joined(results: Sequence[NDArray]) -> NDArray:
    """Rows [H, M, D] of all parts."""
    return results[0] if len(results) == 1 else np.concatenate(results, axis=1)


def _result_dtype(value: SSAValue) -> np.dtype:
    assert isinstance(value.type, TensorType)
    return numpy_dtype(value.type.element_type)


def _nothing() -> Sequence[Any]:
    return ()


def _known(values: Sequence[Any], *_predicate: NDArray) -> Sequence[Any]:
    return values


def _gather(weight: Weight, tokens: NDArray) -> Sequence[NDArray]:
    return (weight.columns(tokens),)


def _look_up(table: NDArray, indices: NDArray) -> Sequence[NDArray]:
    rows = len(table)
    if indices.size and not (-rows <= indices.min() and indices.max() < rows):
        raise SpeqcError(
            f"pe.lookup: an index from {indices.min()} to {indices.max()} is outside a table of "
            f"{counted(rows, 'row')}"
        )
    return (table[indices],)


def _full_gemm(dtype: np.dtype, x: NDArray, weight: Weight) -> Sequence[NDArray]:
    product = matmul_full(x.reshape(-1, weight.k), weight.full(), weight.n, dtype)
    return (product.reshape(*x.shape[:-1], weight.n),)


def _gemm_kernel(view: View) -> Callable[..., Sequence[NDArray]]:
    if view in WIDE_BITS:
        return partial(_wide_gemm, WIDE_BITS[view])
    return _draft_gemm if view == View.DRAFT else _full_gemm


def _wide_gemm(bits: int, dtype: np.dtype, x: NDArray, weight: Weight) -> Sequence[NDArray]:
    product = matmul_full(x.reshape(-1, weight.k), weight.wide(bits), weight.n, dtype)
    return (product.reshape(*x.shape[:-1], weight.n),)


def _draft_gemm(dtype: np.dtype, x: NDArray, weight: Weight) -> Sequence[NDArray]:
    panels, scales = weight.draft()
    rows = x.reshape(-1, weight.k)
    product = matmul_draft(rows, panels, scales, weight.group_size, weight.n, dtype)
    return (product.reshape(*x.shape[:-1], weight.n),)


def _chosen_rows(
    gemm: Callable[[NDArray, Weight], Sequence[NDArray]],
    dtype: np.dtype,
    x: NDArray,
    weight: Weight,
    predicate: NDArray,
) -> Sequence[NDArray]:
    """The product for the rows that a predicate holds for; the others are zero."""
    chosen = predicate.reshape(-1)
    product = np.zeros((chosen.size, weight.n), dtype)
    if chosen.any():
        (product[chosen],) = gemm(x.reshape(-1, weight.k)[chosen], weight)
    return (product.reshape(*x.shape[:-1], weight.n),)


def _vector(op: pe.VectorOp, opset: int) -> Kernel:
    kernel = _vector_kernel(op, opset)
    if op.predicate is None:
        return kernel
    kinds = [(_result_dtype(value), _shape(value)) for value in op.results]
    return partial(_zero_where_not_chosen, kernel, kinds)


def _shape(value: SSAValue) -> tuple[int, ...]:
    """A value's shape with -1 for the dynamic size."""
    assert isinstance(value.type, TensorType)
    return tuple(-1 if size == DYNAMIC_INDEX else size for size in value.type.get_shape())


def _zero_where_not_chosen(
    kernel: Kernel, kinds: Sequence[tuple[np.dtype, tuple[int, ...]]], *operands: Any
) -> Sequence[NDArray]:
    """Results whose rows are zero where a predicate, the last operand, does not hold."""
    *inputs, predicate = operands
    chosen = predicate.reshape(-1)
    computed = kernel(*inputs) if chosen.any() else [None] * len(kinds)
    results = []
    for array, (dtype, shape) in zip(computed, kinds, strict=True):
        result = np.zeros((chosen.size, shape[-1]), dtype)
        if array is not None:
            result[chosen] = array.reshape(result.shape)[chosen]
        results.append(result.reshape(shape))
    return results


def _vector_kernel(op: pe.VectorOp, opset: int) -> Kernel:
    name = op.kernel.data
    arguments = python_values(op.attributes_)
    absent: Any = arguments.pop("absent", [])
    if name == "rms_norm":
        return partial(_rms_norm, arguments)
    if name == "rotary":
        interleaved = bool(arguments.get("interleaved", False))
        return lambda x, cos, sin: (rotary(x, cos, sin, interleaved),)
    if name == "causal_softmax":
        return lambda scores: (causal_softmax(scores),)
    if name == "causal_matmul":
        dtype = _result_dtype(op.results_[0])
        return lambda weights, rows: (causal_matmul(weights, rows, dtype),)
    if name not in VECTOR_OPS:
        raise SpeqcError(f'pe.vector "{name}": the vector unit has no such kernel')
    is_older = name in UPGRADES and opset < UPGRADES[name][0]
    if absent or is_older or (name in COUNTS_OUTPUTS and len(op.results) > 1):
        return partial(_any_onnx, name, absent, arguments, opset, len(op.results))
    return partial(_onnx, VECTOR_OPS[name], arguments)


def _onnx(kernel: VectorOp, arguments: Mapping[str, Any], *inputs: NDArray) -> Sequence[NDArray]:
    return kernel.run(inputs, arguments)


def _any_onnx(
    name: str,
    absent: Sequence[int],
    arguments: Mapping[str, Any],
    opset: int,
    outputs: int,
    *inputs: NDArray,
) -> Sequence[NDArray]:
    """Run an operator whose meaning depends on the ONNX version or on what it leaves out."""
    given: list[NDArray | None] = list(inputs)
    for place in absent:
        given.insert(place, None)
    return evaluate(name, given, arguments, opset, outputs)


def _rms_norm(arguments: Mapping[str, Any], x: NDArray, scale: NDArray) -> Sequence[NDArray]:
    in_f32 = "scale_in_f32" in arguments
    return (rms_norm(x, scale, arguments["epsilon"], weight_in_f32=in_f32),)
