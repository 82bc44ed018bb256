"""Code books of the bit-sharing number format: which draft codes stand for which FP16 exponents.

An FP16 weight (sign, 5-bit exponent, 10-bit mantissa) is stored as a draft nibble
``F = sign << 3 | code`` and a 12-bit rest ``R = slot << 10 | mantissa``. In a table, a code owns
at most four exponents in a fixed order, and the slot says which of them the weight has, so (F, R)
gives back the FP16 bits exactly. The draft reads F alone: sign * level of the code * scale of the
group. Some bits of that scale pick the table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from speqc.runtime.errors import SpeqcError

TABLE_BITS = 3
"""Last mantissa bits of a scale that say, together with its sign, which of a class's tables."""
TABLES = 2 << TABLE_BITS
CLASSES = 2 * 32 * TABLES
CODES = 8
SLOTS = 4
EXPONENTS = 32
UNUSED = 255
"""Marks a slot without an exponent in `CodeBook.exponents`."""

CODEBOOK_LEVELS, CODEBOOK_EXPONENTS = "codebook.levels", "codebook.exponents"
"""Tensors of an artifact's weights that hold `CodeBook.levels` and `CodeBook.exponents`."""

LEVEL_SETS: Mapping[str, int] = {"free": 10, "m2": 2, "m1": 1, "fp4": 1, "pow2": 0}
"""Level sets of the code book `sets`: mantissa bits that a multiplier needs for each."""

_PAPER_TABLE = [[9], [0, 1, 2, 3], [11], [4, 5, 6, 7], [8], [10], [12, 13], [14, 15]]
_NAIVE_TABLE = [[2 * code, 2 * code + 1] for code in range(CODES)]
_PAPER_LEVEL_EXPONENTS = [9, 2, 11, 6, 8, 10, 12, 14]


@dataclass(frozen=True, eq=False)
class CodeBook:
    """Levels and exponent tables of one number format.

    Attributes:
        name: what `load_codebook` calls it.
        group_size: default number of weights along K that share a scale.
        levels: float16[8], draft magnitude of each code before scaling. FP16, so that its product
            with an FP16 activation is exact in FP32.
        exponents: uint8[1024, 8, 4], the FP16 exponent field for (class, code, slot), or `UNUSED`.
        octave: a scale-indexed book holds weights under 2^(3 + octave) scales of their group.
        rms: what the rms of a group's weights is near, in scales.
    """

    name: str
    group_size: int
    levels: NDArray[np.float16]
    exponents: NDArray[np.uint8]
    octave: int = 0
    rms: float = 1.0

    def __post_init__(self) -> None:
        self.levels.flags.writeable = False
        self.exponents.flags.writeable = False

    @cached_property
    def scale_indexed(self) -> bool:
        """Whether the table depends on the scale's class (if not, a weight has just one code)."""
        return bool((self.exponents != self.exponents[0]).any())

    @cached_property
    def slots(self) -> NDArray[np.uint8]:
        """uint8[1024, 8, 32]: slot of (class, code, exponent), or `UNUSED` where it has none."""
        slots = np.full((CLASSES, CODES, EXPONENTS), UNUSED, np.uint8)
        for slot in range(SLOTS):
            owned = self.exponents[:, :, slot]
            classes, codes = np.nonzero(owned != UNUSED)
            slots[classes, codes, owned[classes, codes]] = slot
        slots.flags.writeable = False
        return slots

    @cached_property
    def allowed(self) -> NDArray[np.uint8]:
        """uint8[1024, 32]: bit c is set where code c of the class owns the exponent."""
        owns = self.slots != UNUSED
        bits = np.uint8(1) << np.arange(CODES, dtype=np.uint8)
        allowed = (owns * bits[:, None]).sum(axis=1, dtype=np.uint8)
        allowed.flags.writeable = False
        return allowed

    @cached_property
    def held(self) -> NDArray[np.uint32]:
        """uint32[1024]: bit e is set where some code of the class owns exponent e."""
        bits = np.uint32(1) << np.arange(EXPONENTS, dtype=np.uint32)
        held = ((self.allowed != 0) * bits).sum(axis=1, dtype=np.uint32)
        held.flags.writeable = False
        return held


