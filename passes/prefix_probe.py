"""Evaluate what mixes tokens on samples of sequences, to see that no row knows of later tokens.

For steps over a whole sequence. What tokens decide is drawn at random: their rows, and numbers for
pairs of them, such as scores. Then the same sequence is taken with other tokens from position s on,
with infinities and NaN there, and cut off there. Elements of tokens before s must stay the same,
bit for bit, for small numbers and for large ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import prod
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects.onnx import InitializerOp
from speqc.dialects.speq import CausalMatmulOp, CausalSoftmaxOp, PositionsOp
from speqc.passes.attention_mask import CEILING
from speqc.passes.matching import ANY, element_type, is_float, shape
from speqc.passes.probe import Probe, Sample
from speqc.runtime.causal import causal_matmul, causal_softmax
from speqc.runtime.ir_values import numpy_dtype

LENGTH, CUTS = 18, (1, 7, 17)
"""Tokens of a sample, and the positions from which on it is changed or cut off."""

FAR = (2_048, 1_023, 255, 64)
"""Tokens of long sequences; from the shorter ones the longest is sought that the graph's masks and
tables serve."""

LARGEST_TABLE = 1 << 20
"""Elements of the largest tensor of the file that random numbers stand in for."""

SPREAD = 0.5
"""Standard deviation of random numbers: products of them neither vanish nor let a softmax see one
position alone."""

LARGE = (64.0, 4_000.0)
"""Bounds of larger numbers that tokens may give, up to about those that a mask must hide."""

FURTHEST = -CEILING / 2
"""The largest number for each position that may be added to scores, so that a mask hides them."""

SPECIAL = (np.inf, -np.inf, np.nan, 6e4)
"""What later tokens may hold, too."""


class Later(Enum):
    """What stands behind the cut of a sample."""

    SAME = auto()
    OTHER = auto()
    SPECIAL = auto()
    NOTHING = auto()


@dataclass(frozen=True)
class TokenSample:
    """A sample: what stands from position `cut` on, where `SAME` is its end.

    `scale` bounds what tokens decide; None: numbers of standard deviation `SPREAD`.
    """

    cut: int
    later: Later
    scale: float | None = None

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.cut if self.later in (Later.SAME, Later.NOTHING) else LENGTH

    def rows(self, value: SSAValue, each: int, seed: int) -> NDArray:
        """What a value with `each` places for a token holds."""
        length, sizes = max(LENGTH, self.length) * each, shape(value)
        rows = _random(value, length, seed, self.scale)
        behind = np.zeros([length if size == ANY else 1 for size in sizes], np.bool_)
        for axis, size in enumerate(sizes):
            if size == ANY:
                np.moveaxis(behind, axis, 0)[self.cut * each :] = True
        behind = np.broadcast_to(behind, rows.shape)
        if self.later is Later.OTHER:
            rows[behind] = _random(value, length, seed + 1, self.scale)[behind]
        elif self.later is Later.SPECIAL and rows.dtype.kind == "f":
            rows[behind] = np.resize(np.array(SPECIAL, rows.dtype), int(behind.sum()))
        elif self.later is Later.NOTHING:
            rows = rows[_first(value, self.cut * each)]
        return rows


WHOLE = TokenSample(LENGTH, Later.SAME)
"""The sample that others are compared with."""

NO_SCORES = TokenSample(LENGTH, Later.SAME, 0.0)
"""The sample that shows what masks leave of scores of zero."""

SCALED = tuple(TokenSample(LENGTH, Later.SAME, scale) for scale in LARGE)
"""Samples of larger numbers."""

OTHERS = (
    *(TokenSample(cut, later) for cut in CUTS for later in Later if later is not Later.SAME),
    *(TokenSample(CUTS[1], later, s) for s in LARGE for later in (Later.OTHER, Later.NOTHING)),
)
"""The samples that are compared."""


def _first(value: SSAValue, length: int) -> tuple[slice, ...]:
    """The elements of the first places of a value's dynamic dimensions."""
    return tuple(slice(length) if size == ANY else slice(None) for size in shape(value))


def _random(value: SSAValue, length: int, seed: int, scale: float | None = None) -> NDArray:
    sizes = [length if size == ANY else size for size in shape(value)]
    generator, dtype = np.random.default_rng(seed), numpy_dtype(element_type(value))
    if dtype.kind == "f" and scale is None:
        return (generator.standard_normal(sizes) * SPREAD).astype(dtype)
    if dtype.kind == "f" and scale is not None:
        return generator.uniform(-scale, scale, sizes).astype(dtype)
    most = 1 if scale is None or dtype.kind == "b" else int(scale)
    return generator.integers(0, most + 1, sizes).astype(dtype)


