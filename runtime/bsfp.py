"""Codec of the bit-sharing number format: FP16 bit patterns to (code, rest, group scale) and back.

Blocks are [K, N] with the reduction dimension first; a group is `group_size` consecutive weights of
one column. Everything works on bit patterns (uint16), and every column is encoded on its own, so a
result never depends on how a tensor was cut into blocks of columns.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.codebook import (
    CODES,
    EXPONENTS,
    TABLES,
    UNUSED,
    CodeBook,
    class_of,
    scale_class,
)
from speqc.runtime.errors import SpeqcError
from speqc.runtime.table_choice import (
    LAST_BITS,
    best_table,
    held_exponents,
    table_errors,
    with_table,
)

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

BLOCK = 64
"""Columns that are encoded together: the width of the PE array."""

NO_FIT_SCALE = 0x7800
"""FP16 bits of 32768: the scale of a group with Inf or NaN, which selects the bijection."""

RMS_FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)
PEAK_FACTORS = (0.6, 0.75, 0.9)


@dataclass(frozen=True)
class Encoded:
    """A [K, N] block in the bit-sharing format.

    Attributes:
        codes: uint8[K, N], the draft nibble F = sign << 3 | code.
        rest: uint16[K, N], R = slot << 10 | mantissa (12 bits).
        scales: float16[ceil(K / group_size), N]. The draft uses the magnitude: in a scale-indexed
            book the sign, and the last three bits of what is no subnormal, say which table.
        group_size: weights along K that share a scale.
    """

    codes: NDArray[np.uint8]
    rest: NDArray[np.uint16]
    scales: NDArray[np.float16]
    group_size: int


def encode(
    bits: NDArray[np.uint16],
    book: CodeBook,
    group_size: int,
    shift: int = 0,
    importance: NDArray[np.float32] | None = None,
) -> Encoded:
    """Encode a block of FP16 patterns; `decode` gives back exactly the same bits.

    Args:
        bits: uint16[K, N] FP16 patterns (any strides).
        book: the code book. With a scale-indexed one, scale and codes of a group are searched for
            the least squared error of the draft; otherwise the exponent decides the code and the
            scale is sum(w q) / sum(q q).
        group_size: weights along K that share a scale, at least 1.
        shift: from `codebook.fit`: w * 2^-shift is stored (the draft's scale makes up for it).
        importance: float32[K], weight of each row in the squared error, such as E[x^2] of the
            layer's input; equal weights if None.

    Raises:
        SpeqcError: the book has no code for some weight under this shift.
        ValueError: an argument has another shape or type, or a scale-indexed book is to shift.
    """
    check_arguments(bits, book, group_size, shift)
    rows, columns = bits.shape
    weights = row_weights(importance, rows)
    encoded = Encoded(
        np.empty((rows, columns), np.uint8),
        np.empty((rows, columns), np.uint16),
        np.empty((-(-rows // group_size), columns), np.float16),
        group_size,
    )

    def encode_columns(start: int) -> None:
        stop = min(start + BLOCK, columns)
        block = encode_block(bits[:, start:stop], book, group_size, shift, weights)
        encoded.codes[:, start:stop] = block.codes[:, : stop - start]
        encoded.rest[:, start:stop] = block.rest[:, : stop - start]
        encoded.scales[:, start:stop] = block.scales[:, : stop - start]

    for_each(range(0, columns, BLOCK), encode_columns)
    return encoded


def encode_block(
    bits: NDArray[np.uint16],
    book: CodeBook,
    group_size: int,
    shift: int,
    weights: NDArray[np.float32],
) -> Encoded:
    """Encode at most `BLOCK` columns; the result has `BLOCK`, those beyond the input all zero bits.

    Args:
        weights: float32[K] from `row_weights`.
        bits, book, group_size, shift: as in `encode`.

    Raises:
        SpeqcError: as `encode`.
    """
    rows, columns = bits.shape
    new = np.empty if columns == BLOCK else np.zeros
    block = new((rows, BLOCK), np.uint16)
    block[:, :columns] = bits
    codes = new((rows, BLOCK), np.uint8)
    rest = new((rows, BLOCK), np.uint16)
    scales = new((-(-rows // group_size), BLOCK), np.uint16)
    out = (codes, rest, scales)
    if book.scale_indexed:
        levels = tuple(book.levels.astype(np.float32))
        _encode_searched(
            block,
            columns,
            weights,
            group_size,
            levels,
            book.octave,
            np.float32(1 / book.rms),
            book.allowed,
            book.slots,
            held_exponents(book),
            table_errors(book),
            *out,
        )
    else:
        tables = _direct_tables(block, book, shift)
        _encode_direct(block, columns, weights, group_size, *tables, *out)
    return Encoded(codes, rest, scales.view(np.float16), group_size)


def decode(encoded: Encoded, book: CodeBook, shift: int = 0) -> NDArray[np.uint16]:
    """The exact FP16 patterns uint16[K, N] that were encoded with the same book and shift."""
    exponents = full_exponents(book, shift)
    bits = np.empty(encoded.codes.shape, np.uint16)
    classes = scale_class(encoded.scales.view(np.uint16))
    size = encoded.group_size

    def decode_group(group: int) -> None:
        part = slice(group * size, (group + 1) * size)
        _decode_rows(encoded.codes[part], encoded.rest[part], classes[group], exponents, bits[part])

    for_each(range(len(classes)), decode_group)
    return bits


def full_exponents(book: CodeBook, shift: int) -> NDArray[np.uint16]:
    """uint16[1024 * 32]: exponent field after undoing `shift`, at class * 32 + code * 4 + slot.

    The field is in place (bits 10 to 14), and unused slots are 0. Field 0 stays 0 under a shift:
    with one, only zeros have it.
    """
    stored = np.where(book.exponents == UNUSED, 0, book.exponents).astype(np.uint16).reshape(-1)
    return (stored + np.uint16(shift) * (stored > 0)) << np.uint16(10)


def wide_exponents(book: CodeBook, shift: int, mantissa_bits: int) -> NDArray[np.uint16]:
    """`full_exponents` with the midpoint of the mantissa bits that a view lacks, as `narrowed`."""
    fields = full_exponents(book, shift)
    return narrowed(fields, mantissa_bits)


def narrowed(bits: NDArray[np.uint16], mantissa_bits: int) -> NDArray[np.uint16]:
    """FP16 patterns as a view with fewer mantissa bits (below 10) shows them.

    The bits that it lacks are 10...0, the midpoint. In zeros and subnormal numbers they are 0, so
    that a zero stays one, and in Inf and NaN, so that Inf stays Inf (a NaN with no other bit set
    becomes Inf).
    """
    missing = 10 - mantissa_bits
    field = bits >> 10 & 31
    normal = (field > 0) & (field < EXPONENTS - 1)
    midpoint = normal.astype(np.uint16) << np.uint16(missing - 1)
    return bits >> np.uint16(missing) << np.uint16(missing) | midpoint


def draft_patterns(book: CodeBook) -> NDArray[np.uint16]:
    """uint16[16]: FP16 bits of sign * level for each nibble F."""
    levels = book.levels.view(np.uint16)
    return np.concatenate([levels, levels | np.uint16(0x8000)])


def draft_values(codes: NDArray[np.uint8], book: CodeBook) -> NDArray[np.float16]:
    """float16 of the codes' shape: sign * level, what the draft multiplies before scaling."""
    return draft_patterns(book)[codes].view(np.float16)


def draft_error(bits: NDArray[np.uint16], encoded: Encoded, book: CodeBook) -> tuple[float, float]:
    """Sums over a block of w^2 and (w - draft)^2, which add up over the blocks of a tensor.

    Inf and NaN patterns are left out.
    """
    signal = noise = 0.0
    for group, scale in enumerate(np.abs(encoded.scales).astype(np.float64)):
        rows = slice(group * encoded.group_size, (group + 1) * encoded.group_size)
        finite = bits[rows] & _INFINITY != _INFINITY
        weights = np.where(finite, bits[rows], 0).view(np.float16).astype(np.float64)
        draft = np.where(finite, draft_values(encoded.codes[rows], book) * scale, 0)
        signal += float(np.sum(weights**2))
        noise += float(np.sum((weights - draft) ** 2))
    return signal, noise


def draft_snr_db(bits: NDArray[np.uint16], encoded: Encoded, book: CodeBook) -> float:
    """Signal-to-noise ratio of the draft values in dB (inf where they are exact)."""
    signal, noise = draft_error(bits, encoded, book)
    return snr_db(signal, noise)


def snr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); inf without noise, -inf without signal only."""
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def code_usage(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64[8]: how many of the draft nibbles F (any shape) have each code, signs together."""
    return np.array([np.count_nonzero(codes & 7 == code) for code in range(CODES)], np.int64)


