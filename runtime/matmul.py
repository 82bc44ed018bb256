"""Matrix products as one column of processing elements computes them.

Every output number has an FP32 accumulator that starts at +0 and takes one product after another
in ascending k; the product is rounded to FP32 (two FP16 numbers' product is exact), then the sum
is. No row's bits depend on another row, on the tile or thread that computes it, or on the number
of rows. `reference_kernels` says the same in slow and obvious code.

Weights come as panels [NB, K, 64], blocks of 64 columns padded with zeros: FP16 bits (uint16), or
float32. The inner loop is written in LLVM vectors, a tile of rows by columns of accumulators that
stay in registers; blocks of columns are shared out to threads.
"""

import functools
import queue
import threading
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numpy.typing import DTypeLike, NDArray

from speqc.runtime.fp16 import (
    as_bytes,
    emit_extend,
    half_to_single,
    inline_llvm,
    is_half,
    number_at,
    panel_view,
    set_number,
)

FloatArray = NDArray[np.floating[Any]]
Panels = NDArray[np.uint16] | NDArray[np.float32]

# numba compiles a function once more for a literal 0, and not for np.int64(0).
Index = int | np.int64

BLOCK = 64
"""Columns of a panel."""

TILE_ROWS = 4
"""Rows of the largest tile."""

_PARALLEL_WORK = 500_000
"""Products below which waking another thread costs more than it saves."""

# Columns of the tiles of 1 to 4 rows: the accumulators fill at most 8 of 16 vector registers.
_COLUMNS_1, _COLUMNS_2, _COLUMNS_3, _COLUMNS_4 = 64, 32, 16, 16


def _element(builder: Any, array: Any, offset: Any, wide: Any) -> Any:
    """Emit the pointer to element `offset` of the `array` as one of LLVM type `wide`."""
    return builder.bitcast(builder.gep(array.data, [offset]), wide.as_pointer())


