"""Codec of separate 4-bit copies: scales, zero points and nibbles of least squared error.

Blocks are [K, N] with the reduction dimension first, as in `bsfp`, and every column is encoded on
its own. For each group candidates are tried, each with its least-squares scale too:

- `int4`: the range from the least to the largest weight (zero included) over 15 steps, times .52 to
  1.08, with the zero point that fits it, one lower and one higher. Shrinking the range is what
  AWQ's and GPTQ's searches for the least error do.
- `mxfp4`: the specification's power of two, 2^(floor(log2(peak)) - 2), half of it and twice it.
- `nvfp4`: the E4M3 number nearest to peak / 6, the six below it and the six above.
"""

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import BLOCK, for_each, row_weights
from speqc.runtime.copy_formats import CopyFormat
from speqc.runtime.errors import SpeqcError

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

_SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6, 0.56, 0.52, 1.04, 1.08)
_ZERO_STEPS = (0, -1, 1)
_NEIGHBOURS = {
    "mxfp4": (0, 1, -1, 2),
    "nvfp4": (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6),
}
_INFINITY = np.uint16(0x7C00)
_ZERO, _HALF, _ONE, _TWO, _FOUR = (np.float32(number) for number in (0, 0.5, 1, 2, 4))
_LARGEST_INTEGER, _LARGEST_E2M1 = np.float32(15), np.float32(6)
_ROUNDER = np.float32(1.5 * 2**23)


@dataclass(frozen=True)
class Copied:
    """A [K, N] block in a 4-bit format.

    Attributes:
        nibbles: uint8[K, N].
        scales: float16[ceil(K / group_size), N], some of `CopyFormat.scales`.
        zeros: uint8 of that shape, 0 to 15; all 0 in formats without zero points.
        group_size: weights along K that share a scale.
    """

    nibbles: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]
    group_size: int


@dataclass(frozen=True)
class Candidates:
    """What is tried of a group: factors of its full scale, steps from the nearest scale that there
    is, and steps from the zero point that fits the range."""

    factors: NDArray[np.float32]
    steps: NDArray[np.int64]
    zero_steps: NDArray[np.int64]


@cache
def candidates(name: str) -> Candidates:
    """The candidates of a format, of which the first with the least error stands.

    Those of `mxfp4` have the specification's power of two among them.
    """
    if name in _NEIGHBOURS:
        steps = np.array(_NEIGHBOURS[name], np.int64)
        return Candidates(np.ones(len(steps), np.float32), steps, np.zeros_like(steps))
    pairs = [(shrink, step) for step in _ZERO_STEPS for shrink in _SHRINKS]
    factors, zero_steps = zip(*pairs, strict=True)
    return Candidates(
        np.array(factors, np.float32),
        np.zeros(len(pairs), np.int64),
        np.array(zero_steps, np.int64),
    )


