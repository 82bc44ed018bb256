"""The closed form of the timing rules, compiled: where `timing.time_step` does its work.

A step is a table of integers with a row for each op (columns below), and for each op the rows of
the earlier ops whose results it needs. Rules and costs are those of `timing`; the reference that
walks every block is `timing_reference`.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

COLUMNS = 11
(
    KIND,
    LOAD_OP,
    BLOCKS,
    LOAD,
    LAST_LOAD,
    WORK,
    LAST_WORK,
    LEAD,
    DRAIN,
    READ,
    WRITE,
) = range(COLUMNS)
"""Columns of a step's table. `LOAD_OP` is the row of the load that an op consumes, or -1; the next
three belong to loads, the rest to ops that work; a store writes."""

ISSUE, STORE, ON_ARRAY, ON_VECTOR = range(4)
"""Kinds of ops: a load, a request to the channel that nothing waits for, work on a unit."""

TIMED = 8
START, END, READY, BOUND, LOADED, IDEAL, STALL, DRAINED = range(TIMED)
"""Columns of the timings; the last four are an op's parts, in cycles."""

PARTS = slice(LOADED, TIMED)
"""Columns of the parts."""

DRAM, ARRAY, VECTOR = range(3)
"""Units, as bounds and as places of busy cycles."""


@njit(cache=True, nogil=True)
def run_step(
    table: NDArray[np.int64],
    after_start: NDArray[np.int64],
    after: NDArray[np.int64],
    latency: int,
    banks: int,
    timings: NDArray[np.int64],
    busy: NDArray[np.int64],
) -> int:
    """Place the ops of a step one after another; returns its cycles.

    Op i needs the results of `after[after_start[i] : after_start[i + 1]]`. Fills `timings` [ops,
    TIMED] and `busy` [3], both zero before.
    """
    free = np.zeros(3, np.int64)
    issued = np.zeros(len(table), np.int64)
    ring = np.zeros(banks, np.int64)
    state = np.zeros(STATE, np.int64)
    dram_free, last_start, cycles = 0, 0, 0
    for i in range(len(table)):
        op = table[i]
        ready = 0
        for j in range(after_start[i], after_start[i + 1]):
            ready = max(ready, timings[after[j], READY])
        if op[KIND] == ISSUE:
            issued[i] = max(last_start, ready)
            continue
        if op[KIND] == STORE:
            start = max(dram_free, ready)
            dram_free = start + op[WRITE]
            busy[DRAM] += op[WRITE]
            timings[i, START], timings[i, END], timings[i, READY] = start, dram_free, dram_free
            timings[i, IDEAL] = max(0, dram_free - cycles)
            cycles = max(cycles, dram_free)
            continue
        unit = ARRAY if op[KIND] == ON_ARRAY else VECTOR
        if op[READ]:
            # Operands that live in DRAM; each request waits for the one before.
            dram_free = max(dram_free, ready) + op[READ]
            ready = dram_free + latency
        transferred = op[READ] + op[WRITE]
        worked = op[LEAD] + op[LAST_WORK]
        begin = max(free[unit], ready)
        state[WAITED] = 0
        if op[LOAD_OP] < 0:
            start, end = begin, begin + worked
        else:
            load = op[LOAD_OP]
            state[TRANSFERRED], state[PROCESSED] = max(dram_free, issued[load]), begin
            state[SEEN] = cycles
            opened, start = _stream(table[load], op, latency, ring, state)
            dram_free, end = state[TRANSFERRED], state[PROCESSED]
            uniform = table[load, BLOCKS] - 1
            worked += uniform * op[WORK]
            transferred += uniform * table[load, LOAD] + table[load, LAST_LOAD]
            timings[load, START], timings[load, END] = opened, dram_free
            timings[load, READY] = dram_free + latency
        free[unit] = end
        last_start = start
        finished = end + op[DRAIN]
        if op[WRITE]:
            dram_free = finished = max(dram_free, finished) + op[WRITE]
        busy[unit] += worked
        busy[DRAM] += transferred
        timings[i, START], timings[i, END], timings[i, READY] = start, end, finished
        timings[i, BOUND] = DRAM if transferred > worked else unit
        filled = start + op[LEAD]
        timings[i, LOADED] = max(0, filled - cycles)
        timings[i, IDEAL] = max(0, end - max(filled, cycles)) - state[WAITED]
        timings[i, STALL] = state[WAITED]
        timings[i, DRAINED] = max(0, finished - max(end, cycles))
        cycles = max(cycles, finished)
    return cycles


