"""Nibbles and scales of a separate copy chosen for its layer's output, as `gptq` does for our own.

The same steps on the same moments: a start with the squared error weighted by E[x^2], GPTQ, the
scales of a column refitted together, then scales and nibbles improved in turns. All 16 levels of a
weight are allowed. Scales stay among those that the format has: each in its turn is moved to the
best one while the others stay. Zero points stay those of
the start. Whatever has the least error by then is kept, column by column.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import BLOCK, row_weights
from speqc.runtime.column_errors import ColumnErrors, Sweep, in_blocks, solve
from speqc.runtime.copies import (
    Copied,
    copied_values,
    copy_block,
    level_differences,
    nearest_levels,
    nearest_place,
    nibble_of,
)
from speqc.runtime.copy_formats import CopyFormat
from speqc.runtime.gptq import ROUNDS
from speqc.runtime.likely_columns import LikelyColumns, improve_judged
from speqc.runtime.likely_tokens import LikelyRows
from speqc.runtime.moments import Metric

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

_SCALE_PASSES = 4
"""Times that all scales of a column are moved, one after another."""


@dataclass(frozen=True)
class ChosenCopy:
    """Copied columns, and for each the sums of squares that `gptq.Chosen` has, float64[N]."""

    copied: Copied
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    power: NDArray[np.float64]


def choose_copy(
    bits: NDArray[np.uint16],
    form: CopyFormat,
    group_size: int,
    shift: int,
    metric: Metric,
    rounds: int = ROUNDS,
    likely: LikelyRows | None = None,
) -> ChosenCopy:
    """Copy uint16[K, N] for a small error of the layer's output, 64 columns at a time.

    Without `likely` no column's error is larger than that of `copies.encode_copy` without
    importance, as far as FP32 can tell.

    Args:
        bits, form, group_size, shift: as in `copies.encode_copy`.
        metric: of the layer's input.
        rounds: times that scales and then nibbles are improved in turns.
        likely: as in `gptq.choose`.

    Raises:
        SpeqcError: as `copies.encode_copy`.
    """
    n = bits.shape[1]

    def choose_at(start: int) -> ChosenCopy:
        block = bits[:, start : start + BLOCK]
        return _choose_block(block, form, group_size, shift, metric, rounds)

    parts = in_blocks(n, choose_at)
    nibbles, scales, zeros = (
        np.concatenate(arrays, axis=1)[:, :n]
        for arrays in zip(*(_arrays(part.copied) for part in parts), strict=True)
    )
    chosen = ChosenCopy(
        Copied(nibbles, scales, zeros, group_size),
        *(
            np.concatenate([getattr(part, name) for part in parts])[:n]
            for name in ("before", "after", "power")
        ),
    )

    def improve(columns: NDArray[np.int64], judge: LikelyColumns) -> None:
        panel = _Panel(bits[:, columns], form, group_size, shift, metric)
        panel.judge = judge
        _improve(chosen, columns, panel, rounds)

    improve_judged(metric, likely, improve)
    return chosen


def _improve(chosen: ChosenCopy, columns: NDArray[np.int64], panel: "_Panel", rounds: int) -> None:
    """Improve some columns of what was chosen as their panel judges, where it finds it better."""
    count = len(columns)
    kept = _arrays(chosen.copied)
    nibbles, scales, zeros = (array[:, columns] for array in kept)
    beyond = ((0, 0), (0, BLOCK - count))
    # A scale of a format stands in the columns beyond, since not every format has a zero.
    padded = np.pad(nibbles, beyond), np.pad(scales, beyond, mode="edge"), np.pad(zeros, beyond)
    panel.start(Copied(*padded, chosen.copied.group_size))
    least = panel.judge.loss(panel.errors)
    panel.improve(rounds)
    better = np.flatnonzero((panel.judge.loss(panel.errors) < least)[:count])
    for array, new in zip(kept, _arrays(panel.copied()), strict=True):
        array[:, columns[better]] = new[:, better]
    chosen.after[columns[better]] = panel.shared.loss(panel.errors)[better]


def _arrays(copied: Copied) -> tuple[NDArray, NDArray, NDArray]:
    return copied.nibbles, copied.scales, copied.zeros


def _choose_block(
    bits: NDArray[np.uint16],
    form: CopyFormat,
    group_size: int,
    shift: int,
    metric: Metric,
    rounds: int,
) -> ChosenCopy:
    """Copy at most 64 columns; the result has 64."""
    panel = _Panel(bits, form, group_size, shift, metric)
    best = panel.nearest(None)
    shared = panel.shared
    before = shared.loss(panel.errors_of(best))
    least = before.copy()

    def keep(found: Copied, errors: NDArray[np.float32]) -> None:
        loss = shared.loss(errors)
        better = loss < least
        least[better] = loss[better]
        for kept, new in zip(_arrays(best), _arrays(found), strict=True):
            kept[:, better] = new[:, better]

    weighted = panel.nearest(metric.importance)
    keep(weighted, panel.errors_of(weighted))
    panel.start(best)
    panel.settle()
    keep(panel.copied(), panel.errors)
    panel.refit()
    panel.settle()
    keep(panel.copied(), panel.errors)
    panel.start(best)
    panel.improve(rounds)
    keep(panel.copied(), panel.errors)
    return ChosenCopy(best, before, least, shared.loss(panel.weights))


class _Panel:
    """Columns of a weight while their nibbles and scales are chosen.

    Attributes:
        weights: float32[K, 64]. `errors`: weights less draft. `judge` says how these count.
        levels: float32[K, 64], levels less zero points.
        places: int64[G, 64], of the scales among those of the format; zeros: float32[G, 64].
    """

    def __init__(
        self,
        bits: NDArray[np.uint16],
        form: CopyFormat,
        group_size: int,
        shift: int,
        metric: Metric,
    ):
        self.bits, self.form, self.size, self.shift = bits, form, group_size, shift
        self.judge = self.shared = ColumnErrors(metric)
        self.known = form.scales(shift)
        self.scales = self.known.astype(np.float32)
        self.weights = np.zeros((len(bits), BLOCK), np.float32)
        self.weights[:, : bits.shape[1]] = bits.view(np.float16)

    def nearest(self, importance: NDArray[np.float32] | None) -> Copied:
        """The panel with the nearest nibbles."""
        weights = row_weights(importance, len(self.bits))
        return copy_block(self.bits, self.form, self.size, self.shift, weights)

    def errors_of(self, copied: Copied) -> NDArray[np.float32]:
        """Weights less draft values, float32[K, 64]."""
        return self.weights - copied_values(copied, self.form)

    def start(self, copied: Copied) -> None:
        """Begin with these nibbles, scales and zero points."""
        self.levels = level_differences(copied, self.form).astype(np.float32)
        self.places = np.searchsorted(self.known, copied.scales).astype(np.int64)
        self.zeros = copied.zeros.astype(np.float32)
        self.errors = self.errors_of(copied)

    def settle(self) -> None:
        """Choose all nibbles anew, each with its share of the errors before it."""
        self._visit(self.judge.settle)

    def descend(self) -> None:
        """Choose each nibble anew with all others as they are."""
        self._visit(self.judge.descend)

    def improve(self, rounds: int) -> None:
        """Better scales and nibbles in turns, and scales once more."""
        for _ in range(rounds):
            self.refit()
            self.descend()
        self.refit()

    def _visit(self, sweep: Sweep) -> None:
        scales = self.scales[self.places]
        inverses = np.float32(1) / scales
        grid = scales, inverses, self.zeros, self.size, self.form.integers

        def choose(rows: NDArray, target: NDArray, inner: NDArray, errors: NDArray) -> None:
            _choose_rows(rows, target, inner, self.weights, *grid, self.levels, errors)

        self.errors = sweep(self.weights, self.errors, choose)

    def refit(self) -> None:
        """Move the scales to where the output's error is less, with the nibbles as they are."""
        normal, slope = self.judge.normal_equations(self.levels, self.errors, self.size)
        if self.form.integers:
            # FP16 is fine enough to take the joint least squares, which one by one take long.
            steps = slope.copy()
            solve(normal.copy(), steps)
            _move_together(normal, slope, steps, self.scales, self.places)
        _move_singly(normal, slope, self.scales, _SCALE_PASSES, self.places)
        scales = self.scales[self.places].repeat(self.size, axis=0)[: len(self.weights)]
        self.errors = (self.weights - self.levels * scales).astype(np.float32)

    def copied(self) -> Copied:
        """The panel as it stands."""
        nibbles = np.empty(self.levels.shape, np.uint8)
        _to_nibbles(self.levels, self.zeros, self.size, self.form.integers, nibbles)
        return Copied(nibbles, self.known[self.places], self.zeros.astype(np.uint8), self.size)