def encode_copy(
    bits: NDArray[np.uint16],
    form: CopyFormat,
    group_size: int,
    shift: int = 0,
    importance: NDArray[np.float32] | None = None,
) -> Copied:
    """Copy a block of FP16 patterns.

    Args:
        bits: uint16[K, N] FP16 patterns (any strides), none of them Inf or NaN.
        form: the format.
        group_size: weights along K that share a scale, at least 1.
        shift: of the tensor, from `copy_formats.tensor_shift`.
        importance: float32[K], weight of each row in the squared error; equal weights if None.

    Raises:
        SpeqcError: a weight is Inf or NaN.
        ValueError: `importance` has another shape, or a negative or non-finite element.
    """
    rows, columns = bits.shape
    weights = row_weights(importance, rows)
    groups = -(-rows // group_size)
    copied = Copied(
        np.empty((rows, columns), np.uint8),
        np.empty((groups, columns), np.float16),
        np.empty((groups, columns), np.uint8),
        group_size,
    )

    def copy_columns(start: int) -> None:
        part = slice(start, min(start + BLOCK, columns))
        block = copy_block(bits[:, part], form, group_size, shift, weights)
        count = part.stop - start
        copied.nibbles[:, part] = block.nibbles[:, :count]
        copied.scales[:, part] = block.scales[:, :count]
        copied.zeros[:, part] = block.zeros[:, :count]

    for_each(range(0, columns, BLOCK), copy_columns)
    return copied


def copy_block(
    bits: NDArray[np.uint16],
    form: CopyFormat,
    group_size: int,
    shift: int,
    weights: NDArray[np.float32],
) -> Copied:
    """Copy at most `BLOCK` columns; the result has `BLOCK`, those beyond the input of zeros.

    Args:
        weights: float32[K] from `bsfp.row_weights`.
        bits, form, group_size, shift: as in `encode_copy`, which raises the same.
    """
    rows, columns = bits.shape
    if np.any(bits & _INFINITY == _INFINITY):
        raise SpeqcError(f"a copy in {form.name} cannot hold Inf or NaN")
    values = np.zeros((rows, BLOCK), np.float32)
    values[:, :columns] = bits.view(np.float16)
    groups = -(-rows // group_size)
    nibbles = np.empty((rows, BLOCK), np.uint8)
    places = np.empty((groups, BLOCK), np.int64)
    zeros = np.empty((groups, BLOCK), np.uint8)
    scales, tried = form.scales(shift), candidates(form.name)
    _search(
        values,
        weights,
        group_size,
        scales.astype(np.float32),
        form.integers,
        tried.factors,
        tried.steps,
        tried.zero_steps,
        nibbles,
        places,
        zeros,
    )
    for part in (nibbles, zeros):
        part[:, columns:] = 0
    return Copied(nibbles, scales[places], zeros, group_size)


def level_differences(copied: Copied, form: CopyFormat) -> NDArray[np.float16]:
    """level[nibble] - zero of each weight, float16[K, N]: what activations are multiplied by."""
    zeros = copied.zeros.repeat(copied.group_size, axis=0)[: len(copied.nibbles)]
    return form.levels[copied.nibbles] - zeros.astype(np.float16)


def copied_values(copied: Copied, form: CopyFormat) -> NDArray[np.float32]:
    """What a copy stands for, float32[K, N]."""
    levels = level_differences(copied, form).astype(np.float32)
    scales = copied.scales.astype(np.float32).repeat(copied.group_size, axis=0)
    return levels * scales[: len(levels)]


@_jit
def nearest_levels(row, inverse, zero, integers, level):
    """For a row of 64 numbers times `inverse` the nearest levels, less the zero points.

    Of two that are as near, the even one is taken.
    """
    if integers:
        for n in range(BLOCK):
            # Adding 1.5 * 2^23 leaves an integer.
            whole = (row[n] * inverse[n] + _ROUNDER) - _ROUNDER
            level[n] = min(max(whole + zero[n], _ZERO), _LARGEST_INTEGER) - zero[n]
        return
    for n in range(BLOCK):
        unit = row[n] * inverse[n]
        size = min(abs(unit), _LARGEST_E2M1)
        # The step between levels: 0.5 below 2, 1 below 4, 2 above.
        spread = _ONE if size < _TWO else _TWO
        spread = _FOUR if size >= _FOUR else spread
        whole = (size / spread * _TWO + _ROUNDER) - _ROUNDER
        level[n] = np.copysign(whole * spread * _HALF, unit)


@_jit
def nibble_of(level, zero, integers):
    """The nibble of a level less its zero point; a zero has no sign."""
    if integers:
        return np.uint8(level + zero)
    size = abs(level)
    code = np.uint8(size * 2) if size <= 2 else np.uint8(size * np.float32(0.5) + 4)
    if size == 3:
        code = np.uint8(5)
    return code | np.uint8(8) if level < 0 else code


@_jit
def nearest_place(scales, wanted):
    """Where in ascending scales the one nearest to a number stands; of two the lower one."""
    low, high = 0, scales.size - 1
    while low < high:
        middle = (low + high) // 2
        if scales[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    if low > 0 and wanted - scales[low - 1] <= scales[low] - wanted:
        return low - 1
    return low


@_jit
def _search(
    values,
    weights,
    size,
    scales,
    integers,
    factors,
    steps,
    zero_steps,
    nibbles,
    places,
    zeros,
):
    """Fill nibbles[K, 64], places[G, 64] of scales and zeros[G, 64] with the best candidates."""
    full = np.empty(BLOCK, np.float32)
    middle = np.empty(BLOCK, np.float32)
    place = np.empty(BLOCK, np.int64)
    zero = np.empty(BLOCK, np.float32)
    scale = np.empty(BLOCK, np.float32)
    inverse = np.empty(BLOCK, np.float32)
    error = np.empty(BLOCK, np.float32)
    product = np.empty(BLOCK, np.float32)
    square = np.empty(BLOCK, np.float32)
    least = np.empty(BLOCK, np.float32)
    best_zero = np.empty(BLOCK, np.float32)
    level = np.empty(BLOCK, np.float32)
    for group in range(places.shape[0]):
        rows = slice(group * size, (group + 1) * size)
        block, weight = values[rows], weights[rows]
        _measure(block, integers, full, middle)
        least[:] = np.inf
        for candidate in range(factors.size):
            for n in range(BLOCK):
                found = nearest_place(scales, full[n] * factors[candidate]) + steps[candidate]
                place[n] = min(max(found, 0), scales.size - 1)
                wanted = middle[n] + zero_steps[candidate]
                zero[n] = min(max(wanted, np.float32(0)), np.float32(15))
            for _ in range(2):
                for n in range(BLOCK):
                    scale[n] = scales[place[n]]
                    inverse[n] = np.float32(1) / scale[n]
                _score(block, weight, scale, inverse, zero, integers, error, product, square)
                for n in range(BLOCK):
                    if error[n] < least[n]:
                        least[n] = error[n]
                        places[group, n] = place[n]
                        best_zero[n] = zero[n]
                    if square[n] > 0:
                        place[n] = nearest_place(scales, product[n] / square[n])
        for n in range(BLOCK):
            zeros[group, n] = np.uint8(best_zero[n])
            inverse[n] = np.float32(1) / scales[places[group, n]]
        target = nibbles[rows]
        for k in range(block.shape[0]):
            nearest_levels(block[k], inverse, best_zero, integers, level)
            for n in range(BLOCK):
                target[k, n] = nibble_of(level[n], best_zero[n], integers)


@_jit
def _measure(block, integers, full, middle):
    """The scale under which a group just fills the levels, and the zero point that goes with it."""
    low = np.zeros(BLOCK, np.float32)
    high = np.zeros(BLOCK, np.float32)
    for k in range(block.shape[0]):
        for n in range(BLOCK):
            low[n] = min(low[n], block[k, n])
            high[n] = max(high[n], block[k, n])
    for n in range(BLOCK):
        if integers:
            full[n] = (high[n] - low[n]) / np.float32(15)
            middle[n] = np.rint(-low[n] / full[n]) if full[n] > 0 else np.float32(0)
        else:
            full[n] = max(high[n], -low[n]) / np.float32(6)
            middle[n] = 0


@_jit
def _score(block, weight, scale, inverse, zero, integers, error, product, square):
    """Squared error of a group under given scales, and sum(w q), sum(q q) for their refinement.

    The loops over a row are apart, so that they become vector code.
    """
    level = np.empty(BLOCK, np.float32)
    error[:] = 0
    product[:] = 0
    square[:] = 0
    for k in range(block.shape[0]):
        row, factor = block[k], weight[k]
        nearest_levels(row, inverse, zero, integers, level)
        for n in range(BLOCK):
            away = row[n] - level[n] * scale[n]
            error[n] += factor * (away * away)
        for n in range(BLOCK):
            product[n] += factor * (row[n] * level[n])
        for n in range(BLOCK):
            square[n] += factor * (level[n] * level[n])
