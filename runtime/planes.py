"""Storage layout of bit-shared weights: the planes that lie in an artifact's file.

Columns go in blocks of 64 (N padded to a multiple of 64 with zero bytes), and in a block each plane
lies in ascending k, so that a draft touches nothing of the rest:

- draft, leading, middle, low: uint8[NB, K, 32], two nibbles a byte, the even column in the low one:
  F; slot and the two leading mantissa bits; the next four mantissa bits; the last four;
- scales: float16[NB, ceil(K / group_size), 64].

The draft reads one plane, wider views two (8 bits) or three (12 bits), the full view all four.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from speqc.runtime.bsfp import (
    BLOCK,
    Encoded,
    check_arguments,
    draft_patterns,
    encode_block,
    for_each,
    full_exponents,
    row_weights,
    wide_exponents,
)
from speqc.runtime.codebook import CodeBook, scale_class
from speqc.runtime.plane_kernels import (
    draft_block,
    full_block,
    pack_block,
    unpack_block,
    wide8_block,
    wide12_block,
)

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")

PLANE_BYTES = BLOCK // 2
"""Bytes of a plane for one k of one block."""

NIBBLE_PLANES = ("draft", "leading", "middle", "low")
"""The planes of nibbles, the first bits of a weight first: attributes of `Planes`."""

TILE_ROWS = 2048
"""Rows of a block that are encoded or compared at a time, about: what a core's cache holds."""

PANEL_ROWS = 512
"""Rows that are brought into panels at a time: whole cache lines, by rows or by columns."""