@_jit
def _choose_rows(
    rows, target, inner, weights, scales, inverses, zeros, size, integers, levels, errors
):
    """`gptq.Choose` for a copy: each row of a stripe takes the levels nearest to its target."""
    level = np.empty(BLOCK, np.float32)
    change = np.empty(BLOCK, np.float32)
    for j in range(rows.size):
        row = rows[j]
        group = row // size
        nearest_levels(target[j], inverses[group], zeros[group], integers, level)
        for n in range(BLOCK):
            levels[row, n] = level[n]
            error = weights[row, n] - level[n] * scales[group, n]
            change[n] = error - errors[j, n]
            errors[j, n] = error
        for i in range(j + 1, rows.size):
            factor = inner[i, j]
            for n in range(BLOCK):
                target[i, n] += factor * change[n]


@_jit
def _move(normal, slope, scales, places, group, n, wanted):
    """Move a scale to the nearest to what is wanted, and the slopes of all with it."""
    old, new = places[group, n], nearest_place(scales, wanted)
    if new == old:
        return
    step = np.float64(scales[new]) - np.float64(scales[old])
    places[group, n] = new
    for other in range(slope.shape[0]):
        slope[other, n] -= normal[max(group, other), min(group, other), n] * step


@_jit
def _move_together(normal, slope, steps, scales, places):
    """Move scales by `steps`; those that would not be positive stay."""
    wanted = np.empty(slope.shape[0])
    for n in range(slope.shape[1]):
        for group in range(slope.shape[0]):
            wanted[group] = scales[places[group, n]] + steps[group, n]
        for group in range(slope.shape[0]):
            if wanted[group] > 0:
                _move(normal, slope, scales, places, group, n, wanted[group])


@_jit
def _move_singly(normal, slope, scales, passes, places):
    """Move one scale after another to the best that there is while all others stay."""
    for n in range(slope.shape[1]):
        for _ in range(passes):
            for group in range(slope.shape[0]):
                if normal[group, group, n] > 0:
                    step = slope[group, n] / normal[group, group, n]
                    wanted = scales[places[group, n]] + step
                    _move(normal, slope, scales, places, group, n, wanted)


@_jit
def _to_nibbles(levels, zeros, size, integers, nibbles):
    for k in range(levels.shape[0]):
        for n in range(levels.shape[1]):
            nibbles[k, n] = nibble_of(levels[k, n], zeros[k // size, n], integers)
