"""Position biases (ALiBi): a slope for each head times a position, found in samples of a bias.

Exporters write the bias as a product with key positions, with distances, with a table counted from
the last key, rounded here or there. What they wrote is evaluated; here slopes, origin and rounding
are searched that give the same bits at every sample.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import AnyFloat, f16, f32

from speqc.dialects.speq import BiasOrigin, PositionBiasAttr
from speqc.runtime.attention import PositionBias
from speqc.runtime.ir_values import numpy_dtype

ROUNDINGS: tuple[tuple[AnyFloat, AnyFloat], ...] = ((f32, f32), (f32, f16), (f16, f16))
"""Types that position and product may be rounded to."""

NEARLY = 2.0**-7
"""How far, relatively, a slope may be from the quotient of a bias and its position."""


@dataclass(frozen=True)
class BiasSample:
    """A bias in one step: `values` [H, rows, past + rows] in FP32, `seen` bool of that shape."""

    past: int
    values: NDArray[np.float32]
    seen: NDArray[np.bool_]


@dataclass(frozen=True)
class Bias:
    """Slopes, where positions count from, and what they and products are rounded to.

    With `from_last` the file counts from the last key of a step, the attention from the row.
    """

    origin: BiasOrigin
    slopes: tuple[float, ...]
    position_type: AnyFloat
    product_type: AnyFloat
    from_last: bool = False

    def values(self, rows: int, past: int) -> NDArray[np.float32]:
        """What the file adds in a step, [H, rows, past + rows]; infinite where a row sees no key.

        If positions count from 0, keys behind the row have theirs too.
        """
        from_row = self.origin == BiasOrigin.ROW
        types = numpy_dtype(self.position_type), numpy_dtype(self.product_type)
        table = PositionBias(self.slopes, from_row, *types).table(past + rows)
        keys = np.arange(past + rows)
        if not from_row:
            return np.broadcast_to(table[:, None, :], (len(table), rows, past + rows))
        behind = past + np.arange(rows)[:, None] - keys
        away = np.broadcast_to(past + rows - 1 - keys, behind.shape) if self.from_last else behind
        return np.where(behind >= 0, table[:, np.maximum(away, 0)], np.float32(np.inf))

    def attribute(self, sum_type: AnyFloat, heads: int) -> PositionBiasAttr:
        """The attribute of an attention with as many heads whose sums are rounded to `sum_type`."""
        slopes = self.slopes * (heads if len(self.slopes) == 1 else 1)
        types = self.position_type, self.product_type, sum_type
        return PositionBiasAttr(self.origin, slopes, *types)


def find_bias(samples: Sequence[BiasSample]) -> Bias | None:
    """The bias that gives all samples, bit for bit, where they are seen; None if there is none.

    A bias that counts from a step's last key (MPT) is taken for one that counts from the row, which
    it is in a step of one row. In others it differs by a constant for each row, which does not
    change a softmax but for roundings.
    """
    for origin, from_last, (places, values) in _countings(samples):
        for position_type, product_type in ROUNDINGS:
            empty = Bias(origin, (), position_type, product_type, from_last)
            slopes = [_slope(places, row, empty) for row in values]
            found = tuple(slope for slope in slopes if slope is not None)
            if len(found) == len(slopes):
                return replace(empty, slopes=found)
    return None


Counted = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Positions [n], 0, 1, ... or 0, -1, ..., and biases [H, n] there."""


def _countings(samples: Sequence[BiasSample]) -> Iterator[tuple[BiasOrigin, bool, Counted]]:
    """Each way to count positions in which the bias is a function of the position."""
    for origin, from_last in (
        (BiasOrigin.START, False),
        (BiasOrigin.ROW, False),
        (BiasOrigin.ROW, True),
    ):
        counted = _merged(_places(sample, origin, from_last) for sample in samples)
        if counted is not None:
            yield origin, from_last, counted


def _places(sample: BiasSample, origin: BiasOrigin, from_last: bool) -> Counted:
    """Positions and biases of what all heads see in a sample."""
    _, rows, total = sample.values.shape
    keys = np.arange(total)
    row = np.full(rows, total - 1) if from_last else sample.past + np.arange(rows)
    start = np.zeros(rows, np.int64) if origin == BiasOrigin.START else row
    places = keys - start[:, None]
    seen = sample.seen.all(0) & (keys <= sample.past + np.arange(rows)[:, None])
    return places[seen], sample.values[:, seen]


def _merged(samples: Iterable[Counted]) -> Counted | None:
    """One bias for each position; None if two samples differ there."""
    parts = list(samples)
    places = np.concatenate([part[0] for part in parts])
    values = np.concatenate([part[1] for part in parts], axis=1)
    unique, first, inverse = np.unique(places, return_index=True, return_inverse=True)
    merged = values[:, first]
    return (unique, merged) if np.array_equal(merged[:, inverse], values) else None


def _slope(places: NDArray[np.int64], values: NDArray[np.float32], bias: Bias) -> float | None:
    """The slope that gives all values at their positions, None if there is none.

    Rounding is monotone, so that the slopes that fit lie in an interval. Of these the one with
    the shortest significand is taken.
    """
    farthest = np.abs(np.where(np.isfinite(values), places, 0)).argmax()
    if places[farthest] == 0:
        return None
    guess = np.float32(values[farthest] / np.float32(places[farthest]))
    sign = np.float32(-1 if guess < 0 else 1)
    away = np.abs(places).astype(np.float32)
    wanted = values * np.where(places < 0, -sign, sign).astype(np.float32)
    with np.errstate(over="ignore"):
        rounded = away.astype(numpy_dtype(bias.position_type)).astype(np.float32)
    product_dtype = numpy_dtype(bias.product_type)

    def products(bits: int) -> NDArray[np.float32]:
        slope = np.array(bits, np.uint32).view(np.float32)
        with np.errstate(over="ignore"):
            return (slope * rounded).astype(product_dtype).astype(np.float32)

    ends = [abs(float(guess)) * (1 + way) for way in (-NEARLY, NEARLY)]
    low, high = (int(np.array(end, np.float32).view(np.uint32)) for end in ends)
    least = _first(low, high, lambda bits: bool((products(bits) >= wanted).all()))
    past = _first(low, high, lambda bits: bool((products(bits) > wanted).any()))
    if least >= past or not np.array_equal(products(least), wanted):
        return None
    return float(sign * np.array(_shortest(least, past - 1), np.uint32).view(np.float32))


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number from `low` to `high` for which a monotone condition holds, else high + 1."""
    high += 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _shortest(low: int, high: int) -> int:
    """The number from `low` to `high` with the most zero bits at its end."""
    for zeros in range(23, 0, -1):
        rounded = -(-low >> zeros) << zeros
        if rounded <= high:
            return rounded
    return low
