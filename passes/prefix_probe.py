"""Evaluate what mixes tokens on samples of sequences, to see that no row knows of later tokens.

For steps over a whole sequence. What a token's rows hold is drawn at random where the graph can't
be evaluated without weights or tokens; then the same sequence is taken with other tokens from
position s on, with infinities and NaN there, and cut off there. Elements of tokens before s must
stay the same, bit for bit.
"""

from collections.abc import Collection, Mapping, Sequence
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
    """A sample: what stands from position `cut` on, where `SAME` is its end."""

    cut: int
    later: Later

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.cut if self.later in (Later.SAME, Later.NOTHING) else LENGTH

    def rows(self, value: SSAValue, each: int, seed: int) -> NDArray:
        """What a value with `each` places for a token holds."""
        axis = shape(value).index(ANY)
        length = max(LENGTH, self.length) * each
        rows = _random(value, length, seed)
        behind = np.s_[(slice(None),) * axis + (slice(self.cut * each, None),)]
        if self.later is Later.OTHER:
            rows[behind] = _random(value, length, seed + 1)[behind]
        elif self.later is Later.SPECIAL and rows.dtype.kind == "f":
            rows[behind] = np.resize(np.array(SPECIAL, rows.dtype), rows[behind].shape)
        elif self.later is Later.NOTHING:
            rows = rows.take(range(self.cut * each), axis)
        return rows


WHOLE = TokenSample(LENGTH, Later.SAME)
"""The sample that others are compared with."""

OTHERS = tuple(
    TokenSample(cut, later) for cut in CUTS for later in Later if later is not Later.SAME
)
"""The samples that are compared."""


def _random(value: SSAValue, length: int, seed: int) -> NDArray:
    sizes = [length if size == ANY else size for size in shape(value)]
    generator, dtype = np.random.default_rng(seed), numpy_dtype(element_type(value))
    if dtype.kind == "f":
        return (generator.standard_normal(sizes) * SPREAD).astype(dtype)
    return generator.integers(0, 2, sizes).astype(dtype)


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
                value, self._places[value], 2 * self._drawn[value]
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
    numbers those of them that depend on the tokens. Both grow as a walk goes through the step.
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

    def longest(self, values: Collection[SSAValue]) -> int:
        """Up to how many tokens values that no token decides go on as they begin; at most `FAR`."""
        self.forget()
        found = {value: self.value(value) for value in values}
        start = {value: array for value, array in found.items() if array is not None}

        def serves(length: int) -> bool:
            self.forget()
            return all(self._goes_on(value, array, length) for value, array in start.items())

        place = next((place for place, length in enumerate(FAR) if serves(length)), len(FAR))
        if place == 0:
            return FAR[0]
        low, high = FAR[place] if place < len(FAR) else LENGTH, FAR[place - 1]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if serves(middle) else (low, middle)
        return low

    def _goes_on(self, value: SSAValue, start: NDArray, length: int) -> bool:
        found = self.value(value, TokenSample(length, Later.SAME))
        if found is None or not self._is_long(value, found, length):
            return False
        kept = tuple(slice(LENGTH) if size == ANY else slice(None) for size in shape(value))
        return found[kept].tobytes() == start.tobytes()

    def sees_later(self, value: SSAValue) -> bool:
        """Whether weights [..., T, T] may be other than zero for positions behind a row's own."""
        found = self.value(value)
        return found is None or bool(np.triu(found, 1).any())

    def is_known(self, value: SSAValue) -> bool:
        """Whether a value can be evaluated, is as long as there are tokens, and is a number."""
        found = self.value(value)
        if found is None or (found.dtype.kind == "f" and np.isnan(found).any()):
            return False
        return self._is_long(value, found, LENGTH)

    def knows_no_later(self, value: SSAValue) -> bool:
        """Whether no element depends on tokens behind all those that it belongs to."""
        whole = self.value(value)
        assert whole is not None
        for sample in OTHERS:
            found = self.value(value, sample)
            if found is None or not self._is_long(value, found, sample.length):
                return False
            kept = tuple(slice(sample.cut) if size == ANY else slice(None) for size in shape(value))
            if whole[kept].tobytes() != found[kept].tobytes():
                return False
        return True

    def _is_long(self, value: SSAValue, found: NDArray, length: int) -> bool:
        sizes = tuple(length if size == ANY else size for size in shape(value))
        return found.shape == sizes
