"""Set simulated speedups beside arithmetic on bytes, and measure how fast shapes are timed.

    python benchmarks/shapes.py figures [--target speq-64x64] [--json FILE]
    python benchmarks/shapes.py speed [SHAPE ...]

`figures`: Llama-2-7B, code book `paper` with groups of 128, the head drafted too, a context that is
held fixed, an acceptance of 0.976 for each drafted token, no early exits. For each context and
draft length it prints the simulated speedup over FP16 in the steady state (the mean tokens of a
round, one by one, over its drafted passes and the one that verifies), what the bytes alone give,
and the difference.

`speed`: for each shape, by default all, seconds to compile it without weights, milliseconds to time
one decode step with a timer that knows the program (in all, and op by op), and seconds for a
generation of 1,024 tokens behind as many: plain, and drafted with the expectation over all rounds.
Times are wall times, of generations also processor times, which say more on a machine with other
work; the load average is given.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from xdsl.dialects.builtin import ModuleOp

from speqc.compile import CompileOptions
from speqc.compile_shape import compile_shape
from speqc.dialects.speq import CacheOp, WeightOp
from speqc.replay import Replay
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import Target
from speqc.shape_files import load_shape, shipped_shapes
from speqc.simulate import expected_fields
from speqc.steady_state import RoundCost, round_cost
from speqc.target_files import DEFAULT_TARGET, load_target

ACCEPTANCE = 0.976
CONTEXTS = (256, 1024, 2048, 4096)
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
GROUP = 128
TOKENS = 1024


class Figure(NamedTuple):
    """Speedup over FP16 for a context and a draft length: simulated, and by the bytes alone."""

    context: int
    draft_length: int
    simulated: float
    by_bytes: float

    @property
    def difference(self) -> float:
        """How much more the simulation gives, as a share."""
        return self.simulated / self.by_bytes - 1


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Check figures and speed of shapes.")
    commands = parser.add_subparsers(dest="command", required=True)
    figures = commands.add_parser("figures", help="speedups beside arithmetic on bytes")
    figures.add_argument("--target", default=DEFAULT_TARGET)
    figures.add_argument("--json", type=Path)
    speed = commands.add_parser("speed", help="how long compiling and timing take")
    speed.add_argument("shapes", nargs="*", metavar="SHAPE")
    options = parser.parse_args()
    if options.command == "speed":
        print_speed(options.shapes or shipped_shapes())
        return
    found = list(check_figures(load_target(options.target)))
    print_figures(found)
    if options.json:
        options.json.write_text(json.dumps([figure._asdict() for figure in found], indent=2) + "\n")


def check_figures(target: Target) -> Iterator[Figure]:
    """All figures on a target."""
    program = compile_shape(load_shape("llama-2-7b"), CompileOptions(target, "paper", GROUP))
    timer = ProgramTimer(program)
    for context in CONTEXTS:
        for length in LENGTHS:
            full = timer.cost("full", 1, context).cycles
            plain, drafted = seconds_by_bytes(program, target, context)
            yield Figure(
                context,
                length,
                round_cost(timer, context, length).speedup(full, ACCEPTANCE),
                RoundCost(length, drafted, plain).speedup(plain, ACCEPTANCE),
            )


def seconds_by_bytes(program: ModuleOp, target: Target, context: int) -> tuple[float, float]:
    """A full and a draft step, if nothing counts but the bytes of weights and cache.

    A draft step takes at least the cycles of its tiles on the array, of the weights alone.
    """
    values = sum(
        op.shape[0] * op.shape[1] for op in program.ops if isinstance(op, WeightOp) and op.is_split
    )
    cache = sum(
        2 * op.heads.value.data * (op.key_dim.value.data + op.value_dim.value.data)
        for op in program.ops
        if isinstance(op, CacheOp)
    )
    bandwidth = target.dram_bytes_per_second
    full = (2 * values + context * cache) / bandwidth
    draft = (values * (0.5 + 2 / GROUP) + context * cache) / bandwidth
    tiles = values / (target.array_rows * target.draft_lanes * target.array_columns)
    return full, max(draft, tiles * target.array_rows / target.clock_hz)


def print_figures(figures: list[Figure]) -> None:
    """A row for each context: simulated / by the bytes, and the difference."""
    print(f"| S \\ L | {' | '.join(map(str, LENGTHS))} |")
    print("|---" * (len(LENGTHS) + 1) + "|")
    for context in CONTEXTS:
        cells = [
            f"{figure.simulated:.2f} / {figure.by_bytes:.2f} ({figure.difference:+.1%})"
            for figure in figures
            if figure.context == context
        ]
        print(f"| {context} | {' | '.join(cells)} |")


def print_speed(names: list[str] | tuple[str, ...]) -> None:
    """A row for each shape."""
    print("| shape | compile | step | step, op by op | 1,024 tokens (CPU) | drafted (CPU) | load |")
    print("|---|---|---|---|---|---|---|")
    # The first shape also pays for imports and for compiling the kernels of the host.
    compile_shape(load_shape("llama-3.2-3b"), CompileOptions(load_target(DEFAULT_TARGET)))
    for name in names:
        load = os.getloadavg()[0]
        start = time.perf_counter()
        program = compile_shape(load_shape(name), CompileOptions(load_target(DEFAULT_TARGET)))
        compiled = time.perf_counter() - start
        timer = ProgramTimer(program)
        timer.cost("full", 1, TOKENS)
        timer.time("full", 1, TOKENS)
        step, _ = seconds(lambda timer=timer: timer.cost("full", 1, TOKENS + 1))
        listed, _ = seconds(lambda timer=timer: timer.time("full", 1, TOKENS + 1))
        plain = seconds(lambda program=program: plain_generation(program))
        drafted = seconds(lambda program=program: drafted_generation(program))
        print(
            f"| {name} | {compiled:.1f} s | {1e3 * step:.1f} ms | {1e3 * listed:.0f} ms "
            f"| {plain[0]:.2f} s ({plain[1]:.2f}) | {drafted[0]:.2f} s ({drafted[1]:.2f}) "
            f"| {load:.1f} |",
            flush=True,
        )


def plain_generation(program: ModuleOp) -> None:
    """Time one pass for each token, behind a cache that grows."""
    timer = ProgramTimer(program)
    for place in range(TOKENS):
        timer.cost("full", 1, TOKENS + place)


def drafted_generation(program: ModuleOp) -> None:
    """The report of `speqc simulate --acceptance`, plain decoding and prompt included."""
    run = Replay("autoregressive", TOKENS, TOKENS, (), None)
    expected_fields(program, run, ACCEPTANCE, 8)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