Nibbles = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""The four planes of `NIBBLE_PLANES`, or the same part of each."""


@dataclass(frozen=True)
class Planes:
    """A bit-shared weight [K, N] as it is stored; the number of columns N is kept by the caller.

    Attributes:
        draft: uint8[NB, K, 32], the nibbles F.
        leading: uint8[NB, K, 32], slot << 2 | mantissa >> 8.
        middle: uint8[NB, K, 32], mantissa >> 4 & 15.
        low: uint8[NB, K, 32], mantissa & 15.
        scales: float16[NB, ceil(K / group_size), 64], signs as in `bsfp.Encoded`.
        group_size: weights along K that share a scale.
    """

    draft: NDArray[np.uint8]
    leading: NDArray[np.uint8]
    middle: NDArray[np.uint8]
    low: NDArray[np.uint8]
    scales: NDArray[np.float16]
    group_size: int

    @property
    def nibbles(self) -> Nibbles:
        """The planes of `NIBBLE_PLANES`."""
        return self.draft, self.leading, self.middle, self.low

    def part(self, index: int | slice | tuple[int, slice]) -> Nibbles:
        """The same of some blocks, or of some rows of a block: views."""
        return self.draft[index], self.leading[index], self.middle[index], self.low[index]


def empty_planes(k: int, n: int, group_size: int) -> Planes:
    """Planes for a [k, n] weight, not yet filled."""
    blocks = -(-n // BLOCK)
    draft, leading, middle, low = (
        np.empty((blocks, k, PLANE_BYTES), np.uint8) for _ in NIBBLE_PLANES
    )
    return Planes(
        draft,
        leading,
        middle,
        low,
        np.empty((blocks, -(-k // group_size), BLOCK), np.float16),
        group_size,
    )


def encode_to_planes(
    bits: NDArray[np.uint16],
    book: CodeBook,
    group_size: int,
    shift: int = 0,
    importance: NDArray[np.float32] | None = None,
    out: Planes | None = None,
) -> Planes:
    """Encode FP16 patterns and pack them, 64 columns at a time: little memory beside the result.

    A slice of columns that starts at a multiple of 64 gives the same bytes as that part of the
    whole weight does, so a caller may also stream slices of a memory-mapped tensor.

    Args:
        bits: uint16[K, N] FP16 patterns (any strides, may be memory-mapped).
        book, group_size, shift, importance: as in `bsfp.encode`.
        out: planes to fill (`empty_planes`, or views of a file); new ones if None.

    Raises:
        SpeqcError: as `bsfp.encode`.
    """
    check_arguments(bits, book, group_size, shift)
    n = bits.shape[1]
    return encode_panels(to_panels(bits), n, book, group_size, shift, importance, out)


def encode_panels(
    panels: NDArray[np.uint16],
    n: int,
    book: CodeBook,
    group_size: int,
    shift: int = 0,
    importance: NDArray[np.float32] | None = None,
    out: Planes | None = None,
) -> Planes:
    """Encode n columns that lie in panels uint16[NB, K, 64], a tile at a time.

    The other arguments, and what is raised, are those of `encode_to_planes`.
    """
    blocks, k, _ = panels.shape
    weights = row_weights(importance, k)
    planes = empty_planes(k, n, group_size) if out is None else out

    def encode_and_pack(block: int) -> None:
        for rows, groups in _tiles(k, group_size):
            tile = panels[block, rows, : n - block * BLOCK]
            encoded = encode_block(tile, book, group_size, shift, weights[rows])
            pack_block(encoded.codes, encoded.rest, *planes.part((block, rows)))
            planes.scales[block, groups] = encoded.scales

    for_each(range(blocks), encode_and_pack)
    return planes


def decodes_to(
    planes: Planes, book: CodeBook, panels: NDArray[np.uint16], n: int, shift: int = 0
) -> bool:
    """Whether the planes hold exactly the n columns of panels uint16[NB, K, 64].

    Decodes as `full_panels` does, but keeps no more than a tile for each thread.
    """
    _check_columns(planes, n)
    blocks, k, _ = panels.shape
    exponents = full_exponents(book, shift)
    classes = scale_class(planes.scales.view(np.uint16))
    same = np.zeros(blocks, np.bool_)

    def compare(block: int) -> None:
        equal = True
        for rows, groups in _tiles(k, planes.group_size):
            tile = panels[block, rows]
            decoded = np.empty(tile.shape, np.uint16)
            full_block(
                *planes.part((block, rows)),
                classes[block, groups],
                planes.group_size,
                exponents,
                min(BLOCK, n - block * BLOCK),
                decoded,
            )
            equal = equal and np.array_equal(decoded, tile)
        same[block] = equal

    for_each(range(blocks), compare)
    return bool(same.all())


def to_panels(bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Patterns [K, N] (any strides) as panels [NB, K, 64], zero in the columns beyond N."""
    k, n = bits.shape
    panels = np.zeros((-(-n // BLOCK), k, BLOCK), np.uint16)
    split = _split_columns if bits.flags.f_contiguous else _split_rows

    def fill(tile: int) -> None:
        rows = slice(tile * PANEL_ROWS, (tile + 1) * PANEL_ROWS)
        split(bits[rows], panels[:, rows])

    for_each(range(-(-k // PANEL_ROWS)), fill)
    return panels


def _tiles(k: int, group_size: int) -> list[tuple[slice, slice]]:
    """Rows and groups of each tile of a block: whole groups, about `TILE_ROWS` rows."""
    groups = max(1, TILE_ROWS // group_size)
    return [
        (slice(first * group_size, (first + groups) * group_size), slice(first, first + groups))
        for first in range(0, -(-k // group_size), groups)
    ]


def pack(encoded: Encoded) -> Planes:
    """Lay an encoded weight out for storage."""
    k, n = encoded.codes.shape
    planes = empty_planes(k, n, encoded.group_size)

    def pack_columns(block: int) -> None:
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        pack_block(
            _padded(encoded.codes[:, columns]),
            _padded(encoded.rest[:, columns]),
            *planes.part(block),
        )
        planes.scales[block] = _padded(encoded.scales[:, columns])

    for_each(range(len(planes.draft)), pack_columns)
    return planes


def unpack(planes: Planes, n: int) -> Encoded:
    """The encoded weight with its n columns: the inverse of `pack`."""
    _check_columns(planes, n)
    blocks, k, _ = planes.draft.shape
    codes = np.empty((k, blocks * BLOCK), np.uint8)
    rest = np.empty((k, blocks * BLOCK), np.uint16)

    def unpack_columns(block: int) -> None:
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        unpack_block(*planes.part(block), codes[:, columns], rest[:, columns])

    for_each(range(blocks), unpack_columns)
    scales = planes.scales.transpose(1, 0, 2).reshape(planes.scales.shape[1], blocks * BLOCK)
    return Encoded(
        np.ascontiguousarray(codes[:, :n]),
        np.ascontiguousarray(rest[:, :n]),
        np.ascontiguousarray(scales[:, :n]),
        planes.group_size,
    )


def full_panels(planes: Planes, book: CodeBook, n: int, shift: int = 0) -> NDArray[np.uint16]:
    """The exact FP16 patterns as panels uint16[NB, K, 64]; zero in the columns beyond n."""
    kernel, exponents = full_block, full_exponents(book, shift)
    return _decoded(kernel, planes.nibbles, planes, exponents, n)


def wide_panels(
    planes: Planes, book: CodeBook, n: int, weight_bits: int, shift: int = 0
) -> NDArray[np.uint16]:
    """FP16 patterns of the view of 8 or 12 bits as panels uint16[NB, K, 64]; zero beyond n.

    They are those of `bsfp.narrowed` with the mantissa bits that the view keeps, 2 or 6.
    """
    kernel, count = {8: (wide8_block, 2), 12: (wide12_block, 3)}[weight_bits]
    exponents = wide_exponents(book, shift, 4 * count - 6)
    return _decoded(kernel, planes.nibbles[:count], planes, exponents, n)


def _decoded(
    kernel: Callable[..., None],
    nibbles: tuple[NDArray[np.uint8], ...],
    planes: Planes,
    exponents: NDArray[np.uint16],
    n: int,
) -> NDArray[np.uint16]:
    """Panels that a kernel makes of some planes, block by block."""
    _check_columns(planes, n)
    panels = np.empty((*planes.draft.shape[:2], BLOCK), np.uint16)
    classes = scale_class(planes.scales.view(np.uint16))

    def fill(block: int) -> None:
        columns = min(BLOCK, n - block * BLOCK)
        parts = (plane[block] for plane in nibbles)
        kernel(*parts, classes[block], planes.group_size, exponents, columns, panels[block])

    for_each(range(len(panels)), fill)
    return panels


def draft_panels(planes: Planes, book: CodeBook, n: int) -> NDArray[np.uint16]:
    """FP16 patterns of sign * level as panels uint16[NB, K, 64]; zero in the columns beyond n.

    A group's sum of products with these, times the magnitude of its scale, is a draft partial sum.
    """
    _check_columns(planes, n)
    panels = np.zeros((*planes.draft.shape[:2], BLOCK), np.uint16)
    patterns = draft_patterns(book)

    def fill(block: int) -> None:
        draft_block(planes.draft[block], patterns, min(BLOCK, n - block * BLOCK), panels[block])

    for_each(range(len(panels)), fill)
    return panels


def _check_columns(planes: Planes, n: int) -> None:
    blocks = len(planes.draft)
    if -(-n // BLOCK) != blocks:
        raise ValueError(f"planes of {blocks} blocks cannot have {n} columns")


def _padded(part):
    """`part` [rows, up to 64] with zero columns appended to make 64."""
    padded = np.zeros((len(part), BLOCK), part.dtype)
    padded[:, : part.shape[1]] = part
    return padded


@_jit
def _split_rows(bits, panels):
    """Copy [K, N] into panels; reads run along rows, as they lie in memory."""
    for k in range(bits.shape[0]):
        for block in range(panels.shape[0]):
            first = block * BLOCK
            for n in range(min(BLOCK, bits.shape[1] - first)):
                panels[block, k, n] = bits[k, first + n]


@_jit
def _split_columns(bits, panels):
    """Copy [K, N] into panels; reads run along columns, as they lie in memory."""
    rows = bits.shape[0]
    column = np.empty((BLOCK, PANEL_ROWS + 32), np.uint16)
    for block in range(panels.shape[0]):
        first = block * BLOCK
        columns = min(BLOCK, bits.shape[1] - first)
        for n in range(columns):
            for k in range(rows):
                column[n, k] = bits[k, first + n]
        for k in range(rows):
            for n in range(columns):
                panels[block, k, n] = column[n, k]
