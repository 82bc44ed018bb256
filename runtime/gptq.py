"""Codes and scales of a weight chosen for its layer's output: GPTQ inside the allowed codes.

A weight's exponent and mantissa are stored whatever its draft code is, so the code may be any that
owns the exponent. Rows are settled one after another, each taking the allowed level nearest to its
weight plus its share of the errors before it (GPTQ); the scales of a column are refitted together;
then codes and scales improve in turns. A column that does not gain keeps its nearest codes.

All is done on panels of 64 columns, and no column knows of another: the bits do not depend on how
a weight is cut into panels, nor on the threads that work on them.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import (
    BLOCK,
    Encoded,
    draft_values,
    encode_block,
    row_weights,
)
from speqc.runtime.codebook import (
    EXPONENTS,
    TABLES,
    CodeBook,
    class_of,
    scale_class,
)
from speqc.runtime.column_errors import ColumnErrors, Sweep, in_blocks, solve
from speqc.runtime.likely_columns import LikelyColumns, improve_judged
from speqc.runtime.likely_tokens import LikelyRows
from speqc.runtime.moments import Metric
from speqc.runtime.table_choice import (
    best_table,
    held_exponents,
    table_errors,
    table_of,
    with_table,
)

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

ROUNDS = 2
"""Times that scales and then codes are improved in turns."""

_INFINITY = np.uint16(0x7C00)


@dataclass(frozen=True)
class Chosen:
    """Encoded columns, and for each the sum of squared errors of the layer's output, float64[N].

    `before`: with what `bsfp.encode` chooses without any data; `after`: with what was chosen here;
    `power`: of the output itself. All in units of the inputs' mean power; 0 where a column has Inf
    or NaN.
    """

    encoded: Encoded
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    power: NDArray[np.float64]


def choose(
    bits: NDArray[np.uint16],
    book: CodeBook,
    group_size: int,
    shift: int,
    metric: Metric,
    rounds: int = ROUNDS,
    likely: LikelyRows | None = None,
) -> Chosen:
    """Encode uint16[K, N] as `choose_block` does, 64 columns at a time; the result has N.

    With `likely`, which is for these columns of the head, those that were candidates often enough
    are then improved where they were (`likely_columns`). What that costs elsewhere is in `after`.
    """
    n = bits.shape[1]

    def choose_at(start: int) -> Chosen:
        block = bits[:, start : start + BLOCK]
        return choose_block(block, book, group_size, shift, metric, rounds)

    parts = in_blocks(n, choose_at)
    codes, rest, scales = (
        np.concatenate(arrays, axis=1)[:, :n]
        for arrays in zip(*(_arrays(part.encoded) for part in parts), strict=True)
    )
    chosen = Chosen(
        Encoded(codes, rest, scales, group_size),
        np.concatenate([part.before for part in parts])[:n],
        np.concatenate([part.after for part in parts])[:n],
        np.concatenate([part.power for part in parts])[:n],
    )

    def improve(columns: NDArray[np.int64], judge: LikelyColumns) -> None:
        panel = _Panel(bits[:, columns], book, group_size, shift, metric)
        panel.judge = judge
        _improve(chosen, columns, panel, rounds)

    improve_judged(metric, likely, improve)
    return chosen


def _improve(chosen: Chosen, columns: NDArray[np.int64], panel: "_Panel", rounds: int) -> None:
    """Improve some columns of what was chosen as their panel judges, where it finds it better."""
    kept, size = _arrays(chosen.encoded), chosen.encoded.group_size
    codes, rest, scales = (_panel_of(array[:, columns]) for array in kept)
    panel.start(Encoded(codes, rest, scales, size))
    least = panel.judge.loss(panel.errors)
    panel.improve(rounds)
    found = panel.encoded()
    errors = panel.errors_of(found)
    better = np.flatnonzero((panel.judge.loss(errors) < least)[: len(columns)])
    for array, new in zip(kept, _arrays(found), strict=True):
        array[:, columns[better]] = new[:, better]
    chosen.after[columns[better]] = panel.loss(errors)[better]


def _panel_of(columns: NDArray) -> NDArray:
    """Columns, with zeros up to 64."""
    return np.pad(columns, ((0, 0), (0, BLOCK - columns.shape[1])))


def choose_block(
    bits: NDArray[np.uint16],
    book: CodeBook,
    group_size: int,
    shift: int,
    metric: Metric,
    rounds: int = ROUNDS,
) -> Chosen:
    """Encode at most 64 columns for a small error of the layer's output.

    No column's error is larger than that of `bsfp.encode` without importance, as far as FP32 can
    tell. A column with Inf or NaN keeps what that chooses.

    Args:
        bits, book, group_size, shift: as in `bsfp.encode_block`, whose result this has.
        metric: of the layer's input, as wide as the block is deep.
        rounds: times that scales and then codes are improved in turns.

    Raises:
        SpeqcError: as `bsfp.encode`.
    """
    panel = _Panel(bits, book, group_size, shift, metric)
    plain = panel.nearest(None)
    before = panel.loss(panel.errors_of(plain))
    best, least = plain, before.copy()

    def keep(found: Encoded) -> None:
        loss = panel.loss(panel.errors_of(found))
        better = loss < least
        least[better] = loss[better]
        for kept, new in zip(_arrays(best), _arrays(found), strict=True):
            kept[:, better] = new[:, better]

    keep(panel.nearest(metric.importance))
    panel.start(best)
    panel.settle()
    keep(panel.encoded())
    panel.refit(keep_codes=False)
    panel.settle()
    keep(panel.encoded())
    panel.start(best)
    panel.improve(rounds)
    keep(panel.encoded())
    return Chosen(best, before, least, panel.loss(panel.weights))


def _arrays(encoded: Encoded) -> tuple[NDArray, NDArray, NDArray]:
    return encoded.codes, encoded.rest, encoded.scales


class _Panel:
    """Columns of a weight while their codes and scales are chosen.

    Attributes:
        weights: float32[K, 64], 0 in columns with Inf or NaN. `errors`: weights less draft.
        fields: uint8[K, 64], exponents as they are stored.
        codes: uint8[K, 64]; patterns: uint16[G, 64], bits of the scales.
        judge: says how errors count.
    """

    def __init__(
        self,
        bits: NDArray[np.uint16],
        book: CodeBook,
        group_size: int,
        shift: int,
        metric: Metric,
    ):
        self.book, self.size, self.shift = book, group_size, shift
        self.judge = self._shared = ColumnErrors(metric)
        self.source = bits
        self.columns = bits.shape[1]
        self.bits = np.zeros((len(bits), BLOCK), np.uint16)
        self.bits[:, : self.columns] = bits
        finite = (self.bits & _INFINITY != _INFINITY).all(axis=0)
        self.weights = np.where(finite, self.bits, 0).view(np.float16).astype(np.float32)
        self.finite = finite
        self.fields = np.maximum((self.bits >> 10 & 31).astype(np.int16) - shift, 0).astype(
            np.uint8
        )
        self.levels = tuple(book.levels.astype(np.float32))

    def nearest(self, importance: NDArray[np.float32] | None) -> Encoded:
        """The panel with the nearest codes."""
        weights = row_weights(importance, len(self.bits))
        return encode_block(self.source, self.book, self.size, self.shift, weights)

    def errors_of(self, encoded: Encoded) -> NDArray[np.float32]:
        """Weights less draft values, float32[K, 64]."""
        levels = draft_values(encoded.codes, self.book).astype(np.float32)
        scales = np.abs(encoded.scales).astype(np.float32).repeat(self.size, axis=0)
        draft = levels * scales[: len(levels)]
        return np.where(self.finite, self.weights - draft, np.float32(0))

    def loss(self, errors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Squared error of the layer's output for each column, float64[64]."""
        return self._shared.loss(errors)

    def start(self, encoded: Encoded) -> None:
        """Begin with these codes and scales."""
        self.codes = encoded.codes & np.uint8(7)
        self.patterns = encoded.scales.view(np.uint16).copy()
        self.errors = self.errors_of(encoded)

    def settle(self) -> None:
        """Choose all codes anew, each with its share of the errors before it."""
        self._visit(self.judge.settle)

    def descend(self) -> None:
        """Choose each code anew with all others as they are: no step makes the output worse."""
        self._visit(self.judge.descend)

    def improve(self, rounds: int) -> None:
        """Better scales and codes in turns, and scales once more."""
        for _ in range(rounds):
            self.refit(keep_codes=True)
            self.descend()
        self.refit(keep_codes=True)

    def _visit(self, sweep: Sweep) -> None:
        """Let each row take the allowed levels that are nearest to what a sweep aims at."""
        if not self.book.scale_indexed:
            return
        magnitudes = np.abs(self.patterns.view(np.float16)).astype(np.float32)

        def choose(rows: NDArray, target: NDArray, inner: NDArray, errors: NDArray) -> None:
            _choose_rows(
                rows,
                target,
                inner,
                self.weights,
                self.fields,
                self.patterns,
                magnitudes,
                self.size,
                self.levels,
                self.book.allowed,
                self.codes,
                errors,
            )

        found = sweep(self.weights, self.errors, choose)
        self.errors = np.where(self.finite, found, np.float32(0))

    def refit(self, *, keep_codes: bool) -> None:
        """Give all scales of a column their joint least squares, as far as tables allow.

        With `keep_codes` a scale may move only to where the codes of its group stay allowed, else
        to where some table holds the group: the codes are then to be chosen anew.
        """
        drafts = draft_values(self._nibbles(), self.book).astype(np.float32)
        scales = np.abs(self.patterns.view(np.float16)).astype(np.float64)
        wanted = scales + self._scale_steps(drafts)
        rounded = np.clip(np.where(self.finite, wanted, scales), 0, 65504).astype(np.float16)
        patterns = rounded.view(np.uint16)
        if self.book.scale_indexed:
            _move_scales(
                patterns,
                self.fields,
                self.codes,
                self.size,
                self.book.allowed,
                held_exponents(self.book),
                table_errors(self.book),
                keep_codes,
                self.patterns,
            )
        else:
            stay = (patterns == 0) | (self.patterns == 0)
            self.patterns = np.where(stay, self.patterns, patterns)
        self.errors = self.errors_of(self.encoded())

    def _nibbles(self) -> NDArray[np.uint8]:
        """The codes as they are stored, with the weights' signs, uint8[K, 64]."""
        return self.codes | (self.bits >> 15 << 3).astype(np.uint8)

    def _scale_steps(self, drafts: NDArray[np.float32]) -> NDArray[np.float64]:
        """What to add to the scales for the least squared error of the output, float64[G, 64]."""
        normal, slope = self.judge.normal_equations(drafts, self.errors, self.size)
        solve(normal, slope)
        return slope

    def encoded(self) -> Encoded:
        """The panel as it stands, with zeros in the columns beyond the weight's."""
        rows = len(self.bits)
        classes = scale_class(self.patterns).repeat(self.size, axis=0)[:rows]
        slots = self.book.slots[classes, self.codes, self.fields].astype(np.uint16)
        codes = self._nibbles()
        rest = (slots << np.uint16(10)) | (self.bits & np.uint16(1023))
        scales = self.patterns.copy()
        for part in (codes, rest, scales):
            part[:, self.columns :] = 0
        return Encoded(codes, rest, scales.view(np.float16), self.size)


