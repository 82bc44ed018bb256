"""`speqc run --compare`: each value of the program beside the original graph's, by onnxruntime.

The full step runs once over the whole prompt. Behind each compared operation the machine goes on
with the original's value, so that rounding does not add up from layer to layer: one tolerance fits
all depths, and a node is listed only for what it does itself. A second, free run says how far the
logits drift when rounding does add up.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.artifact import Artifact
from speqc.compare import Verdict, compare, rounding, unit
from speqc.counterparts import Counterpart, Counterparts, find_counterparts
from speqc.dialects import pe
from speqc.dialects.speq import FULL
from speqc.original import Original, OriginalValues, import_onnxruntime, read_original
from speqc.runtime.ir_values import numpy_dtype
from speqc.runtime.machine import Machine

BATCH_BYTES = 1 << 28
"""Values of the original that are held at a time; each batch runs the original once more."""

LAID_OUT = "their layout is not the file's"


@dataclass(frozen=True)
class Compared:
    """A value and how it compares: `shape` and `dtype` are the program's."""

    counterpart: Counterpart
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict


@dataclass(frozen=True)
class Drift:
    """The logits of a free run: largest error, the original's largest magnitude, equal arg max."""

    largest_error: float
    largest_logit: float
    rows: int
    agreeing: int


@dataclass(frozen=True)
class Comparison:
    """All compared values in the order of the program, and how many were not, by reason."""

    original: Path
    tokens: int
    compared: Sequence[Compared]
    without: Mapping[str, int]
    drift: Drift

    @property
    def mismatching(self) -> list[Compared]:
        """Values that differ by more than rounding; the first is where the program goes wrong."""
        return [entry for entry in self.compared if not entry.verdict.matches]


def compare_model(
    artifact: Artifact, machine: Machine, model: Path, tokens: Sequence[int]
) -> Comparison:
    """Compare the step @full of `artifact` on `tokens` with the ONNX file `model`.

    Raises SpeqcError where onnxruntime is missing or can't run the file, or the file is not the one
    that was compiled.
    """
    import_onnxruntime()
    original = read_original(model, artifact.manifest["source"])
    (full,) = (op for op in artifact.program.ops if isinstance(op, FuncOp) and _is_full(op))
    counterparts = find_counterparts(full, original.model, original.values)
    source = _Source(original, counterparts, tokens)
    observer = _Observer(counterparts, source)
    machine.reset()
    machine.call(FULL, tokens, observe=observer)
    without = {reason: count for reason, count in observer.without.items() if count}
    return Comparison(
        model, len(tokens), observer.compared, without, _drift(machine, tokens, source.logits())
    )


def _is_full(function: FuncOp) -> bool:
    return function.sym_name.data == FULL


def _drift(machine: Machine, tokens: Sequence[int], expected: NDArray) -> Drift:
    machine.reset()
    ours = machine.call(FULL, tokens).astype(np.float64)
    theirs = expected.reshape(ours.shape).astype(np.float64)
    return Drift(
        float(np.abs(ours - theirs).max()),
        float(np.abs(theirs).max()),
        len(ours),
        int((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).sum()),
    )


class _Source:
    """Values of the original, in batches that follow the program."""

    def __init__(self, original: Original, counterparts: Counterparts, tokens: Sequence[int]):
        sizes = {
            counterpart.value: _bytes(value, len(tokens))
            for counterpart, value in counterparts.values()
        }
        self._values = OriginalValues(original, sizes, tokens)
        self._logits = original.logits
        self._batch_of = {name: batch for batch in _batches(sizes) for name in batch}
        self._read: dict[str, NDArray] = {}

    def value(self, name: str) -> NDArray:
        """One value."""
        if name not in self._read:
            self._read = self._values.read(self._batch_of[name])
        return self._read[name]

    def logits(self) -> NDArray:
        """The original's logits."""
        return self._values.read([self._logits])[self._logits]


def _bytes(value: SSAValue, tokens: int) -> int:
    """The size of a value when a step takes so many tokens behind none."""
    assert isinstance(value.type, TensorType)
    sizes = [tokens if size < 0 else size for size in value.type.get_shape()]
    return math.prod(sizes) * numpy_dtype(value.type.element_type).itemsize


