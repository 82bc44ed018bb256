"""Set one product of matrices beside SCALE-Sim and ZigZag, and explain each difference in cycles.

    python benchmarks/compare_simulators.py [--large]

All three get a weight-stationary array of 64 x 64, 16-bit words and the same DRAM bandwidth; see
`other_simulators.py` for the packages that are needed and for the configurations. The first table
has what the simulators report. The second derives each total again as a sum of named parts
(`simulator_parts.py`), so that a line `A - speqc` says where the two differ: speqc and SCALE-Sim
from the shapes, ZigZag from the mapping that it chose and its durations of single moves. The last
column is what the parts leave unexplained, and if that is not 0 anywhere, the exit code is 1.

Two cases of 4096 x 4096 weights are run by speqc and ZigZag; with `--large` by SCALE-Sim too,
which takes many minutes and 5 GB. Without it their SCALE-Sim lines are derived only. The last line
says how long speqc and ZigZag take for the linear layers of a Llama-2-7B step, each shape once.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

from other_simulators import Measured, check_packages, run_scale_sim, run_zigzag
from simulator_parts import (
    PART_NAMES,
    WORD_BYTES,
    Gemm,
    Parts,
    scale_sim_parts,
    scale_sim_stalls,
    speqc_array_cycles,
    speqc_parts,
    zigzag_parts,
)

from speqc.runtime import costs
from speqc.runtime.timing import time_step

CASES = (
    Gemm(1024, 1024, 1),
    Gemm(1024, 512, 9),
    Gemm(512, 512, 128),
    Gemm(300, 200, 5),
    Gemm(1000, 520, 3),
    Gemm(512, 1024, 1, words_per_cycle=12),
    Gemm(512, 512, 1, scale_sim_kib=512),
)
LARGE = Gemm(4096, 4096, 1), Gemm(4096, 4096, 9)
RUNS = 9
# Query, key, value and output; gate and up; down; head.
LLAMA_2_7B = ((4096, 4096), (4096, 11008), (11008, 4096), (4096, 32000))


@dataclass(frozen=True)
class Line:
    """One simulator's result on one product, and the parts that explain it.

    ``measured`` is None where the simulator was not run.
    """

    simulator: str
    measured: Measured | None
    parts: Parts

    @property
    def unexplained(self) -> int | None:
        """Cycles that the simulator reports beyond the sum of the parts."""
        return None if self.measured is None else self.measured.total_cycles - self.parts.total


def main() -> None:
    """Run all cases and print both tables."""
    parser = argparse.ArgumentParser(description="Compare with SCALE-Sim and ZigZag.")
    parser.add_argument("--large", action="store_true", help="run SCALE-Sim on 4096 x 4096 too")
    options = parser.parse_args()
    check_packages()
    results: list[tuple[Gemm, list[Line]]] = []
    for gemm in CASES + LARGE:
        print(f"{describe(gemm)} ...", file=sys.stderr, flush=True)
        results.append((gemm, compare(gemm, gemm in CASES or options.large)))
    print("\n".join([*reported_table(results), "", *parts_table(results), "", *step_lines()]))
    if any(line.unexplained for _, lines in results for line in lines):
        raise SystemExit(1)


def compare(gemm: Gemm, with_scale_sim: bool) -> list[Line]:
    """Run a product on all simulators."""
    scale_sim = run_scale_sim(gemm) if with_scale_sim else None
    zigzag, mapping = run_zigzag(gemm)
    return [
        Line("speqc", run_speqc(gemm), speqc_parts(gemm)),
        Line("SCALE-Sim", scale_sim, scale_sim_parts(gemm)),
        Line("ZigZag", zigzag, zigzag_parts(mapping)),
    ]


def run_speqc(gemm: Gemm) -> Measured:
    """Time the product with our own model: one load of weights and its consumer.

    The seconds are the median of several runs, as one takes less than a millisecond.
    """
    target = gemm.target()

    def timed() -> tuple[float, int, int]:
        start = time.perf_counter()
        cost = costs.gemm(gemm.k, gemm.n, gemm.m, target, weight_bits=16, group_size=None)
        timing = time_step([cost.load(), cost.compute(0)], target)
        return time.perf_counter() - start, timing.cycles, cost.stream_bytes

    seconds, cycles, size = zip(*(timed() for _ in range(RUNS)), strict=True)
    return Measured(speqc_array_cycles(gemm), cycles[0], size[0], statistics.median(seconds))


def step_lines() -> list[str]:
    """How long the linear layers of a Llama-2-7B step take to time, one of each shape, M = 1."""
    shapes = [Gemm(k, n, 1) for k, n in LLAMA_2_7B]
    own = sum(run_speqc(gemm).seconds for gemm in shapes)
    zigzag = sum(run_zigzag(gemm)[0].seconds for gemm in shapes)
    return [
        f"linear layers of Llama-2-7B, M = 1, {len(shapes)} shapes: "
        f"speqc {own * 1e3:.2f} ms, ZigZag {zigzag:.1f} s"
    ]


def describe(gemm: Gemm) -> str:
    """Name a product and what is unusual about its memory."""
    name = f"{gemm.k} x {gemm.n}, M = {gemm.m}"
    if gemm.words_per_cycle != Gemm.words_per_cycle:
        name += f", {gemm.words_per_cycle} words/cycle"
    if gemm.scale_sim_kib != Gemm.scale_sim_kib:
        name += f", {gemm.scale_sim_kib} KiB"
    return name


def reported_table(results: list[tuple[Gemm, list[Line]]]) -> list[str]:
    """What each simulator reports."""
    rows = [
        "| weights, rows | simulator | array alone | stall | total cycles | MB of weights | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for gemm, lines in results:
        for line in lines:
            measured = line.measured or derived(gemm, line.parts)
            seconds = f"{measured.seconds * 1e3:.3g}" if line.measured else "not run"
            values = (
                describe(gemm),
                line.simulator,
                f"{measured.array_cycles:,}",
                f"{measured.total_cycles - measured.array_cycles:,}",
                f"{measured.total_cycles:,}",
                f"{measured.weight_bytes / 1e6:.2f}",
                seconds,
            )
            rows.append(f"| {' | '.join(values)} |")
    return rows


def derived(gemm: Gemm, parts: Parts) -> Measured:
    """What SCALE-Sim's rules give where it was not run."""
    stalls = scale_sim_stalls(gemm)
    array_cycles = parts.total - stalls.waits - stalls.counted_again
    return Measured(array_cycles, parts.total, stalls.words_read * WORD_BYTES, 0.0)


def parts_table(results: list[tuple[Gemm, list[Line]]]) -> list[str]:
    """The parts of each total, and the differences to our model part by part."""
    names = (name.replace("_", " ") for name in PART_NAMES)
    header = ("weights, rows", "cycles", *names, "sum", "unexplained")
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for gemm, lines in results:
        own = lines[0].parts
        for line in lines:
            unexplained = "not run" if line.unexplained is None else f"{line.unexplained:,}"
            values = [f"{value:,}" for value in (*line.parts.values(), line.parts.total)]
            rows.append(row(gemm, line.simulator, [*values, unexplained]))
        for line in lines[1:]:
            pairs = zip(line.parts.values(), own.values(), strict=True)
            differences = [theirs - ours for theirs, ours in pairs]
            values = [f"{value:+,}" for value in (*differences, sum(differences))]
            rows.append(row(gemm, f"{line.simulator} - speqc", [*values, ""]))
    return rows


def row(gemm: Gemm, name: str, values: list[str]) -> str:
    """A row of the second table."""
    return f"| {' | '.join([describe(gemm), name, *values])} |"


if __name__ == "__main__":
    main()
