"""Decoder attention over a KV cache, with the rounding points of the graph it came from.

For each query head and each row m (position past + m), over the positions t it sees:

1. scores: q . k in FP32, ascending d, rounded to `score_dtype`; times `score_scale`, or divided by
   `score_divisor`; soft-capped, c * tanh(s / c); each of these operations rounded to
   `scale_dtype`; plus the position bias, rounded to its `sum_dtype`;
2. softmax: scores rounded to `softmax_dtype`; in FP32 the maximum, exp(s - maximum), the difference
   rounded to `shifted_dtype`, their sum in ascending t, and each quotient; rounded to `prob_dtype`.
   A sink is one more score, behind the last position, whose probability is dropped;
3. output: p . v in FP32, ascending t, rounded to `out_dtype`.

Masked positions are never read, so they do nothing to the bits, whatever they hold. A row's result
does not depend on the number of rows. `reference_kernels.attention` says the same slowly.
"""

from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

from speqc.runtime.elementary import tanh64
from speqc.runtime.fp16 import as_bytes, is_half, number_at, panel_view, rounded, set_number
from speqc.runtime.matmul import BLOCK, TILE_ROWS, accumulate, claim, clear, finish, share, wait
from speqc.runtime.norms import softmax_in_place

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PositionBias:
    """A slope for each query head times a position, added to the scores; dtypes float16 or float32.

    Attributes:
        slopes: one for each query head, as float32 holds it.
        from_row: the position of key t counts from the row's own, t - (past + m), not from 0.
        position_dtype: dtype that the position is rounded to.
        product_dtype: dtype that slope * position, in FP32, is rounded to.
        sum_dtype: dtype that score + bias is rounded to.
    """

    slopes: tuple[float, ...]
    from_row: bool = False
    position_dtype: DTypeLike = np.float32
    product_dtype: DTypeLike = np.float16
    sum_dtype: DTypeLike = np.float16

    def table(self, count: int) -> NDArray[np.float32]:
        """The biases [H, count] of positions 0, 1, ..., or of 0, -1, ... counted from the row."""
        positions = np.arange(count, dtype=np.float32) * np.float32(-1 if self.from_row else 1)
        slopes = np.array(self.slopes, np.float32)[:, None]
        with np.errstate(over="ignore"):
            products = slopes * positions.astype(self.position_dtype).astype(np.float32)
            return products.astype(self.product_dtype).astype(np.float32)


@lru_cache(maxsize=16)
def _bias_table(bias: PositionBias, count: int) -> NDArray[np.float32]:
    """The table of a bias, once for all layers and steps that need as many positions."""
    return bias.table(count)


@dataclass(frozen=True)
class AttentionSpec:
    """What an attention computes and where it rounds; every dtype is float16 or float32.

    Attributes:
        score_scale: factor of the scores, as `scale_dtype` holds it, or None if the graph has none
            (it may scale the queries and keys instead).
        score_dtype: dtype of the sums q . k.
        softmax_dtype: dtype that scores are rounded to before the softmax.
        prob_dtype: dtype of the probabilities that multiply the values.
        out_dtype: dtype of the result.
        window: row m sees positions past + m - window < t <= past + m; None: all up to past + m.
        softcap: bound c of the scores, c * tanh(s / c), or None.
        score_divisor: what scores are divided by, in place of a factor, or None.
        scale_dtype: dtype of scaling and soft cap; None: that of the scores.
        bias: what is added to the scores by position, or None.
        scale_behind_bias: scores are scaled behind the bias.
        sinks: for each query head a score that joins the softmax behind the last position, or None.
        shifted_dtype: dtype that the difference of a score and the maximum is rounded to.
    """

    score_scale: float | None = None
    score_dtype: DTypeLike = np.float16
    softmax_dtype: DTypeLike = np.float16
    prob_dtype: DTypeLike = np.float16
    out_dtype: DTypeLike = np.float16
    window: int | None = None
    softcap: float | None = None
    score_divisor: float | None = None
    scale_dtype: DTypeLike | None = None
    bias: PositionBias | None = None
    scale_behind_bias: bool = False
    sinks: tuple[float, ...] | None = None
    shifted_dtype: DTypeLike = np.float32