class _SampleProbe(Probe):
    """A probe of one sample; `drawn` are the values that random rows stand in for."""

    def __init__(
        self,
        samples: Mapping[SSAValue, Sample],
        opset: int,
        sample: TokenSample,
        drawn: Mapping[SSAValue, int],
        places: Mapping[SSAValue, int],
    ):
        super().__init__(samples, opset)
        self._sample = sample
        self._drawn = drawn
        self._places = places

    def _operands(self, value: SSAValue) -> Sequence[SSAValue]:
        if value in self._drawn:
            return ()
        if isinstance(value.owner, CausalSoftmaxOp | CausalMatmulOp):
            return value.owner.operands
        return super()._operands(value)

    def _compute(self, value: SSAValue) -> None:
        op = value.owner
        if value in self._drawn:
            self._known[value] = self._sample.rows(
                value, self._places.get(value, 1), 2 * self._drawn[value]
            )
        elif isinstance(op, InitializerOp) and _is_drawn(op):
            self._known[value] = _random(value, 0, crc32(op.ref.data.encode()))
        else:
            super()._compute(value)

    def _run(self, op: Operation) -> Sequence[Sample] | None:
        if not isinstance(op, CausalSoftmaxOp | CausalMatmulOp):
            return super()._run(op)
        samples = [self._known[operand] for operand in op.operands]
        arrays = [sample for sample in samples if isinstance(sample, np.ndarray)]
        if len(arrays) < len(samples):
            return None
        if isinstance(op, CausalSoftmaxOp):
            return [causal_softmax(arrays[0])]
        return [causal_matmul(arrays[0], arrays[1], numpy_dtype(element_type(op.result)))]


def _is_drawn(op: InitializerOp) -> bool:
    return is_float(element_type(op.result)) and prod(shape(op.result)) <= LARGEST_TABLE


