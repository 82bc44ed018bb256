"""What one op costs on a target, from its shapes: cycles on each unit and bytes of DRAM traffic.

Weights lie in DRAM as tiles of ``array_rows`` x ``array_columns``, padded along K and N, and stream
through the weight SRAM one bank at a time. The array holds one PE tile while activations pass: as
many rows of K as a PE has lanes for the width of the weights, so 16-bit weights fill one array tile
and 4-bit ones ``draft_lanes``. The next PE tile is shifted in through one 16-bit port per column,
``array_rows`` cycles long, behind the activations of the present one. All values are integers.
"""

from dataclasses import dataclass
from math import gcd

from speqc.runtime.errors import SpeqcError
from speqc.runtime.target import Target
from speqc.runtime.timing import Array, Load, Unit

VALUE_BYTES = 2
DRAFT_BITS = 4
FULL_BITS = 16
SCALE_BITS = 16
"""Bits of a group's scale, but for formats of copies."""


class CostError(SpeqcError):
    """A shape that the target cannot process."""


@dataclass(frozen=True, slots=True)
class StreamCost:
    """An op that works through a stream from DRAM block by block, and what each block costs.

    All blocks are alike but the last, which also takes what division leaves over. Without a stream
    (``blocks == 0``) all work is in ``last_block_cycles``. ``load_*`` cycles hold the DRAM channel;
    the others hold ``unit``, and ``lead_cycles`` and ``drain_cycles`` are as in ``timing.Array``.
    """

    unit: Unit
    blocks: int
    block_bytes: int
    last_block_bytes: int
    load_block_cycles: int
    load_last_block_cycles: int
    block_cycles: int
    last_block_cycles: int
    lead_cycles: int
    drain_cycles: int

    @property
    def stream_bytes(self) -> int:
        """Bytes that the whole stream brings from DRAM."""
        return max(self.blocks - 1, 0) * self.block_bytes + self.last_block_bytes

    @property
    def load_cycles(self) -> int:
        """Cycles for which the whole stream holds the DRAM channel."""
        return max(self.blocks - 1, 0) * self.load_block_cycles + self.load_last_block_cycles

    @property
    def unit_cycles(self) -> int:
        """Cycles for which the op keeps its unit busy, the fill before the first block included."""
        uniform = max(self.blocks - 1, 0) * self.block_cycles
        return self.lead_cycles + uniform + self.last_block_cycles

    def load(self) -> Load:
        """Return the stream as a timing op; only where ``blocks`` is not 0."""
        return Load(self.blocks, self.load_block_cycles, self.load_last_block_cycles)

    def compute(
        self,
        load: int | None,
        after: tuple[int, ...] = (),
        read_cycles: int = 0,
        write_cycles: int = 0,
    ) -> Array:
        """Return the consumer of op number ``load`` as a timing op; None where ``blocks`` is 0."""
        return Array(
            load,
            self.block_cycles,
            self.last_block_cycles,
            self.lead_cycles,
            self.drain_cycles,
            after,
            self.unit,
            read_cycles,
            write_cycles,
        )


def dram_cycles(size_bytes: int, target: Target) -> int:
    """Return how long a contiguous transfer holds the DRAM channel: whole bursts, at full rate."""
    burst = target.dram_burst_bytes
    whole = _ceil(size_bytes, burst) * burst
    return _ceil(whole * target.clock_hz, target.dram_bytes_per_second)


def vector_cycles(elements: int, lane_ops: int, target: Target) -> int:
    """Return the vector unit's cycles for ``lane_ops`` operations on each of ``elements``."""
    return _ceil(elements * lane_ops, target.vector_lanes)


def wavefront_cycles(target: Target) -> int:
    """Return how long a result lags behind the cycle in which its row enters the array's corner.

    ``array_rows - 1`` and ``array_columns - 1`` hops to the opposite corner, and one cycle to be
    rounded and written.
    """
    return target.array_rows + target.array_columns - 1