class KVCache:
    """Keys and values of the positions so far, for one layer.

    Attributes:
        keys: [KV, T / 64, D, 64], the keys of 64 positions as a panel of columns.
        values: [KV, ceil(DV / 64), T, 64], the values as panels with a row for each position.
        length: number of positions held. Storage T grows by doubling, up to `capacity`.

    Numbers lie as FP16 bits (uint16) or float32.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: DTypeLike = np.float16,
        value_dim: int | None = None,
    ) -> None:
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.value_dim = head_dim if value_dim is None else value_dim
        self.capacity = capacity
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._allocate(min(capacity, 4 * BLOCK))

    def append(self, keys: FloatArray, values: FloatArray) -> None:
        """Add the keys [KV, M, D] and values [KV, M, DV] of the next M positions.

        Both must have the cache's dtype. Raises ValueError for other shapes or dtypes, and if the
        cache would hold more than `capacity` positions.
        """
        count = keys.shape[1]
        if keys.shape != (self.kv_heads, count, self.head_dim):
            raise ValueError(f"keys {keys.shape} do not fit a cache with {self.keys.shape}")
        if values.shape != (self.kv_heads, count, self.value_dim):
            raise ValueError(f"values {values.shape} do not fit a cache with {self.values.shape}")
        if keys.dtype != self.dtype or values.dtype != self.dtype:
            raise ValueError(f"a {self.dtype} cache takes no {keys.dtype} and {values.dtype}")
        self._reserve(self.length + count)
        _append(panel_view(keys), panel_view(values), self.keys, self.values, self.length)
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on; raises ValueError if there are fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} positions to {length}")
        self.length = length

    def copy(self) -> "KVCache":
        """Return an independent copy."""
        other = KVCache(self.kv_heads, self.head_dim, self.capacity, self.dtype, self.value_dim)
        other.keys, other.values, other.length = self.keys.copy(), self.values.copy(), self.length
        return other

    def fork(self, length: int, room: int = 0) -> "KVCache":
        """An independent copy of the first `length` positions, with storage for `room` more.

        Raises ValueError if there are fewer.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot fork a cache of {self.length} positions at {length}")
        other = copy(self)
        other.length = length
        other._allocate(min(length + max(room, 1), self.capacity))
        stored = -(-length // BLOCK)
        other.keys[:, :stored] = self.keys[:, :stored]
        other.values[:, :, :length] = self.values[:, :, :length]
        return other

    def _allocate(self, positions: int) -> None:
        blocks = -(-positions // BLOCK)
        element = np.uint16 if self.dtype == np.float16 else np.float32
        value_blocks = -(-self.value_dim // BLOCK)
        self.keys = np.zeros((self.kv_heads, blocks, self.head_dim, BLOCK), element)
        self.values = np.zeros((self.kv_heads, value_blocks, blocks * BLOCK, BLOCK), element)

    def _reserve(self, positions: int) -> None:
        """Make room for `positions`, by doubling so that a long text is copied once on average."""
        if positions > self.capacity:
            raise ValueError(f"{positions} positions exceed the capacity {self.capacity}")
        stored = self.keys.shape[1]
        if positions <= stored * BLOCK:
            return
        keys, values = self.keys, self.values
        self._allocate(min(max(positions, 2 * stored * BLOCK), self.capacity))
        self.keys[:, :stored] = keys
        self.values[:, :, : stored * BLOCK] = values


@njit(cache=True, nogil=True)
def _append(keys: Any, values: Any, key_panels: Any, value_panels: Any, length: int) -> None:
    """Put new keys and values into their panels, from position `length` on."""
    heads, count, width = keys.shape
    for head in range(heads):
        for m in range(count):
            block, column = (length + m) // BLOCK, (length + m) % BLOCK
            for d in range(width):
                key_panels[head, block, d, column] = keys[head, m, d]
            for d in range(values.shape[2]):
                value_panels[head, d // BLOCK, length + m, d % BLOCK] = values[head, m, d]


@njit(inline="always")
def _scale(row: NDArray[np.float32], scale: Any, divides: bool, half: bool) -> None:
    """Multiply a row with `scale`, or divide it."""
    if divides:
        for t in range(row.size):
            row[t] = rounded(row[t] / scale, half)
    elif scale != 1.0:
        for t in range(row.size):
            row[t] = rounded(row[t] * scale, half)


@njit(inline="always")
def _cap(row: NDArray[np.float32], cap: Any, half: bool) -> None:
    """Bound a row softly."""
    for t in range(row.size):
        bounded = np.float32(tanh64(rounded(row[t] / cap, half)))
        row[t] = rounded(rounded(bounded, half) * cap, half)


@njit(inline="always")
def _adjust(
    row: NDArray[np.float32],
    first: int,
    position: int,
    scale: tuple[Any, bool, bool],
    cap: Any,
    biases: NDArray[np.float32],
    from_row: bool,
    halves: tuple[bool, ...],
) -> None:
    """Turn the sums q . k of a row into what its softmax takes.

    The row begins at position `first` and belongs to a query at `position`. `scale` is the number,
    whether it divides, and whether it comes behind the bias. A `cap` of None, and an empty row of
    `biases`, stand for none. `halves` says what is FP16: sums, scaling, biased, softmax.
    """
    number, divides, behind = scale
    for t in range(row.size):
        row[t] = rounded(row[t], halves[0])
    if not behind:
        _scale(row, number, divides, halves[1])
    if cap is not None:
        _cap(row, cap, halves[1])
    if biases.size:
        for t in range(row.size):
            place = position - first - t if from_row else first + t
            row[t] = rounded(row[t] + biases[place], halves[2])
    if behind:
        _scale(row, number, divides, halves[1])
    for t in range(row.size):
        row[t] = rounded(row[t], halves[3])


@njit(inline="always")
def _shift(row: NDArray[np.float32]) -> None:
    """Subtract the largest number of a row from all, and round to FP16."""
    largest = np.float32(-np.inf)
    for t in range(row.size):
        largest = row[t] if row[t] > largest else largest
    for t in range(row.size):
        row[t] = rounded(row[t] - largest, True)


@njit(inline="always")
def _weigh(
    rows: int,
    weights: NDArray[np.float32],
    values: Any,
    start: int,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    sums: NDArray[np.float32],
) -> None:
    """Put into sums[r] the values of positions low[r] to high[r], weighted, in ascending order.

    `start` is the place of position 0 in `values`. All rows together take the positions that all
    of them see, each by itself takes those before and after.
    """
    begin, end = low[0], high[0]
    for r in range(rows):
        begin = max(begin, low[r])
        end = min(end, high[r])
    end = max(begin, end)
    stride = weights.shape[1]
    clear(sums)
    # Each row by itself, all rows together, each row by itself once more.
    for step in range(2 * rows + 1):
        r = step if step < rows else step - rows - 1
        taken, first, stop = 1, low[r], min(begin, high[r])
        if step == rows:
            taken, r, first, stop = rows, 0, begin, end
        elif step > rows:
            first, stop = end, high[r]
        place = r * stride + first
        where = start + first * BLOCK
        accumulate(taken, weights, place, values, where, stop - first, sums, r * BLOCK)


@njit(inline="always")
def _score(
    rows: int,
    queries: NDArray[np.float32],
    keys: Any,
    first_block: int,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Put q . k into scores[r, t] for the blocks that hold positions low[r] to high[r].

    `first_block` is the block of `keys` that holds position 0.
    """
    begin, end = low[0], high[0]
    for r in range(rows):
        begin = min(begin, low[r])
        end = max(end, high[r])
    width = queries.shape[1]
    for block in range(begin // BLOCK, (end + BLOCK - 1) // BLOCK):
        t = block * BLOCK
        for r in range(rows):
            for c in range(BLOCK):
                scores[r, t + c] = 0.0
        place = (first_block + block) * width * BLOCK
        accumulate(rows, queries, np.int64(0), keys, place, width, scores, t)


@njit(cache=True, nogil=True, error_model="numpy")
def _attend(
    queries: NDArray[np.uint8],
    keys: Any,
    values: Any,
    out: NDArray[np.uint8],
    heads: int,
    group: int,
    count: int,
    past: int,
    window: int,
    value_width: int,
    scale: tuple[Any, bool, bool],
    cap: Any,
    biases: NDArray[np.float32],
    from_row: bool,
    sinks: NDArray[np.float32],
    halves: tuple[bool, ...],
    progress: NDArray[np.int64],
) -> None:
    """Fill out[H, M, DV] for queries[H, M, D], both as bytes.

    `heads` is KV, `group` H / KV, `count` M and `value_width` DV; `halves` says what is FP16:
    queries, result, probabilities, what `_adjust` takes, and differences from the maximum.
    `biases` [H, positions] and `sinks` [H] may be empty. The group * count rows that share a KV
    head are cut into tiles: these are the pieces of work.
    """
    width = keys.shape[1]
    blocks, stored = values.shape[0] // heads, values.shape[1]
    tiles = (count * group + TILE_ROWS - 1) // TILE_ROWS
    tile_queries = np.empty((TILE_ROWS, width), np.float32)
    # A block more than there are positions: a sink stands behind the last.
    scores = np.empty((TILE_ROWS, stored + BLOCK), np.float32)
    sums = np.empty((TILE_ROWS, BLOCK), np.float32)
    low = np.empty(TILE_ROWS, np.int64)
    high = np.empty(TILE_ROWS, np.int64)
    while True:
        piece = claim(progress)
        if piece >= heads * tiles:
            break
        head = piece // tiles
        first = piece % tiles * TILE_ROWS
        rows = min(TILE_ROWS, count * group - first)
        for r in range(rows):
            m, member = (first + r) // group, (first + r) % group
            high[r] = past + m + 1
            low[r] = max(0, high[r] - window)
            for d in range(width):
                place = ((head * group + member) * count + m) * width + d
                tile_queries[r, d] = number_at(queries, place, halves[0])
        _score(rows, tile_queries, keys, head * (stored // BLOCK), low, high, scores)
        for r in range(rows):
            row = scores[r, low[r] : high[r]]
            query_head = head * group + (first + r) % group
            of_head = biases[query_head]
            _adjust(row, low[r], high[r] - 1, scale, cap, of_head, from_row, halves[3:7])
            if sinks.size:
                row = scores[r, low[r] : high[r] + 1]
                row[-1] = sinks[query_head]
            if halves[7]:
                _shift(row)
            softmax_in_place(row, halves[2])
        for block in range(blocks):
            place = (head * blocks + block) * stored * BLOCK
            _weigh(rows, scores, values, place, low, high, sums)
            columns = min(BLOCK, value_width - block * BLOCK)
            for r in range(rows):
                m, member = (first + r) // group, (first + r) % group
                place = ((head * group + member) * count + m) * value_width + block * BLOCK
                for c in range(columns):
                    set_number(out, place + c, sums[r, c], halves[1])
        finish(progress)
    wait(progress, heads * tiles)


def attention(q: FloatArray, cache: KVCache, past: int, spec: AttentionSpec) -> FloatArray:
    """Return softmax(q K^T) V, [H, M, DV], for the positions past to past + M - 1.

    Args:
        q: [H, M, D] queries, float16 or float32, scaled as the graph says; query head h uses KV
            head h // (H / KV).
        cache: keys and values of at least past + M positions, those of the M rows included.
        past: position of the first row.
        spec: what else the graph does, and where it rounds.

    Raises ValueError if shapes do not fit.
    """
    heads, count, width = q.shape
    if width != cache.head_dim or heads % cache.kv_heads:
        raise ValueError(f"queries {q.shape} do not fit a cache with {cache.keys.shape}")
    if past + count > cache.length:
        raise ValueError(f"cache holds {cache.length} positions, not {past + count}")
    if spec.bias is not None and len(spec.bias.slopes) != heads:
        raise ValueError(f"{len(spec.bias.slopes)} slopes do not fit {heads} query heads")
    if spec.sinks is not None and len(spec.sinks) != heads:
        raise ValueError(f"{len(spec.sinks)} sinks do not fit {heads} query heads")
    out = np.empty((heads, count, cache.value_dim), spec.out_dtype)
    group = heads // cache.kv_heads
    arguments = (
        as_bytes(q),
        cache.keys.reshape(-1, width, BLOCK),
        cache.values.reshape(-1, cache.values.shape[2], BLOCK),
        as_bytes(out),
        cache.kv_heads,
        group,
        count,
        past,
        past + count if spec.window is None else spec.window,
        cache.value_dim,
        _scaling(spec),
        None if spec.softcap is None else np.float32(spec.softcap),
        np.empty((heads, 0), np.float32)
        if spec.bias is None
        else _bias_table(spec.bias, cache.values.shape[2]),
        spec.bias is not None and spec.bias.from_row,
        np.array(spec.sinks or (), np.float32),
        (is_half(q), is_half(out), *_halves(spec)),
    )
    pieces = cache.kv_heads * -(-count * group // TILE_ROWS)
    products = heads * count * (past + count) * (width + cache.value_dim)
    share(_attend, arguments, pieces, products)
    return out


def _scaling(spec: AttentionSpec) -> tuple[np.float32, bool, bool]:
    """The number that scores are scaled with, whether it divides, whether behind the bias."""
    if spec.score_divisor is not None:
        return np.float32(spec.score_divisor), True, spec.scale_behind_bias
    scale = 1.0 if spec.score_scale is None else spec.score_scale
    return np.float32(scale), False, spec.scale_behind_bias


def _halves(spec: AttentionSpec) -> tuple[bool, ...]:
    """What is FP16: probabilities, sums, scaling, biased scores, softmax input, differences."""
    scale_dtype = spec.score_dtype if spec.scale_dtype is None else spec.scale_dtype
    sum_dtype = np.float32 if spec.bias is None else spec.bias.sum_dtype
    dtypes = (
        spec.prob_dtype,
        spec.score_dtype,
        scale_dtype,
        sum_dtype,
        spec.softmax_dtype,
        spec.shifted_dtype,
    )
    return tuple(np.dtype(dtype) == np.float16 for dtype in dtypes)