def check_arguments(bits: NDArray[np.uint16], book: CodeBook, group_size: int, shift: int) -> None:
    """Raise ValueError unless these are arguments that `encode` takes."""
    if bits.ndim != 2 or bits.dtype != np.uint16:
        raise ValueError(f"expected uint16[K, N], got {bits.dtype}{list(bits.shape)}")
    if group_size < 1:
        raise ValueError(f"group size must be at least 1, got {group_size}")
    if shift < 0 or (shift and book.scale_indexed):
        raise ValueError(f"the {book.name} book does not take shift {shift}")


def row_weights(importance: NDArray[np.float32] | None, rows: int) -> NDArray[np.float32]:
    """float32[rows] with mean 1, in proportion to `importance` (ones if it is None or all zero).

    Raises:
        ValueError: `importance` has another shape, or a negative or non-finite element.
    """
    if importance is None:
        return np.ones(rows, np.float32)
    weights = np.asarray(importance, np.float64)
    if weights.shape != (rows,):
        raise ValueError(f"importance must have shape [{rows}], got {list(weights.shape)}")
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise ValueError("importance must be finite and not negative")
    mean = weights.mean() if rows else 0.0
    return (weights / mean if mean > 0 else np.ones(rows)).astype(np.float32)


def for_each(items: range, work: Callable[[int], None]) -> None:
    """Call `work` for each item, in threads where there are several (the kernels drop the GIL).

    A call within `work` stays in its thread. The first exception, or an interruption, cancels what
    has not begun, in calls within `work` too.
    """
    stop: threading.Event | None = getattr(_thread, "stop", None)
    workers = min(len(items), processors())
    if workers <= 1 or stop is not None:
        for item in items:
            if stop is not None and stop.is_set():
                raise CancelledError
            work(item)
        return
    stop = threading.Event()
    with ThreadPoolExecutor(workers, initializer=_mark_worker, initargs=(stop,)) as pool:
        try:
            for _ in pool.map(work, items):
                pass
        finally:
            stop.set()


