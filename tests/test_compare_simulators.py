"""The closed forms by which a benchmark sets our model beside other simulators."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    """Import a module of the folder of benchmarks, which is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


parts = load("simulator_parts")
compare = load("compare_simulators")

SIZES = st.integers(1, 1500)


@settings(deadline=None)
@given(SIZES, SIZES, st.integers(1, 300), st.integers(1, 300))
def test_parts_of_our_model_sum_to_its_time(k: int, n: int, m: int, words: int) -> None:
    gemm = parts.Gemm(k, n, m, words_per_cycle=words)
    measured = compare.run_speqc(gemm)
    assert parts.speqc_parts(gemm).total == measured.total_cycles
    free = parts.Gemm(k, n, m, words_per_cycle=10**9)
    latency = free.target().dram_latency_cycles
    # The first block still takes the one cycle that a transfer is rounded up to.
    assert parts.speqc_array_cycles(gemm) == compare.run_speqc(free).total_cycles - latency - 1


def test_a_scale_sim_fold_is_2r_plus_c_plus_m_minus_2() -> None:
    # One tile, all of it in the buffer before cycle 0: 2 * 64 + 64 + 5 - 2 cycles, from 0 to 194.
    assert parts.scale_sim_parts(parts.Gemm(64, 64, 5)).total == 194
    assert parts.scale_sim_parts(parts.Gemm(128, 65, 5)).total == 4 * 195 - 1


def test_scale_sim_counts_a_wait_twice() -> None:
    # 400 KiB are 204,800 words: half of them are 25 tiles, the other half the next 25. The 26th
    # tile starts at cycle 25 * 191 and needs a refill of ceil(102,400 / 4) + 1 cycles that began in
    # cycle -1; a word takes a cycle more to get there.
    gemm = parts.Gemm(64, 64 * 26, 1, words_per_cycle=4)
    wait = 25_601 - 1 - (25 * 191 + 1)
    assert parts.scale_sim_stalls(gemm) == parts.ScaleSimStalls(wait, wait, 2 * 102_400)
    assert parts.scale_sim_parts(gemm).total == 26 * 191 - 1 + 2 * wait
    plenty = parts.scale_sim_stalls(parts.Gemm(64, 64 * 25, 1, words_per_cycle=4))
    assert plenty == parts.ScaleSimStalls(0, 0, 102_400)


def test_zigzag_is_as_slow_as_the_slowest_link() -> None:
    by_array = parts.ZigZagMapping(2, 100, 16, 64, 16, 127)
    # 16 shift-ins of 64, the row of the last tile, and the first block before everything.
    assert parts.zigzag_parts(by_array).total == 100 + 16 * 64 + 1 + 127
    assert by_array.array_cycles == 16 * 64 + 1 + 127
    by_dram = parts.ZigZagMapping(2, 1286, 16, 64, 16, 127)
    # Two blocks, the first shift-in and the rows of the last block's eight tiles.
    assert parts.zigzag_parts(by_dram).total == 2 * 1286 + 64 + 8 + 127


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    others = load("other_simulators")
    monkeypatch.setitem(sys.modules, "scalesim", None)
    monkeypatch.setitem(sys.modules, "six", ModuleType("six"))
    with pytest.raises(SystemExit, match="pip install scalesim"):
        others.check_packages()