class PrefixProbe:
    """Evaluates a step over a whole sequence on all samples.

    `places` has the places for each token of every value with one dynamic dimension; `drawn`
    numbers those of them that depend on the tokens, and numbers for pairs of tokens. Both grow as a
    walk goes through the step.
    """

    def __init__(
        self,
        function: FuncOp,
        opset: int,
        places: Mapping[SSAValue, int],
        drawn: Mapping[SSAValue, int],
    ):
        self.opset = opset
        self._function = function
        self._places = places
        self._drawn = drawn
        self._made: dict[TokenSample, _SampleProbe] = {}

    def forget(self) -> None:
        """Drop what was computed, so that memory does not grow with the number of layers."""
        self._made.clear()

    def value(self, value: SSAValue, sample: TokenSample = WHOLE) -> NDArray | None:
        """What a value is in a sample; None where nothing tells."""
        if sample not in self._made:
            positions: dict[SSAValue, Sample] = {
                op.result: np.arange(sample.length)[None].astype(
                    numpy_dtype(element_type(op.result))
                )
                for op in self._function.body.block.ops
                if isinstance(op, PositionsOp)
            }
            self._made[sample] = _SampleProbe(
                positions, self.opset, sample, self._drawn, self._places
            )
        with np.errstate(all="ignore"):
            return self._made[sample].value(value)

    def longest(self, values: Mapping[SSAValue, bool]) -> int:
        """Up to how many tokens values that no token decides go on as they begin; at most `FAR`.

        `values` says of each whether it meets numbers for pairs of tokens.
        """
        self.forget()
        found = {value: self.value(value) for value in values}
        start = {value: array for value, array in found.items() if array is not None}

        def serves(length: int) -> bool:
            arrays = self._at(start, length)
            if arrays is None or not all(
                _goes_on(value, array, arrays[value], values[value])
                for value, array in start.items()
            ):
                return False
            return all(self._begins(arrays, part) for part in {length - 1, (length + LENGTH) // 2})

        place = next((place for place, length in enumerate(FAR) if serves(length)), len(FAR))
        if place == 0:
            return FAR[0]
        low, high = FAR[place] if place < len(FAR) else LENGTH, FAR[place - 1]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if serves(middle) else (low, middle)
        return low

    def _at(self, values: Iterable[SSAValue], length: int) -> dict[SSAValue, NDArray] | None:
        """What values are for so many tokens; None where one can't be told, or has other sizes."""
        self.forget()
        found: dict[SSAValue, NDArray] = {}
        for value in values:
            array = self.value(value, TokenSample(length, Later.SAME))
            if array is None or not self._is_long(value, array, length):
                return None
            found[value] = array
        self.forget()
        return found

    def _begins(self, arrays: Mapping[SSAValue, NDArray], length: int) -> bool:
        """Whether fewer tokens give the beginning of the same arrays."""
        found = self._at(arrays, length)
        return found is not None and all(
            array[_first(value, length)].tobytes() == found[value].tobytes()
            for value, array in arrays.items()
        )

    def hides_later(self, value: SSAValue) -> bool:
        """Whether each matrix of pairs has one value behind the diagonal, for any pair."""
        found = self.value(value)
        return found is not None and _behind(_pairs(value, found)) is not None

    def is_masked(self, scores: SSAValue) -> bool:
        """Whether masks hide scores [..., T, T] behind the diagonal, and leave each row some.

        As in attention over a cache: scores of zero are at most `CEILING` there.
        """
        found = self.value(scores, NO_SCORES)
        if found is None or not (found[(..., *_LATER)] <= CEILING).all():
            return False
        return bool((np.tril(found > CEILING)).any(-1).all())

    def sees_later(self, value: SSAValue, samples: Sequence[TokenSample]) -> bool:
        """Whether weights [..., T, T] may be other than zero for positions behind a row's own.

        They may, too, where they are zero for all positions: that hides nothing.
        """
        arrays = [self.value(value, sample) for sample in samples]
        known = [np.asarray(array) for array in arrays if array is not None]
        if len(known) < len(arrays) or any(np.triu(array, 1).any() for array in known):
            return True
        return not np.any([array.any((-2, -1)) for array in known], axis=0).all()

    def is_known(self, value: SSAValue) -> bool:
        """Whether a value can be evaluated, is as long as there are tokens, and is a number."""
        found = self.value(value)
        if found is None or (found.dtype.kind == "f" and np.isnan(found).any()):
            return False
        return self._is_long(value, found, LENGTH)

    def knows_no_later(self, value: SSAValue) -> bool:
        """Whether no element depends on tokens behind all those that it belongs to."""
        for sample in OTHERS:
            whole = self.value(value, TokenSample(LENGTH, Later.SAME, sample.scale))
            found = self.value(value, sample)
            if whole is None or found is None:
                return False
            kept = _first(value, sample.cut)
            if not self._is_long(value, found, sample.length):
                return False
            if whole[kept].tobytes() != found[kept].tobytes():
                return False
        return True

    def _is_long(self, value: SSAValue, found: NDArray, length: int) -> bool:
        sizes = tuple(length if size == ANY else size for size in shape(value))
        return found.shape == sizes


_LATER = np.triu_indices(LENGTH, 1)
"""Pairs of tokens of a sample of which the second is the later one."""


def _pairs(value: SSAValue, found: NDArray) -> NDArray:
    """The array of a value with an element for each pair of tokens, as [..., T, T]."""
    axes = [axis for axis, size in enumerate(shape(value)) if size == ANY]
    return np.moveaxis(found, axes, (-2, -1))


def _behind(found: NDArray) -> NDArray | None:
    """The value of each matrix [..., T, T] behind its diagonal; None where there are several."""
    rows, columns = np.triu_indices(found.shape[-1], 1)
    values = found[..., rows, columns]
    first = values[..., :1]
    return first if (values == first).all() else None


def _goes_on(value: SSAValue, start: NDArray, found: NDArray, meets_pairs: bool) -> bool:
    """Whether an array of more tokens does what the `start`, its sample, does."""
    if found[_first(value, LENGTH)].tobytes() != start.tobytes():
        return False
    if shape(value).count(ANY) == 2:
        return _is_as_causal(_pairs(value, start), _pairs(value, found))
    if not meets_pairs:
        return True
    if found.dtype.kind != "f":
        return bool(np.isin(found, start).all())
    return bool((found <= max(float(start.max()), FURTHEST)).all())


def _is_as_causal(start: NDArray, found: NDArray) -> bool:
    """Whether both have one value behind the diagonal, and each row something else before it."""
    first, behind = _behind(start), _behind(found)
    if first is None or behind is None or first.tobytes() != behind.tobytes():
        return False
    own = (np.tril(start != first).any(-1), np.tril(found != first).any(-1))
    return bool(own[1].all() or not own[0].all())