def _emit_tile(rows: int, columns: int, context: Any, builder: Any, operands: Any) -> None:
    """Emit the loop over k for `rows` x `columns` accumulators, held in vector registers."""
    x, x_offset, x_stride, w, w_offset, depth, sums, sums_offset, sums_stride = operands
    wide = ir.VectorType(ir.FloatType(), columns)
    stored = ir.VectorType(w.data.type.pointee, columns)
    element_bytes = 2 if isinstance(stored.element, ir.IntType) else 4
    index = depth.type
    lane_zero = ir.Constant(ir.IntType(32), 0)
    splat = ir.Constant(ir.VectorType(ir.IntType(32), columns), [0] * columns)

    def row_offset(first: Any, stride: Any, row: int) -> Any:
        return builder.add(first, builder.mul(stride, ir.Constant(index, row)))

    offsets = [row_offset(sums_offset, sums_stride, row) for row in range(rows)]
    places = [_element(builder, sums, offset, wide) for offset in offsets]
    starts = [builder.gep(x.data, [row_offset(x_offset, x_stride, row)]) for row in range(rows)]
    initial = [builder.load(place, align=4) for place in places]

    before = builder.block
    loop = builder.append_basic_block("k")
    after = builder.append_basic_block("done")
    zero = ir.Constant(index, 0)
    builder.cbranch(builder.icmp_signed(">", depth, zero), loop, after)

    builder.position_at_end(loop)
    k = builder.phi(index)
    totals = [builder.phi(wide) for _ in range(rows)]
    place = builder.add(w_offset, builder.mul(k, ir.Constant(index, BLOCK)))
    weights = builder.load(_element(builder, w, place, stored), align=element_bytes)
    if element_bytes == 2:
        weights = emit_extend(context, builder, weights)
    updated = []
    for start, total in zip(starts, totals, strict=True):
        scalar = builder.load(builder.gep(start, [k]))
        single = builder.insert_element(ir.Constant(wide, ir.Undefined), scalar, lane_zero)
        repeated = builder.shuffle_vector(single, ir.Constant(wide, ir.Undefined), splat)
        updated.append(builder.fadd(total, builder.fmul(repeated, weights)))
    following = builder.add(k, ir.Constant(index, 1))
    k.add_incoming(zero, before)
    k.add_incoming(following, loop)
    for total, start, end in zip(totals, initial, updated, strict=True):
        total.add_incoming(start, before)
        total.add_incoming(end, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

    builder.position_at_end(after)
    results = [builder.phi(wide) for _ in range(rows)]
    for result, start, end, target in zip(results, initial, updated, places, strict=True):
        result.add_incoming(start, before)
        result.add_incoming(end, loop)
        builder.store(result, target, align=4)


def _tile(rows: int, columns: int) -> Any:
    """Return a numba function that adds products to a tile of accumulators.

    tile(x, x_offset, x_stride, w, w_offset, depth, sums, sums_offset, sums_stride) does, for row r,
    column c and then each k in ascending order,
    sums[sums_offset + sums_stride r + c] += x[x_offset + x_stride r + k] * w[w_offset + 64 k + c]
    on the arrays' elements in memory order. `x` and `sums` are float32, `w` float32 or FP16 bits.
    """

    def typing(
        _context: Any,
        x: Any,
        _x_offset: Any,
        _x_stride: Any,
        w: Any,
        _w_offset: Any,
        _depth: Any,
        sums: Any,
        _sums_offset: Any,
        _sums_stride: Any,
    ) -> Any:
        index = types.int64
        signature = types.void(x, index, index, w, index, index, sums, index, index)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            operands = [
                cgutils.create_struct_proxy(kind)(context, builder, value=argument)
                if isinstance(kind, types.Array)
                else argument
                for kind, argument in zip(signature.args, arguments, strict=True)
            ]
            _emit_tile(rows, columns, context, builder, operands)
            return context.get_dummy_value()

        return signature, codegen

    return inline_llvm(typing)


_tile_1 = _tile(1, _COLUMNS_1)
_tile_2 = _tile(2, _COLUMNS_2)
_tile_3 = _tile(3, _COLUMNS_3)
_tile_4 = _tile(4, _COLUMNS_4)


@inline_llvm
def _add_atomically(_context: Any, counters: Any, place: Any, amount: Any) -> Any:
    """Add `amount` to counters[place], as one step to all threads; return the number before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        target = builder.gep(array.data, [arguments[1]])
        return builder.atomic_rmw("add", target, arguments[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), codegen


@njit(inline="always")
def claim(progress: NDArray[np.int64]) -> int:
    """Return the next piece of work that no thread has begun; call `finish` when it is done."""
    return _add_atomically(progress, 0, 1)


@njit(inline="always")
def finish(progress: NDArray[np.int64]) -> None:
    """Count one claimed piece of work as done."""
    _add_atomically(progress, 1, 1)


@njit(inline="always")
def wait(progress: NDArray[np.int64], pieces: int) -> None:
    """Return when all `pieces` are done."""
    while _add_atomically(progress, 1, 0) < pieces:
        pass


class _Workers:
    """Threads that help with a kernel if they come in time.

    A kernel claims pieces of its work one by one, so it never waits for a helper that has not
    begun: on a busy machine, or in a forked process that has no helpers, the caller does it all.
    """

    def __init__(self) -> None:
        self.count = int(cast(Any, config).NUMBA_NUM_THREADS) - 1
        self._started = 0
        self._calls: queue.SimpleQueue[tuple[Any, tuple[Any, ...]]] = queue.SimpleQueue()

    def call(self, kernel: Any, arguments: tuple[Any, ...], helpers: int) -> None:
        """Run kernel(*arguments) here and, if they are free, in up to `helpers` other threads."""
        while helpers and self._started < self.count:
            self._started += 1
            threading.Thread(target=self._work, daemon=True).start()
        for _ in range(min(helpers, self.count) - self._calls.qsize()):
            self._calls.put((kernel, arguments))
        kernel(*arguments)

    def _work(self) -> None:
        while True:
            kernel, arguments = self._calls.get()
            kernel(*arguments)


_workers = _Workers()


def thread_count() -> int:
    """Return the number of threads that share out a kernel's work, the caller included."""
    return _workers.count + 1


def set_thread_count(count: int) -> None:
    """Use at most `count` threads from now on. Results do not depend on it."""
    _workers.count = count - 1


def share(kernel: Any, arguments: tuple[Any, ...], pieces: int, products: int) -> None:
    """Run kernel(*arguments, progress), which claims `pieces` pieces of work, on all threads.

    `products` is the work in multiplications; little work stays in the calling thread.
    """
    helpers = pieces - 1 if products >= _PARALLEL_WORK else 0
    _workers.call(kernel, (*arguments, np.zeros(2, np.int64)), helpers)


@njit(inline="always")
def clear(sums: NDArray[np.float32]) -> None:
    """Set the accumulators of a tile to +0."""
    for r in range(TILE_ROWS):
        for c in range(BLOCK):
            sums[r, c] = 0.0


@njit(cache=True, nogil=True)
def accumulate(
    rows: int,
    x: NDArray[np.float32],
    x_offset: Index,
    w: Panels,
    w_offset: Index,
    depth: Index,
    sums: NDArray[np.float32],
    sums_offset: Index,
) -> None:
    """Add x[rows, depth] @ w[depth, 64] to the accumulators sums[rows, 64], in ascending k.

    There are 1 to `TILE_ROWS` rows. Offsets are in elements of the whole array; the rows of `x` and
    of `sums` lie as far apart as the arrays' last axis is long.
    """
    step = x.shape[x.ndim - 1]
    stride = sums.shape[sums.ndim - 1]
    if rows == 1:
        _tile_1(x, x_offset, step, w, w_offset, depth, sums, sums_offset, stride)
    elif rows == 2:
        for c in range(0, BLOCK, _COLUMNS_2):
            _tile_2(x, x_offset, step, w, w_offset + c, depth, sums, sums_offset + c, stride)
    elif rows == 3:
        for c in range(0, BLOCK, _COLUMNS_3):
            _tile_3(x, x_offset, step, w, w_offset + c, depth, sums, sums_offset + c, stride)
    else:
        for c in range(0, BLOCK, _COLUMNS_4):
            _tile_4(x, x_offset, step, w, w_offset + c, depth, sums, sums_offset + c, stride)


@njit(cache=True, nogil=True)
def _multiply(
    x_bytes: NDArray[np.uint8],
    x_half: bool,
    rows: int,
    panels: Panels,
    scales: NDArray[np.uint16],
    group_size: int,
    out: NDArray[np.uint8],
    out_half: bool,
    n: int,
    progress: NDArray[np.int64],
) -> None:
    """Fill out [M, n] with x [M, K] @ group-scaled panels, a block of columns at a time.

    `x` and `out` are FP16 or FP32 numbers as bytes; `rows` is M.
    """
    depth = panels.shape[1]
    x = np.empty((rows, depth), np.float32)
    for row in range(rows):
        for k in range(depth):
            x[row, k] = number_at(x_bytes, row * depth + k, x_half)
    sums = np.empty((TILE_ROWS, BLOCK), np.float32)
    totals = np.empty((TILE_ROWS, BLOCK), np.float32)
    while True:
        block = claim(progress)
        if block >= panels.shape[0]:
            break
        columns = min(BLOCK, n - block * BLOCK)
        for row in range(0, rows, TILE_ROWS):
            taken = min(TILE_ROWS, rows - row)
            clear(totals)
            for group in range(scales.shape[1]):
                k = group * group_size
                place = (block * depth + k) * BLOCK
                length = min(group_size, depth - k)
                clear(sums)
                accumulate(taken, x, row * depth + k, panels, place, length, sums, np.int64(0))
                for r in range(taken):
                    for c in range(BLOCK):
                        scale = abs(half_to_single(scales[block, group, c]))
                        totals[r, c] += sums[r, c] * scale
            for r in range(taken):
                first = (row + r) * n + block * BLOCK
                for c in range(columns):
                    set_number(out, first + c, totals[r, c], out_half)
        finish(progress)
    wait(progress, panels.shape[0])


@functools.cache
def _unit_scales(blocks: int) -> NDArray[np.uint16]:
    """Return scales that make a full product: one group in each block, times 1.

    The bits are those of the sum alone: an accumulator that starts at +0 is never -0.
    """
    return np.ones((blocks, 1, BLOCK), np.float16).view(np.uint16)


def _output(
    x: FloatArray, panels: Panels, n: int, out_dtype: DTypeLike, out: FloatArray | None
) -> FloatArray:
    """Return `out` or a new array [M, n], after checking that the shapes fit together."""
    if x.ndim != 2 or panels.shape[1:] != (x.shape[1], BLOCK):
        raise ValueError(f"x {x.shape} does not fit panels {panels.shape}")
    if not (panels.shape[0] - 1) * BLOCK < n <= panels.shape[0] * BLOCK:
        raise ValueError(f"{n} columns do not fit panels {panels.shape}")
    if not panels.flags.c_contiguous:
        raise ValueError("panels must be contiguous")
    if out is None:
        return np.empty((x.shape[0], n), out_dtype)
    if out.shape != (x.shape[0], n) or out.dtype != out_dtype or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous, {(x.shape[0], n)}, {np.dtype(out_dtype)}")
    return out


def _multiplied(
    x: FloatArray,
    panels: Panels,
    scales: NDArray[np.uint16],
    group_size: int,
    n: int,
    out: FloatArray,
) -> FloatArray:
    """Return `out`, filled with the product of `x` and group-scaled panels."""
    inputs = (as_bytes(x), is_half(x), x.shape[0], panels, scales, group_size)
    share(_multiply, (*inputs, as_bytes(out), is_half(out), n), panels.shape[0], x.size * n)
    return out


def matmul_full(
    x: FloatArray,
    panels: Panels,
    n: int,
    out_dtype: DTypeLike = np.float16,
    out: FloatArray | None = None,
) -> FloatArray:
    """Return x @ w, [M, n], for a weight w [K, n] in panels.

    Args:
        x: [M, K], float16 or float32.
        panels: [ceil(n / 64), K, 64], contiguous: FP16 bits (uint16) or float32.
        n: number of columns that are not padding.
        out_dtype: float16 or float32; each sum is rounded to it once.
        out: [M, n] array of `out_dtype` to fill and return, instead of a new one.

    Raises ValueError if shapes do not fit.
    """
    result = _output(x, panels, n, out_dtype, out)
    return _multiplied(x, panels, _unit_scales(panels.shape[0]), x.shape[1], n, result)


def matmul_draft(
    x: FloatArray,
    panels: NDArray[np.uint16],
    scales: NDArray[np.float16],
    group_size: int,
    n: int,
    out_dtype: DTypeLike = np.float16,
    out: FloatArray | None = None,
) -> FloatArray:
    """Return the draft product of `x` and a weight in groups along K that share a scale.

    A group's partial sum starts at +0 and takes products in ascending k; it is multiplied by the
    scale, rounded to FP32, and added to the total in ascending group order.

    Args:
        x, n, out_dtype, out: as for `matmul_full`.
        panels: uint16[ceil(n / 64), K, 64], FP16 bits of sign * level.
        scales: float16[ceil(n / 64), ceil(K / group_size), 64]; their signs mean nothing here.
        group_size: weights along K in a group; the last group may be shorter.

    Raises ValueError if shapes do not fit.
    """
    result = _output(x, panels, n, out_dtype, out)
    if scales.shape != (panels.shape[0], -(-x.shape[1] // group_size), BLOCK):
        raise ValueError(f"scales {scales.shape} do not fit panels {panels.shape}")
    scale_bits = np.ascontiguousarray(scales).view(np.uint16)
    return _multiplied(x, panels, scale_bits, group_size, n, result)


def pack_panels(w: FloatArray) -> Panels:
    """Return a matrix [K, N] (float16 or float32) as panels [ceil(N / 64), K, 64]."""
    depth, n = w.shape
    blocks = -(-n // BLOCK)
    panels = np.zeros((blocks, depth, BLOCK), w.dtype)
    for block in range(blocks):
        part = w[:, block * BLOCK : (block + 1) * BLOCK]
        panels[block, :, : part.shape[1]] = part
    return panel_view(panels)


def matmul_plain(a: FloatArray, b: FloatArray, out_dtype: DTypeLike | None = None) -> FloatArray:
    """Return a @ b for activations [..., M, K] and [..., K, N], batch axes broadcast.

    Same order and rounding as `matmul_full`. `out_dtype` is by default the wider of the two.
    """
    dtype = np.result_type(a, b) if out_dtype is None else out_dtype
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left = np.broadcast_to(a, (*batch, *a.shape[-2:]))
    right = np.broadcast_to(b, (*batch, *b.shape[-2:]))
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), dtype)
    for index in np.ndindex(batch):
        matmul_full(left[index], pack_panels(right[index]), b.shape[-1], dtype, out[index])
    return out
