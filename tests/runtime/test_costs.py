from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speqc.runtime.costs import (
    CostError,
    StreamCost,
    attention_scores_on_array,
    attention_scores_on_vector,
    attention_values_on_array,
    attention_values_on_vector,
    cache_append_bytes,
    dram_cycles,
    embedding_bytes,
    gemm,
    tied_embedding_bytes,
    tile_weight,
    vector_cycles,
)
from speqc.runtime.target import Target
from speqc.runtime.timing import Op, StepTiming, time_step

TARGET = Target()
ONE_LANE = replace(TARGET, draft_lanes=1)


@pytest.mark.parametrize(
    ("size", "cycles"),
    [
        # 51.2 GB/s at 500 MHz are 102.4 bytes a cycle; a burst of 64 takes 0.625.
        (0, 0),
        (1, 1),
        (64, 1),
        (65, 2),  # two bursts: 1.25
        (256, 3),  # 2.5
        (65_536, 640),
    ],
)
def test_dram_cycles(size: int, cycles: int) -> None:
    assert dram_cycles(size, TARGET) == cycles


def test_dram_cycles_are_exact_beyond_floats() -> None:
    # 2**60 bytes at 2**50 bytes/s are 2**10 s of 10**11 cycles each.
    fast = replace(TARGET, clock_hz=10**11, dram_bytes_per_second=2**50)
    assert dram_cycles(2**60, fast) == 2**10 * 10**11
    assert dram_cycles(2**60 + 1, fast) > 2**10 * 10**11


def test_vector_cycles() -> None:
    assert vector_cycles(64, 1, TARGET) == 1
    assert vector_cycles(65, 1, TARGET) == 2
    assert vector_cycles(65, 10, TARGET) == 11  # 650 / 64 = 10.2


def test_full_gemm_by_hand() -> None:
    # 64 x 64 tiles of 64 x 64 weights, 8192 bytes each, 8 to a bank of 65,536: 512 equal blocks.
    # A tile takes 64 cycles to shift in. The wavefront: 63 + 63 hops and one cycle to write.
    cost = gemm(4096, 4096, 1, TARGET, weight_bits=16, group_size=None)
    assert cost == StreamCost("array", 512, 65_536, 65_536, 640, 640, 512, 512, 64, 127)
    assert cost.stream_bytes == 4096 * 4096 * 2
    assert cost.load_cycles == 512 * 640
    assert cost.unit_cycles == 64 + 4096 * 64


def test_draft_gemm_by_hand() -> None:
    # 16 x 64 tiles of 256 x 64 weights: 8192 bytes and two groups of 64 scales, 256 bytes; seven
    # to a bank. 1024 tiles = 146 blocks of 7 and one of 2. 59,136 bytes take 577.5 cycles.
    cost = gemm(4096, 4096, 1, TARGET, weight_bits=4, group_size=128)
    assert cost == StreamCost("array", 147, 59_136, 16_896, 578, 165, 448, 128, 64, 127)
    assert cost.stream_bytes == 4096 * 4096 // 2 + 32 * 4096 * 2


def test_full_view_with_scales() -> None:
    # Half a group of 128 falls into a tile of 64 rows: 64 bytes more, so 7 tiles a bank.
    cost = gemm(4096, 4096, 1, TARGET, weight_bits=16, group_size=128)
    assert cost.block_bytes == 7 * (8192 + 64)
    assert cost.stream_bytes == 4096 * 4096 * 2 + 32 * 4096 * 2


def test_ragged_draft_gemm_moves_stored_tiles_only() -> None:
    # K = 576 is stored as 9 rows of tiles but takes 3 of the 256-row PE tiles, with 9 across.
    cost = gemm(576, 576, 1, TARGET, weight_bits=4, group_size=64)
    assert cost.unit_cycles - cost.lead_cycles == 27 * 64
    assert cost.stream_bytes == 576 * 576 // 2 + 9 * 576 * 2


def test_shapes_are_padded_to_tiles() -> None:
    cost = gemm(65, 1, 1, TARGET, weight_bits=16, group_size=None)
    assert cost.stream_bytes == 2 * 64 * 64 * 2
    assert (cost.blocks, cost.unit_cycles) == (1, 64 + 2 * 64)


@pytest.mark.parametrize(("m", "tile_cycles"), [(1, 64), (64, 64), (65, 65), (1000, 1000)])
def test_rows_beyond_the_shift_in_cost_time(m: int, tile_cycles: int) -> None:
    cost = gemm(256, 128, m, TARGET, weight_bits=16, group_size=None)
    assert cost.unit_cycles == 64 + 8 * tile_cycles


@pytest.mark.parametrize(("bits", "depth"), [(4, 256), (8, 128), (12, 64), (16, 64)])
def test_lanes_by_width(bits: int, depth: int) -> None:
    cost = gemm(1024, 64, 1, TARGET, weight_bits=bits, group_size=64)
    assert cost.unit_cycles == 64 + 1024 // depth * 64
    assert cost.stream_bytes == 1024 * 64 * bits // 8 + 16 * 64 * 2
    one_lane = gemm(1024, 64, 1, ONE_LANE, weight_bits=bits, group_size=64)
    assert one_lane.unit_cycles == 64 + 16 * 64