def lanes(weight_bits: int, target: Target) -> int:
    """Return how many weights of a width one PE takes in a cycle: its port's bits, at least one."""
    return max(1, target.draft_lanes * DRAFT_BITS // weight_bits)


def lanes_for(weight_bits: int, mantissa_bits: int, target: Target) -> int:
    """Return how many weights of a width one PE takes in a cycle, if its lanes can multiply them.

    A weight with more ``mantissa_bits`` than a lane takes goes to the full multiplier, one a cycle.
    """
    if weight_bits == FULL_BITS or mantissa_bits > target.draft_mantissa_bits:
        return 1
    return lanes(weight_bits, target)


@dataclass(frozen=True, slots=True)
class WeightTiling:
    """How a KxN weight covers the array: a grid of tiles of ``depth`` x ``columns`` weights.

    ``grid`` counts tiles along (K, N); ``per_block`` tiles travel together into one bank.
    """

    depth: int
    columns: int
    grid: tuple[int, int]
    per_block: int


def tile_weight(
    k: int,
    n: int,
    target: Target,
    *,
    weight_bits: int,
    group_size: int | None,
    mantissa_bits: int = 0,
    group_bits: int = SCALE_BITS,
) -> WeightTiling:
    """Tile a KxN weight, as many tiles to a block as one weight bank holds.

    Arguments as for ``gemm``. Raises CostError where not even one tile fits a bank.
    """
    columns = target.array_columns
    depth = target.array_rows * lanes_for(weight_bits, mantissa_bits, target)
    tile_bytes = depth * columns * weight_bits // 8
    if group_size is not None:
        tile_bytes += _ceil(depth * columns * group_bits, 8 * group_size)
    if tile_bytes > target.weight_bank_bytes:
        raise CostError(
            f"target {target.name}: a weight bank of {target.weight_bank_bytes} bytes cannot hold "
            f"a tile of {depth} x {columns} {weight_bits}-bit weights ({tile_bytes} bytes); "
            "use fewer or larger banks"
        )
    grid = _ceil(k, depth), _ceil(n, columns)
    per_block = min(grid[0] * grid[1], target.weight_bank_bytes // tile_bytes)
    return WeightTiling(depth, columns, grid, per_block)


def gemm(
    k: int,
    n: int,
    m: int,
    target: Target,
    *,
    weight_bits: int,
    group_size: int | None,
    mantissa_bits: int = 0,
    group_bits: int = SCALE_BITS,
) -> StreamCost:
    """Cost of an ``m x k`` by ``k x n`` product on the array, its weights streamed from DRAM.

    ``weight_bits`` is the width that is read: 16 in full mode (also for weights kept as FP16), 4 in
    draft mode, 8 or 12 for the wider nested views. ``group_size`` is None where no scales are read;
    otherwise ``group_bits`` are, per group along K and column, which the full view needs too where
    the scale picks its table. ``mantissa_bits`` are those of what is multiplied (``lanes_for``).
    Raises CostError where not even one PE tile fits a weight bank.

    A PE tile takes ``max(array_rows, m)`` cycles: the next one's shift-in, or the rows of
    activations if they are more.
    """
    tiling = tile_weight(
        k,
        n,
        target,
        weight_bits=weight_bits,
        group_size=group_size,
        mantissa_bits=mantissa_bits,
        group_bits=group_bits,
    )
    stored_k = _ceil(k, target.array_rows) * target.array_rows
    stored_n = tiling.grid[1] * tiling.columns
    stream_bytes = stored_k * stored_n * weight_bits // 8
    if group_size is not None:
        stream_bytes += _ceil(_ceil(k, group_size) * stored_n * group_bits, 8)
    tiles, block_tiles = tiling.grid[0] * tiling.grid[1], tiling.per_block
    return _stream(
        "array",
        _ceil(tiles, block_tiles),
        (block_tiles, tiles),
        stream_bytes,
        tiles * max(target.array_rows, m),
        target,
    )


def attention_scores_on_vector(
    heads: int,
    kv_heads: int,
    head_dim: int,
    past: int,
    m: int,
    target: Target,
    value_bytes: int = VALUE_BYTES,
) -> StreamCost:
    """Cost of ``q K^T`` on the vector unit: ``m`` rows of ``heads`` queries over ``past + m`` keys.

    The keys of ``past`` positions stream from the cache in DRAM; the ``m`` new ones are on chip.
    ``heads`` is a multiple of ``kv_heads``; causally masked positions are computed like
    others. One multiply-add per lane and cycle. A number in the cache takes ``value_bytes``.
    """
    work = vector_cycles(heads * m * (past + m) * head_dim, 1, target)
    return _cache_stream("vector", kv_heads * head_dim * value_bytes, past, work, target)


def attention_values_on_vector(
    heads: int,
    kv_heads: int,
    head_dim: int,
    past: int,
    m: int,
    target: Target,
    value_bytes: int = VALUE_BYTES,
) -> StreamCost:
    """Cost of ``p V`` on the vector unit; as many multiply-adds and bytes as for the scores."""
    return attention_scores_on_vector(heads, kv_heads, head_dim, past, m, target, value_bytes)


def attention_scores_on_array(
    heads: int,
    kv_heads: int,
    head_dim: int,
    past: int,
    m: int,
    target: Target,
    value_bytes: int = VALUE_BYTES,
) -> StreamCost:
    """Cost of ``q K^T`` on the array in full mode, the keys of one cache head in place of weights.

    A head's K^T is ``head_dim x (past + m)``; the queries that share it are rows of activations.
    """
    work = _attention_on_array(heads, kv_heads, m, target, head_dim, past + m)
    return _cache_stream("array", kv_heads * head_dim * value_bytes, past, work, target)


def attention_values_on_array(
    heads: int,
    kv_heads: int,
    head_dim: int,
    past: int,
    m: int,
    target: Target,
    value_bytes: int = VALUE_BYTES,
) -> StreamCost:
    """Cost of ``p V`` on the array in full mode: a head's V is ``(past + m) x head_dim``."""
    work = _attention_on_array(heads, kv_heads, m, target, past + m, head_dim)
    return _cache_stream("array", kv_heads * head_dim * value_bytes, past, work, target)


def embedding_bytes(hidden: int, m: int, target: Target) -> int:
    """Return the DRAM traffic, in whole bursts, of ``m`` rows of a plain FP16 embedding table."""
    return rows_bytes(hidden * VALUE_BYTES, m, target)


def rows_bytes(row_bytes: int, count: int, target: Target) -> int:
    """Return the DRAM traffic, in whole bursts, of ``count`` rows from anywhere in a table."""
    return count * _touched_bytes(row_bytes, target)


def tied_embedding_bytes(hidden: int, m: int, target: Target, *, group_size: int | None) -> int:
    """Return the DRAM traffic, in whole bursts, of ``m`` rows of an embedding tied to the head.

    A token is a column of the head's weight, whose K is ``hidden``: in each array tile along K it
    has one piece of ``array_rows`` nibbles in each of the four planes (tiles are stored column by
    column), and one scale per group where the full view needs scales.
    """
    rows, planes = target.array_rows, FULL_BITS // DRAFT_BITS
    piece = _touched_bytes(_ceil(rows * DRAFT_BITS, 8), target)
    scales = 0 if group_size is None else _ceil(hidden, group_size)
    pieces = planes * _ceil(hidden, rows)
    return m * (pieces * piece + scales * _touched_bytes(VALUE_BYTES, target))


def cache_append_bytes(
    kv_heads: int, head_dim: int, m: int, target: Target, value_bytes: int = VALUE_BYTES
) -> int:
    """Return the DRAM traffic, in whole bursts, of appending ``m`` positions to one cache (K or V).

    A cache is ``kv_heads x positions x head_dim``: one piece per head.
    """
    row = head_dim * value_bytes
    return kv_heads * _touched_bytes(m * row, target, row)


def _attention_on_array(heads: int, kv_heads: int, m: int, target: Target, k: int, n: int) -> int:
    """Cycles of ``kv_heads`` products with a ``k x n`` matrix each, all query heads together."""
    tiles = kv_heads * _ceil(k, target.array_rows) * _ceil(n, target.array_columns)
    return tiles * max(target.array_rows, m * heads // kv_heads)


def _cache_stream(unit: Unit, row_bytes: int, past: int, work: int, target: Target) -> StreamCost:
    """Spread ``work`` evenly over ``past`` positions of one cache, ``row_bytes`` each."""
    stream_bytes = row_bytes * past
    bank = target.weight_bank_bytes
    blocks = _ceil(stream_bytes, bank)
    return _stream(unit, blocks, (bank, stream_bytes), stream_bytes, work, target)


def _stream(
    unit: Unit, blocks: int, share: tuple[int, int], stream_bytes: int, work: int, target: Target
) -> StreamCost:
    """Cut bytes and work into blocks of ``share`` (a fraction) each; the last takes the rest.

    On the array the first tile's shift-in leads, and the last row's wavefront follows.
    """
    uniform = max(blocks - 1, 0)
    block_bytes = stream_bytes * share[0] // share[1] if uniform else 0
    block_cycles = work * share[0] // share[1] if uniform else 0
    last_bytes = stream_bytes - uniform * block_bytes
    on_array = unit == "array"
    return StreamCost(
        unit=unit,
        blocks=blocks,
        block_bytes=block_bytes,
        last_block_bytes=last_bytes,
        load_block_cycles=dram_cycles(block_bytes, target),
        load_last_block_cycles=dram_cycles(last_bytes, target),
        block_cycles=block_cycles,
        last_block_cycles=work - uniform * block_cycles,
        lead_cycles=target.array_rows if on_array else 0,
        drain_cycles=wavefront_cycles(target) if on_array else target.vector_latency_cycles,
    )


def _touched_bytes(piece_bytes: int, target: Target, alignment: int | None = None) -> int:
    """Return the bursts, in bytes, that a piece touches at the worst multiple of ``alignment``.

    Pieces of one size lie side by side, so that alignment is their own size unless given.
    """
    burst = target.dram_burst_bytes
    furthest = burst - gcd(alignment or piece_bytes, burst)
    return _ceil(furthest + piece_bytes, burst) * burst


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
