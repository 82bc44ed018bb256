"""Which weights a draft should read wider: gain in accepted tokens against simulated time.

A round drafts a number of tokens and verifies them in one full pass. Reading a weight in a wider
view makes every draft step slower by some cycles, and a round longer by some accepted tokens. Gains
are taken to add up. The speedup is then a sum over a sum, and the best set for it can be found
greedily: steps along each weight's own frontier, the largest gain for a cycle first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from speqc.dialects.speq import View, WeightOp
from speqc.runtime import costs
from speqc.runtime.target import Target
from speqc.runtime.weight_traffic import weight_traffic

CELLS = 10_000
"""Steps in which `most_gain_within` counts bits."""


@dataclass(frozen=True)
class Option:
    """A view of a weight, beside its draft.

    Attributes:
        view: what the draft would read.
        gain: accepted tokens more in a round.
        cycles: more in each draft step.
        bits: read more in each draft step, in all.
    """

    view: View
    gain: float
    cycles: float
    bits: int


@dataclass(frozen=True)
class Round:
    """A round with narrow drafts alone, and what it is compared with.

    Attributes:
        tokens: emitted in a round, the full model's own included.
        draft_steps: passes of the draft in a round.
        draft_cycles, verify_cycles, plain_cycles: of a draft step, of the pass that verifies, and
            of a pass of plain decoding, which emits one token.
        draft_bits: that a draft step reads of all weights; `weights` is their number.
    """

    tokens: float
    draft_steps: float
    draft_cycles: float
    verify_cycles: float
    plain_cycles: float
    draft_bits: int = 0
    weights: int = 0


@dataclass(frozen=True)
class Point:
    """A set of views on the trade-off curve.

    Attributes:
        views: what drafts read of weights that are not read as drafts.
        tokens: emitted in a round.
        cycles: of a round.
        speedup: over plain decoding.
        bits_per_weight: that a draft step reads; None where they were not given.
    """

    views: Mapping[str, View]
    tokens: float
    cycles: float
    speedup: float
    bits_per_weight: float | None


@dataclass(frozen=True)
class _Step:
    """From one view of a weight to a wider one: what that adds."""

    weight: str
    view: View
    gain: float
    cycles: float
    bits: int


def trade_off(
    base: Round, options: Mapping[str, Sequence[Option]], most_bits: float | None = None
) -> list[Point]:
    """The curve from narrow drafts alone to all steps that gain anything.

    With `most_bits`, a weight that would bring the mean bits of a weight above it stays as it is.
    Raises ValueError where `most_bits` is given and the numbers of bits or weights are not.
    """
    if most_bits is not None and not base.weights:
        raise ValueError("a limit on bits needs the number of weights")
    steps = sorted(_steps(options), key=_worth, reverse=True)
    views: dict[str, View] = {}
    closed: set[str] = set()
    gain = cycles = 0.0
    bits = base.draft_bits
    points = [_point(base, views, gain, cycles, bits)]
    for step in steps:
        if step.weight in closed:
            continue
        if most_bits is not None and bits + step.bits > most_bits * base.weights:
            closed.add(step.weight)
            continue
        views = {**views, step.weight: step.view}
        gain, cycles, bits = gain + step.gain, cycles + step.cycles, bits + step.bits
        points.append(_point(base, views, gain, cycles, bits))
    return points


def most_gain_within(options: Mapping[str, Sequence[Option]], bits: float) -> dict[str, View]:
    """Of all sets of views that read at most so many bits more, the one of the highest gain.

    Exact but for the grid of 10,000 cells on which bits are counted, each option's rounded up.
    """
    unit = max(bits, 1) / CELLS
    best = np.zeros(CELLS + 1)
    taken: list[NDArray[np.int64]] = []
    for own in options.values():
        before, choice = best, np.full(CELLS + 1, -1)
        best = before.copy()
        for number, option in enumerate(own):
            size = ceil(option.bits / unit)
            if size > CELLS:
                continue
            gains = before[: CELLS + 1 - size] + option.gain
            better = np.flatnonzero(gains > best[size:]) + size
            best[better], choice[better] = gains[better - size], number
        taken.append(choice)
    views: dict[str, View] = {}
    room = CELLS
    for (weight, own), choice in reversed(list(zip(options.items(), taken, strict=True))):
        if choice[room] >= 0:
            option = own[choice[room]]
            views[weight] = option.view
            room -= ceil(option.bits / unit)
    return views


def best_point(points: Iterable[Point]) -> Point:
    """The point of the highest speedup, the first of equal ones."""
    return max(points, key=lambda point: point.speedup)


def _point(base: Round, views: Mapping[str, View], gain: float, cycles: float, bits: int) -> Point:
    tokens = base.tokens + gain
    total = base.draft_steps * (base.draft_cycles + cycles) + base.verify_cycles
    speedup = tokens * base.plain_cycles / total
    mean = bits / base.weights if base.weights else None
    return Point(views, tokens, total, speedup, mean)


def _steps(options: Mapping[str, Sequence[Option]]) -> list[_Step]:
    return [step for weight, own in options.items() for step in _frontier(weight, own)]


def _frontier(weight: str, options: Sequence[Option]) -> list[_Step]:
    """The steps along the upper hull of a weight's options: each gains less for a cycle.

    What gains nothing, or less than a cheaper option, is on no step.
    """
    hull = [Option(View.DRAFT, 0.0, 0.0, 0)]
    for option in sorted(options, key=lambda option: (option.cycles, -option.gain)):
        if option.gain <= hull[-1].gain:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return [
        _Step(
            weight,
            after.view,
            after.gain - before.gain,
            after.cycles - before.cycles,
            after.bits - before.bits,
        )
        for before, after in pairwise(hull)
    ]


def _slope(before: Option, after: Option) -> float:
    """Gain for a cycle; infinite where it is for nothing."""
    cycles = after.cycles - before.cycles
    return (after.gain - before.gain) / cycles if cycles > 0 else float("inf")


def _worth(step: _Step) -> float:
    return step.gain / step.cycles if step.cycles > 0 else float("inf")


def view_cycles(weight: WeightOp, view: View, target: Target) -> int:
    """Cycles for which a product of one row keeps the busier of DRAM channel and array."""
    facts = weight_traffic(weight, view)._asdict()
    cost = costs.gemm(*weight.shape, 1, target, **facts)
    return max(cost.load_cycles, cost.unit_cycles)


def view_bits(weight: WeightOp, view: View, target: Target) -> int:
    """Bits that a product reads of a weight, scales and padding included."""
    facts = weight_traffic(weight, view)._asdict()
    return 8 * costs.gemm(*weight.shape, 1, target, **facts).stream_bytes


def view_options(weight: WeightOp, gains: Mapping[View, float], target: Target) -> list[Option]:
    """The options of a split weight from the gain of each wider view, timed on a target."""
    cycles, bits = (measure(weight, View.DRAFT, target) for measure in (view_cycles, view_bits))
    return [
        Option(
            view,
            gain,
            max(0, view_cycles(weight, view, target) - cycles),
            view_bits(weight, view, target) - bits,
        )
        for view, gain in gains.items()
    ]