def _batches(sizes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    batch: list[str] = []
    held = 0
    for name, size in sizes.items():
        if batch and held + size > BATCH_BYTES:
            yield tuple(batch)
            batch, held = [], 0
        batch.append(name)
        held += size
    yield tuple(batch)


class _Observer:
    """Compares each value as it is made, and puts the original's in its place.

    `_inherited` has the tolerance of values that were not replaced: what was rounded on the way
    from the last values that were.
    """

    def __init__(self, counterparts: Counterparts, source: _Source):
        self.compared: list[Compared] = []
        self.without = counterparts.without.copy()
        self._counterparts = counterparts
        self._source = source
        self._inherited: dict[SSAValue, float] = {}

    def __call__(
        self, op: Operation, operands: Sequence[Any], results: Sequence[Any]
    ) -> Sequence[Any]:
        """Take an operation that was executed."""
        if isinstance(op, pe.AppendOp):
            self._append(op, operands)
            return results
        before = max((self._inherited.get(value, 0.0) for value in op.operands), default=0.0)
        slack = _slack(op, operands, before)
        replaced = list(results)
        for place, result in enumerate(op.results):
            if not isinstance(result.type, TensorType):
                continue
            ours = results[place]
            tolerance = before + rounding(ours.dtype)
            counterpart = self._counterparts.results.get(result)
            theirs = None if counterpart is None else self._original(counterpart, ours.shape)
            if counterpart is None or theirs is None:
                self._inherited[result] = tolerance
                continue
            theirs = _where_computed(op, operands, ours, theirs)
            self._add(counterpart, ours, theirs, tolerance, slack)
            replaced[place] = theirs.astype(ours.dtype)
        return replaced

    def _original(self, counterpart: Counterpart, shape: tuple[int, ...]) -> NDArray | None:
        """The original's value in the shape of ours; None where it is laid out otherwise."""
        theirs = laid_out(self._source.value(counterpart.value), shape)
        self.without[LAID_OUT] += theirs is None
        return theirs

    def _append(self, op: pe.AppendOp, operands: Sequence[Any]) -> None:
        pair = self._counterparts.appended.get(op, {})
        for value, ours in zip(op.operands, operands, strict=True):
            if (counterpart := pair.get(value)) is None:
                continue
            if (theirs := self._original(counterpart, ours.shape)) is None:
                continue
            tolerance = max(self._inherited.get(value, 0.0), rounding(theirs.dtype))
            self._add(counterpart, ours, theirs, tolerance, 0.0)

    def _add(
        self,
        counterpart: Counterpart,
        ours: NDArray,
        theirs: NDArray,
        tolerance: float,
        slack: float,
    ) -> None:
        verdict = compare(ours, theirs, tolerance, slack)
        self.compared.append(Compared(counterpart, ours.shape, ours.dtype.name, verdict))


def laid_out(theirs: NDArray, shape: tuple[int, ...]) -> NDArray | None:
    """A tensor of the original in a shape of ours; None where that is not a matter of layout.

    Dimensions of size 1 come and go, and heads stand before the tokens, [1, H, M, D], or are joined
    behind them, [1, M, H * D].
    """
    if _long(theirs.shape) == _long(shape):
        return theirs.reshape(shape)
    if theirs.size != math.prod(shape) or {len(shape), theirs.ndim} != {3, 4}:
        return None
    if len(shape) == 4:
        _, heads, rows, width = shape
        if theirs.shape == (1, rows, heads * width):
            return theirs.reshape(1, rows, heads, width).transpose(0, 2, 1, 3)
        return None
    _, heads, rows, width = theirs.shape
    joined = shape == (1, rows, heads * width)
    return theirs.transpose(0, 2, 1, 3).reshape(shape) if joined else None


def _where_computed(
    op: Operation, operands: Sequence[Any], ours: NDArray, theirs: NDArray
) -> NDArray:
    """The original's value in rows that an operation computes, ours where its predicate is off."""
    if not isinstance(op, pe.GemmOp | pe.VectorOp) or op.predicate is None:
        return theirs
    chosen = operands[op.operands.index(op.predicate)].reshape(-1, 1)
    rows = np.where(chosen, theirs.reshape(len(chosen), -1), ours.reshape(len(chosen), -1))
    return rows.reshape(ours.shape)


def _long(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _slack(op: Operation, operands: Sequence[Any], before: float) -> float:
    """The error that an operation may have beyond a share of its result.

    A mean of numbers that cancel out has that of its terms. Scores have an error in proportion to
    the largest, which the softmax makes one in proportion to the values.
    """
    if isinstance(op, pe.AttentionOp):
        query, key, value = operands[:3]
        noise = unit(numpy_dtype(op.score_type)) + before / 32
        return 2 * noise * _largest_score(op, query, key) * _largest(value)
    if isinstance(op, pe.VectorOp) and op.kernel.data.startswith("Reduce"):
        return rounding(operands[0].dtype) * _largest(operands[0])
    return 0.0


def _largest_score(op: pe.AttentionOp, query: NDArray, key: NDArray) -> float:
    """The largest score in magnitude; `query` [1, H, M, D], `key` [1, KV, M, D]."""
    heads, width = key.shape[1], key.shape[3]
    rows = query.astype(np.float32).reshape(heads, -1, width)
    columns = key[0].astype(np.float32)
    largest = max(_largest(rows[head] @ columns[head].T) for head in range(heads))
    largest *= 1.0 if op.score_scale is None else abs(op.score_scale.value.data)
    return largest if op.softcap is None else min(largest, op.softcap.value.data)


def _largest(array: NDArray) -> float:
    """The largest finite magnitude."""
    return float(np.nan_to_num(np.abs(array.astype(np.float32)), nan=0.0, posinf=0.0).max())
