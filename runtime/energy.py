"""What an op does that takes energy, beside its DRAM traffic: on-chip memory, array, vector unit.

Counts are whole numbers, so that sums are exact in whatever order. Every byte that comes from DRAM
is written to an SRAM, and every byte that goes there is read from one. Beyond that an op reads each
operand and writes each result, as often as the functions below say. The array computes whole tiles,
padding included; the vector unit only the elements that there are. Leakage is not counted.
"""

from dataclasses import astuple, dataclass
from typing import NamedTuple

from speqc.runtime.target import Target

VALUE_BITS, SUM_BITS = 16, 32
"""An activation on its way into the array, and a partial sum."""


class Work(NamedTuple):
    """What one op, or several, take besides DRAM traffic.

    Attributes:
        sram_bits: read and written, in both SRAMs.
        full_multiply_adds: of the array with 16-bit weights, padding included.
        draft_multiply_adds: of its draft lanes, padding included.
        vector_operations: of the vector unit's lanes.
    """

    sram_bits: int = 0
    full_multiply_adds: int = 0
    draft_multiply_adds: int = 0
    vector_operations: int = 0

    def plus(self, other: "Work") -> "Work":
        """Both together."""
        return Work(
            self.sram_bits + other.sram_bits,
            self.full_multiply_adds + other.full_multiply_adds,
            self.draft_multiply_adds + other.draft_multiply_adds,
            self.vector_operations + other.vector_operations,
        )


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of each component, in joules."""

    dram: float
    sram: float
    array: float
    vector: float

    @property
    def total(self) -> float:
        """All components together."""
        return sum(astuple(self))


def energy(dram_bytes: float, work: Work, target: Target) -> Energy:
    """What DRAM traffic and work take on a target. A mean over runs need not be whole."""
    array = work.full_multiply_adds * target.array_full_energy_picojoules_per_multiply_add
    array += work.draft_multiply_adds * target.array_draft_energy_picojoules_per_multiply_add
    vector = work.vector_operations * target.vector_energy_picojoules_per_operation
    return Energy(
        dram=dram_bytes * 8 * target.dram_energy_picojoules_per_bit * 1e-12,
        sram=work.sram_bits * target.sram_energy_picojoules_per_bit * 1e-12,
        array=array * 1e-12,
        vector=vector * 1e-12,
    )


def buffered(dram_bytes: int) -> Work:
    """DRAM traffic on its way through an SRAM: each byte written, or read, once."""
    return Work(sram_bits=8 * dram_bytes)


def touched(size_bytes: int) -> Work:
    """Operands that are read once, or results that are written once."""
    return Work(sram_bits=8 * size_bytes)


def product(
    grid: tuple[int, int],
    tile: tuple[int, int],
    rows: int,
    *,
    draft: bool,
    value_bits: int = VALUE_BITS,
) -> Work:
    """A product of `rows` activations with a grid (K, N) of tiles (depth, columns) on the array.

    For each tile all rows of its `depth` activations are read. A tile's sums start from those of
    the tile before it along K: FP32, written to an SRAM and read from it again. What is read of the
    matrix, and the result, are not part of it.
    """
    tiles = grid[0] * grid[1]
    depth, columns = tile
    multiply_adds = tiles * depth * columns * rows
    passed_on = (tiles - grid[1]) * columns * rows
    return Work(
        sram_bits=tiles * depth * rows * value_bits + 2 * SUM_BITS * passed_on,
        full_multiply_adds=0 if draft else multiply_adds,
        draft_multiply_adds=multiply_adds if draft else 0,
    )


def attention_on_array(
    kv_heads: int, group_rows: int, k: int, n: int, target: Target, item_bytes: int, value_bits: int
) -> Work:
    """`group_rows` rows by a `k x n` matrix of each cache head, which is read once."""
    tile = target.array_rows, target.array_columns
    grid = -(-k // tile[0]), -(-n // tile[1])
    head = product(grid, tile, group_rows, draft=False, value_bits=value_bits)
    head = head.plus(touched(k * n * item_bytes))
    return Work(*(kv_heads * count for count in head))


def attention_on_vector(query_rows: int, k: int, n: int, item_bytes: int, value_bits: int) -> Work:
    """`query_rows` rows (of all heads) by `k x n` matrices, a multiply-add per lane and operation.

    Each multiply-add reads its number of the cache; a row and its sums stay in the lanes.
    """
    operations = query_rows * k * n
    bits = operations * 8 * item_bytes + query_rows * k * value_bits
    return Work(sram_bits=bits, vector_operations=operations)