def scale_class(scale_bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Class 0..1023 of FP16 scale patterns: sign, exponent, first and last three mantissa bits."""
    bits = np.asarray(scale_bits, np.uint16)
    return bits >> np.uint16(9) << np.uint16(TABLE_BITS) | bits & np.uint16(TABLES // 2 - 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def class_of(scale_bits):
    """`scale_class` of one pattern."""
    return np.int64(scale_bits) >> 9 << TABLE_BITS | np.int64(scale_bits) & (TABLES // 2 - 1)


def table_class(field: int, half: int, table: int) -> int:
    """The class of scales with this exponent field and first mantissa bit that pick this table.

    The first half of the tables belong to positive scales, the second to negative ones.
    """
    sign, last = divmod(table, TABLES // 2)
    return ((sign * EXPONENTS + field) * 2 + half) * (TABLES // 2) + last


def load_codebook(name: str, levels: str | None = None) -> CodeBook:
    """The code book called `name`; the known ones are in `CODEBOOKS`.

    `levels` is one of `LEVEL_SETS`, for `sets` alone; None: the free ones.

    Raises:
        SpeqcError: there is no such code book, or it has no such levels.
    """
    check_codebook(name, levels)
    return _load(name, "free" if levels is None else levels)


def check_codebook(name: str, levels: str | None = None) -> None:
    """Raise SpeqcError unless there is a code book of that name with those levels."""
    if name not in CODEBOOKS:
        known = ", ".join(CODEBOOKS)
        raise SpeqcError(f"unknown code book {name!r}: choose one of {known}")
    if levels is not None and name != "sets":
        raise SpeqcError(f"the code book {name!r} has levels of its own: only 'sets' has a choice")
    if levels is not None and levels not in LEVEL_SETS:
        raise SpeqcError(f"unknown levels {levels!r}: choose one of {', '.join(LEVEL_SETS)}")


@cache
def _load(name: str, levels: str) -> CodeBook:
    return _sets_book(levels) if name == "sets" else CODEBOOKS[name]()


def mantissa_bits(name: str, levels: str | None = None) -> int:
    """Mantissa bits that a multiplier needs for the draft levels of a code book."""
    return LEVEL_SETS[levels or "free"] if name == "sets" else 0


@dataclass(frozen=True)
class Fit:
    """Whether a book can hold a tensor, and how.

    Attributes:
        ok: the tensor can be encoded without losing a bit.
        shift: store w * 2^-shift; 0 where `ok` is false.
        reason: why not, in words for the user; empty where `ok` is true.
    """

    ok: bool
    shift: int
    reason: str


def fit(book: CodeBook, exponent_histogram: NDArray[np.int64], zeros: int) -> Fit:
    """Find the smallest power of two that brings a tensor into the exponents that a book holds.

    This is the per-tensor scaling of the paper's Algorithm 1, used only where it loses nothing: no
    normal value may become subnormal, and a subnormal one cannot be halved at all (its lowest bit
    may be set). Zeros stay zero.

    Args:
        book: the code book. A scale-indexed one holds every pattern and needs no shift.
        exponent_histogram: int64[32], how many weights have each exponent field, zeros included.
        zeros: how many weights are +0 or -0.
    """
    if book.scale_indexed:
        return Fit(True, 0, "")
    present = np.flatnonzero(exponent_histogram)
    if not present.size:
        return Fit(True, 0, "")
    largest = int(present[-1])
    if largest == EXPONENTS - 1:
        return Fit(False, 0, f"it has Inf or NaN, which the {book.name} book cannot hold")
    limit = int(book.held[0]).bit_length() - 1
    shift = max(0, largest - limit)
    if shift == 0:
        return Fit(True, 0, "")
    if exponent_histogram[0] > zeros:
        return Fit(False, 0, f"dividing it by 2^{shift} would round its subnormal weights")
    smallest = int(present[present > 0][0])
    if smallest - shift < 1:
        reason = (
            f"its exponents {smallest}..{largest} span more than the {book.name} book's 1..{limit}:"
            f" dividing by 2^{shift} would make its smallest weights subnormal"
        )
        return Fit(False, 0, reason)
    return Fit(True, shift, "")


@numba.njit(cache=True, nogil=True, error_model="numpy")
def count_exponents(bits, counts):
    """Add to counts int64[33] how many of uint16[size] have each exponent field; last: zeros."""
    # Four tables, since weights that follow each other often count in the same place.
    parts = np.zeros((4, 64), np.int64)
    fours = bits.size // 4 * 4
    for i in range(0, fours, 4):
        for part in range(4):
            parts[part, bits[i + part] >> 10] += 1
    for i in range(fours, bits.size):
        parts[0, bits[i] >> 10] += 1
    for part in range(4):
        for top in range(64):
            counts[top & 31] += parts[part, top]
    zeros = np.int64(0)
    for pattern in bits:
        zeros += (pattern & 0x7FFF) == 0
    counts[32] += zeros


def parse_table(text: str) -> list[list[int]]:
    """Read a table such as "0123 345e ...": a word for a code, a base-32 digit for an exponent."""
    return [[int(digit, 32) for digit in word] for word in text.split()]


def format_table(table: list[list[int]]) -> str:
    """Write a table of exponents 0..31 the way `parse_table` reads it."""
    digits = "0123456789abcdefghijklmnopqrstuv"
    return " ".join("".join(digits[exponent] for exponent in owned) for owned in table)


def _padded(table: list[list[int]]) -> NDArray[np.uint8]:
    padded = np.full((CODES, SLOTS), UNUSED, np.uint8)
    for code, owned in enumerate(table):
        padded[code, : len(owned)] = owned
    return padded


def _sets_book(level_set: str = "free") -> CodeBook:
    """Scale-indexed exponent sets, designed by ``tools/design_bank.py``."""
    design = _banks()[level_set]
    octave, rms = design["octave"], design["rms"]
    return sets_book("sets", design["levels"], design["wide"], design["tight"], octave, rms)


@cache
def _banks() -> Mapping[str, Any]:
    text = files("speqc.runtime").joinpath("bank_sets.json").read_text("utf-8")
    return json.loads(text)["level_sets"]


def sets_book(
    name: str,
    levels: ArrayLike,
    wide: Mapping[str, str],
    tight: Mapping[str, list[str]],
    octave: int = 0,
    rms: float = 1.0,
) -> CodeBook:
    """The book of a bank, whose tables are texts (see `parse_table`).

    Keys are 2 * exponent field of the scale + its first mantissa bit. `wide` has table 0 of each
    class; scales without one have the bijection {4c..4c+3}, which holds all 32 exponents. `tight`
    has the other tables, or one for all negative scales; the last two keys' tables, moved up, also
    serve larger scales, as far as FP16 has the exponents. Where there are none table 0 serves.
    """
    exponents = np.empty((CLASSES, CODES, SLOTS), np.uint8)
    exponents[:] = np.arange(EXPONENTS, dtype=np.uint8).reshape(CODES, SLOTS)
    last = max(int(key) for key in tight) // 2
    for key, text in wide.items():
        field, half = divmod(int(key), 2)
        first = parse_table(text)
        others = [parse_table(text) for text in tight[str(2 * min(field, last) + half)]]
        moved = [_moved(table, max(field - last, 0)) for table in others]
        for number in range(TABLES):
            exponents[table_class(field, half, number)] = _padded(_picked(first, moved, number))
    return CodeBook(name, 64, np.array(levels, np.float16), exponents, octave, rms)


def _moved(table: list[list[int]], fields: int) -> list[list[int]] | None:
    """The table of exponents that are larger by so much; None where these are none of a number."""
    moved = [[exponent + fields for exponent in owned] for owned in table]
    return moved if max(map(max, moved)) < EXPONENTS - 1 else None


def _picked(
    first: list[list[int]], others: list[list[list[int]] | None], number: int
) -> list[list[int]]:
    """The table with this number, of those of one class."""
    if len(others) == 1:
        found = others[0] if number >= TABLES // 2 else None
    else:
        found = others[number - 1] if number else None
    return first if found is None else found


def _fixed_book(name: str, table: list[list[int]], level_exponents: list[int]) -> CodeBook:
    levels = np.ldexp(1.0, np.array(level_exponents) - 15).astype(np.float16)
    return CodeBook(name, 128, levels, np.tile(_padded(table), (CLASSES, 1, 1)))


def _paper_book() -> CodeBook:
    """The paper's remapped E3M0 (arXiv 2510.18525): exponents 9 and 11 have codes of their own.

    They take codes 000 and 010, whose exponents move to 001 and 011. The levels (the power of two
    that the nibble means: 2^(2c - 15), and 2^(9 - 15), 2^(11 - 15) for the two remapped codes) and
    the layout of the rest are our reconstruction. Holds exponents 0..15 only.
    """
    return _fixed_book("paper", _PAPER_TABLE, _PAPER_LEVEL_EXPONENTS)


def _naive_book() -> CodeBook:
    """Plain E3M0, the control: code c = exponent >> 1, level 2^(2c - 15); exponents 0..15 only."""
    return _fixed_book("naive", _NAIVE_TABLE, [2 * code for code in range(CODES)])


CODEBOOKS = {"sets": _sets_book, "paper": _paper_book, "naive": _naive_book}
"""Known code books by name."""