@_jit
def _move_scales(wanted, fields, codes, size, allowed, held, expected, keep_codes, patterns):
    """Set scales to those wanted, or to the end of their class on that side, which always serves.

    With `keep_codes` the table stays if it can, or another one that has the codes serves; else the
    one of least expected error that has the exponents. Scales that would not be positive stay.
    """
    counts = np.empty(EXPONENTS, np.int64)
    totals = np.empty(TABLES, np.int64)
    for group in range(wanted.shape[0]):
        rows = slice(group * size, (group + 1) * size)
        for n in range(wanted.shape[1]):
            old = patterns[group, n]
            if wanted[group, n] == 0 or old & 0x7FFF == 0:
                continue
            if keep_codes:
                found = _table_with_codes(
                    wanted[group, n], old, fields[rows, n], codes[rows, n], allowed
                )
            else:
                found = _table_with_exponents(
                    wanted[group, n], fields[rows, n], counts, held, expected, totals
                )
            patterns[group, n] = found if found else _nearest_of_class(wanted[group, n], old)


@_jit
def _table_with_codes(wanted, old, fields, codes, allowed):
    """The wanted scale with a table that has these codes, that of the old one first; or 0."""
    used = table_of(old)
    for turn in range(TABLES):
        found = with_table(wanted, used ^ turn)
        owners = allowed[class_of(found)]
        serves = True
        for k in range(fields.size):
            if owners[fields[k]] >> codes[k] & 1 == 0:
                serves = False
                break
        if serves:
            return found
    return np.uint16(0)