STATE = 5
TRANSFERRED, PROCESSED, OLDEST, SEEN, WAITED = range(STATE)
"""State of a stream: D and A of its latest block, and the place in the ring of A[i - B]; and how
long the unit has waited between its blocks, counted from cycle `SEEN` on."""


@njit(cache=True, nogil=True)
def _stream(
    load: NDArray[np.int64],
    op: NDArray[np.int64],
    latency: int,
    ring: NDArray[np.int64],
    state: NDArray[np.int64],
) -> tuple[int, int]:
    """Place a load and its consumer; returns when the first transfer and the consumer start."""
    blocks, c, a = load[BLOCKS], load[LOAD], op[WORK]
    if blocks == 1:
        c, a = load[LAST_LOAD], op[LAST_WORK]
    _blocks(1, c, op[LEAD] + a, latency, ring, state)
    state[WAITED] = 0
    opened = state[TRANSFERRED] - c
    start = state[PROCESSED] - op[LEAD] - a
    if blocks > 1:
        banks = len(ring)
        count = blocks - 2
        head = min(count, banks - 1)
        _blocks(head, c, a, latency, ring, state)
        rounds = (count - head) // banks
        if rounds:
            _counted_rounds(rounds, c, a, latency, ring, state)
        _blocks(count - head - rounds * banks, c, a, latency, ring, state)
        _blocks(1, load[LAST_LOAD], op[LAST_WORK], latency, ring, state)
    return opened, start


@njit(cache=True, nogil=True)
def _blocks(
    count: int, c: int, a: int, latency: int, ring: NDArray[np.int64], state: NDArray[np.int64]
) -> None:
    """Apply the recurrence of a stream `count` times, one block each.

    With D = end of a block's transfer, A = end of its processing, c and a cycles a block::

        D[i] = max(D[i-1], A[i-B]) + c
        A[i] = max(A[i-1], D[i] + latency) + a

    `ring` holds A[i-B] .. A[i-1], earlier streams' blocks included.
    """
    transferred, processed, place = state[TRANSFERRED], state[PROCESSED], state[OLDEST]
    waited = 0
    for _ in range(count):
        transferred = max(transferred, ring[place]) + c
        begin = max(processed, transferred + latency)
        waited += max(0, begin - max(processed, state[SEEN]))
        processed = begin + a
        ring[place] = processed
        place += 1
        if place == len(ring):
            place = 0
    state[TRANSFERRED], state[PROCESSED], state[OLDEST] = transferred, processed, place
    state[WAITED] += waited


@njit(cache=True, nogil=True)
def _counted_rounds(
    p: int, c: int, a: int, latency: int, ring: NDArray[np.int64], state: NDArray[np.int64]
) -> None:
    """Continue by `p` >= 1 rounds as `_rounds`, and count what the unit waits from `SEEN` on.

    Rounds that end before `SEEN` are found by bisection; the one in which it falls is walked.
    """
    before = 0
    if state[PROCESSED] < state[SEEN]:
        beyond = p + 1
        while beyond - before > 1:
            middle = (before + beyond) // 2
            trial_ring, trial = ring.copy(), state.copy()
            _rounds(middle, c, a, latency, trial_ring, trial)
            if trial[PROCESSED] <= state[SEEN]:
                before = middle
            else:
                beyond = middle
        if before:
            _rounds(before, c, a, latency, ring, state)
        if before < p:
            _blocks(len(ring), c, a, latency, ring, state)
            before += 1
    if before < p:
        start = state[PROCESSED]
        _rounds(p - before, c, a, latency, ring, state)
        state[WAITED] += state[PROCESSED] - start - (p - before) * len(ring) * a