_thread = threading.local()


def _mark_worker(stop: threading.Event) -> None:
    _thread.stop = stop


def processors() -> int:
    """How many processors this process may use: the threads of `for_each`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_POWERS = np.ldexp(1.0, np.arange(EXPONENTS) - 25).astype(np.float32)
_INFINITY = np.uint16(0x7C00)
_SMALLEST_NORMAL = np.float32(2.0**-14)
_SUBNORMALS_PER_ONE = np.float32(2.0**24)
_HALF = np.float32(0.5)
_BIAS_FACTOR = np.float32(2.0**112)
_FACTORS = np.array(RMS_FACTORS + PEAK_FACTORS, np.float32)
_CANDIDATES = len(_FACTORS)
_RMS_CANDIDATES = len(RMS_FACTORS)
_CODE_NUMBERS = tuple(np.arange(CODES, dtype=np.float32))


def _direct_tables(bits, book, shift):
    """F << 12 | slot << 10, and the level, for each (sign, field) of a book with one table.

    Raises SpeqcError if `bits` has a pattern that the book does not hold under the shift.
    """
    present, subnormal = _present(bits)
    stored = np.maximum(np.arange(EXPONENTS) - shift, 0)
    held = (stored > 0) & (book.allowed[0, stored] != 0)
    held[0] = (book.allowed[0, 0] != 0) and (shift == 0 or not subnormal)
    missing = np.flatnonzero((present >> np.arange(EXPONENTS) & 1 != 0) & ~held)
    if missing.size:
        raise SpeqcError(
            f"the {book.name} book with shift {shift} cannot hold a weight with exponent field"
            f" {missing[0]}: keep the tensor as plain FP16"
        )
    owned = book.slots[0] != UNUSED
    code = owned.argmax(axis=0)[stored]
    slots = book.slots[0, code, stored].astype(np.uint16) << np.uint16(10)
    positive = code.astype(np.uint16) << np.uint16(12) | slots
    words = np.concatenate([positive, positive | np.uint16(0x8000)])
    return words, np.tile(book.levels.astype(np.float32)[code], 2)


@_jit
def _present(bits):
    """A number whose bit e is set where a pattern has exponent field e; is one subnormal?"""
    fields = np.uint32(0)
    subnormal = np.uint32(0)
    for k in range(bits.shape[0]):
        for n in range(bits.shape[1]):
            field = np.uint32(bits[k, n] >> 10) & np.uint32(31)
            fields |= np.uint32(1) << field
            subnormal |= np.uint32((field == 0) & (bits[k, n] & 1023 != 0))
    return fields, subnormal != 0


@_jit
def _decode_rows(codes, rest, classes, exponents, bits):
    for k in range(codes.shape[0]):
        for n in range(codes.shape[1]):
            nibble = codes[k, n]
            remainder = rest[k, n]
            index = np.int64(classes[n]) * 32 + (nibble & 7) * 4 + (remainder >> 10)
            bits[k, n] = (nibble >> 3) << 15 | exponents[index] | (remainder & 1023)


@_jit
def _magnitude(pattern):
    """Value of an FP16 pattern's magnitude; Inf and NaN count as 65536 and above."""
    field = (pattern >> 10) & 31
    mantissa = pattern & 1023
    if field == 0:
        return np.float32(mantissa) * _POWERS[1]
    return np.float32(1024 + mantissa) * _POWERS[field]


