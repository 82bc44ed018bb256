"""Where the cycles of one product go, in closed form, for speqc, SCALE-Sim and ZigZag.

Totals are sums of the same six parts, so that two simulators can be subtracted part by part. For
speqc and SCALE-Sim they follow from the shapes and the rules alone; for ZigZag from the mapping
that its search chose and the durations of single moves that it reports. The rules are those of
SCALE-Sim 3.0.0 in its ``USER`` bandwidth mode and of ZigZag 3.9.1. Throughout, R x C is the array,
F the number of tiles of weights ("folds" in SCALE-Sim), M the rows of activations.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import ceil

from speqc.runtime.target import Target

WORD_BYTES = 2
# SCALE-Sim keeps book of a buffer in a hundred sets of words, of which half are in use at a time.
BUFFER_SETS = 100


@dataclass(frozen=True)
class Gemm:
    """An ``m x k`` by ``k x n`` product, and the memory that all simulators get for it.

    ``words_per_cycle`` is the DRAM bandwidth in 16-bit words (SCALE-Sim takes whole words only);
    ``scale_sim_kib`` the weight SRAM that SCALE-Sim gets.
    """

    k: int
    n: int
    m: int
    words_per_cycle: int = 51
    scale_sim_kib: int = 400

    def target(self) -> Target:
        """Return the default target with this product's DRAM bandwidth."""
        target = Target()
        rate = self.words_per_cycle * WORD_BYTES * target.clock_hz
        return replace(target, dram_bytes_per_second=rate)

    def tiles(self) -> int:
        """Return F, how many tiles of the array's size cover the weight."""
        target = self.target()
        return ceil(self.k / target.array_rows) * ceil(self.n / target.array_columns)


@dataclass(frozen=True)
class Parts:
    """Cycles on the critical path, by what they are spent on; ``total`` is their sum.

    ``transfers``: the array waits for DRAM. ``latency``: of the DRAM. ``shift_in``: weights enter
    the array and no row of activations does. ``rows``: activations enter the array. ``wavefront``:
    the last row crosses the array. ``quirks``: what a simulator counts that no machine does.
    """

    transfers: int
    latency: int
    shift_in: int
    rows: int
    wavefront: int
    quirks: int = 0

    def values(self) -> tuple[int, ...]:
        """Return the parts in the order of their names."""
        return tuple(getattr(self, name) for name in PART_NAMES)

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.values())


PART_NAMES = tuple(field.name for field in fields(Parts))


def speqc_parts(gemm: Gemm) -> Parts:
    """Return the parts of our own model for one stream of blocks on an idle machine.

    The end is the latest of all ways to get there: through the transfers of the blocks up to one of
    them, and from there through the work of the array on it and all that follow.
    """
    target = gemm.target()
    rows, columns = target.array_rows, target.array_columns
    tile_bytes = rows * columns * WORD_BYTES
    per_block = target.weight_bank_bytes // tile_bytes
    blocks = list(_cut(gemm.tiles(), per_block))
    exposed = max(0, rows - gemm.m)
    ways: list[Parts] = []
    transferred, left = 0, gemm.tiles()
    for index, tiles in enumerate(blocks):
        transferred += ceil(tiles * tile_bytes / (gemm.words_per_cycle * WORD_BYTES))
        first_shift = rows if index == 0 else 0
        ways.append(
            Parts(
                transfers=transferred,
                latency=target.dram_latency_cycles,
                shift_in=first_shift + left * exposed,
                rows=left * gemm.m,
                wavefront=rows + columns - 1,
            )
        )
        left -= tiles
    return max(ways, key=lambda way: way.total)


def speqc_array_cycles(gemm: Gemm) -> int:
    """Return our model's cycles with a DRAM that costs nothing."""
    target = gemm.target()
    rows, columns = target.array_rows, target.array_columns
    return rows + gemm.tiles() * max(rows, gemm.m) + rows + columns - 1


@dataclass(frozen=True)
class ScaleSimStalls:
    """What SCALE-Sim's weight buffer adds: waiting, waiting counted again, and words it reads."""

    waits: int
    counted_again: int
    words_read: int


def scale_sim_parts(gemm: Gemm) -> Parts:
    """Return the parts of SCALE-Sim: its tiles follow one another without any overlap.

    A tile is shifted in (R), its rows enter (M), and the last one crosses the array (R + C - 2)
    before the next tile starts. The total is the number of the last cycle, counted from 0.
    """
    target = gemm.target()
    rows, columns = target.array_rows, target.array_columns
    tiles = gemm.tiles()
    stalls = scale_sim_stalls(gemm)
    return Parts(
        transfers=stalls.waits,
        latency=0,
        shift_in=tiles * rows,
        rows=tiles * gemm.m,
        wavefront=tiles * (rows + columns - 2),
        quirks=stalls.counted_again - 1,
    )


