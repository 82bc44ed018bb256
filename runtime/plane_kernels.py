"""Kernels of `planes`: rows of 64 nibbles in and out of bytes, and into FP16 patterns.

A byte holds the nibbles of an even column (low) and the odd one behind it. Loops go over a row at a
time and are short, so that the compiler turns all but the look-ups into vector code.
"""

import numba
import numpy as np

from speqc.runtime.bsfp import BLOCK

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

PAIRS = BLOCK // 2


@_jit
def pack_block(codes, rest, draft, leading, middle, low):
    """Lay F uint8[K, 64] and R uint16[K, 64] out as four planes uint8[K, 32]."""
    for k in range(codes.shape[0]):
        for pair in range(PAIRS):
            draft[k, pair] = codes[k, 2 * pair] | codes[k, 2 * pair + 1] << 4
        for pair in range(PAIRS):
            even, odd = rest[k, 2 * pair], rest[k, 2 * pair + 1]
            leading[k, pair] = even >> 8 | odd >> 8 << 4
            middle[k, pair] = even >> 4 & 15 | odd & 0xF0
            low[k, pair] = even & 15 | (odd & 15) << 4


@_jit
def unpack_block(draft, leading, middle, low, codes, rest):
    """The inverse of `pack_block`."""
    for k in range(draft.shape[0]):
        for pair in range(PAIRS):
            codes[k, 2 * pair] = draft[k, pair] & 15
            codes[k, 2 * pair + 1] = draft[k, pair] >> 4
        for pair in range(PAIRS):
            first, second, third = leading[k, pair], middle[k, pair], low[k, pair]
            even = np.uint16(first & 15) << 8 | np.uint16(second & 15) << 4
            odd = np.uint16(first >> 4) << 8 | np.uint16(second >> 4) << 4
            rest[k, 2 * pair] = even | np.uint16(third & 15)
            rest[k, 2 * pair + 1] = odd | np.uint16(third >> 4)


@_jit
def full_block(draft, leading, middle, low, classes, size, exponents, columns, panel):
    """Patterns uint16[K, 64] of four planes; `exponents` are those of `bsfp.full_exponents`."""
    tables, places = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint8)
    for k in range(draft.shape[0]):
        if k % size == 0:
            _tables(classes[k // size], tables)
        _head(draft[k], leading[k], tables, exponents, places, panel[k])
        for pair in range(PAIRS):
            panel[k, 2 * pair] |= np.uint16(middle[k, pair] & 15) << 4 | low[k, pair] & 15
            panel[k, 2 * pair + 1] |= middle[k, pair] & 0xF0 | low[k, pair] >> 4
        for n in range(columns, BLOCK):
            panel[k, n] = 0


@_jit
def wide12_block(draft, leading, middle, classes, size, exponents, columns, panel):
    """Patterns of three planes; `exponents` are those of `bsfp.wide_exponents`."""
    tables, places = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint8)
    for k in range(draft.shape[0]):
        if k % size == 0:
            _tables(classes[k // size], tables)
        _head(draft[k], leading[k], tables, exponents, places, panel[k])
        for pair in range(PAIRS):
            panel[k, 2 * pair] |= np.uint16(middle[k, pair] & 15) << 4
            panel[k, 2 * pair + 1] |= middle[k, pair] & 0xF0
        for n in range(columns, BLOCK):
            panel[k, n] = 0


@_jit
def wide8_block(draft, leading, classes, size, exponents, columns, panel):
    """Patterns of two planes; `exponents` are those of `bsfp.wide_exponents`."""
    tables, places = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint8)
    for k in range(draft.shape[0]):
        if k % size == 0:
            _tables(classes[k // size], tables)
        _head(draft[k], leading[k], tables, exponents, places, panel[k])
        for n in range(columns, BLOCK):
            panel[k, n] = 0


@_jit
def draft_block(draft, patterns, columns, panel):
    """Patterns of sign * level of one plane."""
    for k in range(draft.shape[0]):
        for n in range(columns):
            panel[k, n] = patterns[draft[k, n >> 1] >> (n & 1) * 4 & 0xF]


@_jit
def _tables(classes, tables):
    """Where in `exponents` the table of each column's class begins."""
    for n in range(BLOCK):
        tables[n] = np.uint32(classes[n]) * np.uint32(32)


@_jit
def _head(draft, leading, tables, exponents, places, row):
    """Sign, exponent and the two leading mantissa bits of a row; `places` is for its own use."""
    for pair in range(PAIRS):
        first, second = draft[pair], leading[pair]
        places[2 * pair] = (first & 7) << 2 | second >> 2 & 3
        places[2 * pair + 1] = first >> 2 & 28 | second >> 6
        row[2 * pair] = np.uint16(first & 8) << 12 | np.uint16(second & 3) << 8
        row[2 * pair + 1] = np.uint16(first & 128) << 8 | np.uint16(second & 48) << 4
    for n in range(BLOCK):
        row[n] |= exponents[tables[n] + places[n]]
