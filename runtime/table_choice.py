"""How the encoder picks one of the tables of a scale-indexed code book: by the error to expect.

A class of scales has several tables. All hold a group's exponents, so that none loses a bit; they
differ in the codes that an exponent may take. Which one suits a group depends on how many of its
weights have each exponent, and the sum of these expected errors tells well enough.
"""

import threading
from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.codebook import CODES, EXPONENTS, TABLE_BITS, TABLES, CodeBook

MISS = 0.1
"""Calibration aims beside the weights: the standard deviation of by how much, in their rms.

Tables that are good for weights alone leave it too little choice. Found on SmolLM2-135M
(docs/calibration.md, "What was tried").
"""

LAST_BITS = np.uint16(TABLES // 2 - 1)
"""The bits of a scale that, with its sign, say which of its tables."""

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

_SUBSETS = 1 << CODES
_STEP = 1 / 128
"""Distance of the points between which expected errors are interpolated, in scales."""
_POINTS, _MANTISSAS = 24, 8
"""Points in an octave of weights and in a half octave of scales that stand for all."""
_LOWEST = -16
"""Octave of |w| / scale below which weights count as zeros."""
_UNIT = 2**16
"""Expected errors are counted in parts of this: integers, whose sums need no order."""
_WORST = 64 * _UNIT
_HALVES = ((0, np.log2(1.5)), (np.log2(1.5), 1))
"""Scale mantissas, as logarithms, with a first bit of 0 or 1."""


def missed_errors(
    points: NDArray[np.float64], levels: NDArray[np.float64], rms: float = 1.0
) -> NDArray[np.float64]:
    """Expected squared distance to the nearest allowed level, float64[256, P], in squared scales.

    Args:
        points: float64[P], weights' magnitudes in scales. What is aimed at misses them by a normal
            deviate of `MISS` rms.
        levels: float64[8] in scales. Bit c of a row's number says whether level c is allowed; in
            row 0, where none is, everything is infinite.
        rms: of the weights, in scales.
    """
    deviation = MISS * rms
    reach = int(np.ceil(4 * deviation / _STEP))
    shares = np.exp(-0.5 * (np.arange(-reach, reach + 1) * _STEP / deviation) ** 2)
    places = int(points.max() / _STEP) + 2
    aims = np.arange(-reach, places + reach) * _STEP
    distances = (aims - levels[:, None]) ** 2
    nearest = np.full((_SUBSETS, len(aims)), np.inf)
    for subset in range(1, _SUBSETS):
        lowest = subset & -subset
        np.minimum(
            nearest[subset - lowest], distances[lowest.bit_length() - 1], out=nearest[subset]
        )
    expected = np.zeros((_SUBSETS - 1, places))
    for first, share in enumerate(shares / shares.sum()):
        expected += share * nearest[1:, first : first + places]
    left = (points / _STEP).astype(np.int64)
    part = points / _STEP - left
    found = np.full((_SUBSETS, len(points)), np.inf)
    found[1:] = expected[:, left] * (1 - part) + expected[:, left + 1] * part
    return found


@cache
def held_exponents(book: CodeBook) -> NDArray[np.uint32]:
    """uint32[64, 16]: bit e is set where a table, by the scale's field and first bit, has e."""
    return _by_kind(book.held)


def table_errors(book: CodeBook) -> NDArray[np.int64]:
    """int64[64, 32, 16]: expected squared error of a weight with this exponent in each table.

    In 2^-16 squared scales, by the scale's exponent field and first mantissa bit; large where the
    table lacks the exponent. Weights are taken to be spread evenly over the logarithms of an
    octave, and scales over those of a half octave. Those with exponent field 0, zeros among them,
    count as the largest that it has.
    """
    with _lock:
        return _table_errors(book)


_lock = threading.Lock()
"""Threads that encode ask for the same errors at once; one finds them."""


@cache
def _table_errors(book: CodeBook) -> NDArray[np.int64]:
    octaves = np.arange(_LOWEST, 4 + book.octave)
    spread = (np.arange(_POINTS) + 0.5) / _POINTS
    shares = (np.arange(_MANTISSAS) + 0.5) / _MANTISSAS
    mantissas = np.array([first + (last - first) * shares for first, last in _HALVES])
    logs = (octaves[:, None] + spread)[None, :, None] - mantissas[:, None, :, None]
    points = 2.0 ** logs.reshape(-1)
    expected = missed_errors(points, book.levels.astype(np.float64), book.rms)
    expected = expected.reshape(_SUBSETS, *logs.shape).mean(axis=(3, 4))
    expected = np.minimum(expected * _UNIT, _WORST)
    allowed = _by_kind(book.allowed)
    exponents = np.arange(EXPONENTS)
    errors = np.empty((2 * EXPONENTS, EXPONENTS, TABLES), np.int64)
    for field in range(EXPONENTS):
        places = np.clip(exponents - field - _LOWEST, 0, len(octaves) - 1)
        for half in range(2):
            kind = 2 * field + half
            found = expected[allowed[kind], half, places]
            errors[kind] = np.rint(found).T
    errors.flags.writeable = False
    return errors


def _by_kind(values: NDArray) -> NDArray:
    """What belongs to classes, [1024, ...], by the scale's field and first bit: [64, 16, ...]."""
    signs = values.reshape(2, 2 * EXPONENTS, TABLES // 2, *values.shape[1:])
    return np.ascontiguousarray(np.moveaxis(signs, 0, 1)).reshape(
        2 * EXPONENTS, TABLES, *values.shape[1:]
    )


@_jit
def with_table(pattern, table):
    """The scale with the bits that pick a table in place of its own: moved by less than 8 units.

    A subnormal one has no bits to spare but its sign.
    """
    sign = np.uint16(table >> TABLE_BITS << 15)
    magnitude = pattern & np.uint16(0x7FFF)
    if magnitude < 0x0400:
        return magnitude | sign
    return magnitude & ~LAST_BITS | sign | np.uint16(table) & LAST_BITS


@_jit
def table_of(pattern):
    """Which of its tables a scale picks; of a subnormal one only the sign counts."""
    last = pattern & LAST_BITS if pattern & 0x7FFF >= 0x0400 else np.uint16(0)
    return np.int64(pattern) >> 15 << TABLE_BITS | np.int64(last)


@_jit
def best_table(pattern, needed, counts, held, expected, totals):
    """Which of a scale's tables is expected to have the least error, of those that hold its group.

    `counts` int64[32] has the number of weights with each exponent, and bit e of `needed` says
    whether there are any; `held` and `expected` are those of the book, and `totals` int64[16] is
    room to work in. It is table 0 where none holds them.
    """
    kind = np.int64(pattern & np.uint16(0x7FFF)) >> 9
    totals[:] = 0
    for exponent in range(EXPONENTS):
        if counts[exponent]:
            for table in range(TABLES):
                totals[table] += counts[exponent] * expected[kind, exponent, table]
    best = -1
    for table in range(TABLES):
        holds = held[kind, table] & needed == needed
        if holds and (best < 0 or totals[table] < totals[best]):
            best = table
    return max(best, 0)