@pytest.mark.parametrize(("mantissa_bits", "depth"), [(0, 256), (2, 256), (3, 64), (10, 64)])
def test_levels_that_a_lane_does_not_take_go_to_the_full_multiplier(
    mantissa_bits: int, depth: int
) -> None:
    target = replace(TARGET, draft_mantissa_bits=2)
    facts: dict[str, int] = {"weight_bits": 4, "group_size": 64, "mantissa_bits": mantissa_bits}
    cost = gemm(1024, 64, 1, target, **facts)
    assert cost.unit_cycles == 64 + 1024 // depth * 64
    assert cost.stream_bytes == 1024 * 64 // 2 + 16 * 64 * 2
    assert tile_weight(1024, 64, target, **facts).depth == depth


def test_tile_larger_than_a_bank() -> None:
    small = replace(TARGET, weight_sram_bytes=8 * 8191)
    with pytest.raises(CostError, match=r"bank of 8191 bytes .* 64 x 64 16-bit weights \(8192 b"):
        gemm(64, 64, 1, small, weight_bits=16, group_size=None)


def test_scores_on_the_vector_unit_by_hand() -> None:
    # 4 cache heads x 1000 keys x 64 values x 2 bytes = 512,000 = 7 banks and 53,248 bytes.
    # 8 heads x 2 rows x 1002 keys x 64 multiply-adds on 64 lanes = 16,032 cycles, of which a bank
    # of keys takes 65,536 / 512,000: 2052.1.
    cost = attention_scores_on_vector(8, 4, 64, 1000, 2, TARGET)
    assert cost == StreamCost("vector", 8, 65_536, 53_248, 640, 520, 2052, 16_032 - 7 * 2052, 0, 8)
    assert attention_values_on_vector(8, 4, 64, 1000, 2, TARGET) == cost


def test_attention_on_the_array_by_hand() -> None:
    # Per cache head K^T is 96 x 130: 2 x 3 tiles; V is 130 x 96: 3 x 2. Four heads; 40 rows of
    # two queries each take 80 cycles a tile. 128 keys of 4 x 96 values are 98,304 bytes.
    scores = attention_scores_on_array(8, 4, 96, 90, 40, TARGET)
    assert scores.unit_cycles == 64 + 4 * 6 * 80
    assert scores.stream_bytes == 4 * 90 * 96 * 2
    assert (scores.unit, scores.blocks, scores.drain_cycles) == ("array", 2, 127)
    values = attention_values_on_array(8, 4, 96, 90, 40, TARGET)
    assert values == scores
    # At 128 + 1 keys of one row: 2 x 3 tiles again for K^T, at the 64 cycles of the shift-in.
    assert attention_scores_on_array(8, 4, 96, 128, 1, TARGET).unit_cycles == 64 + 24 * 64


def test_attention_without_a_past_has_no_stream() -> None:
    cost = attention_scores_on_vector(2, 2, 64, 0, 3, TARGET)
    assert (cost.blocks, cost.stream_bytes, cost.load_cycles) == (0, 0, 0)
    timing = time_step([cost.compute(None)], TARGET)
    assert timing.cycles == 2 * 3 * 3 + TARGET.vector_latency_cycles


def test_embedding_bytes() -> None:
    assert embedding_bytes(576, 3, TARGET) == 3 * 576 * 2
    # Rows of 40 bytes start at any multiple of 8 in a burst: up to two bursts each.
    assert embedding_bytes(20, 1, TARGET) == 128


def test_tied_embedding_bytes_by_hand() -> None:
    # 9 tiles along K, each with 32 bytes of four planes (a burst each); 9 scales of a burst.
    assert tied_embedding_bytes(576, 2, TARGET, group_size=64) == 2 * (9 * 4 + 9) * 64
    assert tied_embedding_bytes(576, 2, TARGET, group_size=None) == 2 * 9 * 4 * 64


def test_cache_append_bytes_by_hand() -> None:
    assert cache_append_bytes(3, 64, 5, TARGET) == 3 * 5 * 64 * 2
    # One position of 40 bytes, at any multiple of 40: up to two bursts.
    assert cache_append_bytes(1, 20, 1, TARGET) == 128


@given(st.integers(1, 100), st.integers(1, 8))
def test_append_touches_at_most_these_bursts(head_dim: int, m: int) -> None:
    piece = head_dim * 2

    def bursts(position: int) -> int:
        first, last = position * piece // 64, ((position + m) * piece - 1) // 64
        return last - first + 1

    worst = max(bursts(position) for position in range(64))
    assert cache_append_bytes(1, head_dim, m, TARGET) == 64 * worst


DIMENSIONS = st.integers(1, 5000)
GROUPS = st.sampled_from([None, 32, 64, 128, 96])