def scale_sim_stalls(gemm: Gemm) -> ScaleSimStalls:
    """Replay SCALE-Sim's double buffer of weights, on runs of words instead of single words.

    One half is full before cycle 0. A word outside the half in use turns the buffer on: the next
    refill of h words takes ceil(h / bandwidth) + 1 cycles from the end of the one before, wherever
    the array stands, and the array waits for it. A positive wait is added twice, a negative one
    (refilled long ago) once; only what remains above 0 for a row of the array stalls it. Rows of a
    tile are asked for from the last to the first. Where half a buffer ends inside a tile, that
    order asks for words of a half that has just been left, and the buffer turns all the way round.
    """
    buffer = _ScaleSimBuffer(gemm)
    stalled = counted_again = 0
    for cycle, first, last in _weight_rows(gemm):
        waits, again = buffer.row(cycle + stalled, first, last)
        stalled += max(0, waits + again)
        counted_again += again if waits + again > 0 else 0
    return ScaleSimStalls(stalled - counted_again, counted_again, buffer.words_read)


class _ScaleSimBuffer:
    """The half in use is ``used`` consecutive sets from ``start``, of ``sets`` in a ring."""

    def __init__(self, gemm: Gemm) -> None:
        words = gemm.scale_sim_kib * 1024 // WORD_BYTES
        half = ceil(words / 2)
        self.set_words = ceil(words / BUFFER_SETS)
        self.sets = gemm.k * gemm.n // self.set_words + 1
        self.used = min(ceil(half / self.set_words), self.sets)
        self.turn = min(ceil((words - half) / self.set_words), self.sets - self.used)
        self.start = 0
        bandwidth = gemm.words_per_cycle
        columns = gemm.target().array_columns
        stored = gemm.k * ceil(gemm.n / columns) * columns
        self.refill_lines = ceil((words - half) / bandwidth)
        self.line_words = bandwidth
        self.refilled = -1
        self.words_read = min(ceil(half / bandwidth), ceil(stored / bandwidth)) * bandwidth

    def row(self, cycle: int, first: int, last: int) -> tuple[int, int]:
        """Ask for the words ``first`` to ``last``; return cycles waited, and those added again."""
        waits = again = 0
        for wanted in range(first // self.set_words, last // self.set_words + 1):
            while (wanted - self.start) % self.sets >= self.used:
                self.start = (self.start + self.turn) % self.sets
                self.refilled += self.refill_lines + 1
                self.words_read += self.refill_lines * self.line_words
                wait = self.refilled - (cycle + 1 + waits + again)
                waits += wait
                again += max(0, wait)
        return waits, again


def _weight_rows(gemm: Gemm) -> Iterator[tuple[int, int, int]]:
    """Yield each row of weights as SCALE-Sim asks for it: its cycle, first and last word.

    Words are numbered in the order in which they come from DRAM: column by column of tiles.
    """
    target = gemm.target()
    rows, columns = target.array_rows, target.array_columns
    start = 0
    for column in range(0, gemm.n, columns):
        width = min(columns, gemm.n - column)
        for top in range(0, gemm.k, rows):
            for row in reversed(range(top, min(top + rows, gemm.k))):
                first = gemm.k * column + row * width
                yield start + top + rows - 1 - row, first, first + width - 1
            start += 2 * rows + columns + gemm.m - 2


@dataclass(frozen=True)
class ZigZagMapping:
    """What ZigZag's search chose: how often weights move, and how long each move takes.

    The SRAM is filled ``blocks`` times, ``block_cycles`` each; the array's registers ``tiles``
    times, ``shift_cycles`` each. Rows enter for ``rows`` cycles in all, F M where all tiles are
    full; ``drain_cycles`` follow the last.
    """

    blocks: int
    block_cycles: int
    tiles: int
    shift_cycles: int
    rows: int
    drain_cycles: int

    @property
    def array_stall(self) -> int:
        """Cycles in which weights enter the array and no row does, the first time left out."""
        return (self.tiles - 1) * max(0, self.shift_cycles - self.rows // self.tiles)

    @property
    def array_cycles(self) -> int:
        """Cycles with a DRAM that costs nothing."""
        return self.shift_cycles + self.array_stall + self.rows + self.drain_cycles


def zigzag_parts(mapping: ZigZagMapping) -> Parts:
    """Return the parts of ZigZag, from its mapping.

    Each link of memories stalls by what a move takes beyond the rows that pass meanwhile, once for
    every move but the first, and the slowest link counts. The first moves precede everything, but
    weights that all stay in the SRAM are loaded while the array already works on them. (Weights
    that fill the registers only once are another case, which this leaves out.)
    """
    block_rows = mapping.rows // mapping.blocks
    dram_stall = (mapping.blocks - 1) * (mapping.block_cycles - block_rows)
    if dram_stall > mapping.array_stall:
        return Parts(
            transfers=mapping.blocks * mapping.block_cycles,
            latency=0,
            shift_in=mapping.shift_cycles,
            rows=block_rows,
            wavefront=mapping.drain_cycles,
        )
    first_block = mapping.block_cycles
    if mapping.blocks == 1:
        first_block = max(1, first_block - mapping.rows - mapping.array_stall)
    shift_in = mapping.shift_cycles + mapping.array_stall
    return Parts(first_block, 0, shift_in, mapping.rows, mapping.drain_cycles)


def _cut(total: int, size: int) -> Iterator[int]:
    """Cut ``total`` into pieces of ``size``; the last may be smaller."""
    while total > 0:
        yield min(size, total)
        total -= size