@_jit
def _half_bits(values, patterns):
    """Round float32[BLOCK] >= 0 to FP16, ties to even, 65504 at most."""
    raw = values.view(np.int32)
    for n in range(values.size):
        if values[n] < _SMALLEST_NORMAL:
            # Adding 0.5 leaves multiples of 2^-24, the spacing of FP16 subnormals.
            patterns[n] = np.uint16(((values[n] + _HALF) - _HALF) * _SUBNORMALS_PER_ONE)
        else:
            odd = (raw[n] >> 13) & 1
            patterns[n] = min(((raw[n] + 0xFFF + odd) >> 13) - (112 << 10), 0x7BFF)


@_jit
def _encode_direct(bits, columns, weights, size, words, levels, codes, rest, scales):
    """Encode with the one code of each exponent; the tables are those of `_direct_tables`.

    The loops over a row are apart, so that all but the look-up become vector code.
    """
    ratio = np.zeros(BLOCK, np.float32)
    product = np.zeros(BLOCK, np.float32)
    square = np.zeros(BLOCK, np.float32)
    word = np.zeros(BLOCK, np.uint16)
    level = np.zeros(BLOCK, np.float32)
    magnitude = np.zeros(BLOCK, np.float32)
    raw = magnitude.view(np.int32)
    for k in range(bits.shape[0]):
        for n in range(BLOCK):
            word[n] = words[bits[k, n] >> 10]
            level[n] = levels[bits[k, n] >> 10]
        for n in range(columns):
            codes[k, n] = word[n] >> 12
            rest[k, n] = word[n] & 0xFFF | bits[k, n] & 1023
        for n in range(BLOCK):
            # FP16 with FP32's fields, times the power that makes up for the other bias, is exact.
            raw[n] = (bits[k, n] & 0x7FFF) << 13
        for n in range(BLOCK):
            product[n] += weights[k] * (magnitude[n] * _BIAS_FACTOR * level[n])
            square[n] += weights[k] * (level[n] * level[n])
        if (k + 1) % size == 0 or k + 1 == bits.shape[0]:
            for n in range(columns):
                ratio[n] = product[n] / square[n] if square[n] > 0 else np.float32(0)
            product[:] = 0
            square[:] = 0
            _half_bits(ratio, scales[k // size])


@_jit
def _encode_searched(
    bits,
    columns,
    weights,
    size,
    levels,
    octave,
    unit,
    allowed,
    slots,
    held,
    expected,
    codes,
    rest,
    scales,
):
    """Encode with the scale and codes of least squared error found for each group.

    Every candidate uses the table of least expected error.
    """
    width = bits.shape[1]
    magnitudes = np.empty((min(size, bits.shape[0]), width), np.float32)
    fields = np.empty((min(size, bits.shape[0]), width), np.uint8)
    counts = np.empty((width, EXPONENTS), np.int64)
    tables = np.empty((width, 2 * EXPONENTS), np.int8)
    totals = np.empty(TABLES, np.int64)
    needed = np.empty(width, np.uint32)
    peak = np.empty(width, np.uint16)
    rms = np.empty(width, np.float32)
    trial = np.empty(width, np.float32)
    pattern = np.empty(width, np.uint16)
    best = np.empty(width, np.uint16)
    least = np.empty(width, np.float32)
    error = np.empty(width, np.float32)
    product = np.empty(width, np.float32)
    square = np.empty(width, np.float32)
    for group in range(scales.shape[0]):
        start = group * size
        rows = min(size, bits.shape[0] - start)
        block = bits[start : start + rows]
        unpacked = (magnitudes[:rows], fields[:rows], weights[start : start + rows])
        _measure(block, magnitudes, fields, counts, needed, peak, rms)
        best[:] = NO_FIT_SCALE
        tables[:] = -1
        for n in range(width):
            least[n] = -np.inf if needed[n] >> 31 else np.inf
        for candidate in range(_CANDIDATES):
            for n in range(width):
                if candidate < _RMS_CANDIDATES:
                    trial[n] = rms[n] * unit * _FACTORS[candidate]
                else:
                    trial[n] = _magnitude(peak[n]) / levels[7] * _FACTORS[candidate]
            for _ in range(2):
                _half_bits(trial, pattern)
                _raise_scales(pattern, peak, octave)
                for n in range(width):
                    # All scales with a field and first mantissa bit have the same tables.
                    kind = pattern[n] >> 9
                    if tables[n, kind] < 0:
                        tables[n, kind] = best_table(
                            pattern[n], needed[n], counts[n], held, expected, totals
                        )
                    pattern[n] = with_table(pattern[n], tables[n, kind])
                _score(unpacked, pattern, levels, allowed, error, product, square)
                for n in range(width):
                    kind = pattern[n] >> 9 & 63
                    if error[n] < least[n] and held[kind, tables[n, kind]] & needed[n] == needed[n]:
                        least[n] = error[n]
                        best[n] = pattern[n]
                    trial[n] = product[n] / square[n] if square[n] > 0 else trial[n]
        for n in range(columns):
            scales[group, n] = best[n]
        _emit(block, columns, unpacked, best, levels, allowed, slots, codes[start:], rest[start:])


@_jit
def _measure(bits, magnitudes, fields, counts, needed, peak, rms):
    """Unpack a group of FP16 patterns and take what scales and tables are chosen by."""
    counts[:] = 0
    needed[:] = 0
    peak[:] = 0
    rms[:] = 0
    for k in range(bits.shape[0]):
        for n in range(bits.shape[1]):
            magnitude = bits[k, n] & np.uint16(0x7FFF)
            field = magnitude >> 10
            fields[k, n] = field
            magnitudes[k, n] = _magnitude(magnitude)
            counts[n, field] += 1
            needed[n] |= np.uint32(1) << np.uint32(field)
            peak[n] = max(peak[n], magnitude)
            rms[n] += magnitudes[k, n] * magnitudes[k, n]
    for n in range(bits.shape[1]):
        rms[n] = np.sqrt(rms[n] / np.float32(bits.shape[0]))


@_jit
def _raise_scales(pattern, peak, octave):
    """Raise scales until max|w| < 8 s 2^octave, whatever table they are then made to pick."""
    share = np.float32(0.125) * np.float32(0.5) ** octave
    fields = (3 + octave) << 10
    for n in range(pattern.size):
        if peak[n] == 0:
            pattern[n] = 0
            continue
        least = _magnitude(peak[n]) * share
        if _magnitude(with_table(pattern[n], 0)) <= least:
            # The next FP16 above that share of the peak: lower exponent, or a count of 2^-24.
            if peak[n] >= fields + 0x0400:
                pattern[n] = peak[n] - fields + 1
            else:
                pattern[n] = np.uint16(least * _SUBNORMALS_PER_ONE) + 1
            if pattern[n] >= 0x0400:
                pattern[n] = (pattern[n] + LAST_BITS) & ~LAST_BITS


@_jit
def _score(unpacked, pattern, levels, allowed, error, product, square):
    """Squared error of a group under given scales, and sum(w q), sum(q q) for their refinement.

    `levels` is a tuple and the loops are short, so that the compiler turns them into vector code.
    """
    magnitudes, fields, weight = unpacked
    inverse = np.empty(BLOCK, np.float32)
    mask = np.empty(BLOCK, np.int32)
    distance = np.empty(BLOCK, np.float32)
    level = np.empty(BLOCK, np.float32)
    _invert(pattern, inverse)
    error[:] = 0
    product[:] = 0
    square[:] = 0
    for k in range(magnitudes.shape[0]):
        for n in range(BLOCK):
            mask[n] = allowed[class_of(pattern[n]), fields[k, n]]
        _nearest(magnitudes[k], inverse, mask, levels, levels, distance, level)
        for n in range(BLOCK):
            error[n] += weight[k] * (distance[n] * distance[n])
            square[n] += weight[k] * (level[n] * level[n])
        for n in range(BLOCK):
            product[n] += weight[k] * (magnitudes[k, n] * level[n])
    for n in range(BLOCK):
        scale = _magnitude(pattern[n])
        error[n] *= scale * scale


@_jit
def _nearest(magnitudes, inverse, mask, levels, values, distance, chosen):
    """For a row of weights: distance to the nearest level whose mask bit is set, and its value."""
    for n in range(BLOCK):
        unit = magnitudes[n] * inverse[n]
        nearest = np.float32(np.inf)
        value = np.float32(0)
        for code in range(8):
            away = abs(unit - levels[code])
            if mask[n] >> code & 1 and away < nearest:
                nearest = away
                value = values[code]
        distance[n] = nearest
        chosen[n] = value


@_jit
def _invert(pattern, inverse):
    """Reciprocals of scales; 0 for a zero scale."""
    for n in range(BLOCK):
        scale = _magnitude(pattern[n])
        inverse[n] = np.float32(1) / scale if scale > 0 else np.float32(0)


@_jit
def _emit(bits, columns, unpacked, pattern, levels, allowed, slots, codes, rest):
    """Write the code with the nearest allowed level, and the rest that goes with it."""
    magnitudes, fields, _ = unpacked
    inverse = np.empty(BLOCK, np.float32)
    mask = np.empty(BLOCK, np.int32)
    distance = np.empty(BLOCK, np.float32)
    nearest = np.empty(BLOCK, np.float32)
    _invert(pattern, inverse)
    for k in range(bits.shape[0]):
        for n in range(BLOCK):
            mask[n] = allowed[class_of(pattern[n]), fields[k, n]]
        _nearest(magnitudes[k], inverse, mask, levels, _CODE_NUMBERS, distance, nearest)
        for n in range(columns):
            code = np.int64(nearest[n])
            slot = np.int64(slots[class_of(pattern[n]), code, fields[k, n]])
            codes[k, n] = np.int64(bits[k, n]) >> 15 << 3 | code
            rest[k, n] = slot << 10 | (bits[k, n] & 1023)