@settings(deadline=None)
@given(DIMENSIONS, DIMENSIONS, st.integers(1, 300), st.sampled_from([4, 8, 12, 16]), GROUPS)
def test_gemm_properties(k: int, n: int, m: int, bits: int, group: int | None) -> None:
    def cost(k: int, n: int, m: int) -> StreamCost:
        return gemm(k, n, m, TARGET, weight_bits=bits, group_size=group)

    here = cost(k, n, m)
    assert here.block_bytes <= TARGET.weight_bank_bytes
    assert here.last_block_bytes <= TARGET.weight_bank_bytes
    assert here.stream_bytes * 8 >= k * n * bits
    assert here.unit_cycles >= k * n * m * bits / (64 * 64 * 16)
    for larger in cost(k + 1, n, m), cost(k, n + 1, m), cost(k + 64, n + 64, m + 64):
        assert larger.stream_bytes >= here.stream_bytes
        assert larger.unit_cycles >= here.unit_cycles
    more_rows = cost(k, n, m + 1)
    assert more_rows.stream_bytes == here.stream_bytes
    assert more_rows.unit_cycles >= here.unit_cycles


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), DIMENSIONS, st.integers(1, 100))
def test_attention_properties(kv_heads: int, group: int, past: int, m: int) -> None:
    heads = kv_heads * group
    for cost in (
        attention_scores_on_vector,
        attention_scores_on_array,
        attention_values_on_vector,
        attention_values_on_array,
    ):
        here = cost(heads, kv_heads, 64, past, m, TARGET)
        longer = cost(heads, kv_heads, 64, past + 1, m, TARGET)
        assert here.stream_bytes == kv_heads * past * 64 * 2
        assert max(here.block_bytes, here.last_block_bytes) <= TARGET.weight_bank_bytes
        assert longer.unit_cycles >= here.unit_cycles
        assert cost(heads, kv_heads, 64, past, m + 1, TARGET).unit_cycles >= here.unit_cycles


@dataclass(frozen=True)
class Step:
    """One decoding step of Llama-2-7B by its matrix products and KV cache alone."""

    target: Target
    bits: int
    group: int | None
    past: int

    def time(self) -> StepTiming:
        ops: list[Op] = []
        last: tuple[int, ...] = ()
        for _ in range(32):
            for n in (4096, 4096, 4096):
                result = self.append(ops, self.gemm(4096, n), last)
            last = (result,)
            shape = 32, 32, 128, self.past, 1, self.target
            last = (self.append(ops, attention_scores_on_vector(*shape), last),)
            last = (self.append(ops, attention_values_on_vector(*shape), last),)
            last = (self.append(ops, self.gemm(4096, 4096), last),)
            self.append(ops, self.gemm(4096, 11_008), last)
            last = (self.append(ops, self.gemm(4096, 11_008), last),)
            last = (self.append(ops, self.gemm(11_008, 4096), last),)
        self.append(ops, self.gemm(4096, 32_000), last)
        return time_step(ops, self.target)

    def gemm(self, k: int, n: int) -> StreamCost:
        return gemm(k, n, 1, self.target, weight_bits=self.bits, group_size=self.group)

    def append(self, ops: list[Op], cost: StreamCost, after: tuple[int, ...]) -> int:
        ops += [cost.load(), cost.compute(len(ops), after)]
        return len(ops) - 1


WEIGHTS = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008) + 4096 * 32_000
# 13.21 GB of weights and 512 KiB of cache per position at 51.2 GB/s, no bubble: 268.6 ms.
FULL_SECONDS = (WEIGHTS * 2 + 512 * 1024 * 1024) / 51.2e9


@pytest.mark.parametrize("group", [None, 128])
def test_full_step_of_llama_2_7b(group: int | None) -> None:
    timing = Step(TARGET, 16, group, 1024).time()
    assert TARGET.seconds(timing.cycles) == pytest.approx(FULL_SECONDS, rel=0.05)
    assert TARGET.seconds(timing.cycles) > FULL_SECONDS
    assert {op.bound for op in timing.ops} == {"dram"}


@pytest.mark.parametrize(("past", "ratio"), [(256, 0.265), (1024, 0.287), (2048, 0.314)])
def test_draft_step_of_llama_2_7b(past: int, ratio: float) -> None:
    full = Step(TARGET, 16, None, past).time()
    draft = Step(TARGET, 4, 128, past).time()
    assert draft.cycles / full.cycles == pytest.approx(ratio, rel=0.05)
    assert {op.bound for op in draft.ops} == {"dram"}


def test_one_lane_draft_is_bound_by_the_array() -> None:
    draft = Step(ONE_LANE, 4, 128, 1024).time()
    gemms = [op for op in draft.ops if op.bound == "array"]
    assert len(gemms) == 32 * 7 + 1
    # A tile of 64 x 64 weights takes 64 cycles whatever their width.
    assert draft.cycles > draft.array_busy_cycles > WEIGHTS / (64 * 64) * 64
    full = Step(ONE_LANE, 16, None, 1024).time()
    assert draft.cycles / full.cycles > 0.75