@njit(cache=True, nogil=True)
def sum_parts(
    timings: NDArray[np.int64], kinds: NDArray[np.int64], sums: NDArray[np.int64]
) -> None:
    """Add up ops' parts in `sums` [kinds, units, 4], by kind and by the unit that bounds them."""
    for i in range(len(timings)):
        for part in range(4):
            sums[kinds[i], timings[i, BOUND], part] += timings[i, LOADED + part]


@njit(cache=True, nogil=True)
def _rounds(
    p: int, c: int, a: int, latency: int, ring: NDArray[np.int64], state: NDArray[np.int64]
) -> None:
    """Continue by `p` >= 1 rounds of B equal blocks, once the ring is all this stream's.

    A value of a max-plus recurrence is the longest path to it. Number the known blocks 0..B-1;
    wanted are A[r + pB] for each r < B, and D[B-1 + pB]. A path moves on by one block along D
    (c cycles) or along A (a), crosses from D to A at one block (l + a), and crosses back from
    A[i] to D[i + B] (c). A path that goes on by t blocks in q round trips of both crossings
    therefore spends q W + (t - q B) m, with W = c + l + a and m = max(a, c). That is linear in
    q: where W <= B m no round trip is best, else as many as fit, and the rest at m a block. A
    full round costs max(W, B m) either way, and the longest path to A[r + pB] is one of

    - A[s] back to D[s + B], p-1 full rounds, to A at the end: W + (p-1) rounds + (r - s) m for
      s <= r; for s > r one round fewer and (B + r - s) m, which takes p > 1;
    - D[B-1] to A with p-1 full rounds on the way: l + a + (p-1) rounds + (r + 1) m;
    - A[B-1] along A alone.

    The next transfer waits for A[pB] as well, so D[B-1 + pB] matters only where it is later.
    Then it is reached along D, from D[B-1] or after one crossing back from a known A[s]. For
    let the last crossing back be from A[k], k < pB. If a >= c, A[pB] is later along A. Else,
    if k is known, that is the case above; if not, A[k] is reached from some D[j], and the path
    on from D[j] along D is as late where W <= B c, and the path to A[pB] where W > B c; or
    from A[B-1] along A, and crossing back from A[B-1] at once is as late.
    Nothing here needs B > 1.
    """
    banks = len(ring)
    known = np.empty(banks, np.int64)
    for s in range(banks):
        known[s] = ring[(state[OLDEST] + s) % banks]
    m = max(a, c)
    round_trip = c + latency + a
    full_round = max(round_trip, banks * m)
    from_d = state[TRANSFERRED] + latency + a + (p - 1) * full_round + m
    from_a = known[-1] + ((p - 1) * banks + 1) * a
    same_round = round_trip + (p - 1) * full_round
    next_round = same_round - full_round + banks * m
    back = known[0]
    # The largest A[s] - s m of the blocks s behind r, for each r but the last.
    beyond = np.empty(banks, np.int64)
    for s in range(banks - 1, 0, -1):
        levelled = known[s] - s * m
        beyond[s - 1] = levelled if s == banks - 1 else max(levelled, beyond[s])
        back = max(back, known[s] - s * c)
    latest = from_d - same_round
    end = 0
    for r in range(banks):
        latest = max(latest, known[r] - r * m)
        end = max(latest + same_round + r * m, from_a + r * a)
        if p > 1 and r < banks - 1:
            end = max(end, beyond[r] + next_round + r * m)
        ring[(state[OLDEST] + r) % banks] = end
    state[PROCESSED] = end
    state[TRANSFERRED] = max(state[TRANSFERRED], back) + p * banks * c