@_jit
def _table_with_exponents(wanted, fields, counts, held, expected, totals):
    """The wanted scale with the best table that has these exponents; or 0."""
    counts[:] = 0
    needed = np.uint32(0)
    for field in fields:
        counts[field] += 1
        needed |= np.uint32(1) << np.uint32(field)
    table = best_table(wanted, needed, counts, held, expected, totals)
    holds = held[np.int64(wanted) >> 9, table] & needed == needed
    return with_table(wanted, table) if holds else np.uint16(0)


@_jit
def _nearest_of_class(wanted, old):
    """The first or last scale with the old one's table and half octave, whichever is on that side.

    The wanted one itself, but for its last bits, where it is one of them.
    """
    table = table_of(old)
    first = with_table(old & np.uint16(0xFE00), table)
    stop = with_table(old | np.uint16(0x01FF), table)
    return min(max(with_table(wanted, table), first), stop)


@_jit
def _choose_rows(
    order,
    target,
    coupling,
    weights,
    fields,
    patterns,
    magnitudes,
    size,
    levels,
    allowed,
    codes,
    errors,
):
    """Give each row of a stripe the level nearest to its target, and pass its new error on.

    `target` float32[rows, 64] counts the errors float32[rows, 64] as they come in; `coupling`
    float32[rows, rows] says how much of a change of an error goes to the rows after it.
    """
    mask = np.empty(BLOCK, np.int32)
    unit = np.empty(BLOCK, np.float32)
    scale = np.empty(BLOCK, np.float32)
    sign = np.empty(BLOCK, np.float32)
    nearest = np.empty(BLOCK, np.float32)
    level = np.empty(BLOCK, np.float32)
    code = np.empty(BLOCK, np.int32)
    for j in range(order.size):
        row = order[j]
        group = row // size
        for n in range(BLOCK):
            mask[n] = allowed[class_of(patterns[group, n]), fields[row, n]]
        for n in range(BLOCK):
            scale[n] = magnitudes[group, n]
            sign[n] = np.copysign(np.float32(1), weights[row, n])
            unit[n] = target[j, n] * sign[n] / scale[n] if scale[n] > 0 else np.float32(0)
            nearest[n] = np.inf
            level[n] = 0
            code[n] = 0
        for c in range(8):
            for n in range(BLOCK):
                away = abs(unit[n] - levels[c])
                if mask[n] >> c & 1 and away < nearest[n]:
                    nearest[n] = away
                    level[n] = levels[c]
                    code[n] = c
        for n in range(BLOCK):
            codes[row, n] = code[n]
            error = weights[row, n] - sign[n] * level[n] * scale[n]
            # What is passed on is the change.
            unit[n] = error - errors[j, n]
            errors[j, n] = error
        for i in range(j + 1, order.size):
            factor = coupling[i, j]
            for n in range(BLOCK):
                target[i, n] += factor * unit[n]
